// The kernels against loops in double precision, without Python: for processors that only an emulator is at hand for.
// Built by test_native_check.py with the kernels' own sources; says what differs and exits with 1.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "api.hpp"
#include "lower.hpp"
#include "scratch.hpp"
#include "segments.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE { extern const Kernels kernels; }
}  // namespace openwork

using namespace openwork;

namespace {

const Kernels& kernels = OPENWORK_ISA_NAMESPACE::kernels;
std::mt19937 engine(1);
int failures = 0;

using Floats = std::vector<float>;
using Exact = std::vector<double>;

Floats randoms(int64_t n) {
    std::uniform_real_distribution<float> draw(-1, 1);
    Floats v(static_cast<size_t>(n));
    for (float& x : v) x = draw(engine);
    return v;
}

// Shuffled rows, one of them in no group and the last group padded; groups with random columns in random order, the first with none.
struct Matrix {
    std::vector<int32_t> rows, offsets{0}, columns, order;
    Floats values;
    int64_t n_rows, n_columns, height;

    Matrix(int64_t r, int64_t c, int64_t h) : n_rows(r), n_columns(c), height(h) {
        std::vector<int32_t> all(static_cast<size_t>(c));
        for (int64_t i = 0; i < c; ++i) all[i] = static_cast<int32_t>(i);
        for (int64_t i = 0; i < r; ++i) rows.push_back(static_cast<int32_t>(i));
        std::shuffle(rows.begin(), rows.end(), engine);
        rows.pop_back();
        while (rows.size() % h != 0) rows.push_back(-1);
        for (int64_t g = 0; g < groups(); ++g) {
            std::shuffle(all.begin(), all.end(), engine);
            columns.insert(columns.end(), all.begin(), all.begin() + (g == 0 ? 0 : static_cast<int64_t>(engine() % (c / 2 + 1))));
            offsets.push_back(static_cast<int32_t>(columns.size()));
        }
        values = randoms(stored() * h);
    }
    int64_t groups() const { return static_cast<int64_t>(rows.size()) / height; }
    int64_t stored() const { return static_cast<int64_t>(columns.size()); }
    Stored view() const {
        return {values.data(), nullptr, rows.data(), offsets.data(), columns.data(), n_rows, n_columns, groups(), height, stored()};
    }

    // f(row, column, place of the value) of every non-zero.
    template <typename F>
    void each(const F& f) const {
        for (int64_t g = 0; g < groups(); ++g) {
            for (int64_t k = offsets[g]; k < offsets[g + 1]; ++k) {
                for (int64_t m = 0; m < height; ++m) {
                    if (rows[g * height + m] >= 0) f(rows[g * height + m], columns[k], k * height + m);
                }
            }
        }
    }
};

void same(const char* what, const Matrix& m, int64_t batch, const Floats& found, const Exact& right) {
    double worst = 0, scale = 1;
    for (size_t i = 0; i < right.size(); ++i) {
        const double error = std::abs(found[i] - right[i]);
        worst = error <= worst ? worst : error;
        scale = std::max(scale, std::abs(right[i]));
    }
    if (worst <= 2e-5 * scale) return;
    std::printf("%s: height %d, batch %d: off by %g of %g\n", what, static_cast<int>(m.height), static_cast<int>(batch), worst, scale);
    ++failures;
}

void right(const char* what, Failure wrong) {
    if (wrong == nullptr) return;
    std::printf("%s: %s\n", what, wrong);
    ++failures;
}

// A matrix of height 1 in windows of columns.
struct Cut {
    std::vector<int32_t> offsets, order;
    std::vector<uint16_t> columns;
    int64_t n_rows, n_columns, width;

