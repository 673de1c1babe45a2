// bfloat16 in registers, and between [batch, feature] and tiles: 32 samples of one feature fill a vector.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "../api.hpp"
#include "vec.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kTile = 32;       // samples in a tile
constexpr int64_t kFeatures = 16;   // features that one transposition moves

OW_INLINE __m512i words(const BFloat16* from) { return _mm512_loadu_si512(from); }
OW_INLINE Vec as_floats(__m512i v) { return _mm512_castsi512_ps(v); }
OW_INLINE __m512i as_words(Vec v) { return _mm512_castps_si512(v); }
OW_INLINE Vec dot2(Vec sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

// Both of a pair of columns, sample beside sample: the two halves of each 128-bit lane.  Float accumulators of the first half are for
// samples 0-3, 8-11, 16-19, 24-27, of the second for the rest; `rounded` puts them into order again.
OW_INLINE void woven(__m512i a, __m512i b, __m512i (&to)[2]) {
    to[0] = _mm512_unpacklo_epi16(a, b);
    to[1] = _mm512_unpackhi_epi16(a, b);
}

OW_INLINE __m512i rounded(Vec first, Vec second) {
    const __m512i order = _mm512_set_epi64(0x001f001e001d001c, 0x000f000e000d000c, 0x001b001a00190018, 0x000b000a00090008,
                                           0x0017001600150014, 0x0007000600050004, 0x0013001200110010, 0x0003000200010000);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

// Where the tiles of a panel lie, in elements.
struct Panel {
    int64_t feature, tile;
};

// Sixteen features of a tile; samples from `samples` on read as 0.
OW_INLINE void pack_block(const BFloat16* from, int64_t features, int64_t samples, BFloat16* to, int64_t stride) {
    const __m512i order = _mm512_set_epi64(0x001f000f001e000e, 0x001d000d001c000c, 0x001b000b001a000a, 0x0019000900180008,
                                           0x0017000700160006, 0x0015000500140004, 0x0013000300120002, 0x0011000100100000);
    Vec v[kLanes];
    OW_UNROLL
    for (int i = 0; i < kLanes; ++i) {
        const __m256i none = _mm256_setzero_si256();
        const BFloat16* pair = from + 2 * i * features;
        const __m256i a = 2 * i < samples ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pair)) : none;
        const __m256i b = 2 * i + 1 < samples ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pair + features)) : none;
        v[i] = as_floats(_mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1)));
    }
    transpose(v);
    OW_UNROLL
    for (int i = 0; i < kLanes; ++i) _mm512_storeu_si512(to + i * stride, as_words(v[i]));
}

// [samples, features] -> tiles, the last one filled up with 0.
OW_INLINE void pack_tiles(const BFloat16* x, int64_t features, int64_t samples, BFloat16* panel, const Panel& at) {
    for (int64_t s = 0; s < samples; s += kTile, x += kTile * features, panel += at.tile) {
        const int64_t count = least(kTile, samples - s);
        if (features < kFeatures) {
            for (int64_t f = 0; f < features; ++f) {
                for (int64_t l = 0; l < kTile; ++l) panel[f * at.feature + l] = l < count ? x[l * features + f] : BFloat16{0};
            }
            continue;
        }
        for (int64_t p = 0; p < features; p += kFeatures) {
            const int64_t f = least(p, features - kFeatures);  // the last block overlaps the one before it, so that it is whole
            if (count == kTile) {
                pack_block(x + f, features, kTile, panel + f * at.feature, at.feature);
            } else {
                pack_block(x + f, features, count, panel + f * at.feature, at.feature);
            }
        }
    }
}

// A feature of a tile: as it stands, or from the accumulators of both halves.
OW_INLINE __m512i feature(const BFloat16* from) { return words(from); }
OW_INLINE __m512i feature(const float* from) { return rounded(load(from), load(from + kLanes)); }

template <typename T>
OW_INLINE void unpack_block(const T* from, int64_t stride, BFloat16* to, int64_t features, int64_t samples) {
    const __m512i order = _mm512_set_epi64(0x001f001d001b0019, 0x0017001500130011, 0x000f000d000b0009, 0x0007000500030001,
                                           0x001e001c001a0018, 0x0016001400120010, 0x000e000c000a0008, 0x0006000400020000);
    Vec v[kLanes];
    OW_UNROLL
    for (int i = 0; i < kLanes; ++i) v[i] = as_floats(feature(from + i * stride));
    transpose(v);
    OW_UNROLL
    for (int i = 0; i < kLanes; ++i) {
        const __m512i pair = _mm512_permutexvar_epi16(order, as_words(v[i]));
        BFloat16* first = to + 2 * i * features;
        if (2 * i < samples) _mm256_storeu_si256(reinterpret_cast<__m256i*>(first), _mm512_castsi512_si256(pair));
        if (2 * i + 1 < samples) _mm256_storeu_si256(reinterpret_cast<__m256i*>(first + features), _mm512_extracti64x4_epi64(pair, 1));
    }
}

// Features [from, to) of tiles -> [samples, features].
template <typename T>
OW_INLINE void unpack_tiles(const T* panel, const Panel& at, int64_t features, int64_t from, int64_t to, int64_t samples, BFloat16* y) {
    for (int64_t s = 0; s < samples; s += kTile, y += kTile * features, panel += at.tile) {
        const int64_t count = least(kTile, samples - s);
        if (to - from < kFeatures) {
            for (int64_t f = from; f < to; ++f) {
                alignas(64) BFloat16 lanes[kTile];
                _mm512_store_si512(lanes, feature(panel + f * at.feature));
                for (int64_t l = 0; l < count; ++l) y[l * features + f] = lanes[l];
            }
            continue;
        }
        for (int64_t p = from; p < to; p += kFeatures) {
            const int64_t f = least(p, to - kFeatures);
            if (count == kTile) {
                unpack_block(panel + f * at.feature, at.feature, y + f, features, kTile);
            } else {
                unpack_block(panel + f * at.feature, at.feature, y + f, features, count);
            }
        }
    }
}

// `count` floats to bfloat16.
OW_INLINE void narrow(const float* from, int64_t count, BFloat16* to) {
    for (int64_t i = 0; i < count; i += kLanes) {
        const __mmask16 there = static_cast<__mmask16>(count - i >= kLanes ? 0xffff : (1 << (count - i)) - 1);
        _mm256_mask_storeu_epi16(to + i, there, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, from + i)));
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
