// The gradients of a convolution whose input is a blocked tensor that is read where it is.  Of the input's gradient only the lines
// that an output line adds to exist, in a ring.
#pragma once

#include "conv_plan.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

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

// Adds the weight gradients of output lines [h, h + count), which read the same taps; the windows of the first begin at `in`.
OW_INLINE void add_dots_in_place(const Plan& p, const Sorted& s, const Edges& edges, int64_t h, Places places, const float* in,
                                 const float* out, LinesAhead& ahead, float* dw) {
    const Range lines = taps_of_line(p.image, h);
    if (lines.empty()) return;
    const Lowered a = s.range(0, lines.from * p.image.kernel_w, lines.to * p.image.kernel_w);
    const int64_t begin = edges.left * kBatchLanes, block = kDotTiles.of_four, all = (s.a.offsets[a.groups] - s.a.offsets[0]) / block + a.groups;
    int64_t part = 0;
    for (int64_t g = 0; g < a.groups; ++g) {
        for (int64_t k = a.offsets[g]; k < a.ends[g]; k += block) {
            ahead.fetch(part++, all);
            dot_group(a, g, k, least<int64_t>(k + block, a.ends[g]), in + begin, out + begin, places, dw);
        }
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
