// Agglomerative clustering of rows: the merges, cut where a number of clusters is left.
#pragma once

#include "api.hpp"

namespace openwork {

// labels[n] of n_clusters (1..n) clusters of distance[n][n], which is used up; numbered by each cluster's first row.
Failure cluster(const Kernels& kernels, float* distance, int64_t n, int64_t n_clusters, bool complete, int64_t* labels);

}  // namespace openwork
