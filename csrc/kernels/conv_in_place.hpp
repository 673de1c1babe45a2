// Convolutions whose input is a blocked tensor that is read where it is: what they need beside a plan.  Of the input's gradient only
// the lines that an output line adds to exist, in a ring.
#pragma once

#include "conv_plan.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kDotRows = 4;  // whose weight gradients are computed between two fetches of what is read next

// The rows of a matrix, group by group, and then those in no group.
struct Grouped {
    const int32_t *rows, *bounds;  // [n_rows], and where each group's begin
    int64_t count(int64_t from, int64_t to) const { return bounds[to] - bounds[from]; }
};

OW_INLINE int64_t grouped_bytes(const Stored& m) { return (m.n_rows + m.groups + 2) * 4 + 128; }

OW_INLINE Grouped make_grouped(const Stored& m, const Lowered& a, int64_t row_stride, Memory& memory) {
    int32_t* rows = memory.take<int32_t>(m.n_rows);
    int32_t* bounds = memory.take<int32_t>(m.groups + 2);
    int32_t n = 0;
    for (int64_t g = 0; g < m.groups; ++g) {
        bounds[g] = n;
        for (int64_t i = g * m.height; i < (g + 1) * m.height; ++i) {
            if (a.rows[i] >= 0) rows[n++] = static_cast<int32_t>(a.rows[i] / row_stride);
        }
    }
    bounds[m.groups] = n;
    for (int64_t i = 0; i < a.n_missing; ++i) rows[n++] = a.missing[i];
    bounds[m.groups + 1] = n;
    return {rows, bounds};
}

// Where the columns of a matrix lie in a ring of lines.
struct Ring {
    const int32_t* columns;  // [lines][stored]: for windows that begin at each line of the ring
    int64_t lines, stored;

    Sorted from(const Sorted& a, int64_t line) const {
        Sorted turned = a;
        turned.a.columns = columns + line % lines * stored;
        return turned;
    }
};

OW_INLINE int64_t in_place_bytes(const Stored& m, const Image& image) { return (image.span_h() + 1) * m.stored * 4 + 256; }

OW_INLINE Ring make_ring(const Stored& m, const Image& image, const SlabShape& s, const Sorted& a, Memory& memory) {
    const int64_t lines = image.span_h(), stride = slab_line(s);
    int32_t* columns = memory.take<int32_t>(lines * m.stored);
    for (int64_t k = 0; k < m.stored; ++k) {
        const int64_t line = a.ids[k] % image.taps() / image.kernel_w * image.dilation_h;
        for (int64_t first = 0; first < lines; ++first) {
            columns[first * m.stored + k] = static_cast<int32_t>(a.a.columns[k] + ((first + line) % lines - line) * stride);
        }
    }
    return {columns, lines, m.stored};
}

OW_INLINE Edges make_edges(const Stored& m, const Image& image, const Sorted& a, Memory& memory) {
    int32_t* shifts = memory.take<int32_t>(m.stored);
    for (int64_t k = 0; k < m.stored; ++k) {
        shifts[k] = static_cast<int32_t>(a.ids[k] % image.kernel_w * image.dilation_w - image.pad_w);
    }
    const int64_t width = image.out_width(), left = least(image.pad_w, width);
    return {a.a.columns, shifts, left, most(left, width - image.pad_w), width, image.width};
}

// Adds the weight gradients that output line h makes, whose windows begin at `in`.
OW_INLINE void add_dots_in_place(const Plan& p, const Sorted& s, const Edges& edges, int64_t h, const Places& places, const float* in,
                                 const float* out, Meanwhile& ahead, float* dw) {
    const Range lines = taps_of_line(p.image, h);
    if (lines.empty() || s.a.groups == 0) return;
    const Lowered a = s.range(0, lines.from * p.image.kernel_w, lines.to * p.image.kernel_w);
    const int64_t block = kDotTiles.of_four, blocks = (a.ends[a.groups - 1] - a.offsets[0]) / block + a.groups;
    const int64_t fetches = (a.height + kDotRows - 1) / kDotRows;
    in += edges.left * kBatchLanes, out += edges.left * kBatchLanes;
    int64_t part = 0;
    for (int64_t g = 0; g < a.groups; ++g) {
        const int32_t* rows = a.rows + g * a.height;
        for (int64_t k = a.offsets[g]; k < a.ends[g]; k += block) {
            const int64_t count = least<int64_t>(block, a.ends[g] - k);
            for (int64_t r = 0; r < a.height && g < a.full_groups; r += kDotRows) {
                ahead.fetch(part++, blocks * fetches);
                dot_rows(a, a.columns + k, count, rows, r, least(r + kDotRows, a.height), in, out, places, dw + k * a.height);
            }
            if (g >= a.full_groups) dot_group(a, g, k, k + count, in, out, places, dw);
        }
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
