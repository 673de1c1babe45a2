#include "lower.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>
#include <type_traits>

namespace openwork {
namespace {

int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <typename T>
T* carve(char*& memory, int64_t count) {
    T* start = reinterpret_cast<T*>(memory);
    memory += padded(count * static_cast<int64_t>(sizeof(T)));
    return start;
}

Failure check_offsets(const Stored& m, const int32_t* offsets) {
    if (offsets[0] != 0 || offsets[m.groups] != m.stored) return "the pattern's offsets do not run from 0 to the number of columns";
    for (int64_t g = 0; g < m.groups; ++g) {
        if (offsets[g + 1] < offsets[g]) return "the pattern's offsets descend";
    }
    return nullptr;
}

Failure spread_rows(const Stored& m, int64_t row_stride, const float* bias, int32_t* rows, float* spread, char* seen, int64_t& full) {
    std::memset(seen, 0, static_cast<size_t>(m.n_rows));
    full = m.groups;
    for (int64_t i = 0; i < m.groups * m.height; ++i) {
        const int64_t row = m.rows == nullptr ? i : m.rows[i];
        if (row < -1 || row >= m.n_rows) return "the pattern's rows are out of range";
        if (row < 0) full = std::min(full, i / m.height);
        if (row >= 0) {
            if (seen[row]) return "the pattern has a row in two groups";
            seen[row] = 1;
        }
        rows[i] = row < 0 ? -1 : static_cast<int32_t>(row * row_stride);
        spread[i] = row < 0 || bias == nullptr ? 0.0f : bias[row];
    }
    return nullptr;
}

// Columns at one distance from each other need no table.
Failure lower_evenly(const Stored& m, const Addressing& at, int32_t* columns, int threads) {
    const uint32_t distance = static_cast<uint32_t>(at.channel), start = static_cast<uint32_t>(at.tap[0]);
    const uint32_t limit = static_cast<uint32_t>(m.n_columns);
    // Sign bits, which any processor can gather in vectors; there are fewer than 2^31 columns.
    uint32_t low = 0, high = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : low, high) if (m.stored > 16384)
    for (int64_t k = 0; k < m.stored; ++k) {
        const uint32_t column = static_cast<uint32_t>(m.columns[k]);
        low |= column;
        high |= ~(column - limit);
        columns[k] = static_cast<int32_t>(column * distance + start);
    }
    return (low | high) >> 31 ? "the pattern's columns are out of range" : nullptr;
}

}  // namespace

int64_t lowered_bytes(const Stored& m) {
    const int64_t rows = m.groups * m.height;
    return padded((m.groups + 1) * 4) + 2 * padded(rows * 4) + padded(m.n_rows) + padded(m.n_rows * 4) + padded(m.n_columns * 4) +
           padded(m.stored * 4) + (m.order != nullptr ? padded(m.stored * 4) : 0);
}

Failure lower_rows(const Stored& m, const Addressing& at, const float* bias, char*& memory, Lowered& out) {
    // What has been checked is a copy, for another thread may write to the pattern meanwhile.
    int32_t* offsets = carve<int32_t>(memory, m.groups + 1);
    std::memcpy(offsets, m.offsets, static_cast<size_t>(m.groups + 1) * 4);
    if (Failure wrong = check_offsets(m, offsets)) return wrong;
    int32_t* rows = carve<int32_t>(memory, m.groups * m.height);
    float* spread = carve<float>(memory, m.groups * m.height);
    char* seen = carve<char>(memory, m.n_rows);
    int32_t* missing = carve<int32_t>(memory, m.n_rows);

    const int64_t furthest = (m.n_columns / at.taps) * at.channel + *std::max_element(at.tap, at.tap + at.taps);
    if (std::max(furthest, m.n_rows * at.row) > std::numeric_limits<int32_t>::max()) return "the layer's blocked layout is too large for 32-bit offsets";
    int64_t full = 0, n_missing = 0;
    if (Failure wrong = spread_rows(m, at.row, bias, rows, spread, seen, full)) return wrong;
    for (int64_t r = 0; r < m.n_rows; ++r) {
        if (!seen[r]) missing[n_missing++] = static_cast<int32_t>(r);
    }
    out = {m.groups, m.height, m.n_rows, full, offsets, offsets + 1, nullptr, rows, m.rows, nullptr, spread, missing, n_missing};
    return nullptr;
}

