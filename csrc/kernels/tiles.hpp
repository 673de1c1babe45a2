// The arithmetic: one row group against a strip of contiguous floats.
//
// A strip is a run of vectors at the same place of every channel: the batch lanes of neighbouring pixels, or a piece of a panel of a
// linear layer.  A stored column is an element offset from the strip's base, a row another one; linear layers and convolutions of
// any geometry differ in these offsets only.
#pragma once

#include <type_traits>

#include "../lower.hpp"
#include "tile_table.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

// forward: out[row] = bias[row] + sum_k w[k][row] * in[column k], or with out[row] itself for bias[row] if there is More

template <int MR, int NV, bool More>
OW_INLINE void gather_tile(const float* in, const int32_t* columns, const float* w, int64_t height, int64_t count, float* out,
                           const int32_t* rows, const float* bias) {
    Vec acc[MR][NV];
    OW_UNROLL
    for (int m = 0; m < MR; ++m) {
        OW_UNROLL
        for (int v = 0; v < NV; ++v) acc[m][v] = More ? load(out + rows[m] + kLanes * v) : broadcast(bias[m]);
    }
    for (int64_t k = 0; k < count; ++k, w += height) {
        const float* from = in + columns[k];
        Vec x[NV];
        OW_UNROLL
        for (int v = 0; v < NV; ++v) x[v] = load(from + kLanes * v);
        OW_UNROLL
        for (int m = 0; m < MR; ++m) {
            OW_UNROLL
            for (int v = 0; v < NV; ++v) acc[m][v] += w[m] * x[v];
        }
    }
    OW_UNROLL
    for (int m = 0; m < MR; ++m) {
        OW_UNROLL
        for (int v = 0; v < NV; ++v) store(out + rows[m] + kLanes * v, acc[m][v]);
    }
}

// The columns [begin, end) of a single row, added to out where they are not its first.  A few vectors alone would wait for their own
// last additions: they have several sums each.
template <int NV>
OW_INLINE void add_columns(const float* in, const int32_t* columns, const float* values, int32_t begin, int32_t end, bool first, float bias,
                           float* out) {
    constexpr int kSums = NV > 2 ? 1 : 4 / NV;
    Vec acc[kSums][NV];
    OW_UNROLL
    for (int v = 0; v < NV; ++v) {
        acc[0][v] = first ? broadcast(bias) : load(out + kLanes * v);
        OW_UNROLL
        for (int i = 1; i < kSums; ++i) acc[i][v] = Vec{};
    }
    const auto add = [&](int32_t k, Vec (&sum)[NV]) {
        const float* from = in + columns[k];
        const Vec value = broadcast(values[k]);
        OW_UNROLL
        for (int v = 0; v < NV; ++v) sum[v] += value * load(from + kLanes * v);
    };
    int32_t k = begin;
    for (; k + kSums <= end; k += kSums) {
        OW_UNROLL
        for (int i = 0; i < kSums; ++i) add(k + i, acc[i]);
    }
    for (; k < end; ++k) add(k, acc[0]);
    OW_UNROLL
    for (int v = 0; v < NV; ++v) {
        OW_UNROLL
        for (int i = 1; i < kSums; ++i) acc[0][v] += acc[i][v];
        store(out + kLanes * v, acc[0][v]);
    }
}

// input gradient: in[column k] += sum_row w[k][row] * out[row]

template <int MR, int NV>
OW_INLINE void scatter_tile(float* in, const int32_t* columns, const float* w, int64_t height, int64_t count, const float* out,
                            const int32_t* rows, const float*) {
    Vec g[MR][NV];
    OW_UNROLL
    for (int m = 0; m < MR; ++m) {
        OW_UNROLL
        for (int v = 0; v < NV; ++v) g[m][v] = load(out + rows[m] + kLanes * v);
    }
    for (int64_t k = 0; k < count; ++k, w += height) {
        float* to = in + columns[k];
        Vec x[NV];
        OW_UNROLL
        for (int v = 0; v < NV; ++v) x[v] = load(to + kLanes * v);
        OW_UNROLL
        for (int m = 0; m < MR; ++m) {
            OW_UNROLL
            for (int v = 0; v < NV; ++v) x[v] += w[m] * g[m][v];
        }
        OW_UNROLL
        for (int v = 0; v < NV; ++v) store(to + kLanes * v, x[v]);
    }
}

template <bool More>
struct GatherInto {
    using In = const float;
    using Out = float;
    static constexpr Tile Tiles::*kShape = &Tiles::gather;
    template <int MR, int NV>
    OW_INLINE void tile(const float* in, const int32_t* c, const float* w, int64_t h, int64_t n, float* out, const int32_t* r, const float* b) {
        gather_tile<MR, NV, More>(in, c, w, h, n, out, r, b);
    }
};

