#pragma once

#include "../api.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

Failure conv_forward(const Stored&, const Image&, const Activation& x, const float* bias, const Result& y, int threads);
Failure conv_backward(const Stored&, const Image&, const Activation& g, const Activation& x, const Result& dx, float* dw, int threads);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
