// What the bindings, the run-time dispatch and the per-ISA kernels share: plain structures of raw pointers.
#pragma once

#include <cstdint>

namespace openwork {

class Sortings;

// A sparse matrix as openwork.Pattern stores it; everything is the caller's memory and nothing in it is trusted.
struct Stored {
    const float* values;     // [stored][height]; null where only the positions count
    const int32_t* order;    // [stored] or null: column k's values are values[order[k]]; only for height 1
    const int32_t* rows;     // [groups][height], -1 = padding; null = the identity
    const int32_t* offsets;  // [groups + 1]
    const int32_t* columns;  // [stored]
    int64_t n_rows, n_columns, groups, height, stored;
    Sortings* sortings = nullptr;  // where convolutions keep how they sorted the columns; null: they do not
};

// A matrix of height 1 that cut() has cut into windows of columns (segments.hpp).  It is trusted no more than the pattern itself.
struct Segments {
    const float* values;       // non-zero k's is values[order[k]]
    const int32_t* order;      // [stored]
    const int32_t* offsets;    // [windows * n_rows + 1]
    const uint16_t* columns;   // [stored]
    int64_t n_rows, n_columns, stored;
    int64_t width;             // columns in a window
};

using BFloat16 = uint16_t;  // its bits: the upper half of a float's

constexpr int64_t kBatchLanes = 16;  // images or samples that lie side by side

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

// An activation in the blocked layout [ceil(batch / 16)][height][channels][width][16], which may exist as a formula only:
//     r = a[c] * x' + b[c] * y + shift[c],   x' = x where its gate is open, else 0,
// and of that the positive part (relu), or what lies where `keep` is positive.  All tensors have the same shape; a, b and shift are
// one number for each channel.  Lanes of images beyond the batch hold anything.  Whatever T, it is computed in float.
template <typename T>
struct LazyOf {
    const T* x;
    const T* y;                // null: no second term
    const T* gate;             // x counts where this is positive; null: everywhere
    const T* keep;             // null: everywhere
    const float *a, *b;        // null: 1; a null b is 0 where y opens the gate
    const float* shift;        // null: 0
    const float *open_scale, *open_shift;  // x counts where open_scale[c] * y + open_shift[c] is positive; null: everywhere
    bool relu;
};
using Lazy = LazyOf<float>;

// What a convolution reads: NCHW, or a blocked activation if `plain` is null.
template <typename T>
struct ActivationOf {
    const T* plain;
    LazyOf<T> lazy;

    bool given() const { return plain != nullptr || lazy.x != nullptr; }
    bool blocked() const { return plain == nullptr && lazy.x != nullptr; }
};
using Activation = ActivationOf<float>;

// What a convolution writes: NCHW or blocked, or nothing.
template <typename T>
struct ResultOf {
    T* plain;
    T* blocked;
    float* moments;  // of blocked results: [panel][line][channel] x (mean, sum of squared distances from it); null: not wanted

    bool given() const { return plain != nullptr || blocked != nullptr; }
};
using Result = ResultOf<float>;

struct Shape {
    int64_t batch, channels, height, width;
};

// Batch norm over a blocked activation.  What is null is not there.
struct Norm {
    const float *weight, *bias;
    float *running_mean, *running_var;
    double momentum, eps;
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

// What is done to blocked activations of floats or bfloat16s.
template <typename T>
struct BlockedKernels {
    // An activation from one layout to the other, or from a formula to numbers, of either type.
    Failure (*to_floats)(const Shape&, const ActivationOf<T>& from, const ResultOf<float>& to, int threads);
    Failure (*to_bf16)(const Shape&, const ActivationOf<T>& from, const ResultOf<BFloat16>& to, int threads);
    // The moments of every line of a blocked tensor, as convolutions write them.
    void (*line_moments)(const Shape&, const T* x, float* moments, int threads);
    // sums: [panel][line][channel] x (sum of g, sum of g * (x - mean)).
    void (*gradient_sums)(const Shape&, const LazyOf<T>& g, const T* x, const float* mean, float* sums, int threads);
    // taps: of every output the number of the tap that was the largest, -1 where the window lies in the padding.
    void (*max_pool)(const Image& window, int64_t channels, const LazyOf<T>& x, T* y, float* taps, int threads);
    Failure (*max_pool_backward)(const Image& window, int64_t channels, const LazyOf<T>& g, const float* taps, T* dx, int threads);
};

struct Kernels {
    const char* isa;
    Failure (*linear_forward)(const Stored&, const float* x, const float* bias, float* y, int64_t batch, int threads);
    // A null dx or dw is not computed; dw needs x.
    Failure (*linear_backward)(const Stored&, const float* g, const float* x, float* dx, float* dw, int64_t batch, int threads);
    Failure (*segments_forward)(const Segments&, const float* x, const float* bias, float* y, int64_t batch, int threads);
    // A null dx or dw is not computed; dw needs x and the weight, dx its transposition.
    Failure (*segments_backward)(const Segments& weight, const Segments& turned, const float* g, const float* x, float* dx, float* dw,
                                 int64_t batch, int threads);
    Failure (*conv_forward)(const Stored&, const Image&, const Activation& x, const float* bias, const Result& y, int threads);
    // A dx or dw that is not given is not computed; dw needs x.
    Failure (*conv_backward)(const Stored&, const Image&, const Activation& g, const Activation& x, const Result& dx, float* dw, int threads);
    BlockedKernels<float> blocked;
    BlockedKernels<BFloat16> blocked_bf16;
    // Adds to common[n_rows][n_rows] how many of the columns first_column.. every two rows share; bits is [n_rows][words],
    // scratch for 64 columns a word.
    void (*common_columns)(const Positions&, uint64_t* bits, int64_t words, int64_t first_column, float* common, int threads);
    // Nearest-neighbour chains over distance[n][n], which is used up.
    Failure (*merges)(float* distance, int64_t n, bool complete, const Merges&);
    // As for floats, with float weights, bias and dw; null where the build has no bfloat16 instructions.
    Failure (*linear_forward_bf16)(const Stored&, const BFloat16* x, const float* bias, BFloat16* y, int64_t batch, int threads);
    Failure (*linear_backward_bf16)(const Stored&, const BFloat16* g, const BFloat16* x, BFloat16* dx, float* dw, float* db, int64_t batch,
                                      int threads);
    Failure (*conv_forward_bf16)(const Stored&, const Image&, const ActivationOf<BFloat16>& x, const float* bias, const ResultOf<BFloat16>& y,
                                 int threads);
    Failure (*conv_backward_bf16)(const Stored&, const Image&, const ActivationOf<BFloat16>& g, const ActivationOf<BFloat16>& x,
                                  const ResultOf<BFloat16>& dx, float* dw, int threads);
    // The sum of each run of `pixels`, of which there are `planes`.
    void (*plane_sums_bf16)(const BFloat16* x, int64_t planes, int64_t pixels, float* sums_out, int threads);
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

}  // namespace openwork