using Gather = GatherInto<false>;
using GatherMore = GatherInto<true>;

struct Scatter {
    using In = float;
    using Out = const float;
    static constexpr Tile Tiles::*kShape = &Tiles::scatter;
    template <int MR, int NV>
    OW_INLINE void tile(float* in, const int32_t* c, const float* w, int64_t h, int64_t n, const float* out, const int32_t* r, const float* b) {
        scatter_tile<MR, NV>(in, c, w, h, n, out, r, b);
    }
};

// All rows of group g against NV vectors, in register tiles of at most MR rows.
template <typename Op, int MR, int NV>
OW_INLINE void group_tile(const Lowered& a, int64_t g, typename Op::In* in, typename Op::Out* out) {
    const int64_t first = a.offsets[g], count = a.ends[g] - first, h = a.height;
    const int32_t* columns = a.columns + first;
    const float* w = a.values + first * h;
    const int32_t* rows = a.rows + g * h;
    const float* bias = a.bias + g * h;
    int64_t r = 0;
    if (g >= a.full_groups) {
        for (; r < h; ++r) {
            if (rows[r] >= 0) Op::template tile<1, NV>(in, columns, w + r, h, count, out, rows + r, bias + r);
        }
        return;
    }
    for (; r + MR <= h; r += MR) Op::template tile<MR, NV>(in, columns, w + r, h, count, out, rows + r, bias + r);
    if constexpr (MR > 8) {
        if (r + 8 <= h) { Op::template tile<8, NV>(in, columns, w + r, h, count, out, rows + r, bias + r); r += 8; }
    }
    if constexpr (MR > 4) {
        if (r + 4 <= h) { Op::template tile<4, NV>(in, columns, w + r, h, count, out, rows + r, bias + r); r += 4; }
    }
    if constexpr (MR > 2) {
        if (r + 2 <= h) { Op::template tile<2, NV>(in, columns, w + r, h, count, out, rows + r, bias + r); r += 2; }
    }
    if constexpr (MR > 1) {
        if (r < h) Op::template tile<1, NV>(in, columns, w + r, h, count, out, rows + r, bias + r);
    }
}

// Groups [g0, g1) against `vectors` vectors; `block` neighbouring tiles share one pass over a group's weights.
template <typename Op, int MR, int NV>
void strip(const Lowered& a, int64_t g0, int64_t g1, typename Op::In* in, typename Op::Out* out, int64_t vectors, int64_t block) {
    int64_t v = 0, whole = vectors - vectors % NV;
    // A tile of one vector takes as long as one of two: 3 + 1 go as 2 + 2.
    if (NV == 3 && vectors % NV == 1 && whole > 0) whole -= NV;
    while (v < whole) {
        const int64_t stop = least(v + block * NV, whole);
        for (int64_t g = g0; g < g1; ++g) {
            for (int64_t t = v; t < stop; t += NV) group_tile<Op, MR, NV>(a, g, in + t * kLanes, out + t * kLanes);
        }
        v = stop;
    }
    if constexpr (NV > 1) {
        if (v < vectors) strip<Op, MR, narrower(NV)>(a, g0, g1, in + v * kLanes, out + v * kLanes, vectors - v, block);
    }
}

// In the tiles that the table has for this height, of which those before entry I are for higher groups.
template <typename Op, int I = 0>
void product(const Lowered& a, int64_t g0, int64_t g1, typename Op::In* in, typename Op::Out* out, int64_t vectors, int64_t block) {
    if (vectors == 1 && a.height >= kLoneRows) return strip<Op, kLoneRows, 1>(a, g0, g1, in, out, vectors, block);
    if constexpr (I + 1 < kHeights) {
        if (a.height < kTiles[I].height) return product<Op, I + 1>(a, g0, g1, in, out, vectors, block);
    }
    constexpr Tile kTile = kTiles[I].*Op::kShape;
    strip<Op, kTile.rows, kTile.vectors>(a, g0, g1, in, out, vectors, block);
}

// Sets the rows that are in no group to their bias.
OW_INLINE void fill_missing(const Lowered& a, const float* bias, float* out, int64_t row_stride, int64_t vectors) {
    for (int64_t i = 0; i < a.n_missing; ++i) {
        const int64_t row = a.missing[i];
        const Vec value = broadcast(bias == nullptr ? 0.0f : bias[row]);
        for (int64_t v = 0; v < vectors; ++v) store(out + row * row_stride + v * kLanes, value);
    }
}

// weight gradient: dw[k][row] += in[column k] . out[row]

// The places that a dot product runs over: `lines` strips of `vectors` vectors.
struct Edges;
struct Places {
    int64_t lines, in_line, out_line, vectors;
    const Edges* edges = nullptr;  // pixels beside each strip
};

