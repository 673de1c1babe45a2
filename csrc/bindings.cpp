// The Python module.  Addresses come as integers, checked by openwork/kernels/cpu.py, cpu_bf16.py and
// openwork/layouts/compiled.py; no other file knows Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind.hpp"
#include "bind_topology.hpp"
#include "clusters.hpp"
#include "dispatch.hpp"
#include "lower.hpp"
#include "norm.hpp"
#include "scratch.hpp"
#include "segments.hpp"
#include "sortings.hpp"

#include <array>
#include <limits>
#include <type_traits>

namespace nb = nanobind;
using namespace openwork;

namespace {

const Kernels& kernels() {
    static const Kernels& chosen = choose_kernels();
    return chosen;
}

struct Weights {
    Address values, order, rows, offsets, columns;
    int64_t n_rows, n_columns, groups, height, stored;

    Stored stored_matrix() const {
        if (n_rows < 0 || n_columns < 1 || groups < 0 || height < 1 || stored < 0) throw nb::value_error("a size of the pattern is negative");
        if (order != 0 && height != 1) throw nb::value_error("values can be reordered for row groups of height 1 only");
        if (rows == 0 && groups * height != n_rows && groups != 0) throw nb::value_error("rows are missing");
        return {at<const float>(values), at<const int32_t>(order), at<const int32_t>(rows), at<const int32_t>(offsets),
                at<const int32_t>(columns), n_rows, n_columns, groups, height, stored};
    }
};

using Cutting = std::array<Address, 8>;  // values, order, offsets, columns; rows, columns, non-zeros; columns in a window

Segments segments(const Cutting& p) {
    if (p[7] < 1 || p[7] > kWidestSegment) throw nb::value_error("a window has too many columns");
    return {at<const float>(p[0]), at<const int32_t>(p[1]), at<const int32_t>(p[2]), at<const uint16_t>(p[3]), static_cast<int64_t>(p[4]),
            static_cast<int64_t>(p[5]), static_cast<int64_t>(p[6]), static_cast<int64_t>(p[7])};
}

Image image(int64_t batch, int64_t h, int64_t w, int64_t kh, int64_t kw, int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw) {
    const Image shape{batch, h, w, kh, kw, sh, sw, ph, pw, dh, dw};
    if (batch < 0 || kh < 1 || kw < 1 || sh < 1 || sw < 1 || dh < 1 || dw < 1 || shape.out_height() < 1 || shape.out_width() < 1) {
        throw nb::value_error("the window does not fit the image");
    }
    return shape;
}

// NCHW, then the parts of a formula in the order of `Lazy`, the last of them a flag.
using Parts = std::array<Address, 11>;

template <typename T>
LazyOf<T> lazy(const Parts& p) {
    const auto tensor = [&p](size_t i) { return at<const T>(p[i]); };
    const auto channels = [&p](size_t i) { return at<const float>(p[i]); };
    const LazyOf<T> z{tensor(1), tensor(2), tensor(3), tensor(4), channels(5), channels(6), channels(7), channels(8), channels(9), p[10] != 0};
    if (z.x == nullptr || (z.open_scale != nullptr && z.y == nullptr)) throw nb::value_error("a formula lacks a term");
    return z;
}

template <typename T>
ActivationOf<T> activation(const Parts& p) {
    const bool none = p[0] == 0 && p[1] == 0;
    return {at<const T>(p[0]), p[0] != 0 || none ? LazyOf<T>{} : lazy<T>(p)};
}

using Places = std::array<Address, 3>;  // NCHW, blocked, moments

template <typename T>
ResultOf<T> result(const Places& p) { return {at<T>(p[0]), at<T>(p[1]), at<float>(p[2])}; }

Shape shape(const std::array<int64_t, 4>& s) {
    for (int64_t size : s) {
        if (size < 0) throw nb::value_error("a size of the activation is negative");
    }
    return {s[0], s[1], s[2], s[3]};
}

using Affine = std::array<Address, 4>;  // weight, bias, running mean, running variance

Norm norm(const Affine& p, double momentum, double eps) {
    return {at<const float>(p[0]), at<const float>(p[1]), at<float>(p[2]), at<float>(p[3]), momentum, eps};
}

}  // namespace