    Cut(const Stored& m, int64_t batch, int threads)
        : order(m.stored), columns(m.stored), n_rows(m.n_rows), n_columns(m.n_columns), width(segment_width(batch)) {
        offsets.resize(segment_windows(n_columns, width) * n_rows + 1);
        right("cut", cut(m, width, offsets.data(), columns.data(), order.data(), threads));
    }
    Segments view(const Matrix& m) const {
        return {m.values.data(), order.data(), offsets.data(), columns.data(), n_rows, n_columns, m.stored(), width};
    }
};

void check_linear(const Matrix& m, int64_t batch, int threads) {
    const Floats x = randoms(batch * m.n_columns), g = randoms(batch * m.n_rows), bias = randoms(m.n_rows);
    Floats y(batch * m.n_rows), dx(x.size()), dw(m.values.size());
    Exact exact_y(y.size()), exact_dx(dx.size()), exact_dw(dw.size());
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t r = 0; r < m.n_rows; ++r) exact_y[b * m.n_rows + r] = bias[r];
        m.each([&](int64_t r, int64_t c, int64_t at) {
            const double in = x[b * m.n_columns + c], out = g[b * m.n_rows + r], w = m.values[at];
            exact_y[b * m.n_rows + r] += w * in;
            exact_dx[b * m.n_columns + c] += w * out;
            exact_dw[at] += in * out;
        });
    }
    right("linear_forward", kernels.linear_forward(m.view(), x.data(), bias.data(), y.data(), batch, threads));
    same("linear y", m, batch, y, exact_y);
    right("linear_backward", kernels.linear_backward(m.view(), g.data(), x.data(), dx.data(), dw.data(), batch, threads));
    same("linear dx", m, batch, dx, exact_dx);
    same("linear dw", m, batch, dw, exact_dw);
    if (m.height > 1) return;
    const Cut cut_matrix(m.view(), batch, threads);
    std::vector<int32_t> offsets(m.n_columns + 1), columns(m.columns), order(m.columns);
    right("transpose", transpose(m.view(), 1, offsets.data(), columns.data(), order.data(), threads));
    const Cut turned({m.values.data(), order.data(), nullptr, offsets.data(), columns.data(), m.n_columns, m.n_rows, m.n_columns, 1, m.stored()},
                     batch, threads);
    right("segments_forward", kernels.segments_forward(cut_matrix.view(m), x.data(), bias.data(), y.data(), batch, threads));
    right("segments_backward", kernels.segments_backward(cut_matrix.view(m), turned.view(m), g.data(), x.data(), dx.data(), dw.data(), batch, threads));
    same("linear y in windows", m, batch, y, exact_y);
    same("linear dx in windows", m, batch, dx, exact_dx);
    same("linear dw in windows", m, batch, dw, exact_dw);
}

// A tensor on the blocked layout.
Floats blocked(const Shape& s, const Floats& plain) {
    Floats to((s.batch + kBatchLanes - 1) / kBatchLanes * kBatchLanes * s.channels * s.height * s.width, NAN);
    right("to_floats", kernels.blocked.to_floats(s, {plain.data(), {}}, {nullptr, to.data(), nullptr}, 1));
    return to;
}

Floats plain(const Shape& s, const Floats& from) {
    Floats to(s.batch * s.channels * s.height * s.width);
    Lazy lazy{};
    lazy.x = from.data();
    right("to_floats", kernels.blocked.to_floats(s, {nullptr, lazy}, {to.data(), nullptr, nullptr}, 1));
    return to;
}

// To bfloat16s on the blocked layout and back: the nearest of 8 significant bits.
void check_bf16(const Matrix& m, const Shape& s) {
    const Floats x = randoms(s.batch * s.channels * s.height * s.width);
    std::vector<BFloat16> narrow(blocked(s, x).size());
    Floats back(x.size());
    right("to_bf16", kernels.blocked.to_bf16(s, {x.data(), {}}, {nullptr, narrow.data(), nullptr}, 2));
    LazyOf<BFloat16> lazy{};
    lazy.x = narrow.data();
    right("to_floats", kernels.blocked_bf16.to_floats(s, {nullptr, lazy}, {back.data(), nullptr, nullptr}, 2));
    Exact exact(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        int exponent;
        const double part = std::frexp(static_cast<double>(x[i]), &exponent);
        exact[i] = std::ldexp(std::nearbyint(std::ldexp(part, 8)), exponent - 8);
        if (back[i] != exact[i]) right("rounding", "is not to the nearest");
    }
    same("bfloat16", m, s.batch, back, exact);
}

