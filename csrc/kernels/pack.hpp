// Between PyTorch's layouts and the kernels': 16 rows of contiguous numbers become 16 lanes of one place each.
#pragma once

#include "storage.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

// Sixteen places of sixteen lanes; lanes from `lanes` on read as 0.
template <typename From, typename To>
OW_INLINE void pack_block(const From* from, int64_t lane_stride, int64_t lanes, const int32_t* at, To* to) {
    for (int64_t l = 0; l < kBatchLanes; l += kLanes) {
        for (int64_t p = 0; p < kBatchLanes; p += kLanes) {
            Vec v[kLanes];
            OW_UNROLL
            for (int i = 0; i < kLanes; ++i) v[i] = l + i < lanes ? load(from + (l + i) * lane_stride + p) : Vec{};
            transpose(v);
            OW_UNROLL
            for (int i = 0; i < kLanes; ++i) store(to + at[p + i] + l, v[i]);
        }
    }
}

template <bool Stream, typename From, typename To>
OW_INLINE void unpack_block(const From* from, const int32_t* at, To* to, int64_t lane_stride, int64_t lanes) {
    for (int64_t l = 0; l < kBatchLanes; l += kLanes) {
        for (int64_t p = 0; p < kBatchLanes; p += kLanes) {
            Vec v[kLanes];
            OW_UNROLL
            for (int i = 0; i < kLanes; ++i) v[i] = load(from + at[p + i] + l);
            transpose(v);
            OW_UNROLL
            for (int i = 0; i < kLanes; ++i) {
                if (l + i >= lanes) continue;
                if constexpr (Stream) {
                    stream(to + (l + i) * lane_stride + p, v[i]);
                } else {
                    store(to + (l + i) * lane_stride + p, v[i]);
                }
            }
        }
    }
}

// What one pack or unpack moves: `count` contiguous places of `lanes` rows that lie `lane_stride` apart, into groups of `unit` lanes
// (a power of two, at most 16); place p goes to offset at[p], nowhere if that is negative.
struct Move {
    const int32_t* at;
    int64_t count, lane_stride, lanes, unit;
    bool cropped;  // some offsets are negative
    bool stream;   // unpack past the caches, where whole cache lines are written
    int64_t ahead = 0;  // what lies so far behind is packed next
};

template <typename From, typename To>
OW_INLINE void pack(const Move& m, const From* from, To* to) {
    if (m.unit == kBatchLanes && !m.cropped && m.count >= kBatchLanes) {
        // The last block overlaps the one before it, so that it is whole.
        for (int64_t p = 0; p < m.count; p += kBatchLanes) {
            const int64_t q = least(p, m.count - kBatchLanes);
            if (m.lanes == kBatchLanes) {
                pack_block(from + q, m.lane_stride, kBatchLanes, m.at + q, to);
            } else {
                pack_block(from + q, m.lane_stride, m.lanes, m.at + q, to);
            }
        }
        return;
    }
    for (int64_t l = 0; l < m.unit; ++l) {
        for (int64_t p = 0; p < m.count; ++p) {
            if (m.at[p] >= 0) put(to + m.at[p] + l, l < m.lanes ? number(from[l * m.lane_stride + p]) : 0.0f);
        }
    }
}

template <typename From, typename To>
OW_INLINE void unpack(const Move& m, const From* from, To* to) {
    if (m.unit == kBatchLanes && !m.cropped && m.count >= kBatchLanes) {
        const bool whole_lines = m.stream && (reinterpret_cast<uintptr_t>(to) / sizeof(To) | m.lane_stride | m.count) % 16 == 0;
        for (int64_t p = 0; p < m.count; p += kBatchLanes) {
            const int64_t q = least(p, m.count - kBatchLanes);
            if (m.lanes < kBatchLanes) {
                unpack_block<false>(from, m.at + q, to + q, m.lane_stride, m.lanes);
            } else if (whole_lines) {
                unpack_block<true>(from, m.at + q, to + q, m.lane_stride, kBatchLanes);
            } else {
                unpack_block<false>(from, m.at + q, to + q, m.lane_stride, kBatchLanes);
            }
        }
        return;
    }
    for (int64_t l = 0; l < m.lanes; ++l) {
        for (int64_t p = 0; p < m.count; ++p) {
            put(to + l * m.lane_stride + p, m.at[p] >= 0 ? number(from[m.at[p] + l]) : 0.0f);
        }
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
