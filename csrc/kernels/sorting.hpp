// Putting stored columns in another order: by windows of input channels, then by group, and in each group by taps.
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

OW_INLINE void add_column(const float* from, float* to, int64_t height) {
    int64_t r = 0;
    for (; r + 4 <= height; r += 4) {
        QuadInMemory* quad = reinterpret_cast<QuadInMemory*>(to + r);
        *quad = *quad + *reinterpret_cast<const QuadInMemory*>(from + r);
    }
    for (; r < height; ++r) to[r] += from[r];
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
