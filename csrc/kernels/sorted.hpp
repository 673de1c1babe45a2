// The stored columns sorted: by windows of input channels, whose inputs stay in L1 while all rows use them, then by group, and in each
// group by taps, so that what a tap would read of the padding can be passed over.
#pragma once

#include <omp.h>

#include <cstring>

#include "../sortings.hpp"
#include "memory.hpp"
#include "tiles.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

enum class By { kNothing, kTapLine, kTap };

struct Sorting {
    int64_t taps, taps_in_line;  // of the convolution's window
    int64_t windows;
    By by;
    bool again = false;  // another plan's columns will be sorted like these
    bool back = false;   // results go to where the values stood

    int64_t kinds() const { return by == By::kTap ? taps : by == By::kTapLine ? taps / taps_in_line : 1; }
    bool whole() const { return windows * kinds() < 2; }
    int64_t starts() const { return windows * (kinds() + 1); }
};

struct Sorted {
    Lowered a;              // columns and values in their new order
    const int32_t* starts;  // [windows][kinds + 1][stride]: where the columns of each kind begin, and where the last end
    const int32_t* order;   // [stored]: where each column's values are; of single rows null unless asked for
    const int32_t* ids;     // [stored]: the columns in their new order; the same
    int64_t windows, kinds, stride;
    bool whole;             // nothing was sorted, and starts, order and ids are null

    // The columns of kinds [from, to) in a window.
    Lowered range(int64_t window, int64_t from, int64_t to) const {
        Lowered part = a;
        if (whole) return part;
        part.offsets = starts + (window * (kinds + 1) + from) * stride;
        part.ends = starts + (window * (kinds + 1) + to) * stride;
        return part;
    }
};

constexpr int32_t kPlaces = 1 << 16;  // columns of a row whose places in it fit 16 bits
constexpr int64_t kRowsAhead = 8;     // from whose part in a window the next one to fetch is

OW_INLINE int64_t sorted_bytes(const Stored& m, const Sorting& s, int threads) {
    if (s.whole()) return 0;
    const int64_t each = m.height == 1 ? 8 : 4 + m.height;
    return (m.n_columns * 2 + m.stored * each + s.starts() * (odd_lines(m.groups) + up(threads, 16))) * 4 + 1024;
}

// Where one thread counts and places the columns of a group.
struct Cells {
    const int32_t* of;  // [n_columns]: a number for every kind in every window
    int32_t* mine;      // [cells]
    int64_t cells;      // with one for the end of each window's last
};

// The columns of group g are read once, here: another thread may write to the pattern, and these are what has been checked.
OW_INLINE bool count_group(const Stored& m, const Lowered& a, const Cells& c, int64_t g, int32_t* ids, int32_t* starts, int64_t stride) {
    const uint32_t limit = static_cast<uint32_t>(m.n_columns);
    bool right = true;
    std::memset(c.mine, 0, static_cast<size_t>(c.cells) * 4);
    for (int32_t k = a.offsets[g]; k < a.offsets[g + 1]; ++k) {
        const uint32_t column = static_cast<uint32_t>(m.columns[k]);
        right = right && column < limit;
        ids[k] = static_cast<int32_t>(column);
        if (column < limit) ++c.mine[c.of[column]];
    }
    for (int64_t cell = 0; cell < c.cells; ++cell) starts[cell * stride + g] = c.mine[cell];
    return right;
}

// Counts become places.
OW_INLINE void add_up(const Sorting& s, int64_t groups, int32_t* starts, int64_t stride) {
    int32_t next = 0;
    for (int64_t w = 0; w < s.windows; ++w) {
        for (int64_t g = 0; g < groups; ++g) {
            for (int64_t kind = 0; kind <= s.kinds(); ++kind) {
                int32_t& cell = starts[(w * (s.kinds() + 1) + kind) * stride + g];
                const int32_t count = cell;
                cell = next;
                next += count;
            }
        }
    }
}

// Writes the ids of the columns in their new order, and where their values are.
OW_INLINE bool place_group(const Stored& m, const Lowered& a, const Cells& c, int64_t g, const int32_t* stood, const int32_t* starts,
                           int64_t stride, int32_t* ids, int32_t* order) {
    const uint32_t stored = static_cast<uint32_t>(m.stored);
    bool right = true;
    for (int64_t cell = 0; cell < c.cells; ++cell) c.mine[cell] = starts[cell * stride + g];
    for (int32_t k = a.offsets[g]; k < a.offsets[g + 1]; ++k) {
        const int32_t to = c.mine[c.of[stood[k]]]++, given = m.order != nullptr ? m.order[k] : k;
        right = right && static_cast<uint32_t>(given) < stored;
        ids[to] = stood[k];
        order[to] = given;
    }
    return right;
}

// Sorts the columns, those of one kind as they stood.
[[maybe_unused]] static Failure make_order(const Stored& m, const Lowered& rows, const Addressing& at, const Sorting& s, Memory& memory,
                                           int threads, int32_t* ids, int32_t* order, int32_t* starts) {
    const int64_t kinds = s.kinds(), channels = (m.n_columns / s.taps + s.windows - 1) / s.windows, cells = s.starts();
    const int64_t stride = odd_lines(m.groups);
    int32_t* places = memory.take<int32_t>(m.n_columns);
    int32_t* cursors = memory.take<int32_t>(cells * up(threads, 16));
    int32_t* stood = memory.take<int32_t>(m.stored);
    for_columns(m, at, [&](int64_t c, int64_t channel, int64_t tap, int32_t) {
        const int64_t kind = s.by == By::kTap ? tap : s.by == By::kTapLine ? tap / s.taps_in_line : 0;
        places[c] = static_cast<int32_t>(channel / channels * (kinds + 1) + kind);
    });
    bool wrong = false;
#pragma omp parallel num_threads(threads) if (m.stored > 4096)
    {
        const Cells own{places, cursors + omp_get_thread_num() * cells, cells};
#pragma omp for schedule(static) reduction(|| : wrong)
        for (int64_t g = 0; g < m.groups; ++g) wrong = !count_group(m, rows, own, g, stood, starts, stride) || wrong;
        const bool stop = wrong;
#pragma omp single
        if (!stop) add_up(s, m.groups, starts, stride);
#pragma omp for schedule(static) reduction(|| : wrong)
        for (int64_t g = stop ? m.groups : 0; g < m.groups; ++g) {
            wrong = !place_group(m, rows, own, g, stood, starts, stride, ids, order) || wrong;
        }
    }
    return wrong ? "the pattern's columns are out of range" : nullptr;
}

OW_INLINE void copy_column(const float* from, float* to, int64_t height) {
    int64_t r = 0;
    for (; r + kLanes <= height; r += kLanes) store(to + r, load(from + r));
    for (; r + 4 <= height; r += 4) *reinterpret_cast<QuadInMemory*>(to + r) = *reinterpret_cast<const QuadInMemory*>(from + r);
    for (; r < height; ++r) to[r] = from[r];
}

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
