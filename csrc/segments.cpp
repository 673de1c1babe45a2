#include "segments.hpp"

#include <cstring>
#include <vector>

namespace openwork {

Failure cut(const Stored& m, int32_t* offsets, int32_t* columns, int32_t* order) {
    if (m.height != 1) return "only a pattern of height 1 can be cut into windows of columns";
    const int64_t ends = segment_windows(m.n_columns) * m.n_rows;
    std::memset(offsets, 0, static_cast<size_t>(ends + 1) * sizeof(int32_t));
    if (m.offsets[0] != 0 || m.offsets[m.groups] != m.stored) return "the pattern's offsets do not run from 0 to the number of columns";
    std::vector<bool> seen(static_cast<size_t>(m.n_rows));
    for (int64_t g = 0; g < m.groups; ++g) {
        const int64_t row = m.rows == nullptr ? g : m.rows[g];
        if (m.offsets[g + 1] < m.offsets[g] || m.offsets[g + 1] > m.stored) return "the pattern's offsets descend";
        if ((row < 0 && m.offsets[g + 1] > m.offsets[g]) || row >= m.n_rows) return "the pattern's rows are out of range";
        if (row >= 0 && seen[static_cast<size_t>(row)]) return "the pattern has a row in two groups";
        if (row >= 0) seen[static_cast<size_t>(row)] = true;
        for (int64_t k = m.offsets[g]; k < m.offsets[g + 1]; ++k) {
            if (m.columns[k] < 0 || m.columns[k] >= m.n_columns) return "the pattern's columns are out of range";
            ++offsets[m.columns[k] / kSegmentColumns * m.n_rows + row + 1];
        }
    }
    for (int64_t i = 0; i < ends; ++i) offsets[i + 1] += offsets[i];
    // A stable counting sort; offsets[i] is used as the cursor and ends one place too far.
    for (int64_t g = 0; g < m.groups; ++g) {
        const int64_t row = m.rows == nullptr ? g : m.rows[g];
        for (int64_t k = m.offsets[g]; k < m.offsets[g + 1]; ++k) {
            const int32_t to = offsets[m.columns[k] / kSegmentColumns * m.n_rows + row]++;
            columns[to] = m.columns[k];
            order[to] = m.order == nullptr ? static_cast<int32_t>(k) : m.order[k];
        }
    }
    for (int64_t i = ends; i > 0; --i) offsets[i] = offsets[i - 1];
    offsets[0] = 0;
    return nullptr;
}

}  // namespace openwork
