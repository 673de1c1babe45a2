#include "segments.hpp"

#include <cstring>
#include <vector>

namespace openwork {
namespace {

constexpr int64_t kShared = 16384;  // non-zeros from which on threads share the work

}  // namespace

Failure cut(const Stored& m, int64_t width, int32_t* offsets, uint16_t* columns, int32_t* order, int threads) {
    if (m.height != 1) return "only a pattern of height 1 can be cut into windows of columns";
    const int64_t ends = segment_windows(m.n_columns, width) * m.n_rows;
    if (m.offsets[0] != 0 || m.offsets[m.groups] != m.stored) return "the pattern's offsets do not run from 0 to the number of columns";
    std::vector<bool> seen(static_cast<size_t>(m.n_rows));
    for (int64_t g = 0; g < m.groups; ++g) {
        const int64_t row = m.rows == nullptr ? g : m.rows[g];
        if (m.offsets[g + 1] < m.offsets[g]) return "the pattern's offsets descend";
        if ((row < 0 && m.offsets[g + 1] > m.offsets[g]) || row >= m.n_rows) return "the pattern's rows are out of range";
        if (row >= 0 && seen[static_cast<size_t>(row)]) return "the pattern has a row in two groups";
        if (row >= 0) seen[static_cast<size_t>(row)] = true;
    }
    std::memset(offsets, 0, static_cast<size_t>(ends + 1) * sizeof(int32_t));
    const uint32_t limit = static_cast<uint32_t>(m.n_columns), divisor = static_cast<uint32_t>(width);
    bool bad = false;
    // A stable counting sort.  Every count is of one row, so that rows can be shared out among threads.
#pragma omp parallel for schedule(static) num_threads(threads) reduction(|| : bad) if (m.stored > kShared)
    for (int64_t g = 0; g < m.groups; ++g) {
        int32_t* counts = offsets + 1 + (m.rows == nullptr ? g : m.rows[g]);
        for (int32_t k = m.offsets[g]; k < m.offsets[g + 1]; ++k) {
            const uint32_t column = static_cast<uint32_t>(m.columns[k]);
            bad = bad || column >= limit;
            if (column < limit) ++counts[column / divisor * m.n_rows];
        }
    }
    if (bad) return "the pattern's columns are out of range";
    for (int64_t i = 0; i < ends; ++i) offsets[i + 1] += offsets[i];
    // offsets[i] is used as the cursor and ends one place too far.
#pragma omp parallel for schedule(static) num_threads(threads) if (m.stored > kShared)
    for (int64_t g = 0; g < m.groups; ++g) {
        int32_t* cursors = offsets + (m.rows == nullptr ? g : m.rows[g]);
        for (int32_t k = m.offsets[g]; k < m.offsets[g + 1]; ++k) {
            const uint32_t column = static_cast<uint32_t>(m.columns[k]);
            const int32_t to = cursors[column / divisor * m.n_rows]++;
            columns[to] = static_cast<uint16_t>(column % divisor);
            order[to] = m.order == nullptr ? k : m.order[k];
        }
    }
    for (int64_t i = ends; i > 0; --i) offsets[i] = offsets[i - 1];
    offsets[0] = 0;
    return nullptr;
}

}  // namespace openwork
