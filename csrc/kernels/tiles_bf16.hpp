// The arithmetic of bfloat16: one instruction multiplies two pairs and adds both products to a float.  Forward, a pair is two columns;
// for the input gradient, two rows; for the weight gradient, two samples.
#pragma once

#include "weights_bf16.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

// forward: out[row] = bias[row] + sum over pairs, for NT tiles
template <int MR, int NT>
OW_INLINE void gather_tile(const BFloat16* in, int64_t in_tile, const int32_t* columns, const uint32_t* w, int64_t height, int64_t pairs,
                           BFloat16* out, int64_t out_tile, const int32_t* rows, const float* bias) {
    Vec acc[MR][2 * NT];
    OW_UNROLL
    for (int m = 0; m < MR; ++m) {
        OW_UNROLL
        for (int v = 0; v < 2 * NT; ++v) acc[m][v] = broadcast(bias[m]);
    }
    for (int64_t p = 0; p < pairs; ++p, w += height) {
        __m512i x[NT][2];
        OW_UNROLL
        for (int t = 0; t < NT; ++t) woven(words(in + columns[2 * p] + t * in_tile), words(in + columns[2 * p + 1] + t * in_tile), x[t]);
        OW_UNROLL
        for (int m = 0; m < MR; ++m) {
            const __m512i both = _mm512_set1_epi32(static_cast<int>(w[m]));
            OW_UNROLL
            for (int v = 0; v < 2 * NT; ++v) acc[m][v] = dot2(acc[m][v], x[v / 2][v % 2], both);
        }
    }
    OW_UNROLL
    for (int m = 0; m < MR; ++m) {
        if (rows[m] < 0) continue;
        OW_UNROLL
        for (int t = 0; t < NT; ++t) _mm512_storeu_si512(out + rows[m] + t * out_tile, rounded(acc[m][2 * t], acc[m][2 * t + 1]));
    }
}

template <int MR, int NT>
OW_INLINE void gather_group(const Lowered& a, const ColumnPairs& c, int64_t g, const BFloat16* in, int64_t in_tile, BFloat16* out,
                            int64_t out_tile) {
    const int64_t first = c.first[g], pairs = c.first[g + 1] - first, h = a.height;
    const int32_t *columns = c.columns + 2 * first, *rows = a.rows + g * h;
    const uint32_t* w = c.values + first * h;
    const float* bias = a.bias + g * h;
    int64_t r = 0;
    for (; r + MR <= h; r += MR) gather_tile<MR, NT>(in, in_tile, columns, w + r, h, pairs, out, out_tile, rows + r, bias + r);
    if constexpr (MR > 1) {
        for (; r + MR / 2 <= h && MR / 2 > 2; r += MR / 2) gather_tile<MR / 2, NT>(in, in_tile, columns, w + r, h, pairs, out, out_tile, rows + r, bias + r);
        for (; r + 2 <= h; r += 2) gather_tile<2, NT>(in, in_tile, columns, w + r, h, pairs, out, out_tile, rows + r, bias + r);
        for (; r < h; ++r) gather_tile<1, NT>(in, in_tile, columns, w + r, h, pairs, out, out_tile, rows + r, bias + r);
    }
}

// Groups [g0, g1) against `tiles` tiles, which share each pass over a group's weights.
template <int MR, int NT>
void gather(const Lowered& a, const ColumnPairs& c, int64_t g0, int64_t g1, const BFloat16* in, int64_t in_tile, BFloat16* out,
            int64_t out_tile, int64_t tiles) {
    for (int64_t g = g0; g < g1; ++g) {
        int64_t t = 0;
        for (; t + NT <= tiles; t += NT) gather_group<MR, NT>(a, c, g, in + t * in_tile, in_tile, out + t * out_tile, out_tile);
        if constexpr (NT > 2) {
            for (; t + 2 <= tiles; t += 2) gather_group<MR, 2>(a, c, g, in + t * in_tile, in_tile, out + t * out_tile, out_tile);
        }
        for (; t < tiles; ++t) gather_group<MR, 1>(a, c, g, in + t * in_tile, in_tile, out + t * out_tile, out_tile);
    }
}

// The register tiles, by height.
OW_INLINE void gather_any(const Lowered& a, const ColumnPairs& c, int64_t g0, int64_t g1, const BFloat16* in, int64_t in_tile, BFloat16* out,
                          int64_t out_tile, int64_t tiles) {
    if (a.height >= 8) return gather<8, 1>(a, c, g0, g1, in, in_tile, out, out_tile, tiles);
    if (a.height >= 4) return gather<4, 2>(a, c, g0, g1, in, in_tile, out, out_tile, tiles);
    if (a.height >= 2) return gather<2, 2>(a, c, g0, g1, in, in_tile, out, out_tile, tiles);
    return gather<1, 4>(a, c, g0, g1, in, in_tile, out, out_tile, tiles);
}