// Pixels that lie apart from the strips.
struct Apart {
    const float *in, *out;
    int64_t count, in_step, out_step;
};
struct PlacesAndApart : Places {
    Apart apart;
};

// Pixels [0, left) and [right, width) of an output line, of which a column's tap reads pixel w + shift, or nothing where that lies
// outside the image.  Strips begin at pixel `left`.
struct Edges {
    const int32_t *columns, *shifts;  // [stored]
    int64_t left, right, width, in_width;
};
alignas(64) constexpr float kOutside[kLanes] = {};

// U vectors of a strip at a time, from vector `v` on while they last.  A single row has more columns than there are registers for
// addresses, so each address must serve several vectors.
template <int MR, int KT, int U>
OW_INLINE void dot_steps(const float* in, const float* out, const int32_t (&column)[KT], const int32_t* rows, int64_t& v,
                         int64_t vectors, Vec (&acc)[MR * KT]) {
    for (; v + U <= vectors; v += U) {
        const float* x = in + v * kLanes;
        const float* g = out + v * kLanes;
        Vec rowv[MR][U];
        OW_UNROLL
        for (int m = 0; m < MR; ++m) {
            OW_UNROLL
            for (int u = 0; u < U; ++u) rowv[m][u] = load(g + rows[m] + u * kLanes);
        }
        OW_UNROLL
        for (int j = 0; j < KT; ++j) {
            const float* from = x + column[j];
            OW_UNROLL
            for (int u = 0; u < U; ++u) {
                const Vec xv = load(from + u * kLanes);
                OW_UNROLL
                for (int m = 0; m < MR; ++m) acc[j * MR + m] += rowv[m][u] * xv;
            }
        }
    }
}

// The pixels beside a strip.
template <int MR, int KT>
OW_INLINE void dot_edges(const Edges& e, const float* in, const float* out, const int32_t* columns, int64_t count, const int32_t (&column)[KT],
                         const int32_t* rows, Vec (&acc)[MR * KT]) {
    const int32_t* shifts = e.shifts + (columns - e.columns);
    for (int64_t w = e.left > 0 ? 0 : e.right; w < e.width; w = w + 1 == e.left ? e.right : w + 1) {
        for (int64_t at = (w - e.left) * kBatchLanes, end = at + kBatchLanes; at < end; at += kLanes) {
            Vec rowv[MR];
            OW_UNROLL
            for (int m = 0; m < MR; ++m) rowv[m] = load(out + rows[m] + at);
            OW_UNROLL
            for (int j = 0; j < KT; ++j) {
                const int64_t pixel = w + shifts[least<int64_t>(j, count - 1)];
                const Vec x = load(pixel >= 0 && pixel < e.in_width ? in + column[j] + at : kOutside);
                OW_UNROLL
                for (int m = 0; m < MR; ++m) acc[j * MR + m] += rowv[m] * x;
            }
        }
    }
}

// MR rows x KT columns, whose sums are taken in fours.
template <int MR, int KT, typename P>
OW_INLINE void dot_tile(const float* in, const float* out, const P& p, const int32_t* columns, int64_t count, const int32_t* rows,
                        float* dw, int64_t height) {
    static_assert(MR * KT % 4 == 0 && 4 % MR == 0 && (MR == 1 || kDotColumns % KT == 0));
    Vec acc[MR * KT];
    int32_t column[KT];
    OW_UNROLL
    for (int i = 0; i < MR * KT; ++i) acc[i] = Vec{};
    OW_UNROLL
    for (int j = 0; j < KT; ++j) column[j] = columns[least<int64_t>(j, count - 1)];
    constexpr bool kApart = std::is_same_v<P, PlacesAndApart>;
    if constexpr (kApart) {
        OW_UNROLL
        for (int j = 0; j < KT; ++j) __builtin_prefetch(p.apart.in + column[j]);
    }
    for (int64_t line = 0; line < p.lines; ++line) {
        const float* x = in + line * p.in_line;
        const float* g = out + line * p.out_line;
        int64_t v = 0;
        if constexpr (MR == 1 && kDotTiles.vectors_of_one > 4) dot_steps<MR, KT, kDotTiles.vectors_of_one>(x, g, column, rows, v, p.vectors, acc);
        if constexpr (MR == 1) dot_steps<MR, KT, 4>(x, g, column, rows, v, p.vectors, acc);
        dot_steps<MR, KT, 1>(x, g, column, rows, v, p.vectors, acc);
        if (p.edges != nullptr) dot_edges<MR, KT>(*p.edges, x, g, columns, count, column, rows, acc);
    }
    if constexpr (kApart) {
        for (int64_t i = 0; i < p.apart.count; ++i) {
            int64_t v = 0;
            dot_steps<MR, KT, 1>(p.apart.in + i * p.apart.in_step, p.apart.out + i * p.apart.out_step, column, rows, v, kBatchLanes / kLanes, acc);
        }
    }
    OW_UNROLL
    for (int i = 0; i < MR * KT; i += 4) {
        const Quad four = quad_sums(acc + i);
        float* to = dw + i / MR * height;
        if ((MR == 4 && i / 4 < count) || (height == MR && (i + 4) / MR <= count)) {
            QuadInMemory* quad = reinterpret_cast<QuadInMemory*>(to);
            *quad = *quad + four;
        } else if (MR < 4) {
            OW_UNROLL
            for (int m = 0; m < 4; ++m) {
                if ((i + m) / MR < count) to[m / MR * height + m % MR] += four[m];
            }
        }
    }
}

