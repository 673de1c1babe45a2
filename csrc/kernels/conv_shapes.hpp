// What every convolution works out before it begins: the shapes of its slabs, and where its taps lie in them.
#pragma once

#include "slab.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kFoldedLine = 16;           // floats of a line up to which all lines are computed as one; twice as many for low groups
constexpr int64_t kFoldedFloats = 192 << 10;  // of the input of all channels, which are to stay in L2 meanwhile
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

// The same with all lines of an image side by side, as if they were one.  Between two of them lies the padding of one side, which the
// other side has in common with it; results that would begin there mean nothing.
OW_INLINE Shapes folded_shapes(const Stored& m, const Image& image, int64_t lanes) {
    const int64_t width = image.out_width(), pitch = most(image.width + image.pad_w, width);
    const int64_t places = (image.out_height() - 1) * pitch + width, strip = up(places * lanes, kBatchLanes);
    const int64_t furthest = (image.span_h() - 1) * pitch + image.span_w() - 1;
    Shapes s{lanes, 1, 1, strip / kLanes, {}, {}};
    s.in = {lanes, image.batch, m.n_columns / image.taps(), 1, image.height * image.width, 0, image.pad_h * pitch + image.pad_w, 1,
            strip / lanes + furthest, true};
    s.out = {lanes, image.batch, m.n_rows, 1, image.out_height() * width, 0, 0, 1, strip / lanes, true};
    s.in.row = image.width, s.out.row = width;
    s.in.pitch = s.out.pitch = pitch;
    return s;
}

// Whether so few images should be computed like that.
OW_INLINE bool folds(const Stored& m, const Image& image, int64_t lanes) {
    if (image.stride_h != 1 || image.stride_w != 1 || image.pad_h < 0 || image.pad_w < 0) return false;
    const int64_t longest = m.height < 8 ? 2 * kFoldedLine : kFoldedLine;
    return lanes * image.out_width() <= longest && image.out_height() > 1 && slab_line(folded_shapes(m, image, lanes).in) <= kFoldedFloats;
}

// Offset of every tap from the place where an output's window begins, in a slab that lacks the first `cut` pixels of its padding.
OW_INLINE const int64_t* tap_offsets(const Image& image, const SlabShape& in, int64_t cut, Memory& memory) {
    int64_t* taps = memory.take<int64_t>(image.taps());
    const int64_t line = in.row > 0 ? in.pitch * in.lanes : slab_line(in);
    for (int64_t i = 0; i < image.kernel_h; ++i) {
        for (int64_t j = 0; j < image.kernel_w; ++j) {
            const int64_t w = j * image.dilation_w, place = w % in.phases * in.pixels + w / in.phases;
            taps[i * image.kernel_w + j] = i * image.dilation_h * line + (place - cut) * in.lanes;
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