// The arguments that describe a stored matrix and a window, in the order of cpu.py.
#define STORED_PARAMETERS \
    Address values, Address order, Address rows, Address offsets, Address columns, int64_t n_rows, int64_t n_columns, int64_t groups, \
        int64_t height, int64_t stored
#define STORED Weights{values, order, rows, offsets, columns, n_rows, n_columns, groups, height, stored}.stored_matrix()
#define IMAGE_PARAMETERS \
    int64_t h, int64_t w, int64_t kh, int64_t kw, int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw
#define IMAGE image(batch, h, w, kh, kw, sh, sw, ph, pw, dh, dw)

namespace {

template <typename T>
const BlockedKernels<T>& blocked() {
    if constexpr (std::is_same_v<T, float>) {
        return kernels().blocked;
    } else {
        return kernels().blocked_bf16;
    }
}

// What is done to blocked activations of one type.
template <typename T>
void bind_blocked(nb::module_& m, const char* type) {
    const auto named = [type](const char* name) { return std::string(name) + type; };
    m.def(named("to_floats").c_str(), [](const Parts& from, const Places& to, const std::array<int64_t, 4>& sizes, int threads) {
        const Shape picture = shape(sizes);
        const auto x = activation<T>(from);
        check(unlocked([&] { return blocked<T>().to_floats(picture, x, result<float>(to), team(threads)); }));
    });
    m.def(named("to_bf16").c_str(), [](const Parts& from, const Places& to, const std::array<int64_t, 4>& sizes, int threads) {
        const Shape picture = shape(sizes);
        const auto x = activation<T>(from);
        check(unlocked([&] { return blocked<T>().to_bf16(picture, x, result<BFloat16>(to), team(threads)); }));
    });
    m.def(named("line_moments").c_str(), [](Address x, Address moments, const std::array<int64_t, 4>& sizes, int threads) {
        const Shape picture = shape(sizes);
        nb::gil_scoped_release unlocked;
        blocked<T>().line_moments(picture, at<const T>(x), at<float>(moments), team(threads));
    });
    m.def(named("gradient_sums").c_str(), [](const Parts& g, Address x, Address mean, Address sums, const std::array<int64_t, 4>& sizes,
                                             int threads) {
        const Shape picture = shape(sizes);
        const auto from = lazy<T>(g);
        nb::gil_scoped_release unlocked;
        blocked<T>().gradient_sums(picture, from, at<const T>(x), at<const float>(mean), at<float>(sums), team(threads));
    });
    m.def(named("max_pool").c_str(), [](const Parts& x, Address y, Address taps, int64_t channels, int64_t batch, IMAGE_PARAMETERS, int threads) {
        const Image picture = IMAGE;
        const auto from = lazy<T>(x);
        nb::gil_scoped_release unlocked;
        blocked<T>().max_pool(picture, channels, from, at<T>(y), at<float>(taps), team(threads));
    });
    m.def(named("max_pool_backward").c_str(), [](const Parts& g, Address taps, Address dx, int64_t channels, int64_t batch, IMAGE_PARAMETERS,
                                                 int threads) {
        const Image picture = IMAGE;
        const auto from = lazy<T>(g);
        check(unlocked([&] {
            return blocked<T>().max_pool_backward(picture, channels, from, at<const float>(taps), at<T>(dx), team(threads));
        }));
    });
}

}  // namespace