void check_conv(const Matrix& m, const Image& i, int threads) {
    const Shape in{i.batch, m.n_columns / i.taps(), i.height, i.width}, out{i.batch, m.n_rows, i.out_height(), i.out_width()};
    const int64_t in_plane = in.height * in.width, out_plane = out.height * out.width;
    const int64_t inputs = in.batch * in.channels * in_plane, outputs = out.batch * out.channels * out_plane;
    const Floats x = randoms(inputs), g = randoms(outputs), bias = randoms(m.n_rows);
    Floats y(g.size()), dx(x.size()), dw(m.values.size());
    Exact exact_y(y.size()), exact_dx(dx.size()), exact_dw(dw.size());
    for (int64_t n = 0; n < outputs; ++n) exact_y[n] = bias[n / out_plane % out.channels];
    m.each([&](int64_t r, int64_t c, int64_t at) {
        const int64_t tap_h = c % i.taps() / i.kernel_w * i.dilation_h, tap_w = c % i.kernel_w * i.dilation_w;
        for (int64_t n = 0; n < out.batch * out_plane; ++n) {
            const int64_t h = n % out_plane / out.width * i.stride_h - i.pad_h + tap_h, w = n % out.width * i.stride_w - i.pad_w + tap_w;
            if (h < 0 || h >= i.height || w < 0 || w >= i.width) continue;
            const int64_t from = ((n / out_plane * in.channels + c / i.taps()) * in.height + h) * in.width + w;
            const int64_t to = (n / out_plane * out.channels + r) * out_plane + n % out_plane;
            exact_y[to] += static_cast<double>(m.values[at]) * x[from];
            exact_dx[from] += static_cast<double>(m.values[at]) * g[to];
            exact_dw[at] += static_cast<double>(x[from]) * g[to];
        }
    });
    right("conv_forward", kernels.conv_forward(m.view(), i, {x.data(), {}}, bias.data(), {y.data(), nullptr, nullptr}, threads));
    same("conv y", m, i.batch, y, exact_y);
    const Result to_dx{dx.data(), nullptr, nullptr};
    right("conv_backward", kernels.conv_backward(m.view(), i, {g.data(), {}}, {x.data(), {}}, to_dx, dw.data(), threads));
    same("conv dx", m, i.batch, dx, exact_dx);
    same("conv dw", m, i.batch, dw, exact_dw);
    const Floats blocked_x = blocked(in, x), blocked_g = blocked(out, g);
    Floats blocked_y(blocked_g.size()), blocked_dx(blocked_x.size());
    Lazy lazy_x{}, lazy_g{};
    lazy_x.x = blocked_x.data();
    lazy_g.x = blocked_g.data();
    right("conv_forward", kernels.conv_forward(m.view(), i, {nullptr, lazy_x}, bias.data(), {nullptr, blocked_y.data(), nullptr}, threads));
    same("blocked conv y", m, i.batch, plain(out, blocked_y), exact_y);
    const Result to_blocked_dx{nullptr, blocked_dx.data(), nullptr};
    right("conv_backward", kernels.conv_backward(m.view(), i, {nullptr, lazy_g}, {nullptr, lazy_x}, to_blocked_dx, dw.data(), threads));
    same("blocked conv dx", m, i.batch, plain(in, blocked_dx), exact_dx);
    same("blocked conv dw", m, i.batch, dw, exact_dw);
}

}  // namespace

int main() {
    poison_scratch(true);
    for (int64_t batch : {1, 16, 35}) check_bf16(Matrix(1, 1, 1), {batch, 5, 3, 7});
    for (int64_t height : {1, 2, 3, 4, 7, 8, 16}) {
        check_linear(Matrix(90, 400, height), 100, 2);
        for (int64_t batch : {1, 7, 40}) check_linear(Matrix(37, 41, height), batch, 2);
        for (int64_t batch : {1, 6, 35}) {
            check_conv(Matrix(37, 27, height), {batch, 7, 18, 3, 3, 1, 1, 1, 1, 1, 1}, 2);
            check_conv(Matrix(21, 40 * 9, height), {batch, 9, 5, 3, 3, 2, 2, 1, 1, 1, 1}, 2);
        }
    }
    if (failures == 0) std::printf("as in double precision\n");
    return failures == 0 ? 0 : 1;
}
