#include "norm.hpp"

#include <cmath>
#include <vector>

namespace openwork {
namespace {

// Calls f(numbers of a line's channel, its line's pairs) for every line.
template <typename F>
void each_line(const Shape& shape, const float* pairs, const F& f) {
    const int64_t panels = (shape.batch + kBatchLanes - 1) / kBatchLanes;
    for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t lanes = panel + 1 < panels ? kBatchLanes : shape.batch - panel * kBatchLanes;
        for (int64_t h = 0; h < shape.height; ++h, pairs += 2 * shape.channels) f(static_cast<double>(lanes * shape.width), pairs);
    }
}

}  // namespace

void norm_forward(const Shape& shape, const float* moments, const Norm& norm, float* mean, float* inverse, float* scale, float* shift) {
    const size_t channels = static_cast<size_t>(shape.channels);
    std::vector<double> middle(channels), spread(channels);
    const double count = static_cast<double>(shape.batch * shape.height * shape.width);
    if (moments != nullptr) {
        each_line(shape, moments, [&](double n, const float* pair) {
            for (size_t c = 0; c < channels; ++c) middle[c] += n * pair[2 * c];
        });
        for (size_t c = 0; c < channels; ++c) middle[c] /= count;
        each_line(shape, moments, [&](double n, const float* pair) {
            for (size_t c = 0; c < channels; ++c) {
                const double off = pair[2 * c] - middle[c];
                spread[c] += pair[2 * c + 1] + n * off * off;
            }
        });
    }
    for (size_t c = 0; c < channels; ++c) {
        double variance;
        if (moments != nullptr) {
            variance = spread[c] / count;
            if (norm.running_mean != nullptr) {
                norm.running_mean[c] = static_cast<float>(norm.momentum * middle[c] + (1 - norm.momentum) * norm.running_mean[c]);
                norm.running_var[c] = static_cast<float>(norm.momentum * spread[c] / (count - 1) + (1 - norm.momentum) * norm.running_var[c]);
            }
        } else {
            middle[c] = norm.running_mean[c];
            variance = norm.running_var[c];
        }
        const double root = 1 / std::sqrt(variance + norm.eps), weight = norm.weight == nullptr ? 1.0 : norm.weight[c];
        mean[c] = static_cast<float>(middle[c]);
        inverse[c] = static_cast<float>(root);
        scale[c] = static_cast<float>(weight * root);
        shift[c] = static_cast<float>((norm.bias == nullptr ? 0.0 : norm.bias[c]) - middle[c] * weight * root);
    }
}

void norm_backward(const Shape& shape, const float* sums, const Norm& norm, const float* mean, const float* inverse,
                   bool batch_statistics, float* a, float* b, float* c, float* weight_gradient, float* bias_gradient) {
    const size_t channels = static_cast<size_t>(shape.channels);
    std::vector<double> plain(channels), weighted(channels);
    const double count = static_cast<double>(shape.batch * shape.height * shape.width);
    each_line(shape, sums, [&](double, const float* pair) {
        for (size_t i = 0; i < channels; ++i) {
            plain[i] += pair[2 * i];
            weighted[i] += pair[2 * i + 1];
        }
    });
    for (size_t i = 0; i < channels; ++i) {
        const double root = inverse[i], slope = (norm.weight == nullptr ? 1.0 : norm.weight[i]) * root;
        a[i] = static_cast<float>(slope);
        const double bend = batch_statistics ? -slope * root * root * weighted[i] / count : 0.0;
        b[i] = static_cast<float>(bend);
        c[i] = static_cast<float>(batch_statistics ? -slope * plain[i] / count - bend * mean[i] : 0.0);
        weight_gradient[i] = static_cast<float>(weighted[i] * root);
        bias_gradient[i] = static_cast<float>(plain[i]);
    }
}

}  // namespace openwork
