// Compiled without contraction to fused multiply-adds: the result is that of openwork/layouts/linkage.py, bit for bit.
#include "grouping.hpp"

#include <cstring>
#include <limits>

#include "vec.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int kTile = 4;
constexpr int64_t kWorthThreads = int64_t{1} << 21;  // words that are compared, about a quarter of a millisecond
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Sets the bits of the rows [from, to) of the panel.  Positions outside them, or outside the columns, are passed over.
void set_bits(const Positions& at, uint64_t* bits, int64_t words, int64_t first_column, int64_t from, int64_t to) {
    std::memset(bits + from * words, 0, static_cast<size_t>((to - from) * words) * sizeof(uint64_t));
    const int64_t base = (at.first_row + from) * at.n_columns, span = (to - from) * at.n_columns;
    for (int64_t k = 0; k < at.count; ++k) {
        // Unsigned, so that what lies before the rows is beyond them; the subtraction may wrap.
        const uint64_t inside = static_cast<uint64_t>(at.flat[k]) - static_cast<uint64_t>(base);
        if (inside >= static_cast<uint64_t>(span)) continue;
        // Division of 32 bits is several times as fast.
        const uint64_t row = inside >> 32 ? inside / static_cast<uint64_t>(at.n_columns)
                                          : static_cast<uint32_t>(inside) / static_cast<uint32_t>(at.n_columns);
        const uint64_t column = inside - row * static_cast<uint64_t>(at.n_columns) - static_cast<uint64_t>(first_column);
        if (column >= static_cast<uint64_t>(words) * 64) continue;
        bits[(from + static_cast<int64_t>(row)) * words + static_cast<int64_t>(column >> 6)] |= uint64_t{1} << (column & 63);
    }
}

// Adds the common bits of rows i.. and j.., kTile each, on both sides of the diagonal.
OW_INLINE void add_tile(const uint64_t* bits, int64_t words, int64_t n, int64_t i, int64_t j, float* common) {
    const uint64_t *a[kTile], *b[kTile];
    for (int t = 0; t < kTile; ++t) {
        a[t] = bits + least(i + t, n - 1) * words;
        b[t] = bits + least(j + t, n - 1) * words;
    }
    int64_t count[kTile][kTile] = {};
    for (int64_t w = 0; w < words; ++w) {
        OW_UNROLL
        for (int s = 0; s < kTile; ++s) {
            OW_UNROLL
            for (int t = 0; t < kTile; ++t) count[s][t] += __builtin_popcountll(a[s][w] & b[t][w]);
        }
    }
    for (int64_t s = 0; s < kTile && i + s < n; ++s) {
        for (int64_t t = 0; t < kTile && j + t < n; ++t) {
            if (j + t < i + s) continue;
            const float sum = common[(i + s) * n + j + t] + static_cast<float>(count[s][t]);
            common[(i + s) * n + j + t] = common[(j + t) * n + i + s] = sum;
        }
    }
}

// The lowest index of the least of row[0..n), -1 if that is infinite.
int64_t nearest(const float* row, int64_t n) {
    Vec low = broadcast(kInfinity);
    int64_t k = 0;
    for (; k + kLanes <= n; k += kLanes) {
        const Vec here = load(row + k);
        low = here < low ? here : low;
    }
    float least_of_all = kInfinity;
    for (int lane = 0; lane < kLanes; ++lane) least_of_all = least(low[lane], least_of_all);
    for (; k < n; ++k) least_of_all = least(row[k], least_of_all);
    if (!(least_of_all < kInfinity)) return -1;
    for (k = 0; row[k] != least_of_all; ++k) {}
    return k;
}

// Lance-Williams: row `into` becomes the union, `gone` falls out; the columns of rows that are left follow.
void merge(float* distance, int64_t n, float* size, const int32_t* left, int64_t n_left, int64_t into, int64_t gone, bool complete) {
    float *a = distance + into * n, *b = distance + gone * n;
    const float wa = size[into], wb = size[gone], both = wa + wb;
    if (complete) {
        for (int64_t k = 0; k < n; ++k) a[k] = a[k] > b[k] ? a[k] : b[k];
    } else {
        for (int64_t k = 0; k < n; ++k) a[k] = (wa * a[k] + wb * b[k]) / both;
    }
    size[into] = both;
    a[into] = a[gone] = kInfinity;
    for (int64_t k = 0; k < n_left; ++k) {
        float* other = distance + left[k] * n;
        other[into] = a[left[k]];
        other[gone] = kInfinity;
    }
}

}  // namespace

void common_columns(const Positions& at, uint64_t* bits, int64_t words, int64_t first_column, float* common, int threads) {
    const int64_t n = at.n_rows, tiles = (n + kTile - 1) / kTile;
#pragma omp parallel num_threads(threads) if (n * n * words > kWorthThreads)
    {
#pragma omp for schedule(static)
        for (int64_t part = 0; part < threads; ++part) set_bits(at, bits, words, first_column, n * part / threads, n * (part + 1) / threads);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tiles; ++i) {
            for (int64_t j = i; j < tiles; ++j) add_tile(bits, words, n, i * kTile, j * kTile, common);
        }
    }
}

Failure merges(float* distance, int64_t n, bool complete, const Merges& out) {
    constexpr Failure kWrong = "the distances are not finite or not symmetric";
    for (int64_t i = 0; i < n; ++i) {
        distance[i * n + i] = kInfinity;
        out.size[i] = 1.0f;
        out.left[i] = out.place[i] = static_cast<int32_t>(i);
    }
    int64_t n_left = n, n_merges = 0, links = 0, first = 0;
    while (n_merges < n - 1) {
        if (links == 0) {
            while (out.place[first] < 0) ++first;
            out.chain[links++] = static_cast<int32_t>(first);
        }
        const int64_t tip = out.chain[links - 1];
        const float* row = distance + tip * n;
        int64_t near = nearest(row, n);
        if (out.place[tip] < 0 || near < 0 || near == tip || out.place[near] < 0) return kWrong;
        // A tie goes to where the chain came from, or it would never end.
        if (links > 1 && row[out.chain[links - 2]] <= row[near]) {
            near = out.chain[links - 2];
            out.at[n_merges] = row[near];
            out.one[n_merges] = static_cast<int32_t>(tip);
            out.other[n_merges++] = static_cast<int32_t>(near);
            // The last row that is left takes the place of the one that goes.
            const int32_t last = out.left[--n_left];
            out.left[out.place[tip]] = last;
            out.place[last] = out.place[tip];
            out.place[tip] = -1;
            merge(distance, n, out.size, out.left, n_left, near, tip, complete);
            links -= 2;
        } else {
            if (links == n_left) return kWrong;
            out.chain[links++] = static_cast<int32_t>(near);
        }
    }
    return nullptr;
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
