// What both directions of a convolution share: which lines and taps there are, and one line of a product.
#pragma once

#include "conv.hpp"
#include "lines.hpp"
#include "sorted.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kSpareLines = 4;  // of a window, so that it seldom has to be moved
constexpr int64_t kFetches = 8;     // of what is read next, during one pass over the weights
constexpr int64_t kNarrow = 8;      // pixels of a line, up to which padding beside it is passed over
constexpr int64_t kShort = 32;      // lines of an image, up to which padding above and below it is

// Images that lie side by side: no more than a small batch fills.  Not fewer for more threads, so that no sum depends on those.
OW_INLINE int64_t batch_lanes(int64_t batch) {
    int64_t lanes = kBatchLanes;
    while (lanes > 1 && lanes / 2 >= batch) lanes /= 2;
    return lanes;
}

struct Range {
    int64_t from, to;
    bool empty() const { return from >= to; }
};

// Which of the `count` places start, start + step, ... lie in [from, to).
OW_INLINE Range inside(int64_t start, int64_t step, int64_t count, int64_t from, int64_t to) {
    const auto steps = [&](int64_t goal) { return goal <= start ? 0 : least(count, (goal - start + step - 1) / step); };
    return {steps(from), steps(to)};
}

// The taps that an output line, or an output pixel, reads inside the image, and the outputs that read a tap there.
OW_INLINE Range taps_of_line(const Image& m, int64_t h) { return inside(h * m.stride_h, m.dilation_h, m.kernel_h, m.pad_h, m.pad_h + m.height); }
OW_INLINE Range taps_of_pixel(const Image& m, int64_t w) { return inside(w * m.stride_w, m.dilation_w, m.kernel_w, m.pad_w, m.pad_w + m.width); }
OW_INLINE Range lines_of_tap(const Image& m, int64_t i, int64_t h, int64_t count) {
    return inside(h * m.stride_h + i * m.dilation_h, m.stride_h, count, m.pad_h, m.pad_h + m.height);
}
OW_INLINE Range pixels_of_tap(const Image& m, int64_t j) { return inside(j * m.dilation_w, m.stride_w, m.out_width(), m.pad_w, m.pad_w + m.width); }

struct Plan {
    int64_t lanes, panels, out_height, vectors;  // vectors in one output line of a channel
    By by;
    SlabShape in, out;
};

// How the columns are sorted.  Single taps make lists long enough for row groups alone.
OW_INLINE By sorted_by(const Stored& m, const Image& image, int64_t lanes) {
    const bool narrow = image.pad_w > 0 && image.stride_w == 1 && image.out_width() <= kNarrow;
    if (image.taps() == 1) return By::kNothing;
    if (lanes == kBatchLanes && m.height >= 8 && narrow) return By::kTap;
    return image.pad_h > 0 && image.out_height() <= kShort ? By::kTapLine : By::kNothing;
}

// The lanes of blocked activations are given: they have 16.
OW_INLINE Plan make_plan(const Stored& m, const Image& image, bool plain_in, bool plain_out, bool blocked) {
    Plan p;
    p.lanes = blocked ? kBatchLanes : batch_lanes(image.batch);
    p.panels = (image.batch + p.lanes - 1) / p.lanes;
    p.out_height = image.out_height();
    p.by = sorted_by(m, image, p.lanes);
    const int64_t out_width = image.out_width(), strip = up(out_width * p.lanes, kBatchLanes), channels = m.n_columns / image.taps();
    p.vectors = strip / kLanes;
    const int64_t padded = image.width + 2 * image.pad_w;
    const int64_t reach = strip / p.lanes + (image.span_w() - 1) / image.stride_w;
    p.in = {p.lanes, image.batch, channels, image.height, image.width, image.pad_h, image.pad_w, image.stride_w,
            most((padded + image.stride_w - 1) / image.stride_w, reach), plain_in};
    if (p.by == By::kTap) p.in.pad_left = 0, p.in.pixels = image.width;
    p.out = {p.lanes, image.batch, m.n_rows, p.out_height, out_width, 0, 0, 1, strip / p.lanes, plain_out};
    return p;
}

