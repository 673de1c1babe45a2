// The weight gradient of a linear layer whose row groups fill whole vectors, or of which several samples do: with the rows in the lanes a
// column's is a sum of outer products, and nothing or little has to be added up across lanes.
#pragma once

#include "panels.hpp"
#include "storage.hpp"
#include "tiles.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

// Samples of a row that lie side by side in a vector, for groups of this height: a vector has 16 rows of one sample, 8 of two or 4 of
// four.  0 where there is no such vector.
OW_INLINE int64_t samples_of_row(int64_t height) {
    return kOuter.columns == 1 ? 0 : height % kLanes == 0 ? 1 : height == kLanes / 2 ? 2 : height == kLanes / 4 ? 4 : 0;
}

// Whether it is computed so.  Rows that leave a vector room for several samples use a column only a few times: where it is read in more than
// one panel, dot products take less.
OW_INLINE bool outer_products_pay(int64_t height, int64_t batch) {
    const int64_t samples = samples_of_row(height);
    return samples == 1 || (samples > 1 && batch <= kPanel);
}

// The gradients of a vector of rows, [sample / S][row][sample % S], from a panel; 0 where there is no row.
template <int S>
OW_INLINE void turn_rows(const float* panel, const int32_t* rows, int64_t samples, float* turned) {
    for (int64_t s = 0; s < samples; s += kLanes) {
        if constexpr (S == 1) {
            Vec v[kLanes];
            OW_UNROLL
            for (int i = 0; i < kLanes; ++i) v[i] = rows[i] < 0 ? Vec{} : load(panel + rows[i] + s);
            transpose(v);
            OW_UNROLL
            for (int i = 0; i < kLanes; ++i) store(turned + (s + i) * kLanes, v[i]);
        } else {
            for (int64_t row = 0; row < kLanes / S; ++row) {
                const Vec v = rows[row] < 0 ? Vec{} : load(panel + rows[row] + s);
                float each[kLanes];
                store(each, v);
                OW_UNROLL
                for (int i = 0; i < kLanes; i += S) __builtin_memcpy(turned + (s + i) * (kLanes / S) + row * S, each + i, S * 4);
            }
        }
    }
}

// S numbers, again and again.
template <int S>
OW_INLINE Vec repeated(const float* from) {
    if constexpr (S == 2) {
        typedef double Pairs __attribute__((vector_size(4 * kLanes)));
        double pair;
        __builtin_memcpy(&pair, from, sizeof pair);
        Pairs v;
        OW_UNROLL
        for (int i = 0; i < kLanes / 2; ++i) v[i] = pair;
        return (Vec)v;
    } else {
        return repeat_quad(*reinterpret_cast<const QuadInMemory*>(from), Lanes{});
    }
}

// Sums over the S lanes of each row, of S vectors at a time: what lies side by side then are the rows of a column.
template <int S, int... I>
OW_INLINE Vec sums_of_rows(const Vec* v, Index<I...>) {
    if constexpr (S == 1) return v[0];
    else if constexpr (S == 2) return evens(v[0], v[1], Lanes{}) + odds(v[0], v[1], Lanes{});
    else {
        const Vec all = pairs(pairs(v[0], v[1]), pairs(v[2], v[3]));
        return __builtin_shufflevector(all, all, (I % (kLanes / 4) * 4 + I / (kLanes / 4))...);
    }
}

// A vector of rows against some columns of a group.
struct Outer {
    const float *turned, *panel;
    const int32_t* columns;
    int64_t count, samples, height;
    Bits real;  // all bits where there is a row: an input that is no number makes no gradient of padding
    bool add;
    float* dw;
};

