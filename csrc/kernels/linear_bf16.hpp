#pragma once

#include "../api.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

Failure linear_forward_bf16(const Stored&, const BFloat16* x, const float* bias, BFloat16* y, int64_t batch, int threads);
Failure linear_backward_bf16(const Stored&, const BFloat16* g, const BFloat16* x, BFloat16* dx, float* dw, float* db, int64_t batch,
                             int threads);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
