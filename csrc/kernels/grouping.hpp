// What the grouping of rows needs: common columns of every two rows, and the merges of agglomerative clustering.
#pragma once

#include "../api.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

void common_columns(const Positions& at, uint64_t* bits, int64_t words, int64_t first_column, float* common, int threads);
Failure merges(float* distance, int64_t n, bool complete, const Merges& out);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
