// What the bindings, the run-time dispatch and the per-ISA kernels share: plain structures of raw pointers.
#pragma once

#include <cstdint>

namespace openwork {

// A sparse matrix as openwork.Pattern stores it; everything is the caller's memory and nothing in it is trusted.
struct Stored {
    const float* values;     // [stored][height]; null where only the positions count
    const int32_t* order;    // [stored] or null: column k's values are values[order[k]]; only for height 1
    const int32_t* rows;     // [groups][height], -1 = padding; null = the identity
    const int32_t* offsets;  // [groups + 1]
    const int32_t* columns;  // [stored]
    int64_t n_rows, n_columns, groups, height, stored;
};

struct Image {
    int64_t batch, height, width;                        // of the convolution's input
    int64_t kernel_h, kernel_w, stride_h, stride_w;
    int64_t pad_h, pad_w, dilation_h, dilation_w;        // padding may be negative: that many lines or pixels are cut off

    int64_t taps() const { return kernel_h * kernel_w; }
    int64_t span_h() const { return dilation_h * (kernel_h - 1) + 1; }
    int64_t span_w() const { return dilation_w * (kernel_w - 1) + 1; }
    int64_t out_height() const { return (height + 2 * pad_h - span_h()) / stride_h + 1; }
    int64_t out_width() const { return (width + 2 * pad_w - span_w()) / stride_w + 1; }
};

// Non-zeros of a matrix, and the panel of consecutive rows of it that is looked at; positions outside the panel are passed over.
struct Positions {
    const int64_t* flat;  // [count], row * n_columns + column, in any order
    int64_t count, n_columns, first_row, n_rows;
};

// The n - 1 merges of n rows in the order they are found: rows one[k] and other[k] meet at the distance at[k].
struct Merges {
    float* at;
    int32_t *one, *other;
    float* size;                      // [n], scratch like the rest
    int32_t *left, *place, *chain;    // [n]
};

// Every kernel returns null, or what was wrong with its input; in that case its outputs are undefined.
using Failure = const char*;

struct Kernels {
    const char* isa;
    Failure (*linear_forward)(const Stored&, const float* x, const float* bias, float* y, int64_t batch, int threads);
    // A null dx or dw is not computed; dw needs x.
    Failure (*linear_backward)(const Stored&, const float* g, const float* x, float* dx, float* dw, int64_t batch, int threads);
    // A matrix of height 1 that cut() has cut into windows of columns.
    Failure (*segments_forward)(const Stored&, const float* x, const float* bias, float* y, int64_t batch, int threads);
    Failure (*conv_forward)(const Stored&, const Image&, const float* x, const float* bias, float* y, int threads);
    Failure (*conv_backward)(const Stored&, const Image&, const float* g, const float* x, float* dx, float* dw, int threads);
    // Adds to common[n_rows][n_rows] how many of the columns first_column.. every two rows share; bits is [n_rows][words],
    // scratch for 64 columns a word.
    void (*common_columns)(const Positions&, uint64_t* bits, int64_t words, int64_t first_column, float* common, int threads);
    // Nearest-neighbour chains over distance[n][n], which is used up.
    Failure (*merges)(float* distance, int64_t n, bool complete, const Merges&);
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

}  // namespace openwork
