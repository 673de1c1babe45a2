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

// Wide registers consist of quads of four lanes.  What stays inside them is one instruction on every processor, and so is what moves
// whole quads; anything else costs two or three, or an index in a register.
constexpr int kQuads = kLanes / 4;

// The even or the odd lanes of every quad, those of a before those of b.
template <int ODD, int... I>
OW_INLINE Vec in_quads(Vec a, Vec b, Index<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 % 2 * 2 + ODD + I % 4 / 2 * kLanes)...);
}
// The even or the odd quads.
template <int ODD, int... I>
OW_INLINE Vec of_quads(Vec a, Vec b, Index<I...>) {
    return __builtin_shufflevector(a, b, (I * 2 / kLanes * kLanes + (I / 4 * 2 + ODD) * 4 % kLanes + I % 4)...);
}
// The lower or the upper quads.
template <int UPPER, int... I>
OW_INLINE Vec half_quads(Vec a, Vec b, Index<I...>) {
    return __builtin_shufflevector(a, b, (I * 2 / kLanes * kLanes + I % (kLanes / 2) + UPPER * kLanes / 2)...);
}
// The lower or the upper half of every quad, units of UNIT lanes of a and b in turn.
template <int UNIT, int UPPER, int... I>
OW_INLINE Vec interleave(Vec a, Vec b, Index<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + UPPER * 2 + I % 4 / (2 * UNIT) * UNIT + I % UNIT + I / UNIT % 2 * kLanes)...);
}

// The same quad in all places.  GCC makes two instructions of the shuffle, and none of them reads memory.
template <int... I>
OW_INLINE Vec repeat_quad(Quad q, Index<I...>) {
#if defined(__AVX512F__) && !defined(__clang__)
    return __builtin_ia32_broadcastf32x4_512(q, Vec{}, -1);
#else
    return __builtin_shufflevector(q, q, (I % 4)...);
#endif
}

// Lanes of a and b added in pairs, in their order within each quad.
OW_INLINE Vec pairs(Vec a, Vec b) { return in_quads<0>(a, b, Lanes{}) + in_quads<1>(a, b, Lanes{}); }

// The sums of kLanes vectors, in their order, as one vector: a tree of pairwise additions.
OW_INLINE Vec sums(Vec* v) {
    OW_UNROLL
    for (int i = 0; i < kQuads; ++i) v[i] = pairs(pairs(v[4 * i], v[4 * i + 1]), pairs(v[4 * i + 2], v[4 * i + 3]));
    if constexpr (kQuads > 1) {
        OW_UNROLL
        for (int width = kQuads / 2; width >= 1; width /= 2) {
            OW_UNROLL
            for (int i = 0; i < width; ++i) v[i] = of_quads<0>(v[2 * i], v[2 * i + 1], Lanes{}) + of_quads<1>(v[2 * i], v[2 * i + 1], Lanes{});
        }
    }
    return v[0];
}

// The sums of four vectors.
OW_INLINE Quad quad_sums(const Vec* v) {
    const Vec all = pairs(pairs(v[0], v[1]), pairs(v[2], v[3]));
    Quad part[kQuads];
    __builtin_memcpy(part, &all, sizeof part);
    OW_UNROLL
    for (int width = kQuads / 2; width >= 1; width /= 2) {
        OW_UNROLL
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    }
    return part[0];
}

// Transposes the kLanes x kLanes matrix whose rows are v: blocks of 4 x 4 in their quads, then whole quads.
OW_INLINE void transpose(Vec (&v)[kLanes]) {
    OW_UNROLL
    for (int i = 0; i < kLanes; i += 4) {
        const Vec a = interleave<1, 0>(v[i], v[i + 1], Lanes{}), b = interleave<1, 1>(v[i], v[i + 1], Lanes{});
        const Vec c = interleave<1, 0>(v[i + 2], v[i + 3], Lanes{}), d = interleave<1, 1>(v[i + 2], v[i + 3], Lanes{});
        v[i] = interleave<2, 0>(a, c, Lanes{});
        v[i + 1] = interleave<2, 1>(a, c, Lanes{});
        v[i + 2] = interleave<2, 0>(b, d, Lanes{});
        v[i + 3] = interleave<2, 1>(b, d, Lanes{});
    }
    OW_UNROLL
    for (int i = 0; i < 4 && kQuads > 1; ++i) {
        if constexpr (kQuads == 2) {
            const Vec a = v[i], b = v[i + 4];
            v[i] = half_quads<0>(a, b, Lanes{});
            v[i + 4] = half_quads<1>(a, b, Lanes{});
        } else if constexpr (kQuads == 4) {
            const Vec a = half_quads<0>(v[i], v[i + 4], Lanes{}), b = half_quads<1>(v[i], v[i + 4], Lanes{});
            const Vec c = half_quads<0>(v[i + 8], v[i + 12], Lanes{}), d = half_quads<1>(v[i + 8], v[i + 12], Lanes{});
            v[i] = of_quads<0>(a, c, Lanes{});
            v[i + 4] = of_quads<1>(a, c, Lanes{});
            v[i + 8] = of_quads<0>(b, d, Lanes{});
            v[i + 12] = of_quads<1>(b, d, Lanes{});
        }
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
