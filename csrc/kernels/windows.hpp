// How the batch of a linear layer's backward is cut into windows, and who does what of them.  A window is the samples whose gradients are
// taken together.
#pragma once

#include <cstring>

#include "vec.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kOwnWindow = 256;  // samples in a window with sums of its own
constexpr int64_t kTogether = 8;     // windows at once
constexpr int64_t kSums = 2 << 20;   // floats of two windows' weight gradients, if they are to stay in L3

// Windows with sums of their own are the same whatever the number of threads, and so is the order in which their sums are added up.  Each
// thread has one to itself if it can, for fetching what another core has just packed takes longer than packing it.  Others add to the sums
// that there are, and all threads share one of them, of up to `shared` samples.
struct Windows {
    int64_t batch, unit, units, count, together, wide;
    bool own_sums;

    Windows(int64_t samples, int64_t of_unit, int64_t threads, bool own, int64_t shared)
        : batch(samples), unit(of_unit), units((samples + of_unit - 1) / of_unit), own_sums(own) {
        const int64_t limit = own ? kOwnWindow : shared;
        count = (samples + limit - 1) / limit;
        together = own ? most<int64_t>(1, least(least(threads, count), kTogether)) : 1;
        wide = count == 0 ? 0 : own ? up(units, count) / count * unit : least(limit, units * unit);
    }
    int64_t start(int64_t i) const { return least(batch, own_sums ? units * i / count * unit : i * wide); }
};

// The windows from `first` on that are taken at once, and what thread `id` does: it is one of `size` neighbours in window `mine` of them.
struct Turn {
    int64_t count, mine, rank, size;

    Turn(const Windows& w, int64_t first, int64_t id, int64_t team) : count(least(least(w.together, team), w.count - first)) {
        const int64_t leader = ((mine = id * count / team) * team + count - 1) / count;
        rank = id - leader;
        size = ((mine + 1) * team + count - 1) / count - leader;
    }
    bool alone(int64_t team) const { return count == team; }
};

// What one of `size` threads packs of some samples of a window, from sample `s` on.
struct Packing {
    int64_t s, samples, rank, size, unit;

    int64_t units() const { return (samples + unit - 1) / unit; }
    int64_t first() const { return units() * rank / size * unit; }
    int64_t last() const { return least(samples, units() * (rank + 1) / size * unit); }
};

// One of `size` threads' part of some sums.
OW_INLINE void set_zero(float* to, int64_t count, int64_t rank, int64_t size) {
    if (to != nullptr) std::memset(to + count * rank / size, 0, static_cast<size_t>(count * (rank + 1) / size - count * rank / size) * 4);
}

// The sums that windows have to themselves, one beside the other.  In the first turn, those of window 0 are the result.
struct Sums {
    float *result, *windows;
    int64_t count, stride;

    float* of(int64_t window, bool first_turn) const {
        return result == nullptr || (first_turn && window == 0) ? result : windows + window * stride;
    }
    // One of `size` threads' part of adding them up.
    void add(int64_t windows_at_once, bool first_turn, int64_t rank, int64_t size) const {
        for (int64_t j = first_turn ? 1 : 0; result != nullptr && j < windows_at_once; ++j) {
            const float* from = windows + j * stride;
            for (int64_t k = count * rank / size; k < count * (rank + 1) / size; ++k) result[k] += from[k];
        }
    }
};

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
