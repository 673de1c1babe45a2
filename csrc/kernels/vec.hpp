// One vector register of floats, for whatever instruction set this file is compiled for.  Compiler vector extensions only, no
// intrinsics, so every build is the same source.  Nothing here may be a function that the linker could share between builds:
// everything is forced inline.
#pragma once

#include <cstdint>

#define OW_INLINE static inline __attribute__((always_inline))
#define OW_UNROLL _Pragma("GCC unroll 32")

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef float VecInMemory __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef float Quad __attribute__((vector_size(16)));
typedef float QuadInMemory __attribute__((vector_size(16), aligned(4), may_alias));

OW_INLINE Vec load(const float* from) { return *reinterpret_cast<const VecInMemory*>(from); }
OW_INLINE void store(float* to, Vec v) { *reinterpret_cast<VecInMemory*>(to) = v; }
// A store that does not bring the line into the caches first; `to` is aligned to the vector.  drain_streams() orders them.
OW_INLINE void stream(float* to, Vec v) {
#if defined(__AVX512F__)
    __builtin_ia32_movntps512(to, v);
#elif defined(__AVX2__)
    __builtin_ia32_movntps256(to, v);
#elif defined(__SSE__)
    __builtin_ia32_movntps(to, v);
#else
    *reinterpret_cast<Vec*>(to) = v;
#endif
}
OW_INLINE void drain_streams() {
#if defined(__SSE__)
    __builtin_ia32_sfence();
#endif
}
OW_INLINE Vec broadcast(float x) { return x - Vec{}; }

template <typename T>
OW_INLINE T least(T a, T b) { return a < b ? a : b; }
template <typename T>
OW_INLINE T most(T a, T b) { return a > b ? a : b; }
OW_INLINE int64_t up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Strides that are an even number of cache lines thrash the sets of L1 and L2; this makes them odd.  In elements, so many a line.
OW_INLINE int64_t odd_lines(int64_t elements, int64_t a_line = 16) { return (up(elements, a_line) / a_line | 1) * a_line; }

template <int... I>
struct Index {};
template <int N, int... I>
struct MakeIndex : MakeIndex<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndex<0, I...> {
    using type = Index<I...>;
};
using Lanes = MakeIndex<kLanes>::type;

template <int... I>
OW_INLINE Vec evens(Vec a, Vec b, Index<I...>) { return __builtin_shufflevector(a, b, (2 * I)...); }
template <int... I>
OW_INLINE Vec odds(Vec a, Vec b, Index<I...>) { return __builtin_shufflevector(a, b, (2 * I + 1)...); }
template <int... I>
OW_INLINE Vec interleave_low(Vec a, Vec b, Index<I...>) { return __builtin_shufflevector(a, b, (I / 2 + I % 2 * kLanes)...); }
template <int... I>
OW_INLINE Vec interleave_high(Vec a, Vec b, Index<I...>) { return __builtin_shufflevector(a, b, (kLanes / 2 + I / 2 + I % 2 * kLanes)...); }

// The sums of kLanes vectors, in their order, as one vector: a tree of pairwise additions.
OW_INLINE Vec sums(Vec (&v)[kLanes]) {
    OW_UNROLL
    for (int width = kLanes / 2; width >= 1; width /= 2) {
        OW_UNROLL
        for (int i = 0; i < width; ++i) v[i] = evens(v[2 * i], v[2 * i + 1], Lanes{}) + odds(v[2 * i], v[2 * i + 1], Lanes{});
    }
    return v[0];
}

// Transposes the kLanes x kLanes matrix whose rows are v.
OW_INLINE void transpose(Vec (&v)[kLanes]) {
    Vec t[kLanes];
    OW_UNROLL
    for (int round = 1; round < kLanes; round *= 2) {
        OW_UNROLL
        for (int i = 0; i < kLanes / 2; ++i) {
            t[2 * i] = interleave_low(v[i], v[i + kLanes / 2], Lanes{});
            t[2 * i + 1] = interleave_high(v[i], v[i + kLanes / 2], Lanes{});
        }
        OW_UNROLL
        for (int i = 0; i < kLanes; ++i) v[i] = t[i];
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
