// How numbers lie in memory: floats, or bfloat16s that are floats once they are in a register.
#pragma once

#include "../api.hpp"
#include "vec.hpp"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint16_t HalvesInMemory __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

// To the nearest, ties to even; a NaN stays one.
OW_INLINE BFloat16 to_bf16(float v) {
    uint32_t bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    return static_cast<BFloat16>(v == v ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40);
}
OW_INLINE Halves to_bf16(Vec v) {
#ifdef __AVX512BF16__
    return (Halves)_mm512_cvtneps_pbh(v);  // takes denormal numbers for 0
#else
    const Bits bits = (Bits)v, nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return __builtin_convertvector(v == v ? nearest : bits >> 16 | 0x40, Halves);
#endif
}

OW_INLINE float number(float v) { return v; }
OW_INLINE float number(BFloat16 v) {
    const uint32_t bits = uint32_t{v} << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, sizeof wide);
    return wide;
}
OW_INLINE void put(float* to, float v) { *to = v; }
OW_INLINE void put(BFloat16* to, float v) { *to = to_bf16(v); }

OW_INLINE Vec widened(Halves v) { return (Vec)(__builtin_convertvector(v, Bits) << 16); }
OW_INLINE Vec load(const BFloat16* from) { return widened(*reinterpret_cast<const HalvesInMemory*>(from)); }
OW_INLINE void store(BFloat16* to, Vec v) { *reinterpret_cast<HalvesInMemory*>(to) = to_bf16(v); }
OW_INLINE void stream(BFloat16* to, Halves v) {
#if defined(__AVX512F__)
    typedef long long Whole __attribute__((vector_size(32)));
    __builtin_ia32_movntdq256(reinterpret_cast<Whole*>(to), (Whole)v);
#elif defined(__AVX2__)
    typedef long long Whole __attribute__((vector_size(16)));
    __builtin_ia32_movntdq(reinterpret_cast<Whole*>(to), (Whole)v);
#else
    *reinterpret_cast<HalvesInMemory*>(to) = v;
#endif
}
OW_INLINE void stream(BFloat16* to, Vec v) { stream(to, to_bf16(v)); }

// A vector of numbers to where they stay: as they are, rounded or widened, past the caches if wanted.
template <bool Stream, typename From, typename To>
OW_INLINE void move(const From* from, To* to) {
    if constexpr (Stream) {
        stream(to, load(from));
    } else {
        store(to, load(from));
    }
}
template <bool Stream>
OW_INLINE void move(const BFloat16* from, BFloat16* to) {
    const Halves v = *reinterpret_cast<const HalvesInMemory*>(from);
    if constexpr (Stream) {
        stream(to, v);
    } else {
        *reinterpret_cast<HalvesInMemory*>(to) = v;
    }
}

// What memory of type T would give back.
template <typename T>
OW_INLINE Vec as_stored(Vec v) {
    if constexpr (sizeof(T) == sizeof(float)) {
        return v;
    } else {
        return widened(to_bf16(v));
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