// Sets the rows that are in no group to their bias.
OW_INLINE void fill_missing(const Lowered& a, const float* bias, BFloat16* out, int64_t row_stride, int64_t out_tile, int64_t tiles) {
    for (int64_t i = 0; i < a.n_missing; ++i) {
        const Vec value = broadcast(bias == nullptr ? 0.0f : bias[a.missing[i]]);
        for (int64_t t = 0; t < tiles; ++t) _mm512_storeu_si512(out + t * out_tile + a.missing[i] * row_stride, narrowed(value, value));
    }
}

// input gradient: dx[column] += sum over pairs of rows, kept in registers, of NT tiles; floats in the order of the places
template <int PAIRS, int NT>
OW_INLINE void scatter_tile(float* dx, int64_t dx_tile, const int32_t* columns, const BFloat16* w, int64_t stride, int64_t count,
                            const BFloat16* g, int64_t g_tile, const int32_t* rows, int64_t n) {
    __m512i pairs[PAIRS][NT][2];
    OW_UNROLL
    for (int m = 0; m < PAIRS; ++m) {
        const bool one = 2 * m < n && rows[2 * m] >= 0, other = 2 * m + 1 < n && rows[2 * m + 1] >= 0;
        OW_UNROLL
        for (int t = 0; t < NT; ++t) {
            const __m512i first = one ? words(g + rows[2 * m] + t * g_tile) : _mm512_setzero_si512();
            in_order(first, other ? words(g + rows[2 * m + 1] + t * g_tile) : _mm512_setzero_si512(), pairs[m][t]);
        }
    }
    for (int64_t k = 0; k < count; ++k, w += stride) {
        float* to = dx + columns[k];
        Vec sum[NT][2];
        OW_UNROLL
        for (int v = 0; v < 2 * NT; ++v) sum[v / 2][v % 2] = load(to + v / 2 * dx_tile + v % 2 * kLanes);
        OW_UNROLL
        for (int m = 0; m < PAIRS; ++m) {
            int32_t both;
            std::memcpy(&both, w + 2 * m, sizeof both);
            OW_UNROLL
            for (int v = 0; v < 2 * NT; ++v) sum[v / 2][v % 2] = dot2(sum[v / 2][v % 2], pairs[m][v / 2][v % 2], _mm512_set1_epi32(both));
        }
        OW_UNROLL
        for (int v = 0; v < 2 * NT; ++v) store(to + v / 2 * dx_tile + v % 2 * kLanes, sum[v / 2][v % 2]);
    }
}

template <int PAIRS, int NT>
OW_INLINE void scatter_group(const Lowered& a, int64_t group, const BFloat16* w, float* dx, int64_t dx_tile, const BFloat16* g, int64_t g_tile) {
    const int64_t h = a.height, stride = up(h, 2), first = a.offsets[group], count = a.offsets[group + 1] - first;
    const int32_t *columns = a.columns + first, *rows = a.rows + group * h;
    w += first * stride;
    int64_t r = 0;
    for (; r + 2 * PAIRS <= stride; r += 2 * PAIRS) scatter_tile<PAIRS, NT>(dx, dx_tile, columns, w + r, stride, count, g, g_tile, rows + r, h - r);
    if constexpr (PAIRS > 4) {
        for (; r + 8 <= stride; r += 8) scatter_tile<4, NT>(dx, dx_tile, columns, w + r, stride, count, g, g_tile, rows + r, h - r);
    }
    if constexpr (PAIRS > 2) {
        for (; r + 4 <= stride; r += 4) scatter_tile<2, NT>(dx, dx_tile, columns, w + r, stride, count, g, g_tile, rows + r, h - r);
    }
    for (; PAIRS > 1 && r < stride; r += 2) scatter_tile<1, NT>(dx, dx_tile, columns, w + r, stride, count, g, g_tile, rows + r, h - r);
}

// Groups [g0, g1) for `tiles` tiles; w is [stored][stride], stride = the height made even, and 0 at padding.
template <int PAIRS, int NT>
void scatter(const Lowered& a, int64_t g0, int64_t g1, const BFloat16* w, float* dx, int64_t dx_tile, const BFloat16* g, int64_t g_tile,
             int64_t tiles) {
    for (int64_t group = g0; group < g1; ++group) {
        int64_t t = 0;
        for (; t + NT <= tiles; t += NT) scatter_group<PAIRS, NT>(a, group, w, dx + t * dx_tile, dx_tile, g + t * g_tile, g_tile);
        for (; t < tiles; ++t) scatter_group<PAIRS, 1>(a, group, w, dx + t * dx_tile, dx_tile, g + t * g_tile, g_tile);
    }
}

