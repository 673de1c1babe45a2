// The stored columns sorted: by windows of input channels, whose inputs stay in L1 while all rows use them, then by group, and in each
// group by taps, so that what a tap would read of the padding can be passed over.
#pragma once

#include "sorted_singles.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

// Lowers and sorts the columns of a matrix whose rows are lowered.
[[maybe_unused]] static Failure sort_columns(const Stored& m, const Lowered& rows, const Addressing& at, const Sorting& s, Memory& memory,
                                             int threads, Sorted& out) {
    const int64_t stride = odd_lines(m.groups), cells = s.starts();
    const SortingKey key{m.n_columns, m.groups, m.stored, s.taps, s.taps_in_line, s.windows, static_cast<int64_t>(s.by)};
    if (keeps_places(m, rows)) return sort_singles(m, rows, at, s, key, memory, threads, out);
    int32_t* offsets = memory.take<int32_t>(m.n_columns);
    int32_t* columns = memory.take<int32_t>(m.stored);
    float* values = m.values == nullptr ? nullptr : memory.take<float>(m.stored * m.height);
    Sortings::Order known = m.sortings == nullptr ? Sortings::Order{nullptr, nullptr, nullptr, nullptr} : m.sortings->find(key);
    if (known.ids == nullptr) {
        int32_t* ids = memory.take<int32_t>(m.stored);
        int32_t* order = memory.take<int32_t>(m.stored);
        int32_t* starts = memory.take<int32_t>(cells * stride);
        if (Failure wrong = make_order(m, rows, at, s, memory, threads, ids, order, starts)) return wrong;
        known = {ids, order, starts, nullptr};
        if (m.sortings != nullptr) m.sortings->keep(key, known, cells * stride);
    }
    for_columns(m, at, [&](int64_t c, int64_t, int64_t, int32_t offset) { offsets[c] = offset; });
#pragma omp parallel for schedule(static) num_threads(threads) if (m.stored > 4096)
    for (int64_t k = 0; k < m.stored; ++k) {
        columns[k] = offsets[known.ids[k]];
        if (values != nullptr) copy_column(m.values + known.order[k] * m.height, values + k * m.height, m.height);
    }
    out = {rows, known.starts, known.order, known.ids, s.windows, s.kinds(), stride, false};
    out.a.columns = columns;
    if (values != nullptr) out.a.values = values;
    return nullptr;
}

// The same matrix with other offsets, in the order that it has been sorted to.
OW_INLINE void sort_like(const Sorted& before, const Stored& m, const Lowered& rows, const Addressing& at, Memory& memory, int threads,
                         Sorted& out) {
    int32_t* offsets = memory.take<int32_t>(m.n_columns);
    int32_t* columns = memory.take<int32_t>(m.stored);
    for_columns(m, at, [&](int64_t c, int64_t, int64_t, int32_t offset) { offsets[c] = offset; });
#pragma omp parallel for schedule(static) num_threads(threads) if (m.stored > 16384)
    for (int64_t k = 0; k < m.stored; ++k) columns[k] = offsets[before.ids[k]];
    out = before;
    out.a = rows;
    out.a.columns = columns;
    out.a.values = before.a.values;
}

constexpr int64_t kWindowFloats = 8 << 10;  // of the input that a window reads

// Windows of a matrix whose input channels take `floats` each.
OW_INLINE int64_t cut_windows(const Stored& m, int64_t taps, int64_t floats, int64_t window) {
    const int64_t channels = most<int64_t>(1, window / floats), all = m.n_columns / taps;
    return m.height > 1 ? 1 : (all + channels - 1) / channels;
}

template <int NV>
OW_INLINE void cut_tile(const Lowered& a, bool first, const float* in, float* out) {
    for (int64_t g = 0; g < a.groups; ++g) {
        if (a.rows[g] < 0) continue;
        add_columns<NV>(in, a.columns, a.values, a.offsets[g], a.ends[g], first, a.bias[g], out + a.rows[g]);
    }
}

template <int NV>
void cut_strip(const Lowered& a, bool first, const float* in, float* out, int64_t vectors) {
    int64_t v = 0;
    for (; v + NV <= vectors; v += NV) cut_tile<NV>(a, first, in + v * kLanes, out + v * kLanes);
    if constexpr (NV > 1) {
        if (v < vectors) cut_strip<narrower(NV)>(a, first, in + v * kLanes, out + v * kLanes, vectors - v);
    }
}

// The columns of single rows against `vectors` vectors, added to `out` where they are not the first.
[[maybe_unused]] static void cut_product(const Lowered& a, bool first, const float* in, float* out, int64_t vectors) {
    cut_strip<tiles_of(1).gather.vectors>(a, first, in, out, vectors);
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
