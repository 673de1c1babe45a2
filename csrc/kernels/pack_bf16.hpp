// bfloat16 in registers, and between PyTorch's layouts and the kernels': 16 rows of contiguous bfloat16s become 16 lanes of one
// place each, 32 places at a time.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "../api.hpp"
#include "pack.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kTile = 32;       // bfloat16s in a vector

OW_INLINE __m512i words(const BFloat16* from) { return _mm512_loadu_si512(from); }
OW_INLINE Vec as_floats(__m512i v) { return _mm512_castsi512_ps(v); }
OW_INLINE __m512i as_words(Vec v) { return _mm512_castps_si512(v); }
OW_INLINE Vec dot2(Vec sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
OW_INLINE __m512i narrowed(Vec low, Vec high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
OW_INLINE __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1); }
OW_INLINE __mmask32 first_words(int64_t count) { return count >= 32 ? 0xffffffffu : (1u << count) - 1; }

// Both of a pair of columns, word beside word: the two halves of each 128-bit lane.  Float accumulators of the first half are for
// words 0-3, 8-11, 16-19, 24-27, of the second for the rest; `rounded` puts them into order again.
OW_INLINE void woven(__m512i a, __m512i b, __m512i (&to)[2]) {
    to[0] = _mm512_unpacklo_epi16(a, b);
    to[1] = _mm512_unpackhi_epi16(a, b);
}

OW_INLINE __m512i rounded(Vec first, Vec second) {
    const __m512i order = _mm512_set_epi64(0x001f001e001d001c, 0x000f000e000d000c, 0x001b001a00190018, 0x000b000a00090008,
                                           0x0017001600150014, 0x0007000600050004, 0x0013001200110010, 0x0003000200010000);
    return _mm512_permutexvar_epi16(order, narrowed(first, second));
}

// Two rows word beside word, in order: the first sixteen words, then the others.
OW_INLINE void in_order(__m512i a, __m512i b, __m512i (&to)[2]) {
    const __m512i low = _mm512_set_epi64(0x002f000f002e000e, 0x002d000d002c000c, 0x002b000b002a000a, 0x0029000900280008,
                                         0x0027000700260006, 0x0025000500240004, 0x0023000300220002, 0x0021000100200000);
    to[0] = _mm512_permutex2var_epi16(a, low, b);
    to[1] = _mm512_permutex2var_epi16(a, _mm512_add_epi16(low, _mm512_set1_epi16(16)), b);
}

// Where places lie, in elements: evenly apart, or as listed, negative being nowhere.
struct Apart {
    int64_t stride;
    int64_t operator()(int64_t place) const { return place * stride; }
};
struct Listed {
    const int32_t* at;
    int64_t operator()(int64_t place) const { return at[place]; }
};

// 16 lanes of a place: as they stand, or of floats.
OW_INLINE __m256i half(const BFloat16* from, __mmask16 lanes) { return _mm256_maskz_loadu_epi16(lanes, from); }
OW_INLINE __m256i half(const float* from, __mmask16 lanes) { return (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, from)); }

// `count` places, at most 32, of the first `unit` lanes, at most 16, of which those from `lanes` on are 0.
OW_INLINE void pack_block(const BFloat16* from, int64_t lane_stride, int64_t lanes, int64_t count, int64_t unit, const int32_t* at,
                          BFloat16* to) {
    const __m512i order = _mm512_set_epi64(0x001f001d001b0019, 0x0017001500130011, 0x000f000d000b0009, 0x0007000500030001,
                                           0x001e001c001a0018, 0x0016001400120010, 0x000e000c000a0008, 0x0006000400020000);
    const __mmask16 kept = first_lanes(unit);
    Vec v[kLanes];
    OW_UNROLL
    for (int i = 0; i < kLanes; ++i) v[i] = i < lanes ? as_floats(_mm512_maskz_loadu_epi16(first_words(count), from + i * lane_stride)) : Vec{};
    transpose(v);
    OW_UNROLL
    for (int i = 0; i < kLanes; ++i) {
        const __m512i pair = _mm512_permutexvar_epi16(order, as_words(v[i]));
        const int32_t one = 2 * i < count ? at[2 * i] : -1, other = 2 * i + 1 < count ? at[2 * i + 1] : -1;
        if (one >= 0) _mm256_mask_storeu_epi16(to + one, kept, _mm512_castsi512_si256(pair));
        if (other >= 0) _mm256_mask_storeu_epi16(to + other, kept, _mm512_extracti64x4_epi64(pair, 1));
    }
}

