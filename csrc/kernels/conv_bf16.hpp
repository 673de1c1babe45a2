#pragma once

#include "../api.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

Failure conv_forward_bf16(const Stored&, const Image&, const BFloat16* x, const float* bias, BFloat16* y, int threads);
Failure conv_backward_bf16(const Stored&, const Image&, const BFloat16* g, const BFloat16* x, BFloat16* dx, float* dw, int threads);
void plane_sums_bf16(const BFloat16* x, int64_t planes, int64_t pixels, float* sums_out, int threads);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
