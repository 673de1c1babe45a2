#include "clusters.hpp"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

namespace openwork {

Failure cluster(const Kernels& kernels, float* distance, int64_t n, int64_t n_clusters, bool complete, int64_t* labels) {
    const size_t size = static_cast<size_t>(n);
    std::vector<float> numbers(2 * size);
    std::vector<int32_t> indices(5 * size);
    int32_t* index = indices.data();
    const Merges found{numbers.data(), index, index + n, numbers.data() + n, index + 2 * n, index + 3 * n, index + 4 * n};
    if (n > n_clusters) {
        if (Failure wrong = kernels.merges(distance, n, complete, found)) return wrong;
    }
    std::vector<int32_t> order(size - 1), parent(size);
    std::iota(order.begin(), order.end(), 0);
    std::iota(parent.begin(), parent.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return found.at[a] < found.at[b]; });
    const auto root = [&](int32_t i) {
        while (parent[i] != i) i = parent[i] = parent[parent[i]];
        return i;
    };
    for (int64_t k = 0; k < n - n_clusters; ++k) {
        const auto [low, high] = std::minmax({root(found.one[order[k]]), root(found.other[order[k]])});
        parent[high] = low;
    }
    // A root is the first row of its cluster.
    int64_t next = 0;
    for (int32_t i = 0; i < n; ++i) labels[i] = parent[i] == i ? next++ : labels[root(i)];
    return nullptr;
}

}  // namespace openwork
