#pragma once

#include "../api.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

Failure linear_forward(const Stored&, const float* x, const float* bias, float* y, int64_t batch, int threads);
Failure linear_backward(const Stored&, const float* g, const float* x, float* dx, float* dw, int64_t batch, int threads);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
