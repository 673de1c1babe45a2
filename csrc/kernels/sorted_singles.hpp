// The order of single rows, which have many columns: what is kept of it between calls is a column's place in its row.
#pragma once

#include "sorting.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int32_t kPlaces = 1 << 16;  // columns of a row whose places in it fit 16 bits
constexpr int64_t kRowsAhead = 8;     // from whose part in a window the next one to fetch is

// Whether the order of single rows is kept between calls, as places in them.
OW_INLINE bool keeps_places(const Stored& m, const Lowered& rows) {
    if (m.height > 1 || m.sortings == nullptr) return false;
    int32_t longest = 0;
    for (int64_t g = 0; g < m.groups; ++g) longest = most(longest, rows.ends[g] - rows.offsets[g]);
    return longest <= kPlaces;
}

// Where the columns of single rows stood in them, and the starts, both in `memory`.
[[maybe_unused]] static Failure make_places(const Stored& m, const Lowered& rows, const Addressing& at, const Sorting& s, Memory& memory,
                                            int threads, Sortings::Order& known) {
    const int64_t stride = odd_lines(m.groups), kinds = s.kinds();
    int32_t* ids = memory.take<int32_t>(m.stored);
    int32_t* stood = memory.take<int32_t>(m.stored);
    int32_t* starts = memory.take<int32_t>(s.starts() * stride);
    uint16_t* places = memory.take<uint16_t>(m.stored);
    Stored as_it_stands = m;
    as_it_stands.order = nullptr;
    if (Failure wrong = make_order(as_it_stands, rows, at, s, memory, threads, ids, stood, starts)) return wrong;
    for (int64_t w = 0; w < s.windows; ++w) {
        const int32_t* from = starts + w * (kinds + 1) * stride;
        for (int64_t g = 0; g < m.groups; ++g) {
            for (int32_t k = from[g]; k < from[kinds * stride + g]; ++k) places[k] = static_cast<uint16_t>(stood[k] - rows.offsets[g]);
        }
    }
    known = {nullptr, nullptr, starts, places};
    return nullptr;
}

// Fetches what will be sorted some rows after group g, whose columns in a window begin at `from`.  A transposed matrix has the values of
// a window in one run, more or less: that of the next window is fetched bit by bit.
OW_INLINE void fetch_ahead(const Stored& m, const Lowered& rows, const Sortings::Order& known, const int32_t* from, int64_t g, int64_t cell,
                           int64_t cells) {
    constexpr int64_t kLine = 16;
    if (g + kRowsAhead < m.groups && from[kRowsAhead] < m.stored) {
        const int64_t next = least<int64_t>(m.stored - 1, rows.offsets[g + kRowsAhead] + known.places[from[kRowsAhead]]);
        const float* values = m.order == nullptr && m.values != nullptr ? m.values + next : nullptr;
        for (int64_t i = 0; i < 2 * kLine; i += kLine) {
            __builtin_prefetch(m.columns + next + i);
            if (m.order != nullptr) __builtin_prefetch(m.order + next + i);
            if (values != nullptr) __builtin_prefetch(values + i);
        }
    }
    if (m.order == nullptr) return;
    const int64_t first = m.stored * (cell + m.groups) / cells, end = least(m.stored, m.stored * (cell + m.groups + 1) / cells);
    for (int64_t k = up(first, kLine); k < end; k += kLine) __builtin_prefetch(m.values + k, 0, 2);
}

// The same for single rows whose order is kept as places.  The pattern may have been written to since: its columns are checked again.
[[maybe_unused]] static Failure sort_singles(const Stored& m, const Lowered& rows, const Addressing& at, const Sorting& s,
                                             const SortingKey& key, Memory& memory, int threads, Sorted& out) {
    const int64_t stride = odd_lines(m.groups), kinds = s.kinds(), cells = s.windows * m.groups;
    int32_t* offsets = memory.take<int32_t>(m.n_columns);
    int32_t* columns = memory.take<int32_t>(m.stored);
    int32_t* ids = s.again ? memory.take<int32_t>(m.stored) : nullptr;
    int32_t* order = s.back ? memory.take<int32_t>(m.stored) : nullptr;
    float* values = m.values == nullptr ? nullptr : memory.take<float>(m.stored);
    Sortings::Order known = m.sortings->find(key);
    if (known.starts == nullptr) {
        if (Failure wrong = make_places(m, rows, at, s, memory, threads, known)) return wrong;
        m.sortings->keep(key, known, s.starts() * stride);
    }
    for_columns(m, at, [&](int64_t c, int64_t, int64_t, int32_t offset) { offsets[c] = offset; });
    const uint32_t limit = static_cast<uint32_t>(m.n_columns), stored = static_cast<uint32_t>(m.stored);
    bool wrong = false;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(|| : wrong) if (m.stored > 4096)
    for (int64_t cell = 0; cell < cells; ++cell) {
        const int64_t g = cell % m.groups;
        const int32_t* from = known.starts + cell / m.groups * (kinds + 1) * stride + g;
        fetch_ahead(m, rows, known, from, g, cell, cells);
        for (int32_t k = from[0]; k < from[kinds * stride]; ++k) {
            const uint32_t stood = static_cast<uint32_t>(rows.offsets[g]) + known.places[k];
            const uint32_t column = stood < stored ? static_cast<uint32_t>(m.columns[stood]) : limit;
            const uint32_t given = m.order == nullptr || stood >= stored ? stood : static_cast<uint32_t>(m.order[stood]);
            const bool right = column < limit && given < stored;
            wrong = wrong || !right;
            if (!right) continue;
            columns[k] = offsets[column];
            if (ids != nullptr) ids[k] = static_cast<int32_t>(column);
            if (order != nullptr) order[k] = static_cast<int32_t>(given);
            if (values != nullptr) values[k] = m.values[given];
        }
    }
    if (wrong) return "the pattern's columns are out of range";
    out = {rows, known.starts, order, ids, s.windows, kinds, stride, false};
    out.a.columns = columns;
    if (values != nullptr) out.a.values = values;
    return nullptr;
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
