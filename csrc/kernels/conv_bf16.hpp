#pragma once

#include "../api.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

using ActivationBF16 = ActivationOf<BFloat16>;
using ResultBF16 = ResultOf<BFloat16>;

Failure conv_forward_bf16(const Stored&, const Image&, const ActivationBF16& x, const float* bias, const ResultBF16& y, int threads);
Failure conv_backward_bf16(const Stored&, const Image&, const ActivationBF16& g, const ActivationBF16& x, const ResultBF16& dx, float* dw,
                           int threads);
void plane_sums_bf16(const BFloat16* x, int64_t planes, int64_t pixels, float* sums_out, int threads);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
