// What every convolution works out before it begins: the shapes of its slabs, and where its taps lie in them.
#pragma once

#include "slab.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kSpareLines = 4;  // of a window, so that it seldom has to be moved

// Images that lie side by side: no more than a small batch fills.  Not fewer for more threads, so that no sum depends on those.
OW_INLINE int64_t batch_lanes(int64_t batch) {
    int64_t lanes = kBatchLanes;
    while (lanes > 1 && lanes / 2 >= batch) lanes /= 2;
    return lanes;
}

struct Shapes {
    int64_t lanes, panels, out_height, vectors;  // vectors of floats in one output line of a channel
    SlabShape in, out;
};

// `unit` elements are computed at a time, or a divisor of that; a cache line has as many.
OW_INLINE Shapes shapes(const Stored& m, const Image& image, int64_t lanes, int64_t unit, bool plain_in, bool plain_out) {
    const int64_t out_width = image.out_width(), strip = up(out_width * lanes, unit), padded = image.width + 2 * image.pad_w;
    const int64_t reach = strip / lanes + (image.span_w() - 1) / image.stride_w;
    Shapes s{lanes, (image.batch + lanes - 1) / lanes, image.out_height(), strip / kLanes, {}, {}};
    s.in = {lanes, image.batch, m.n_columns / image.taps(), image.height, image.width, image.pad_h, image.pad_w, image.stride_w,
            most((padded + image.stride_w - 1) / image.stride_w, reach), plain_in, 0, unit};
    s.out = {lanes, image.batch, m.n_rows, s.out_height, out_width, 0, 0, 1, strip / lanes, plain_out, 0, unit};
    return s;
}

// Offset of every tap from the place where an output's window begins, in a slab that lacks the first `cut` pixels of its padding.
OW_INLINE const int64_t* tap_offsets(const Image& image, const SlabShape& in, int64_t cut, Memory& memory) {
    int64_t* taps = memory.take<int64_t>(image.taps());
    for (int64_t i = 0; i < image.kernel_h; ++i) {
        for (int64_t j = 0; j < image.kernel_w; ++j) {
            const int64_t w = j * image.dilation_w, place = w % in.phases * in.pixels + w / in.phases;
            taps[i * image.kernel_w + j] = i * image.dilation_h * slab_line(in) + (place - cut) * in.lanes;
        }
    }
    return taps;
}

// Lines of an input window that holds the windows of `outputs` output lines.
OW_INLINE int64_t window_lines(const Image& image, const SlabShape& in, int64_t outputs) {
    const int64_t least_lines = (outputs - 1) * image.stride_h + image.span_h() + slab_grain(in);
    return most(least_lines, least(least_lines + kSpareLines, image.height + 2 * image.pad_h));
}

// Calls work(panel, from, to) for the output lines of all panels that are the share of thread `id`, in multiples of `grain`.
template <typename Work>
OW_INLINE void share_lines(int64_t panels, int64_t height, int64_t grain, int64_t id, int64_t team, const Work& work) {
    const int64_t total = panels * height / grain, stop = total * (id + 1) / team * grain;
    for (int64_t line = total * id / team * grain; line < stop;) {
        const int64_t from = line % height, to = least(height, from + stop - line);
        work(line / height, from, to);
        line += to - from;
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