template <bool Stream, typename T, typename At>
OW_INLINE void unpack_block(const T* from, int64_t lane_stride, int64_t lanes, int64_t count, const At& at, int64_t place, BFloat16* to) {
    const __m512i order = _mm512_set_epi64(0x001f000f001e000e, 0x001d000d001c000c, 0x001b000b001a000a, 0x0019000900180008,
                                           0x0017000700160006, 0x0015000500140004, 0x0013000300120002, 0x0011000100100000);
    const __mmask16 there = first_lanes(lanes);
    Vec v[kLanes];
    OW_UNROLL
    for (int i = 0; i < kLanes; ++i) {
        const int64_t one = 2 * i < count ? at(place + 2 * i) : -1, other = 2 * i + 1 < count ? at(place + 2 * i + 1) : -1;
        const __m256i low = one >= 0 ? half(from + one, there) : _mm256_setzero_si256();
        const __m256i high = other >= 0 ? half(from + other, there) : _mm256_setzero_si256();
        v[i] = as_floats(_mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
    }
    transpose(v);
    OW_UNROLL
    for (int i = 0; i < kLanes; ++i) {
        if (i >= lanes) continue;
        if constexpr (Stream) {
            stream(reinterpret_cast<float*>(to + i * lane_stride), v[i]);
        } else {
            _mm512_mask_storeu_epi16(to + i * lane_stride, first_words(count), as_words(v[i]));
        }
    }
}

template <bool Stream, typename T, typename At>
OW_INLINE void unpack_places(const T* from, const At& at, int64_t count, int64_t lanes, BFloat16* to, int64_t lane_stride) {
    for (int64_t p = 0; p < count; p += kTile) {
        for (int64_t l = 0; l < lanes; l += kLanes) {
            BFloat16* block = to + l * lane_stride + p;
            if (lanes - l >= kLanes && count - p >= kTile) {
                unpack_block<Stream>(from + l, lane_stride, kLanes, kTile, at, p, block);
            } else {
                unpack_block<false>(from + l, lane_stride, lanes - l, least(kTile, count - p), at, p, block);
            }
        }
    }
}

// One move of a slab.
OW_INLINE void pack(const Move& m, const BFloat16* from, BFloat16* to) {
    for (int64_t p = 0; p < m.count; p += kTile) {
        for (int64_t l = 0; l < m.lanes; ++l) __builtin_prefetch(from + l * m.lane_stride + p + m.ahead, 0, 2);
        if (m.lanes == kLanes && m.count - p >= kTile) {
            pack_block(from + p, m.lane_stride, kLanes, kTile, kLanes, m.at + p, to);
        } else {
            pack_block(from + p, m.lane_stride, m.lanes, least(kTile, m.count - p), m.unit, m.at + p, to);
        }
    }
}
template <typename T>
OW_INLINE void unpack(const Move& m, const T* from, BFloat16* to) {
    const bool whole_lines = m.stream && (reinterpret_cast<uintptr_t>(to) / 2 | m.lane_stride | m.count) % kTile == 0;
    if (whole_lines) return unpack_places<true>(from, Listed{m.at}, m.count, m.lanes, to, m.lane_stride);
    unpack_places<false>(from, Listed{m.at}, m.count, m.lanes, to, m.lane_stride);
}

// Where the tiles of a panel lie, in elements: 32 samples of one feature fill a vector.
struct Panel {
    int64_t feature, tile;
};

// Sixteen features of a tile in whole vectors; samples from `samples` on and features from `count` on read as 0.
OW_INLINE void pack_tile(const BFloat16* from, int64_t features, int64_t samples, int64_t count, BFloat16* to, int64_t stride) {
    const __m512i order = _mm512_set_epi64(0x001f000f001e000e, 0x001d000d001c000c, 0x001b000b001a000a, 0x0019000900180008,
                                           0x0017000700160006, 0x0015000500140004, 0x0013000300120002, 0x0011000100100000);
    const __mmask16 there = first_lanes(count);
    Vec v[kLanes];
    OW_UNROLL
    for (int i = 0; i < kLanes; ++i) {
        const BFloat16* pair = from + 2 * i * features;
        const __m256i a = 2 * i < samples ? half(pair, there) : _mm256_setzero_si256();
        const __m256i b = 2 * i + 1 < samples ? half(pair + features, there) : _mm256_setzero_si256();
        v[i] = as_floats(_mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1)));
    }
    transpose(v);
    OW_UNROLL
    for (int i = 0; i < kLanes; ++i) {
        if (i < count) _mm512_storeu_si512(to + i * stride, as_words(v[i]));
    }
}

// [samples, features] -> tiles, the last one filled up with 0.
OW_INLINE void pack_tiles(const BFloat16* x, int64_t features, int64_t samples, BFloat16* panel, const Panel& at) {
    for (int64_t s = 0; s < samples; s += kTile, x += kTile * features, panel += at.tile) {
        for (int64_t f = 0; f < features; f += kLanes) {
            if (samples - s >= kTile && features - f >= kLanes) {
                pack_tile(x + f, features, kTile, kLanes, panel + f * at.feature, at.feature);
            } else {
                pack_tile(x + f, features, samples - s, features - f, panel + f * at.feature, at.feature);
            }
        }
    }
}

// Features [from, to) of tiles -> [samples, features].
template <typename T>
OW_INLINE void unpack_tiles(const T* panel, const Panel& at, int64_t features, int64_t from, int64_t to, int64_t samples, BFloat16* y) {
    for (int64_t s = 0; s < samples; s += kTile) {
        const T* tile = panel + s / kTile * at.tile + from * at.feature;
        unpack_places<false>(tile, Apart{at.feature}, to - from, least(kTile, samples - s), y + s * features + from, features);
    }
}

// `count` floats to bfloat16.
OW_INLINE void narrow(const float* from, int64_t count, BFloat16* to) {
    for (int64_t i = 0; i < count; i += kLanes) {
        const __mmask16 there = first_lanes(count - i);
        _mm256_mask_storeu_epi16(to + i, there, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, from + i)));
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
