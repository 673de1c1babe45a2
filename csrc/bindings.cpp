// The Python module.  Addresses come as integers, checked by openwork/kernels/cpu.py and
// openwork/layouts/compiled.py; no other file knows Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "clusters.hpp"
#include "dispatch.hpp"
#include "lower.hpp"
#include "scratch.hpp"
#include "segments.hpp"

#include <limits>

namespace nb = nanobind;
using namespace openwork;

namespace {

using Address = uintptr_t;

template <typename T>
T* at(Address address) { return reinterpret_cast<T*>(address); }

const Kernels& kernels() {
    static const Kernels& chosen = choose_kernels();
    return chosen;
}

void check(Failure wrong) {
    if (wrong != nullptr) throw nb::value_error(wrong);
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

Image image(int64_t batch, int64_t h, int64_t w, int64_t kh, int64_t kw, int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw) {
    const Image shape{batch, h, w, kh, kw, sh, sw, ph, pw, dh, dw};
    if (batch < 0 || kh < 1 || kw < 1 || sh < 1 || sw < 1 || dh < 1 || dw < 1 || shape.out_height() < 1 || shape.out_width() < 1) {
        throw nb::value_error("the window does not fit the image");
    }
    return shape;
}

int team(int threads) { return threads < 1 ? 1 : threads; }

}  // namespace

// The arguments that describe a stored matrix and a window, in the order of cpu.py.
#define STORED_PARAMETERS \
    Address values, Address order, Address rows, Address offsets, Address columns, int64_t n_rows, int64_t n_columns, int64_t groups, \
        int64_t height, int64_t stored
#define STORED Weights{values, order, rows, offsets, columns, n_rows, n_columns, groups, height, stored}.stored_matrix()
#define IMAGE_PARAMETERS \
    int64_t h, int64_t w, int64_t kh, int64_t kw, int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw
#define IMAGE image(batch, h, w, kh, kw, sh, sw, ph, pw, dh, dw)

NB_MODULE(_native, m) {
    m.attr("SCRATCH_LIMIT") = kScratchLimit;
    m.def("isa", [] { return std::string(kernels().isa); });
    m.def("supported_isas", [] {
        const Kernels* all[3];
        std::vector<std::string> names;
        for (int i = 0, n = supported_kernels(all); i < n; ++i) names.emplace_back(all[i]->isa);
        return names;
    });
    m.def("linear_forward", [](Address x, Address y, Address bias, int64_t batch, STORED_PARAMETERS, int threads) {
        const Stored matrix = STORED;
        Failure wrong;
        {
            nb::gil_scoped_release unlocked;
            wrong = kernels().linear_forward(matrix, at<const float>(x), at<const float>(bias), at<float>(y), batch, team(threads));
        }
        check(wrong);
    });
    m.def("linear_backward", [](Address g, Address x, Address dx, Address dw_out, int64_t batch, STORED_PARAMETERS, int threads) {
        const Stored matrix = STORED;
        Failure wrong;
        {
            nb::gil_scoped_release unlocked;
            wrong = kernels().linear_backward(matrix, at<const float>(g), at<const float>(x), at<float>(dx), at<float>(dw_out), batch, team(threads));
        }
        check(wrong);
    });
    m.attr("SEGMENT_COLUMNS") = kSegmentColumns;
    m.def("segments_forward", [](Address x, Address y, Address bias, int64_t batch, STORED_PARAMETERS, int threads) {
        // Its offsets are of windows and rows, so there are no groups to say what its rows are.
        const Stored matrix = STORED;
        if (order == 0 || height != 1 || groups != n_rows) throw nb::value_error("the matrix has not been cut into windows of columns");
        Failure wrong;
        {
            nb::gil_scoped_release unlocked;
            wrong = kernels().segments_forward(matrix, at<const float>(x), at<const float>(bias), at<float>(y), batch, team(threads));
        }
        check(wrong);
    });
    m.def("cut", [](Address to_offsets, Address to_columns, Address to_order, STORED_PARAMETERS) {
        check(cut(STORED, at<int32_t>(to_offsets), at<int32_t>(to_columns), at<int32_t>(to_order)));
    });
    m.def("conv_forward", [](Address x, Address y, Address bias, int64_t batch, IMAGE_PARAMETERS, STORED_PARAMETERS, int threads) {
        const Stored matrix = STORED;
        const Image shape = IMAGE;
        Failure wrong;
        {
            nb::gil_scoped_release unlocked;
            wrong = kernels().conv_forward(matrix, shape, at<const float>(x), at<const float>(bias), at<float>(y), team(threads));
        }
        check(wrong);
    });
    m.def("conv_backward", [](Address g, Address x, Address dx, Address dw_out, int64_t batch, IMAGE_PARAMETERS, STORED_PARAMETERS, int threads) {
        const Stored matrix = STORED;
        const Image shape = IMAGE;
        Failure wrong;
        {
            nb::gil_scoped_release unlocked;
            wrong = kernels().conv_backward(matrix, shape, at<const float>(g), at<const float>(x), at<float>(dx), at<float>(dw_out), team(threads));
        }
        check(wrong);
    });
    m.def("transpose", [](Address to_offsets, Address to_columns, Address to_order, int64_t taps, STORED_PARAMETERS) {
        check(transpose(STORED, taps, at<int32_t>(to_offsets), at<int32_t>(to_columns), at<int32_t>(to_order)));
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
        Failure wrong;
        {
            nb::gil_scoped_release unlocked;
            wrong = cluster(kernels(), at<float>(distance), n, n_clusters, complete, at<int64_t>(labels));
        }
        check(wrong);
    });
    m.def("scratch_bytes", &scratch_bytes);
    m.def("release_scratch", &release_scratch);
    m.def("poison_scratch", &poison_scratch);
}
