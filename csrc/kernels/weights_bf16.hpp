// The stored weights as the tiles of bfloat16 take them: floats rounded, at the start of every call, and put in pairs.
#pragma once

#include "../lower.hpp"
#include "memory.hpp"
#include "pack_bf16.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

// The stored columns in pairs; a group's odd one goes with a feature of zeros.
struct ColumnPairs {
    int64_t* first;     // [groups + 1], in pairs
    int32_t* columns;   // [pairs][2], element offsets
    uint32_t* values;   // [pairs][height], both columns' weights in one word
};

OW_INLINE int64_t most_pairs(const Stored& m) { return (m.stored + m.groups) / 2; }
OW_INLINE int64_t pairs_bytes(const Stored& m) { return (m.groups + 1) * 8 + most_pairs(m) * (2 + m.height) * 4 + 192; }

// Room for all pairs; pair_group() fills them.
OW_INLINE ColumnPairs make_pairs(const Stored& m, const Lowered& a, Memory& memory) {
    const ColumnPairs c{memory.take<int64_t>(m.groups + 1), memory.take<int32_t>(2 * most_pairs(m)), memory.take<uint32_t>(most_pairs(m) * m.height)};
    c.first[0] = 0;
    for (int64_t g = 0; g < a.groups; ++g) c.first[g + 1] = c.first[g] + (a.offsets[g + 1] - a.offsets[g] + 1) / 2;
    return c;
}

// `zeros` is the offset of a column of zeros.
OW_INLINE void pair_group(const Lowered& a, int64_t g, int32_t zeros, const ColumnPairs& c) {
    const int64_t first = a.offsets[g], count = a.offsets[g + 1] - first, h = a.height, pairs = c.first[g + 1] - c.first[g];
    const float* w = a.values + first * h;
    int32_t* columns = c.columns + 2 * c.first[g];
    std::memcpy(columns, a.columns + first, static_cast<size_t>(count) * 4);
    if (count % 2) columns[count] = zeros;
    uint32_t* values = c.values + c.first[g] * h;
    if (h == 1) {
        if (count % 2) values[pairs - 1] = 0;
        narrow(w, count, reinterpret_cast<BFloat16*>(values));
        return;
    }
    for (int64_t p = 0; p < pairs; ++p, w += 2 * h, values += h) {
        for (int64_t r = 0; r < h; r += kLanes) {
            const __mmask16 there = first_lanes(h - r);
            const __mmask16 second = 2 * p + 1 < count ? there : __mmask16{0};
            const __m256i one = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, w + r));
            const __m256i other = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(second, w + h + r));
            const __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(one), _mm512_slli_epi32(_mm512_cvtepu16_epi32(other), 16));
            _mm512_mask_storeu_epi32(values + r, there, both);
        }
    }
}

// One group's weights as `scatter` takes them.
OW_INLINE void narrow_group(const Lowered& a, int64_t g, BFloat16* to) {
    const int64_t first = a.offsets[g], count = a.offsets[g + 1] - first, h = a.height, stride = up(h, 2);
    const float* w = a.values + first * h;
    to += first * stride;
    if (h == stride) {
        narrow(w, count * h, to);
    } else {
        for (int64_t k = 0; k < count; ++k) {
            narrow(w + k * h, h, to + k * stride);
            to[k * stride + h] = 0;
        }
    }
    for (int64_t r = 0; g >= a.full_groups && r < h; ++r) {
        for (int64_t k = 0; a.rows[g * h + r] < 0 && k < count; ++k) to[k * stride + r] = 0;
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