OW_INLINE void scatter_any(const Lowered& a, int64_t g0, int64_t g1, const BFloat16* w, float* dx, int64_t dx_tile, const BFloat16* g,
                           int64_t g_tile, int64_t tiles) {
    if (a.height > 8) return scatter<8, 1>(a, g0, g1, w, dx, dx_tile, g, g_tile, tiles);
    if (a.height > 4) return scatter<4, 2>(a, g0, g1, w, dx, dx_tile, g, g_tile, tiles);
    if (a.height > 2) return scatter<2, 2>(a, g0, g1, w, dx, dx_tile, g, g_tile, tiles);
    return scatter<1, 2>(a, g0, g1, w, dx, dx_tile, g, g_tile, tiles);
}

// weight gradient: one accumulator a column.  The lanes of a vector are H rows x 16 / H pairs of places, so a column's places are
// broadcast, and sums over lanes run over the few pairs only.

// The places that a sum runs over: `lines` strips of `tiles` tiles, whose places lie side by side.
struct Places {
    int64_t lines, in_line, out_line, tiles;
};

template <int UNIT, int... I>
OW_INLINE Vec low_units(Vec a, Vec b, Index<I...>) {
    return __builtin_shufflevector(a, b, (I / UNIT / 2 * UNIT + I / UNIT % 2 * kLanes + I % UNIT)...);
}
template <int UNIT, int... I>
OW_INLINE Vec high_units(Vec a, Vec b, Index<I...>) {
    return __builtin_shufflevector(a, b, (kLanes / 2 + I / UNIT / 2 * UNIT + I / UNIT % 2 * kLanes + I % UNIT)...);
}

// H rows of `tiles` tiles -> vectors [tile][H] of [row][pair]; absent rows are 0.
template <int H>
OW_INLINE void pack_rows(const BFloat16* g, const int32_t* rows, int64_t n, int64_t tiles, float* to) {
    for (int64_t t = 0; t < tiles; ++t, g += kTile, to += H * kLanes) {
        Vec v[H], other[H];
        OW_UNROLL
        for (int r = 0; r < H; ++r) v[r] = r < n && rows[r] >= 0 ? as_floats(words(g + rows[r])) : Vec{};
        OW_UNROLL
        for (int round = 1; round < H; round *= 2) {
            OW_UNROLL
            for (int i = 0; i < H / 2; ++i) {
                other[2 * i] = low_units<kLanes / H>(v[i], v[i + H / 2], Lanes{});
                other[2 * i + 1] = high_units<kLanes / H>(v[i], v[i + H / 2], Lanes{});
            }
            OW_UNROLL
            for (int i = 0; i < H; ++i) v[i] = other[i];
        }
        OW_UNROLL
        for (int r = 0; r < H; ++r) store(to + r * kLanes, v[r]);
    }
}

// 16 / H pairs of places in all rows' lanes.
template <int H>
OW_INLINE __m512i spread(const BFloat16* from) {
    if constexpr (H == 16) {
        int32_t pair;
        std::memcpy(&pair, from, sizeof pair);
        return _mm512_set1_epi32(pair);
    } else if constexpr (H == 8) {
        int64_t pairs;
        std::memcpy(&pairs, from, sizeof pairs);
        return _mm512_set1_epi64(pairs);
    } else if constexpr (H == 4) {
        return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    } else if constexpr (H == 2) {
        return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    } else {
        return words(from);
    }
}

