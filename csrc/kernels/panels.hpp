// What the products of linear layers share: panels of up to 64 samples of every feature, [feature][sample], and fetching ahead.
#pragma once

#include "memory.hpp"
#include "pack.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kPanel = 64;  // samples in a panel

// Offsets of `features` rows of a panel.
OW_INLINE int32_t* places(Memory& memory, int64_t features, int64_t stride) {
    int32_t* at = memory.take<int32_t>(features);
    for (int64_t f = 0; f < features; ++f) at[f] = static_cast<int32_t>(f * stride);
    return at;
}

// Features [from, to) of [samples, features] -> [feature][sample], the samples filled up with 0 to a multiple of 16.
OW_INLINE void pack_panel(const float* x, int64_t features, int64_t from, int64_t to, int64_t samples, const int32_t* at, float* panel) {
    for (int64_t s = 0; s < samples; s += kBatchLanes) {
        const Move move{at + from, to - from, features, least(kBatchLanes, samples - s), kBatchLanes, false, false};
        pack(move, x + s * features + from, panel + s);
    }
}

OW_INLINE void unpack_panel(const float* panel, int64_t features, int64_t from, int64_t to, int64_t samples, const int32_t* at, float* y) {
    for (int64_t s = 0; s < samples; s += kBatchLanes) {
        const Move move{at + from, to - from, features, least(kBatchLanes, samples - s), kBatchLanes, false, false};
        unpack(move, panel + s, y + s * features + from);
    }
}

// Plain memory that is used next.  It is asked for bit by bit while the arithmetic runs; all at once it would only queue up.
struct Ahead {
    const float* read;
    int64_t read_floats;
    const float* written;
    int64_t written_floats;
};

OW_INLINE void fetch(const Ahead& a, int64_t step, int64_t steps) {
    const int64_t reads = a.read_floats * (step + 1) / steps, writes = a.written_floats * (step + 1) / steps;
    for (int64_t i = a.read_floats * step / steps & -16; i < reads; i += 16) __builtin_prefetch(a.read + i, 0, 2);
    for (int64_t i = a.written_floats * step / steps & -16; i < writes; i += 16) __builtin_prefetch(a.written + i, 1, 2);
}


}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
