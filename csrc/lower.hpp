// From a pattern's row and column ids to the element offsets that the kernels add to their base pointers.
#pragma once

#include "api.hpp"

namespace openwork {

// A sparse matrix against one memory layout.  Its index is checked: whatever a kernel derives from it stays inside the layout.
struct Lowered {
    int64_t groups, height, n_rows;
    int64_t full_groups;      // groups before the first padded one
    const int32_t* offsets;   // [groups], where each group's columns begin
    const int32_t* ends;      // [groups]
    const int32_t* columns;   // [stored], element offset of each stored column
    const int32_t* rows;      // [groups][height], element offset of each row, -1 = padding
    const int32_t* row_ids;   // [groups][height], or null for the identity
    const float* values;      // [stored][height]
    const float* bias;        // [groups][height], 0 without a bias
    const int32_t* missing;   // rows in no group
    int64_t n_missing;
};

// How columns and rows are addressed: column c at (c / taps) * channel + tap[c % taps], row r at r * row.
struct Addressing {
    int64_t channel;
    int64_t taps;
    const int64_t* tap;
    int64_t row;
};

// Calls f(column, channel, tap, offset) for every column in turn; divisions would take longer than what is done with each.
template <typename F>
static inline __attribute__((always_inline)) void for_columns(const Stored& m, const Addressing& at, F f) {
    for (int64_t c = 0, channel = 0; c < m.n_columns; ++channel) {
        for (int64_t tap = 0; tap < at.taps && c < m.n_columns; ++tap, ++c) {
            f(c, channel, tap, static_cast<int32_t>(channel * at.channel + at.tap[tap]));
        }
    }
}

// The group at which share `part` of `parts` begins, by stored columns.
static inline int64_t share(const Lowered& a, int64_t part, int64_t parts) {
    const int64_t goal = a.offsets[a.groups] * part / parts;
    int64_t low = 0, high = a.groups;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (a.offsets[middle] < goal) low = middle + 1; else high = middle;
    }
    return part == parts ? a.groups : part == 0 ? 0 : low;
}

int64_t lowered_bytes(const Stored&);

// `memory` is 64-byte aligned and has lowered_bytes(stored) bytes.  Returns what is wrong with the index, or null.
Failure lower(const Stored&, const Addressing&, const float* bias, char* memory, int threads, Lowered& out);

// The same but for columns and values, which are null; `memory` moves past what is taken of it.
Failure lower_rows(const Stored&, const Addressing&, const float* bias, char*& memory, Lowered& out);

// The transposition of a matrix of height 1 whose columns are channel * taps + tap: row = channel, column = row * taps + (taps - 1 - tap).
Failure transpose(const Stored&, int64_t taps, int32_t* offsets, int32_t* columns, int32_t* order, int threads);

}  // namespace openwork
