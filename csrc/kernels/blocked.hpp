#pragma once

#include "../api.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

Failure convert(const Shape&, const Activation& from, const Result& to, int threads);
void line_moments(const Shape&, const float* x, float* moments, int threads);
void gradient_sums(const Shape&, const Lazy& g, const float* x, const float* mean, float* sums, int threads);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
