#pragma once

#include "../api.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

void max_pool(const Image& window, int64_t channels, const Lazy& x, float* y, float* taps, int threads);
void max_pool_backward(const Image& window, int64_t channels, const Lazy& g, const float* taps, float* dx, int threads);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
