// What both directions of a convolution share: which lines and taps there are, and one line of a product.
#pragma once

#include "conv.hpp"
#include "conv_shapes.hpp"
#include "lines.hpp"
#include "sorted.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kFetches = 8;     // of what is read next, during one pass over the weights
constexpr int64_t kPieces = 8;      // vectors of a line up to which it is one piece, where taps are passed over
constexpr int64_t kNarrow = 8;      // pixels of a line, up to which padding beside it is passed over
constexpr int64_t kLooseUnits = 2;  // of sixteen outputs, up to which the last images are computed as single pixels
constexpr int64_t kShort = 16;      // lines of an image, up to which padding above and below it is

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

// How the images of a batch, or some of them, are computed.
struct Plan : Shapes {
    Image image;    // of these images alone
    int64_t first;  // of them, in the batch
    By by;

    bool folded() const { return in.row > 0; }
};

struct Plans {
    Plan parts[2];
    int count;
    int64_t loose = 0;  // images after those of the parts

    Image loose_image() const {
        Image image = parts[0].image;
        image.batch = loose;
        return image;
    }
};

// How the columns are sorted.  Single taps make lists long enough for row groups alone.
OW_INLINE By sorted_by(const Stored& m, const Image& image, int64_t lanes) {
    const bool narrow = image.pad_w > 0 && image.stride_w == 1 && image.out_width() <= kNarrow;
    if (image.taps() == 1) return By::kNothing;
    if (lanes == kBatchLanes && m.height >= 8 && narrow) return By::kTap;
    return image.pad_h > 0 && image.out_height() <= kShort ? By::kTapLine : By::kNothing;
}

// Whether the outputs of so few images should lie side by side as those of one pixel of plan `p`.
OW_INLINE bool fits_loose(const Image& image, const Plan& p) {
    const int64_t outputs = image.batch * image.out_height() * image.out_width();
    return image.stride_h == 1 && image.stride_w == 1 && image.pad_h >= 0 && image.pad_w >= 0 && p.in.pixels >= image.span_w() &&
           outputs <= kLooseUnits * kBatchLanes;
}

OW_INLINE Plan folded_plan(const Stored& m, const Image& image, int64_t first, int64_t lanes) {
    return {folded_shapes(m, image, lanes), image, first, By::kNothing};
}

// Makes a plan read the blocked tensor that the convolution's input is, and the output's gradient if that is read, too, where they are;
// the padding is passed over.
OW_INLINE void read_in_place(Plan& p, bool outputs) {
    p.by = By::kTap;
    p.in.pad_left = 0, p.in.pixels = p.image.width;
    p.in.bare = true;
    p.out.bare = outputs;
}
OW_INLINE bool can_read_in_place(const Stored& m, const Image& image, const Activation& x) {
    return bare(x) && m.height >= 8 && image.taps() > 1 && image.out_width() > kNarrow && image.stride_w == 1 && image.pad_h >= 0 && image.pad_w >= 0;
}

OW_INLINE Plan make_plan(const Stored& m, const Image& image, int64_t first, int64_t lanes, By by, bool plain_in, bool plain_out) {
    Plan p{shapes(m, image, lanes, kBatchLanes, plain_in, plain_out), image, first, by};
    if (by == By::kTap) p.in.pad_left = 0, p.in.pixels = image.width;
    return p;
}

// The lanes of blocked activations are given.  A few images more than fill panels are computed with fewer lanes; their columns have the
// same order.
OW_INLINE Plans make_plans(const Stored& m, const Image& image, bool plain_in, bool plain_out, bool blocked) {
    const int64_t rest = image.batch % kBatchLanes, whole = image.batch - rest;
    const int64_t lanes = blocked || whole > 0 ? kBatchLanes : batch_lanes(image.batch);
    const bool split = !blocked && whole > 0 && rest > 0 && 2 * rest <= kBatchLanes;
    Image most_images = image, few = image;
    if (split) most_images.batch = whole;
    few.batch = rest;
    if (!blocked && whole == 0 && folds(m, image, lanes)) return {{folded_plan(m, image, 0, lanes), {}}, 1};
    const By by = sorted_by(m, image, lanes);
    Plans plans{{make_plan(m, most_images, 0, lanes, by, plain_in, plain_out), {}}, 1};
    if (!split) return plans;
    if (fits_loose(few, plans.parts[0])) {
        plans.loose = rest;
        return plans;
    }
    const int64_t few_lanes = batch_lanes(rest);
    const By few_by = by == By::kTap ? By::kTapLine : by;
    plans.parts[plans.count++] = folds(m, few, few_lanes) ? folded_plan(m, few, whole, few_lanes)
                                                          : make_plan(m, few, whole, few_lanes, few_by, plain_in, plain_out);
    return plans;
}

