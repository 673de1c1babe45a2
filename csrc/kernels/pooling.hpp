#pragma once

#include "../api.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

template <typename T>
void max_pool(const Image& window, int64_t channels, const LazyOf<T>& x, T* y, float* taps, int threads);
template <typename T>
Failure max_pool_backward(const Image& window, int64_t channels, const LazyOf<T>& g, const float* taps, T* dx, int threads);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
