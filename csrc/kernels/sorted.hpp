// The stored columns sorted: by windows of input channels, whose inputs stay in L1 while all rows use them, then by group, and in each
// group by taps, so that what a tap would read of the padding can be passed over.
#pragma once

#include <omp.h>

#include <cstring>

#include "memory.hpp"
#include "tiles.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

enum class By { kNothing, kTapLine, kTap };

struct Sorting {
    int64_t taps, taps_in_line;  // of the convolution's window
    int64_t windows;
    By by;

    int64_t kinds() const { return by == By::kTap ? taps : by == By::kTapLine ? taps / taps_in_line : 1; }
    bool whole() const { return windows * kinds() < 2; }
    int64_t starts() const { return windows * (kinds() + 1); }
};

struct Sorted {
    Lowered a;              // columns and values in their new order
    const int32_t* starts;  // [windows][kinds + 1][stride]: where the columns of each kind begin, and where the last end
    const int32_t* order;   // [stored]: where each column stood
    int64_t windows, kinds, stride;
    bool whole;             // nothing was sorted, and starts and order are null

    // The columns of kinds [from, to) in a window.
    Lowered range(int64_t window, int64_t from, int64_t to) const {
        Lowered part = a;
        if (whole) return part;
        part.offsets = starts + (window * (kinds + 1) + from) * stride;
        part.ends = starts + (window * (kinds + 1) + to) * stride;
        return part;
    }
};

OW_INLINE int64_t sorted_bytes(const Stored& m, const Sorting& s, int threads) {
    if (s.whole()) return 0;
    return (m.n_columns + m.stored * (2 + m.height) + s.starts() * (odd_lines(m.groups) + up(threads, 16))) * 4 + 512;
}

// Where one thread counts and places the columns of a group: a number for every kind in every window, and the end of the last.
struct Cells {
    const int32_t* of;  // [n_columns]: the cell of each column
    int32_t* mine;      // [cells]
    int64_t cells;
};

OW_INLINE void count_group(const Stored& m, const Cells& c, int64_t g, int32_t* starts, int64_t stride) {
    std::memset(c.mine, 0, static_cast<size_t>(c.cells) * 4);
    for (int32_t k = m.offsets[g]; k < m.offsets[g + 1]; ++k) ++c.mine[c.of[m.columns[k]]];
    for (int64_t cell = 0; cell < c.cells; ++cell) starts[cell * stride + g] = c.mine[cell];
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

OW_INLINE void place_group(const Stored& m, const Lowered& a, const Cells& c, int64_t g, const int32_t* starts, int64_t stride,
                           int32_t* columns, int32_t* order, float* values) {
    for (int64_t cell = 0; cell < c.cells; ++cell) c.mine[cell] = starts[cell * stride + g];
    for (int32_t k = m.offsets[g]; k < m.offsets[g + 1]; ++k) {
        const int32_t to = c.mine[c.of[m.columns[k]]]++;
        columns[to] = a.columns[k];
        order[to] = k;
        for (int64_t r = 0; a.values != nullptr && r < m.height; ++r) values[to * m.height + r] = a.values[k * m.height + r];
    }
}

// Sorts a matrix whose index has been checked; columns of one kind keep their order.
[[maybe_unused]] static Sorted sort_columns(const Stored& m, const Lowered& a, const Sorting& s, Memory& memory, int threads) {
    if (s.whole()) return {a, nullptr, nullptr, 1, 1, 0, true};
    const int64_t kinds = s.kinds(), channels = (m.n_columns / s.taps + s.windows - 1) / s.windows, cells = s.starts();
    const int64_t stride = odd_lines(m.groups);
    int32_t* cell_of = memory.take<int32_t>(m.n_columns);
    int32_t* columns = memory.take<int32_t>(m.stored);
    int32_t* order = memory.take<int32_t>(m.stored);
    float* values = memory.take<float>(m.stored * m.height);
    int32_t* starts = memory.take<int32_t>(cells * stride);
    int32_t* cursors = memory.take<int32_t>(cells * up(threads, 16));
    for (int64_t c = 0; c < m.n_columns; ++c) {
        const int64_t tap = c % s.taps, kind = s.by == By::kTap ? tap : s.by == By::kTapLine ? tap / s.taps_in_line : 0;
        cell_of[c] = static_cast<int32_t>(c / s.taps / channels * (kinds + 1) + kind);
    }
#pragma omp parallel num_threads(threads) if (m.stored > 4096)
    {
        const Cells own{cell_of, cursors + omp_get_thread_num() * cells, cells};
#pragma omp for schedule(static)
        for (int64_t g = 0; g < m.groups; ++g) count_group(m, own, g, starts, stride);
#pragma omp single
        add_up(s, m.groups, starts, stride);
#pragma omp for schedule(static)
        for (int64_t g = 0; g < m.groups; ++g) place_group(m, a, own, g, starts, stride, columns, order, values);
    }
    Lowered sorted = a;
    sorted.columns = columns;
    if (a.values != nullptr) sorted.values = values;
    return {sorted, starts, order, s.windows, kinds, stride, false};
}

// The same matrix with other offsets, in the order that it has been sorted to.
OW_INLINE Sorted sort_like(const Sorted& before, const Stored& m, const Lowered& a, Memory& memory) {
    Sorted s = before;
    s.a = a;
    if (before.whole) return s;
    int32_t* columns = memory.take<int32_t>(m.stored);
    for (int64_t k = 0; k < m.stored; ++k) columns[k] = a.columns[before.order[k]];
    s.a.columns = columns;
    s.a.values = before.a.values;
    return s;
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
