// A matrix of height 1 cut into windows of columns, so that what a window's columns read stays in L1 while all rows use it.
#pragma once

#include "api.hpp"

namespace openwork {

constexpr int64_t kSegmentColumns = 88;  // times 128 samples: 44 KB

inline int64_t segment_windows(int64_t n_columns) { return (n_columns + kSegmentColumns - 1) / kSegmentColumns; }

// Orders the non-zeros by window, then row: row r's in window w are [offsets[w * n_rows + r], offsets[w * n_rows + r + 1]).  Columns are
// counted from the first of their window.  Returns what is wrong with the index, or null.
Failure cut(const Stored&, int32_t* offsets, uint16_t* columns, int32_t* order, int threads);

}  // namespace openwork