Failure lower(const Stored& m, const Addressing& at, const float* bias, char* memory, int threads, Lowered& out) {
    if (Failure wrong = lower_rows(m, at, bias, memory, out)) return wrong;
    int32_t* table = carve<int32_t>(memory, m.n_columns);
    int32_t* columns = carve<int32_t>(memory, m.stored);
    out.columns = columns;
    out.values = m.values;
    if (at.taps == 1 && m.order == nullptr) return lower_evenly(m, at, columns, threads);
    float* ordered = m.order != nullptr ? carve<float>(memory, m.stored) : nullptr;
    for_columns(m, at, [&](int64_t c, int64_t, int64_t, int32_t offset) { table[c] = offset; });

    bool bad = false;
    const uint32_t limit = static_cast<uint32_t>(m.n_columns), stored = static_cast<uint32_t>(m.stored);
#pragma omp parallel for schedule(static) num_threads(threads) reduction(|| : bad) if (m.stored > 16384)
    for (int64_t k = 0; k < m.stored; ++k) {
        const uint32_t column = static_cast<uint32_t>(m.columns[k]);
        bad = bad || column >= limit;
        columns[k] = column < limit ? table[column] : 0;
        if (ordered != nullptr) {
            const uint32_t from = static_cast<uint32_t>(m.order[k]);
            bad = bad || from >= stored;
            ordered[k] = from < stored ? m.values[from] : 0.0f;
        }
    }
    if (bad) return "the pattern's columns are out of range";
    if (ordered != nullptr) out.values = ordered;
    return nullptr;
}

namespace {

// `Taps` is a number that the compiler knows, or int64_t: divisions take most of the time.
template <typename Taps>
Failure transpose_by(const Stored& m, Taps taps, int32_t* offsets, int32_t* columns, int32_t* order, int64_t shares) {
    const int64_t channels = m.n_columns / taps;
    const uint32_t limit = static_cast<uint32_t>(m.n_columns);
    // A stable counting sort; every share of the groups counts for itself, and its places come after those of the shares before it.
    std::vector<int32_t> cursors(static_cast<size_t>(shares * channels));
    bool bad_columns = false, bad_rows = false;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(shares)) reduction(|| : bad_columns, bad_rows) if (shares > 1)
    for (int64_t share = 0; share < shares; ++share) {
        int32_t* counts = cursors.data() + share * channels;
        for (int64_t g = m.groups * share / shares; g < m.groups * (share + 1) / shares; ++g) {
            const int64_t row = m.rows == nullptr ? g : m.rows[g];
            bad_rows = bad_rows || (m.offsets[g] < m.offsets[g + 1] && (row < 0 || row >= m.n_rows));
            for (int32_t k = m.offsets[g]; k < m.offsets[g + 1]; ++k) {
                const uint32_t column = static_cast<uint32_t>(m.columns[k]);
                bad_columns = bad_columns || column >= limit;
                if (column < limit) ++counts[column / taps];
            }
        }
    }
    if (bad_columns) return "the pattern's columns are out of range";
    if (bad_rows) return "the pattern's rows are out of range";
    int32_t next = 0;
    for (int64_t c = 0; c < channels; ++c) {
        offsets[c] = next;
        for (int64_t share = 0; share < shares; ++share) {
            int32_t& cursor = cursors[static_cast<size_t>(share * channels + c)];
            const int32_t count = cursor;
            cursor = next;
            next += count;
        }
    }
    offsets[channels] = next;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(shares)) if (shares > 1)
    for (int64_t share = 0; share < shares; ++share) {
        int32_t* to_next = cursors.data() + share * channels;
        for (int64_t g = m.groups * share / shares; g < m.groups * (share + 1) / shares; ++g) {
            const int64_t row = m.rows == nullptr ? g : m.rows[g];
            for (int32_t k = m.offsets[g]; k < m.offsets[g + 1]; ++k) {
                const int64_t channel = m.columns[k] / taps, tap = m.columns[k] % taps;
                const int32_t to = to_next[channel]++;
                columns[to] = static_cast<int32_t>(row * taps + taps - 1 - tap);
                order[to] = k;
            }
        }
    }
    return nullptr;
}

}  // namespace

Failure transpose(const Stored& m, int64_t taps, int32_t* offsets, int32_t* columns, int32_t* order, int threads) {
    if (Failure wrong = check_offsets(m, m.offsets)) return wrong;
    using One = std::integral_constant<int64_t, 1>;
    const int64_t shares = m.stored > 16384 ? std::min<int64_t>(threads, 16) : 1;
    return taps == 1 ? transpose_by(m, One{}, offsets, columns, order, shares) : transpose_by(m, taps, offsets, columns, order, shares);
}

}  // namespace openwork
