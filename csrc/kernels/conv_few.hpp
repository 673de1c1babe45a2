// The last images of a batch where they are so few that a line of theirs would not fill a vector: all lines of an image lie side by
// side, so that one pass over the weights serves them all.  Threads share the row groups, not the lines; the functions here are called
// by all of them at once.
#pragma once

#include "conv_plan.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kFoldedParts = 4;  // sums that make up an input gradient, whatever the number of threads

// The parts of a plan that is folded: its slabs, the matrix, and memory that all threads share.
struct FewImages {
    Slab in, out;
    const Sorted& a;
    int64_t vectors;
    float *x, *y, *dx;  // one line of `in` or `out` each; dx kFoldedParts

    Range channels(const Slab& s, int64_t id, int64_t team) const { return {s.channels * id / team, s.channels * (id + 1) / team}; }
    Range groups(int64_t part, int64_t parts) const { return {share(a.a, part, parts), share(a.a, part + 1, parts)}; }
};

OW_INLINE int64_t few_forward_floats(const Shapes& p) { return slab_line(p.in) + slab_line(p.out); }
OW_INLINE int64_t few_backward_floats(const Shapes& p) { return (1 + kFoldedParts) * slab_line(p.in) + slab_line(p.out); }

OW_INLINE FewImages few_images(const Shapes& p, const Slab& in, const Slab& out, const Sorted& a, float* memory) {
    float* y = memory + in.line;
    return {in, out, a, p.vectors, memory, y, y + out.line};
}

OW_INLINE Move move_channel(const Slab& s) { return {s.at, s.width, s.channels * s.width, s.images, s.lanes, false, false}; }

// The pixels of a line of a single image, which lie side by side.
OW_INLINE int64_t run_of(const Slab& s) {
    int64_t run = 1;
    while (run < s.width && s.at[run] == s.at[0] + run) ++run;
    return run;
}

OW_INLINE void pack_channels(const Slab& s, const float* x, Range c, float* line) {
    std::memset(line + c.from * s.channel, 0, static_cast<size_t>((c.to - c.from) * s.channel) * 4);
    const int64_t run = run_of(s);
    for (; c.from < c.to; ++c.from) {
        const float* from = x + c.from * s.width;
        float* to = line + c.from * s.channel;
        if (s.lanes > 1) pack(move_channel(s), from, to);
        for (int64_t p = 0; s.lanes == 1 && p < s.width; p += run) copy_column(from + p, to + s.at[p], run);
    }
}
OW_INLINE void unpack_channels(const Slab& s, const float* line, Range c, float* y) {
    const int64_t run = run_of(s);
    for (; c.from < c.to; ++c.from) {
        const float* from = line + c.from * s.channel;
        float* to = y + c.from * s.width;
        if (s.lanes > 1) unpack(move_channel(s), from, to);
        for (int64_t p = 0; s.lanes == 1 && p < s.width; p += run) copy_column(from + s.at[p], to + p, run);
    }
}

// Row groups `g` of a matrix alone.
OW_INLINE Lowered only_groups(Lowered a, Range g) {
    a.offsets += g.from, a.ends += g.from;
    a.rows += g.from * a.height, a.bias += g.from * a.height;
    a.full_groups = most<int64_t>(0, a.full_groups - g.from);
    a.groups = g.to - g.from;
    return a;
}

template <typename Op>
OW_INLINE void few_pieces(const Lowered& a, typename Op::In* in, typename Op::Out* out, int64_t vectors) {
    const int64_t piece = piece_of(a.height, vectors);
    for (int64_t v = 0; v < vectors; v += piece) {
        product<Op>(a, 0, a.groups, in + v * kLanes, out + v * kLanes, least(piece, vectors - v), 1);
    }
}

// Row groups `g` against `vectors` vectors.
OW_INLINE void few_product(const Sorted& a, Range g, const float* in, float* out, int64_t vectors) {
    if (a.windows < 2) return few_pieces<Gather>(only_groups(a.range(0, 0, a.kinds), g), in, out, vectors);
    const int64_t piece = piece_of(a.a.height, vectors);
    for (int64_t v = 0; v < vectors; v += piece) {
        for (int64_t w = 0; w < a.windows; ++w) {
            cut_product(only_groups(a.range(w, 0, a.kinds), g), w == 0, in + v * kLanes, out + v * kLanes, least(piece, vectors - v));
        }
    }
}
OW_INLINE void few_scatter(const Sorted& a, Range g, float* in, const float* out, int64_t vectors) {
    for (int64_t w = 0; w < a.windows; ++w) few_pieces<Scatter>(only_groups(a.range(w, 0, a.kinds), g), in, out, vectors);
}

[[maybe_unused]] static void few_forward(const FewImages& f, const float* x, const float* bias, float* y, int64_t id, int64_t team) {
    pack_channels(f.in, x, f.channels(f.in, id, team), f.x);
#pragma omp barrier
    few_product(f.a, f.groups(id, team), f.x, f.y, f.vectors);
    if (id == 0) fill_missing(f.a.a, bias, f.y, f.out.channel, f.vectors);
#pragma omp barrier
    unpack_channels(f.out, f.y, f.channels(f.out, id, team), y);
}

// Adds to dw the weight gradients of row groups `g`.
OW_INLINE void few_dots(const FewImages& f, Range g, float* dw) {
    const Places places{1, 0, 0, f.vectors};
    for (int64_t w = 0; w < f.a.windows; ++w) {
        const Lowered window = f.a.range(w, 0, f.a.kinds);
        dots(window, g.from, g.to, f.x, f.y, places, dw);
    }
}

// A dx or dw that is null is not computed; dw needs x.  Every thread adds the weight gradients of its own groups to its dw.
[[maybe_unused]] static void few_backward(const FewImages& f, const float* g, const float* x, float* dx, float* dw, int64_t id,
                                          int64_t team) {
    pack_channels(f.out, g, f.channels(f.out, id, team), f.y);
    if (dw != nullptr) pack_channels(f.in, x, f.channels(f.in, id, team), f.x);
#pragma omp barrier
    if (dw != nullptr) few_dots(f, f.groups(id, team), dw);
    for (int64_t part = id; dx != nullptr && part < kFoldedParts; part += team) {
        zero_lines(f.in, f.dx + part * f.in.line, 1);
        few_scatter(f.a, f.groups(part, kFoldedParts), f.dx + part * f.in.line, f.y, f.vectors);
    }
#pragma omp barrier
    if (dx == nullptr) return;
    const Range mine = f.channels(f.in, id, team);
    for (int64_t i = mine.from * f.in.channel; i < mine.to * f.in.channel; i += kLanes) {
        Vec sum = load(f.dx + i);
        OW_UNROLL
        for (int64_t part = 1; part < kFoldedParts; ++part) sum += load(f.dx + part * f.in.line + i);
        store(f.dx + i, sum);
    }
    unpack_channels(f.in, f.dx, mine, dx);
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