// Offset of every tap from the place where an output's window begins, or would if there were padding.
OW_INLINE const int64_t* tap_offsets(const Image& image, const Plan& p, Memory& memory) {
    int64_t* taps = memory.take<int64_t>(image.taps());
    for (int64_t i = 0; i < image.kernel_h; ++i) {
        for (int64_t j = 0; j < image.kernel_w; ++j) {
            const int64_t w = j * image.dilation_w, place = w % p.in.phases * p.in.pixels + w / p.in.phases;
            const int64_t cut = p.by == By::kTap ? image.pad_w : 0;
            taps[i * image.kernel_w + j] = i * image.dilation_h * slab_line(p.in) + (place - cut) * p.lanes;
        }
    }
    return taps;
}

// Lines of an input window that holds the windows of `outputs` output lines.
OW_INLINE int64_t window_lines(const Image& image, const SlabShape& in, int64_t outputs) {
    const int64_t least_lines = (outputs - 1) * image.stride_h + image.span_h() + slab_grain(in);
    return most(least_lines, least(least_lines + kSpareLines, image.height + 2 * image.pad_h));
}

// Vectors that are computed in one pass over the weights: a tile's.
OW_INLINE int64_t piece_of(int64_t height) { return height >= 8 ? 2 : height >= 4 ? 4 : 8; }

// All groups against one output line, whose windows begin at `in`, piece by piece.
template <typename Op>
OW_INLINE void line_of_pieces(const Lowered& a, typename Op::In* in, typename Op::Out* out, int64_t vectors, LinesAhead& ahead) {
    const int64_t step = (a.groups + kFetches - 1) / kFetches, piece = piece_of(a.height);
    for (int64_t v = 0; v < vectors; v += piece) {
        for (int64_t g = 0; g < a.groups; g += step) {
            ahead.fetch(v * a.groups + g, vectors * a.groups);
            product<Op>(a, g, least(g + step, a.groups), in + v * kLanes, out + v * kLanes, least(piece, vectors - v), 1);
        }
    }
}

// The same where every pixel passes over the taps that it reads in the padding: pixels that pass over the same ones at a time.
template <typename Op, typename More>
OW_INLINE void line_of_taps(const Sorted& s, const Image& image, int64_t h, typename Op::In* in, typename Op::Out* out, LinesAhead& ahead) {
    const Range lines = taps_of_line(image, h);
    const int64_t width = image.out_width(), groups = s.a.groups, step = (groups + kFetches - 1) / kFetches, taps = image.kernel_w;
    for (int64_t g = 0; g < groups; g += step) {
        ahead.fetch(g, groups);
        const int64_t stop = least(g + step, groups);
        for (int64_t w = 0, end; w < width; w = end) {
            const Range mine = taps_of_pixel(image, w);
            for (end = w + 1; end < width; ++end) {
                const Range next = taps_of_pixel(image, end);
                if (next.from != mine.from || next.to != mine.to) break;
            }
            const int64_t at = w * kBatchLanes, vectors = (end - w) * (kBatchLanes / kLanes);
            if (mine.from == 0 && mine.to == taps) {
                product<Op>(s.range(0, lines.from * taps, lines.to * taps), g, stop, in + at, out + at, vectors, vectors);
                continue;
            }
            // Without any tap the result is the bias.
            const int64_t last = mine.empty() ? lines.from + 1 : most(lines.to, lines.from + 1);
            for (int64_t i = lines.from; i < last; ++i) {
                const Lowered part = lines.empty() || mine.empty() ? s.range(0, 0, 0) : s.range(0, i * taps + mine.from, i * taps + mine.to);
                if (i == lines.from) {
                    product<Op>(part, g, stop, in + at, out + at, vectors, vectors);
                } else {
                    product<More>(part, g, stop, in + at, out + at, vectors, vectors);
                }
            }
        }
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
