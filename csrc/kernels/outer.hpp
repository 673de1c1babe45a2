// The weight gradient of a linear layer whose row groups fill whole vectors: with the rows in the lanes a column's is a sum of outer
// products, and nothing has to be added up across lanes.
#pragma once

#include "panels.hpp"
#include "storage.hpp"
#include "tiles.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

// Whether it is computed so for groups of this height.
OW_INLINE bool fills_vectors(int64_t height) { return kOuter.columns > 1 && height % kLanes == 0; }

// The gradients of a vector of rows, [sample][row], from a panel; 0 where there is no row.
OW_INLINE void turn_rows(const float* panel, const int32_t* rows, int64_t samples, float* turned) {
    for (int64_t s = 0; s < samples; s += kLanes) {
        Vec v[kLanes];
        OW_UNROLL
        for (int i = 0; i < kLanes; ++i) v[i] = rows[i] < 0 ? Vec{} : load(panel + rows[i] + s);
        transpose(v);
        OW_UNROLL
        for (int i = 0; i < kLanes; ++i) store(turned + (s + i) * kLanes, v[i]);
    }
}

// A vector of rows against some columns of a group.
struct Outer {
    const float *turned, *panel;
    const int32_t* columns;
    int64_t samples, height;
    Bits real;  // all bits where there is a row: an input that is no number makes no gradient of padding
    bool add;
    float* dw;
};

// U samples at a time, from sample s on while they last; neighbouring sums take turns, for an addition takes four cycles.
template <int KT, int U>
OW_INLINE void outer_steps(const Outer& o, int64_t& s, Vec (&acc)[KT]) {
    constexpr int kTurn = 4;
    const int32_t* columns = o.columns;
    for (; s + U <= o.samples; s += U) {
        asm("" : "+r"(columns));  // there are more addresses than registers: worked out anew they cost less than kept in memory
        const float* x = o.panel + s;
        Vec rows[U];
        OW_UNROLL
        for (int u = 0; u < U; ++u) rows[u] = load(o.turned + (s + u) * kLanes);
        OW_UNROLL
        for (int j = 0; j < KT; j += kTurn) {
            const float* from[kTurn];
            OW_UNROLL
            for (int i = 0; i < kTurn; ++i) from[i] = x + columns[j + i < KT ? j + i : j];
            OW_UNROLL
            for (int u = 0; u < U; ++u) {
                OW_UNROLL
                for (int i = 0; i < kTurn; ++i) {
                    if (j + i < KT) acc[j + i] += rows[u] * from[i][u];
                }
            }
        }
    }
}

template <int KT>
OW_INLINE void outer_tile(const Outer& o) {
    Vec acc[KT];
    OW_UNROLL
    for (int j = 0; j < KT; ++j) acc[j] = Vec{};
    int64_t s = 0;
    outer_steps<KT, kOuter.samples>(o, s, acc);
    outer_steps<KT, 1>(o, s, acc);
    OW_UNROLL
    for (int j = 0; j < KT; ++j) {
        float* out = o.dw + j * o.height;
        const Vec sum = (Vec)((Bits)acc[j] & o.real);
        store(out, o.add ? load(out) + sum : sum);
    }
}

// FROM to TO columns.
template <int FROM, int TO>
OW_INLINE void outer_columns(int64_t count, const Outer& o) {
    constexpr int kMiddle = (FROM + TO) / 2;
    if constexpr (FROM == TO) {
        outer_tile<FROM>(o);
    } else if (count <= kMiddle) {
        outer_columns<FROM, kMiddle>(count, o);
    } else {
        outer_columns<kMiddle + 1, TO>(count, o);
    }
}

// dw[k][row] of the groups [g0, g1) from up to kPanel samples of two panels, added to what is there or put in its place.
[[maybe_unused]] static void outer_products(const Lowered& a, int64_t g0, int64_t g1, const float* x, const float* g, int64_t samples,
                                            bool add, float* dw) {
    float turned[kPanel * kLanes];
    const int64_t h = a.height;
    for (int64_t i = g0 * h; i < g1 * h; i += kLanes) {
        const int64_t group = i / h, first = a.offsets[group], count = a.ends[group] - first;
        const int64_t tiles = (count + kOuter.columns - 1) / kOuter.columns;
        Bits real;
        for (int l = 0; l < kLanes; ++l) real[l] = a.rows[i + l] < 0 ? 0 : ~0u;
        turn_rows(g, a.rows + i, samples, turned);
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t k = first + count * t / tiles, columns = first + count * (t + 1) / tiles - k;
            outer_columns<1, kOuter.columns>(columns, {turned, x, a.columns + k, samples, h, real, add, dw + k * h + i % h});
        }
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