// U steps of S samples at a time, from sample s on while they last; neighbouring sums take turns, for an addition takes four cycles.
template <int S, int KT, int U>
OW_INLINE void outer_steps(const Outer& o, const int32_t* columns, int64_t& s, Vec (&acc)[KT]) {
    constexpr int kTurn = 4;
    for (; s + U * S <= o.samples; s += U * S) {
        asm("" : "+r"(columns));  // there are more addresses than registers: worked out anew they cost less than kept in memory
        const float* x = o.panel + s;
        Vec rows[U];
        OW_UNROLL
        for (int u = 0; u < U; ++u) rows[u] = load(o.turned + (s / S + u) * kLanes);
        OW_UNROLL
        for (int j = 0; j < KT; j += kTurn) {
            const float* from[kTurn];
            OW_UNROLL
            for (int i = 0; i < kTurn; ++i) from[i] = x + columns[j + i < KT ? j + i : j];
            OW_UNROLL
            for (int u = 0; u < U; ++u) {
                OW_UNROLL
                for (int i = 0; i < kTurn; ++i) {
                    if (j + i >= KT) continue;
                    if constexpr (S == 1) acc[j + i] += rows[u] * from[i][u];
                    else acc[j + i] += rows[u] * repeated<S>(from[i] + u * S);
                }
            }
        }
    }
}

// The KT or, where S is more than 1, the last few of them.
template <int S, int KT>
OW_INLINE void outer_tile(const Outer& o) {
    static_assert(KT % S == 0);
    int32_t some[KT];
    const int32_t* columns = o.columns;
    if (S > 1 && o.count < KT) {
        for (int64_t j = 0; j < KT; ++j) some[j] = o.columns[least(j, o.count - 1)];
        columns = some;
    }
    Vec acc[KT];
    OW_UNROLL
    for (int j = 0; j < KT; ++j) acc[j] = Vec{};
    int64_t s = 0;
    outer_steps<S, KT, kOuter.samples>(o, columns, s, acc);
    outer_steps<S, KT, 1>(o, columns, s, acc);
    OW_UNROLL
    for (int j = 0; j < KT; j += S) {
        float* out = o.dw + j * o.height;
        const Vec sum = (Vec)((Bits)sums_of_rows<S>(acc + j, Lanes{}) & o.real);
        if (S == 1 || j + S <= o.count) {
            store(out, o.add ? load(out) + sum : sum);
            continue;
        }
        const float* each = reinterpret_cast<const float*>(&sum);
        for (int64_t i = 0; i < (o.count - j) * o.height; ++i) out[i] = o.add ? out[i] + each[i] : each[i];
    }
}

// FROM to TO times S columns, the last of which may be left out.
template <int S, int FROM, int TO>
OW_INLINE void outer_columns(const Outer& o) {
    constexpr int kMiddle = (FROM + TO) / 2;
    if constexpr (FROM == TO) {
        outer_tile<S, FROM * S>(o);
    } else if (o.count <= kMiddle * S) {
        outer_columns<S, FROM, kMiddle>(o);
    } else {
        outer_columns<S, kMiddle + 1, TO>(o);
    }
}

template <int S>
void outer_groups(const Lowered& a, int64_t g0, int64_t g1, const float* x, const float* g, int64_t samples, bool add, float* dw) {
    constexpr int64_t kRows = kLanes / S;
    float turned[kPanel * kRows];
    const int64_t h = a.height;
    for (int64_t i = g0 * h; i < g1 * h; i += kRows) {
        const int64_t group = i / h, first = a.offsets[group], count = a.ends[group] - first;
        const int64_t tiles = (count + kOuter.columns - 1) / kOuter.columns;
        Bits real;
        for (int l = 0; l < kLanes; ++l) real[l] = a.rows[i + l % kRows] < 0 ? 0 : ~0u;
        turn_rows<S>(g, a.rows + i, samples, turned);
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t k = first + up(count * t / tiles, S), columns = first + least(count, up(count * (t + 1) / tiles, S)) - k;
            outer_columns<S, 1, kOuter.columns / S>({turned, x, a.columns + k, columns, up(samples, S), h, real, add, dw + k * h + i % h});
        }
    }
}

// dw[k][row] of the groups [g0, g1) from up to kPanel samples of two panels, added to what is there or put in its place.
[[maybe_unused]] static void outer_products(const Lowered& a, int64_t g0, int64_t g1, const float* x, const float* g, int64_t samples,
                                            bool add, float* dw) {
    if constexpr (kOuter.columns > 1) {
        const int64_t s = samples_of_row(a.height);
        if (s == 1) outer_groups<1>(a, g0, g1, x, g, samples, add, dw);
        if (s == 2) outer_groups<2>(a, g0, g1, x, g, samples, add, dw);
        if (s == 4) outer_groups<4>(a, g0, g1, x, g, samples, add, dw);
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
