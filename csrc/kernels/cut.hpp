// Products with single rows, window by window of input channels: what a window's columns read stays in L1 while all rows use it.
#pragma once

#include "tiles.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

// Where the columns of each row's part of a window begin: starts[window * groups + row], windows + 1 of them.
struct Cuts {
    int32_t* starts;
    int64_t windows;  // fewer than 2: the matrix is not cut
};

constexpr int64_t kWindowFloats = 8 << 10;  // of the input that a window reads

OW_INLINE int64_t cut_windows(const Stored& m, int64_t taps, int64_t floats_of_channel) {
    const int64_t channels = most<int64_t>(1, kWindowFloats / floats_of_channel), all = m.n_columns / taps;
    return m.height > 1 ? 1 : (all + channels - 1) / channels;
}
OW_INLINE int64_t cut_bytes(const Stored& m, int64_t windows) { return windows < 2 ? 0 : (windows + 1) * m.groups * 4 + 64; }

// Cuts a matrix whose index has been checked; a row whose columns do not ascend by channel leaves it whole.
[[maybe_unused]] static Cuts cut_columns(const Stored& m, int64_t taps, int64_t windows, int32_t* starts, int threads) {
    const int64_t channels = m.n_columns / taps, of_window = (channels + windows - 1) / windows * taps;
    bool ascending = true;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(&& : ascending) if (m.stored > 16384)
    for (int64_t g = 0; g < m.groups; ++g) {
        int32_t k = m.offsets[g];
        starts[g] = k;
        for (int64_t w = 1; w <= windows; ++w) {
            while (k < m.offsets[g + 1] && m.columns[k] < w * of_window) ++k;
            starts[w * m.groups + g] = k;
        }
        for (int32_t i = m.offsets[g] + 1; i < m.offsets[g + 1]; ++i) ascending = ascending && m.columns[i - 1] / of_window <= m.columns[i] / of_window;
    }
    return {starts, ascending ? windows : 1};
}

template <int NV>
OW_INLINE void cut_tile(const Lowered& a, const Cuts& cuts, int64_t w, const float* in, float* out) {
    const int32_t* begin = cuts.starts + w * a.groups;
    const int32_t* end = begin + a.groups;
    for (int64_t g = 0; g < a.groups; ++g) {
        if (a.rows[g] < 0) continue;
        add_columns<NV>(in, a.columns, a.values, begin[g], end[g], w == 0, a.bias[g], out + a.rows[g]);
    }
}

template <int NV>
void cut_strip(const Lowered& a, const Cuts& cuts, int64_t w, const float* in, float* out, int64_t vectors) {
    int64_t v = 0;
    for (; v + NV <= vectors; v += NV) cut_tile<NV>(a, cuts, w, in + v * kLanes, out + v * kLanes);
    if constexpr (NV > 1) {
        if (v < vectors) cut_strip<narrower(NV)>(a, cuts, w, in + v * kLanes, out + v * kLanes, vectors - v);
    }
}

[[maybe_unused]] static void cut_product(const Lowered& a, const Cuts& cuts, const float* in, float* out, int64_t vectors) {
    for (int64_t w = 0; w < cuts.windows; ++w) cut_strip<tiles_of(1).gather.vectors>(a, cuts, w, in, out, vectors);
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
