#pragma once

#include "../api.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

// The matrix is one that cut() made: its offsets are those of windows and rows, and it has an order.
Failure segments_forward(const Segments&, const float* x, const float* bias, float* y, int64_t batch, int threads);
Failure segments_backward(const Segments& weight, const Segments& turned, const float* g, const float* x, float* dx, float* dw, int64_t batch,
                          int threads);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
