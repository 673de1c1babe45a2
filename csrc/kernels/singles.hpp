// The arithmetic of single rows, against one window of columns and V vectors of samples.
//
// A window [column][V * kLanes] lies in L1 and all rows use it.  Loads bound these products, not arithmetic: a non-zero's inputs are
// operands of its multiplications, and whatever else a row needs stays in registers.
#pragma once

#include "vec.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

// The non-zeros of rows [0, rows) in a window: row r's are [offsets[r], offsets[r + 1]), their columns counted from the window's first.
// Non-zero k's value is values[k], or, where the values are not Sorted, values[order[k]].
struct Singles {
    const int32_t* offsets;
    const uint16_t* columns;
    const int32_t* order;
    float* values;
    int64_t rows;
};

// out[row] += values . window, or what is given in `bias` (null: 0) instead of out where this is the first window.
template <int V, bool Sorted>
OW_INLINE void add_singles(const Singles& a, const float* window, bool first, const float* bias, float* out) {
    constexpr int64_t kStride = V * kLanes;
    constexpr int kSums = V <= 2 ? 4 : V <= 4 ? 2 : 1;  // an addition takes four cycles, two begin in each
    for (int64_t r = 0; r < a.rows; ++r, out += kStride) {
        Vec acc[V];
        if (first) {
            OW_UNROLL
            for (int v = 0; v < V; ++v) acc[v] = broadcast(bias == nullptr ? 0.0f : bias[r]);
        } else {
            OW_UNROLL
            for (int v = 0; v < V; ++v) acc[v] = load(out + v * kLanes);
        }
        int64_t k = a.offsets[r];
        const int64_t end = a.offsets[r + 1];
        const auto value = [&a](int64_t k) { return broadcast(a.values[Sorted ? k : a.order[k]]); };
        const auto inputs = [&a, window](int64_t k) { return window + a.columns[k] * kStride; };
        if constexpr (kSums > 1) {
            Vec sum[kSums][V] = {};
            for (; k + kSums <= end; k += kSums) {
                OW_UNROLL
                for (int i = 0; i < kSums; ++i) {
                    const Vec one = value(k + i);
                    const float* x = inputs(k + i);
                    OW_UNROLL
                    for (int v = 0; v < V; ++v) sum[i][v] += one * load(x + v * kLanes);
                }
            }
            OW_UNROLL
            for (int i = 0; i < kSums; ++i) {
                OW_UNROLL
                for (int v = 0; v < V; ++v) acc[v] += sum[i][v];
            }
        }
        for (; k < end; ++k) {
            const Vec one = value(k);
            const float* x = inputs(k);
            OW_UNROLL
            for (int v = 0; v < V; ++v) acc[v] += one * load(x + v * kLanes);
        }
        OW_UNROLL
        for (int v = 0; v < V; ++v) store(out + v * kLanes, acc[v]);
    }
}

constexpr int64_t kWaiting = 64;  // partial sums that are added up across their lanes together

// Adds `count` partial sums, each a vector, across their lanes to the values of the non-zeros from k on, or sets those where this is the
// first panel.
template <bool Sorted>
OW_INLINE void add_up(const Singles& a, int64_t k, const float* partial, int64_t count, bool first) {
    for (int64_t done = 0; done < count; done += kLanes, k += kLanes, partial += kLanes * kLanes) {
        const int64_t here = least<int64_t>(kLanes, count - done);
        Vec v[kLanes];
        OW_UNROLL
        for (int i = 0; i < kLanes; ++i) v[i] = i < here ? load(partial + i * kLanes) : Vec{};
        const Vec sum = sums(v);
        if (Sorted && here == kLanes) {
            store(a.values + k, first ? sum : load(a.values + k) + sum);
            continue;
        }
        float* const to = a.values;
        float each[kLanes];
        store(each, sum);
        for (int64_t i = 0; i < here; ++i) {
            const int64_t at = Sorted ? k + i : a.order[k + i];
            to[at] = first ? each[i] : to[at] + each[i];
        }
    }
}

// The value of k += g[row] . window[column k] over the samples of a panel, or = in the first.  `partial` is scratch for kWaiting partial sums
// and a row's more.
template <int V, bool Sorted>
OW_INLINE void dot_singles(const Singles& a, const float* window, const float* g, bool first, float* partial) {
    constexpr int64_t kStride = V * kLanes;
    int64_t done = a.offsets[0], waiting = 0;
    for (int64_t r = 0; r < a.rows; ++r, g += kStride) {
        Vec row[V];
        OW_UNROLL
        for (int v = 0; v < V; ++v) row[v] = load(g + v * kLanes);
        for (int64_t k = a.offsets[r], end = a.offsets[r + 1]; k < end; ++k, ++waiting) {
            const float* x = window + a.columns[k] * kStride;
            Vec even = row[0] * load(x), odd = Vec{};
            OW_UNROLL
            for (int v = 1; v < V; ++v) (v % 2 ? odd : even) += row[v] * load(x + v * kLanes);
            store(partial + waiting * kLanes, even + odd);
        }
        if (waiting >= kWaiting) {
            const int64_t whole = waiting / kLanes * kLanes;
            add_up<Sorted>(a, done, partial, whole, first);
            for (int64_t i = 0; i < waiting - whole; ++i) store(partial + i * kLanes, load(partial + (whole + i) * kLanes));
            done += whole;
            waiting -= whole;
        }
    }
    add_up<Sorted>(a, done, partial, waiting, first);
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