// Up to KT columns against H rows; dw[k][row], of which `n` rows from the first on exist.
template <int H, int KT>
OW_INLINE void dot_tile(const BFloat16* x, const int32_t* columns, int64_t count, const float* g, const Places& p, const int32_t* rows,
                        int64_t n, float* dw, int64_t height) {
    constexpr int kPairs = kLanes / H, kStep = H < 4 ? H : 4;
    Vec acc[KT];
    OW_UNROLL
    for (int j = 0; j < KT; ++j) acc[j] = Vec{};
    for (int64_t line = 0; line < p.lines; ++line, x += p.in_line, g += p.tiles * H * kLanes) {
        const BFloat16* from[KT];
        OW_UNROLL
        for (int j = 0; j < KT; ++j) from[j] = x + columns[least<int64_t>(j, count - 1)];
        // A few vectors a turn: there are not registers enough for the addresses.
        for (int64_t q = 0; q < H * p.tiles; q += kStep) {
            __m512i rowv[kStep];
            OW_UNROLL
            for (int i = 0; i < kStep; ++i) rowv[i] = as_words(load(g + (q + i) * kLanes));
            OW_UNROLL
            for (int j = 0; j < KT; ++j) {
                OW_UNROLL
                for (int i = 0; i < kStep; ++i) acc[j] = dot2(acc[j], rowv[i], spread<H>(from[j] + (q + i) * 2 * kPairs));
            }
        }
    }
    OW_UNROLL
    for (int pairs = kPairs, left = KT / 2; pairs > 1; pairs /= 2, left /= 2) {
        OW_UNROLL
        for (int i = 0; i < left; ++i) acc[i] = evens(acc[2 * i], acc[2 * i + 1], Lanes{}) + odds(acc[2 * i], acc[2 * i + 1], Lanes{});
    }
    int there = 0;
    for (int r = 0; r < H; ++r) there |= (r < n && rows[r] >= 0) << r;
    // Vector i holds kPairs columns of H rows.
    OW_UNROLL
    for (int i = 0; i < KT / kPairs; ++i) {
        float* to = dw + i * kPairs * height;
        const int64_t left = count - i * kPairs;
        if (left <= 0) break;
        if (H == height && there == (1 << H) - 1 && left >= kPairs) {
            store(to, load(to) + acc[i]);
        } else if constexpr (H == kLanes) {
            const __mmask16 mask = static_cast<__mmask16>(there);
            _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), acc[i]));
        } else {
            alignas(64) float lanes[kLanes];
            store(lanes, acc[i]);
            for (int64_t l = 0; l < kLanes && l / H < left; ++l) {
                if (there >> l % H & 1) to[l / H * height + l % H] += lanes[l];
            }
        }
    }
}

template <int H>
OW_INLINE void dot_rows(const Lowered& a, int64_t first, int64_t count, const int32_t* rows, int64_t n, const BFloat16* x, const BFloat16* g,
                        const Places& p, float* packed, float* dw) {
    for (int64_t line = 0; line < p.lines; ++line) pack_rows<H>(g + line * p.out_line, rows, n, p.tiles, packed + line * p.tiles * H * kLanes);
    for (int64_t k = 0; k < count; k += 16) {
        const int64_t left = least<int64_t>(16, count - k);
        if (H == 16 && left <= 8) {
            dot_tile<H, H == 16 ? 8 : 16>(x, a.columns + first + k, left, packed, p, rows, n, dw + (first + k) * a.height, a.height);
        } else {
            dot_tile<H, 16>(x, a.columns + first + k, left, packed, p, rows, n, dw + (first + k) * a.height, a.height);
        }
    }
}

// Adds to dw[k][row] for the groups [g0, g1).  `packed` has room for 16 rows of all places.
OW_INLINE void dots(const Lowered& a, int64_t g0, int64_t g1, const BFloat16* x, const BFloat16* g, const Places& p, float* packed, float* dw) {
    for (int64_t group = g0; group < g1; ++group) {
        const int64_t first = a.offsets[group], count = a.offsets[group + 1] - first;
        if (count == 0) continue;
        for (int64_t r = 0; r < a.height; r += 16) {
            const int64_t n = least<int64_t>(16, a.height - r);
            const int32_t* rows = a.rows + group * a.height + r;
            if (n > 8) dot_rows<16>(a, first, count, rows, n, x, g, p, packed, dw + r);
            else if (n > 4) dot_rows<8>(a, first, count, rows, n, x, g, p, packed, dw + r);
            else if (n > 2) dot_rows<4>(a, first, count, rows, n, x, g, p, packed, dw + r);
            else if (n > 1) dot_rows<2>(a, first, count, rows, n, x, g, p, packed, dw + r);
            else dot_rows<1>(a, first, count, rows, n, x, g, p, packed, dw + r);
        }
    }
}

// Adds to db[row] the sums of the rows [from, to) over `tiles` tiles of a panel.
OW_INLINE void add_samples(const BFloat16* g, const Panel& at, int64_t from, int64_t to, int64_t tiles, float* db) {
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    for (int64_t f = from; f < to; f += kLanes) {
        Vec sum[kLanes];
        OW_UNROLL
        for (int i = 0; i < kLanes; ++i) {
            const BFloat16* row = g + least(f + i, to - 1) * at.feature;
            sum[i] = Vec{};
            for (int64_t t = 0; t < tiles; ++t) sum[i] = dot2(sum[i], words(row + t * at.tile), ones);
        }
        const __mmask16 there = first_lanes(to - f);
        _mm512_mask_storeu_ps(db + f, there, _mm512_add_ps(_mm512_maskz_loadu_ps(there, db + f), sums(sum)));
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