// MR rows against `count` columns, KT at a time; what is left over is computed in half a tile if that is enough.
template <int MR, int KT, typename P>
OW_INLINE void dot_tiles(const float* in, const float* out, const P& p, const int32_t* columns, int64_t count, const int32_t* rows,
                         float* dw, int64_t height) {
    constexpr int kHalf = (KT / 2 + 4 / MR - 1) / (4 / MR) * (4 / MR);
    for (int64_t k = 0; k < count; k += KT) {
        if (count - k > kHalf) {
            dot_tile<MR, KT>(in, out, p, columns + k, count - k, rows, dw + k * height, height);
        } else {
            dot_tile<MR, kHalf>(in, out, p, columns + k, count - k, rows, dw + k * height, height);
        }
    }
}

// Rows [r0, r1) of one group against `count` columns.
template <typename P>
OW_INLINE void dot_rows(const Lowered& a, const int32_t* columns, int64_t count, const int32_t* rows, int64_t r0, int64_t r1,
                        const float* in, const float* out, const P& p, float* dw) {
    int64_t r = r0;
    for (; r + 4 <= r1; r += 4) dot_tiles<4, kDotTiles.of_four>(in, out, p, columns, count, rows + r, dw + r, a.height);
    if (r + 2 <= r1) {
        dot_tiles<2, kDotTiles.of_two>(in, out, p, columns, count, rows + r, dw + r, a.height);
        r += 2;
    }
    if (r < r1) dot_tiles<1, kDotTiles.of_one>(in, out, p, columns, count, rows + r, dw + r, a.height);
}

// Adds to dw[k][row] for the stored columns [k0, k1) of group g.  Padded rows are left alone.
template <typename P>
OW_INLINE void dot_group(const Lowered& a, int64_t g, int64_t k0, int64_t k1, const float* in, const float* out, const P& p, float* dw) {
    const int64_t h = a.height;
    const int32_t* rows = a.rows + g * h;
    if (g >= a.full_groups) {
        for (int64_t r = 0; r < h; ++r) {
            if (rows[r] >= 0) dot_rows(a, a.columns + k0, k1 - k0, rows, r, r + 1, in, out, p, dw + k0 * h);
        }
        return;
    }
    const int64_t block = h < 4 ? k1 - k0 : kDotColumns;  // fewer rows use no column again
    for (int64_t r = 0; r < h; r += 16) {
        for (int64_t k = k0; k < k1; k += block) {
            dot_rows(a, a.columns + k, least(block, k1 - k), rows, r, least(r + 16, h), in, out, p, dw + k * h);
        }
    }
}

// Adds to dw[k][row] for the groups [g0, g1).
OW_INLINE void dots(const Lowered& a, int64_t g0, int64_t g1, const float* in, const float* out, const Places& p, float* dw) {
    for (int64_t g = g0; g < g1; ++g) dot_group(a, g, a.offsets[g], a.ends[g], in, out, p, dw);
}

// Groups [g0, g1) again, but `window` floats of the channels at a time, which are to stay in L2 meanwhile; worth it where a group's
// columns ascend, right in any order.  `next` is scratch of g1 - g0.
OW_INLINE void dots_in_windows(const Lowered& a, int64_t g0, int64_t g1, int64_t channels, int64_t window, const float* in,
                               const float* out, const Places& p, int32_t* next, float* dw) {
    for (int64_t g = g0; g < g1; ++g) next[g - g0] = a.offsets[g];
    for (int64_t limit = window;; limit += window) {
        for (int64_t g = g0; g < g1; ++g) {
            const int64_t first = next[g - g0], end = a.ends[g];
            int64_t k = first;
            if (limit >= channels) k = end;
            while (k < end && a.columns[k] < limit) ++k;
            dot_group(a, g, first, k, in, out, p, dw);
            next[g - g0] = static_cast<int32_t>(k);
        }
        if (limit >= channels) return;
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
