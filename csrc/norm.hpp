// Batch norm from the sums that the kernels take of every line; added up in double precision and in one order.
#pragma once

#include "api.hpp"

namespace openwork {

// Per channel: the mean, 1 / sqrt(variance + eps), and the line scale * x + shift that normalises.  Without moments the running
// statistics are taken; with them, those are updated where they are.
void norm_forward(const Shape&, const float* moments, const Norm&, float* mean, float* inverse, float* scale, float* shift);

// Per channel: the input's gradient is a * g + b * x + c.  `batch_statistics`: mean and variance were those of the batch.
void norm_backward(const Shape&, const float* sums, const Norm&, const float* mean, const float* inverse, bool batch_statistics,
                   float* a, float* b, float* c, float* weight_gradient, float* bias_gradient);

}  // namespace openwork
