#pragma once

#include "pooling.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

template <typename From, typename To>
Failure convert(const Shape&, const ActivationOf<From>& from, const ResultOf<To>& to, int threads);
template <typename T>
void line_moments(const Shape&, const T* x, float* moments, int threads);
template <typename T>
void gradient_sums(const Shape&, const LazyOf<T>& g, const T* x, const float* mean, float* sums, int threads);

template <typename T>
static constexpr BlockedKernels<T> blocked_kernels() {
    return {convert<T, float>, convert<T, BFloat16>, line_moments<T>, gradient_sums<T>, max_pool<T>, max_pool_backward<T>};
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
