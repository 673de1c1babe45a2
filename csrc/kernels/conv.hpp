#pragma once

#include "../api.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

Failure conv_forward(const Stored&, const Image&, const float* x, const float* bias, float* y, int threads);
Failure conv_backward(const Stored&, const Image&, const float* g, const float* x, float* dx, float* dw, int threads);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
