// The weight gradients of a convolution that threads have summed apart, added up.
#pragma once

#include "sorted.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kSummed = 2 << 10;  // weights that stay in L1 while copies of their gradients are summed

// Copies of a weight gradient, in the order of the sorted columns; the first may be the gradient itself.
struct Copies {
    float *first, *others;  // others: with room for the first, too
    int64_t stride, count;
    const int32_t* order;   // null: as it is
};

// The same of single rows, of which neighbours mostly stay neighbours.
[[maybe_unused]] static void add_singles(const Copies& c, int64_t k, int64_t end, float* dw) {
    while (k < end) {
        int64_t stop = k + 1;
        while (stop < end && c.order[stop] == c.order[stop - 1] + 1) ++stop;
        for (float* to = dw + c.order[k]; k < stop;) {
            const int64_t n = stop - k >= kLanes ? kLanes : 1;
            Vec sum = n > 1 ? load(c.first + k) : broadcast(c.first[k]);
            for (int64_t t = 1; t < c.count; ++t) sum += n > 1 ? load(c.others + t * c.stride + k) : broadcast(c.others[t * c.stride + k]);
            if (n > 1) store(to, sum); else *to = sum[0];
            k += n, to += n;
        }
    }
}

// The sums of stored columns [k, end) over all copies, to where the order says that they stand.
[[maybe_unused]] static void add_copies(const Stored& m, const Copies& c, int64_t k, int64_t end, float* dw) {
    if (m.height == 1 && c.order != nullptr) return add_singles(c, k, end, dw);
    while (k < end) {
        const int64_t stop = least(end, k + most<int64_t>(1, kSummed / m.height)), last = stop * m.height;
        for (int64_t t = 1; t < c.count; ++t) {
            const float* other = c.others + t * c.stride;
            int64_t i = k * m.height;
            for (; i + kLanes <= last; i += kLanes) store(c.first + i, load(c.first + i) + load(other + i));
            for (; i < last; ++i) c.first[i] += other[i];
        }
        for (; c.order != nullptr && k < stop; ++k) copy_column(c.first + k * m.height, dw + c.order[k] * m.height, m.height);
        k = stop;
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