OW_INLINE int64_t plans_bytes(const Plans& plans, const Stored& m, const Sorting& sorting, int threads) {
    int64_t bytes = sorted_bytes(m, sorting, threads);
    for (int i = 0; i < plans.count; ++i) {
        const Plan& p = plans.parts[i];
        bytes += lowered_bytes(m) + slab_table_bytes(p.in) + slab_table_bytes(p.out) + p.image.taps() * 8 + 512;
        bytes += (m.n_columns + m.stored) * 4;  // of sort_like
    }
    return bytes;
}

// The matrix against a plan's slabs, in the order that `before` has for another plan if that is given.
OW_INLINE Failure lower_for(const Stored& m, const Plan& p, const Sorting& sorting, const float* bias, const Sorted* before, Memory& memory,
                            int threads, Sorted& out) {
    Lowered a;
    const int64_t cut = p.by == By::kTap ? p.image.pad_w : 0;
    const Addressing at{slab_channel(p.in), p.image.taps(), tap_offsets(p.image, p.in, cut, memory), slab_channel(p.out)};
    char* own = memory.take<char>(lowered_bytes(m));
    if (sorting.whole()) {
        if (Failure wrong = lower(m, at, bias, own, threads, a)) return wrong;
        out = {a, nullptr, nullptr, nullptr, 1, 1, 0, true};
        return nullptr;
    }
    if (Failure wrong = lower_rows(m, at, bias, own, a)) return wrong;
    if (before == nullptr) return sort_columns(m, a, at, sorting, memory, threads, out);
    sort_like(*before, m, a, at, memory, threads, out);
    return nullptr;
}

// The kinds of columns that output line h uses, where they are sorted by lines of taps.
OW_INLINE Range kinds_of_line(const Plan& p, const Sorted& a, int64_t h) {
    if (p.by != By::kTapLine) return {0, a.kinds};
    const Range lines = taps_of_line(p.image, h);
    const int64_t each = a.kinds / p.image.kernel_h;
    return {lines.from * each, lines.to * each};
}

// NCHW from some image on; what is blocked begins where it did.
OW_INLINE Activation from_image(Activation x, int64_t image, const SlabShape& s) {
    if (x.plain != nullptr) x.plain += image * s.channels * s.height * s.width;
    return x;
}
OW_INLINE Result from_image(Result y, int64_t image, const SlabShape& s) {
    if (y.plain != nullptr) y.plain += image * s.channels * s.height * s.width;
    return y;
}

// All groups against one output line, whose windows begin at `in`, piece by piece.
template <typename Op>
OW_INLINE void line_of_pieces(const Lowered& a, typename Op::In* in, typename Op::Out* out, int64_t vectors, LinesAhead& ahead) {
    const int64_t step = (a.groups + kFetches - 1) / kFetches, piece = piece_of(a.height, vectors);
    for (int64_t v = 0; v < vectors; v += piece) {
        for (int64_t g = 0; g < a.groups; g += step) {
            ahead.fetch(v * a.groups + g, vectors * a.groups);
            product<Op>(a, g, least(g + step, a.groups), in + v * kLanes, out + v * kLanes, least(piece, vectors - v), 1);
        }
    }
}

// The same where every pixel passes over the taps that it reads in the padding: pixels that pass over the same ones at a time.
// After some groups `after` is called with them.
template <typename Op, typename More, typename Ahead, typename After>
OW_INLINE void line_of_taps(const Sorted& s, const Image& image, int64_t h, typename Op::In* in, typename Op::Out* out, Ahead& ahead,
                            const After& after) {
    const Range lines = taps_of_line(image, h);
    const int64_t width = image.out_width(), groups = s.a.groups, step = (groups + kFetches - 1) / kFetches, taps = image.kernel_w;
    const int64_t piece = (tiles_of(s.a.height).*Op::kShape).vectors;
    for (int64_t g = 0; g < groups; g += step) {
        const int64_t stop = least(g + step, groups);
        for (int64_t w = 0, end; w < width; w = end) {
            const Range mine = taps_of_pixel(image, w);
            for (end = w + 1; end < width; ++end) {
                const Range next = taps_of_pixel(image, end);
                if (next.from != mine.from || next.to != mine.to) break;
            }
            const int64_t at = w * kBatchLanes, vectors = (end - w) * (kBatchLanes / kLanes);
            if (mine.from == 0 && mine.to == taps) {
                const Lowered part = s.range(0, lines.from * taps, lines.to * taps);
                for (int64_t v = 0, next; v < vectors; v = next) {
                    next = vectors <= kPieces || vectors - v <= piece + 1 ? vectors : v + piece;
                    ahead.fetch(g * vectors + v * step, groups * vectors);
                    product<Op>(part, g, stop, in + at + v * kLanes, out + at + v * kLanes, next - v, vectors);
                }
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
        after(g, stop);
    }
}
template <typename Op, typename More>
OW_INLINE void line_of_taps(const Sorted& s, const Image& image, int64_t h, typename Op::In* in, typename Op::Out* out, LinesAhead& ahead) {
    line_of_taps<Op, More>(s, image, h, in, out, ahead, [](int64_t, int64_t) {});
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