NB_MODULE(_native, m) {
    m.attr("SCRATCH_LIMIT") = kScratchLimit;
    m.def("isa", [] { return std::string(kernels().isa); });
    m.def("supported_isas", [] {
        const Kernels* all[kMostBuilds];
        std::vector<std::string> names;
        for (int i = 0, n = supported_kernels(all); i < n; ++i) names.emplace_back(all[i]->isa);
        return names;
    });
    m.def("linear_forward", [](Address x, Address y, Address bias, int64_t batch, STORED_PARAMETERS, int threads) {
        const Stored matrix = STORED;
        check(unlocked([&] {
            return kernels().linear_forward(matrix, at<const float>(x), at<const float>(bias), at<float>(y), batch, team(threads));
        }));
    });
    m.def("linear_backward", [](Address g, Address x, Address dx, Address dw_out, int64_t batch, STORED_PARAMETERS, int threads) {
        const Stored matrix = STORED;
        check(unlocked([&] {
            return kernels().linear_backward(matrix, at<const float>(g), at<const float>(x), at<float>(dx), at<float>(dw_out), batch, team(threads));
        }));
    });
    m.def("segment_width", &segment_width);
    m.def("segments_forward", [](Address x, Address y, Address bias, int64_t batch, const Cutting& cutting, int threads) {
        const Segments matrix = segments(cutting);
        check(unlocked([&] {
            return kernels().segments_forward(matrix, at<const float>(x), at<const float>(bias), at<float>(y), batch, team(threads));
        }));
    });
    m.def("segments_backward", [](Address g, Address x, Address dx, Address dw_out, int64_t batch, const Cutting& weight, const Cutting& turned,
                                  int threads) {
        const Segments matrix = segments(weight), transposed = segments(turned);
        check(unlocked([&] {
            return kernels().segments_backward(matrix, transposed, at<const float>(g), at<const float>(x), at<float>(dx), at<float>(dw_out),
                                               batch, team(threads));
        }));
    });
    m.def("cut", [](int64_t width, Address to_offsets, Address to_columns, Address to_order, STORED_PARAMETERS, int threads) {
        if (width < 1 || width > kWidestSegment) throw nb::value_error("a window has too many columns");
        check(cut(STORED, width, at<int32_t>(to_offsets), at<uint16_t>(to_columns), at<int32_t>(to_order), team(threads)));
    });
    m.def("has_bf16", [] { return kernels().linear_forward_bf16 != nullptr && kernels().linear_backward_bf16 != nullptr; });
    m.def("linear_forward_bf16", [](Address x, Address y, Address bias, int64_t batch, STORED_PARAMETERS, int threads) {
        const Stored matrix = STORED;
        const auto product = kernels().linear_forward_bf16;
        if (product == nullptr) throw nb::value_error("this build of the kernels has no bfloat16 instructions");
        check(unlocked([&] {
            return product(matrix, at<const BFloat16>(x), at<const float>(bias), at<BFloat16>(y), batch, team(threads));
        }));
    });
    m.def("linear_backward_bf16", [](Address g, Address x, Address dx, Address dw_out, Address db, int64_t batch, STORED_PARAMETERS, int threads) {
        const Stored matrix = STORED;
        const auto products = kernels().linear_backward_bf16;
        if (products == nullptr) throw nb::value_error("this build of the kernels has no bfloat16 instructions");
        check(unlocked([&] {
            return products(matrix, at<const BFloat16>(g), at<const BFloat16>(x), at<BFloat16>(dx), at<float>(dw_out), at<float>(db), batch,
                            team(threads));
        }));
    });
    m.def("conv_forward_bf16", [](const Parts& x, const Places& y, Address bias, int64_t batch, IMAGE_PARAMETERS, STORED_PARAMETERS,
                                  int threads) {
        const Stored matrix = STORED;
        const Image picture = IMAGE;
        const auto from = activation<BFloat16>(x);
        const auto product = kernels().conv_forward_bf16;
        if (product == nullptr) throw nb::value_error("this build of the kernels has no bfloat16 instructions");
        check(unlocked([&] {
            return product(matrix, picture, from, at<const float>(bias), result<BFloat16>(y), team(threads));
        }));
    });
    m.def("conv_backward_bf16", [](const Parts& g, const Parts& x, const Places& dx, Address dw_out, int64_t batch, IMAGE_PARAMETERS,
                                   STORED_PARAMETERS, int threads) {
        const Stored matrix = STORED;
        const Image picture = IMAGE;
        const auto from = activation<BFloat16>(g), input = activation<BFloat16>(x);
        const auto products = kernels().conv_backward_bf16;
        if (products == nullptr) throw nb::value_error("this build of the kernels has no bfloat16 instructions");
        check(unlocked([&] {
            return products(matrix, picture, from, input, result<BFloat16>(dx), at<float>(dw_out), team(threads));
        }));
    });
    m.def("plane_sums_bf16", [](Address x, int64_t planes, int64_t pixels, Address sums, int threads) {
        const auto add = kernels().plane_sums_bf16;
        if (add == nullptr) throw nb::value_error("this build of the kernels has no bfloat16 instructions");
        if (planes < 0 || pixels < 0) throw nb::value_error("a size of the activation is negative");
        nb::gil_scoped_release unlocked;
        add(at<const BFloat16>(x), planes, pixels, at<float>(sums), team(threads));
    });
    nb::class_<Sortings>(m, "Sortings").def(nb::init<int64_t>()).def_prop_ro("bytes", &Sortings::bytes);
    m.def("conv_forward", [](const Parts& x, const Places& y, Address bias, int64_t batch, IMAGE_PARAMETERS, STORED_PARAMETERS,
                             Sortings& sortings, int threads) {
        Stored matrix = STORED;
        matrix.sortings = &sortings;
        const Image picture = IMAGE;
        const Activation from = activation<float>(x);
        check(unlocked([&] {
            return kernels().conv_forward(matrix, picture, from, at<const float>(bias), result<float>(y), team(threads));
        }));
    });
    m.def("conv_backward", [](const Parts& g, const Parts& x, const Places& dx, Address dw_out, int64_t batch, IMAGE_PARAMETERS,
                              STORED_PARAMETERS, Sortings& sortings, int threads) {
        Stored matrix = STORED;
        matrix.sortings = &sortings;
        const Image picture = IMAGE;
        const Activation from = activation<float>(g), input = activation<float>(x);
        check(unlocked([&] {
            return kernels().conv_backward(matrix, picture, from, input, result<float>(dx), at<float>(dw_out), team(threads));
        }));
    });
    bind_blocked<float>(m, "");
    bind_blocked<BFloat16>(m, "_bf16");
    m.def("norm_forward", [](const std::array<int64_t, 4>& sizes, Address moments, const Affine& affine, double momentum, double eps,
                             Address mean, Address inverse, Address scale, Address shift) {
        const Shape picture = shape(sizes);
        nb::gil_scoped_release unlocked;
        norm_forward(picture, at<const float>(moments), norm(affine, momentum, eps), at<float>(mean), at<float>(inverse),
                     at<float>(scale), at<float>(shift));
    });
    m.def("norm_backward", [](const std::array<int64_t, 4>& sizes, Address sums, Address weight, Address mean, Address inverse,
                              bool batch_statistics, const std::array<Address, 5>& to) {
        const Shape picture = shape(sizes);
        nb::gil_scoped_release unlocked;
        norm_backward(picture, at<const float>(sums), norm({weight, 0, 0, 0}, 0, 0), at<const float>(mean), at<const float>(inverse),
                      batch_statistics, at<float>(to[0]), at<float>(to[1]), at<float>(to[2]), at<float>(to[3]), at<float>(to[4]));
    });
    m.def("transpose", [](Address to_offsets, Address to_columns, Address to_order, int64_t taps, STORED_PARAMETERS, int threads) {
        check(transpose(STORED, taps, at<int32_t>(to_offsets), at<int32_t>(to_columns), at<int32_t>(to_order), team(threads)));
    });
    m.def("common_columns", [](Address flat, int64_t count, int64_t n_columns, int64_t first_row, int64_t n_rows, Address bits,
                               int64_t words, int64_t first_column, Address common, int threads) {
        if (count < 0 || n_columns < 1 || first_row < 0 || n_rows < 1 || words < 1 || first_column < 0) {
            throw nb::value_error("a size of the panel is negative");
        }
        if (n_columns > std::numeric_limits<int64_t>::max() / (first_row + n_rows)) throw nb::value_error("the matrix is too large");
        nb::gil_scoped_release unlocked;
        const Positions positions{at<const int64_t>(flat), count, n_columns, first_row, n_rows};
        kernels().common_columns(positions, at<uint64_t>(bits), words, first_column, at<float>(common), team(threads));
    });
    m.def("cluster", [](Address distance, int64_t n, int64_t n_clusters, bool complete, Address labels) {
        if (n < 1 || n > std::numeric_limits<int32_t>::max() || n_clusters < 1 || n_clusters > n) {
            throw nb::value_error("the number of clusters does not fit the number of rows");
        }
        check(unlocked([&] { return cluster(kernels(), at<float>(distance), n, n_clusters, complete, at<int64_t>(labels)); }));
    });
    bind_topology(m);
    m.def("scratch_bytes", &scratch_bytes);
    m.def("release_scratch", &release_scratch);
    m.def("poison_scratch", &poison_scratch);
}
