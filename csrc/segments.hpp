// A matrix of height 1 cut into windows of columns, so that what a window's columns read stays in L1 while all rows use it.
#pragma once

#include "api.hpp"

namespace openwork {

constexpr int64_t kSegmentColumns = 88;                   // times 128 samples: 44 KB
constexpr int64_t kWidestSegment = 6 * kSegmentColumns;

// Columns in a window for so many samples.  The fewer samples, the less there is to do until a row ends in a window, which is mispredicted:
// beyond a point longer rows are worth more than inputs that all fit L1.
inline int64_t segment_width(int64_t batch) {
    const int64_t units = (batch + kBatchLanes - 1) / kBatchLanes;
    return units > 7 ? kSegmentColumns : units > 4 ? 2 * kSegmentColumns : units > 2 ? 4 * kSegmentColumns : kWidestSegment;
}

inline int64_t segment_windows(int64_t n_columns, int64_t width) { return (n_columns + width - 1) / width; }

// Orders the non-zeros by window, then row: row r's in window w are [offsets[w * n_rows + r], offsets[w * n_rows + r + 1]).  Columns are
// counted from the first of their window.  Returns what is wrong with the index, or null.
Failure cut(const Stored&, int64_t width, int32_t* offsets, uint16_t* columns, int32_t* order, int threads);

}  // namespace openwork
