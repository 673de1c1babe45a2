// The last samples of a linear layer's batch where they are so few that a unit of 16 would be mostly empty: the rows of a group are in
// the lanes, inputs are read as [samples, features], and nothing is packed.  Which samples these are does not depend on threads.
#pragma once

#include "tiles.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kFew = 8;
constexpr int64_t kParts = 4;  // sums that make up an input gradient, whatever the number of threads

struct Few {
    const Lowered& a;
    const int32_t* columns;  // [stored], ids that have been checked
    int64_t inputs, outputs, samples;
};

// How many samples at the end of a batch are computed here.  More than this many take longer than a unit; half as many where there are
// other units, for then the weights are read once more.
OW_INLINE int64_t few_samples(const Stored& m, int64_t batch) {
    const int64_t rest = batch % kBatchLanes, h = m.height, most_samples = least(kFew, h) / (batch > kBatchLanes ? 2 : 1);
    const bool whole_vectors = h >= 4 && (h % kLanes == 0 || kLanes % h == 0);
    return whole_vectors && m.rows != nullptr && rest <= most_samples ? rest : 0;
}

// f.run<W, S>() for rows in a vector and samples.
template <int W, int S = kFew, typename F>
OW_INLINE void with_samples(int64_t samples, const F& f) {
    if constexpr (S > 1) {
        if (samples < S) return with_samples<W, S - 1>(samples, f);
    }
    f.template run<W, S>();
}
template <int W = kLanes, typename F>
OW_INLINE void with_rows(int64_t height, int64_t samples, const F& f) {
    if constexpr (W > 4) {
        if (height < W) return with_rows<W / 2>(height, samples, f);
    }
    with_samples<W>(samples, f);
}

template <int W>
struct Rows {
    typedef float Values __attribute__((vector_size(4 * W)));
    typedef int32_t Bits __attribute__((vector_size(4 * W)));
};

template <int W>
OW_INLINE typename Rows<W>::Values load_rows(const float* from) {
    typename Rows<W>::Values v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

// One sample's values of W rows, of which a group of fewer than a vector has copies; 0 where there is no row.
template <int W, int ROWS>
OW_INLINE typename Rows<W>::Values gather_rows(const int32_t* rows, const float* from) {
    typename Rows<W>::Values v;
    OW_UNROLL
    for (int i = 0; i < W; ++i) v[i] = rows[i % ROWS] < 0 ? 0.0f : from[rows[i % ROWS]];
    return v;
}

// All bits where there is a row: what stands in the padding must never count, not even if it is no number.
template <int W, int ROWS>
OW_INLINE typename Rows<W>::Bits real_rows(const int32_t* rows) {
    typename Rows<W>::Bits v;
    OW_UNROLL
    for (int i = 0; i < W; ++i) v[i] = rows[i % ROWS] < 0 ? 0 : -1;
    return v;
}
template <int W>
OW_INLINE typename Rows<W>::Values only(typename Rows<W>::Values v, typename Rows<W>::Bits real) {
    return (typename Rows<W>::Values)((typename Rows<W>::Bits)v & real);
}

// y[sample][row] = bias[row] + sum_k w[k][row] * x[sample][column k]
struct FewForward {
    const Few& few;
    int64_t g0, g1;
    const float* x;
    float* y;

    template <int W, int S>
    OW_INLINE void group(const Lowered& a, const Few& few, int64_t g, int64_t r, const float* x, float* y) {
        constexpr int kChains = kFew / S;  // an addition takes four cycles, two begin in each
        const int64_t h = a.height, end = a.ends[g];
        const float* w = a.values + r;
        typename Rows<W>::Values sum[kChains * S];
        OW_UNROLL
        for (int i = 0; i < kChains * S; ++i) sum[i] = i < S ? load_rows<W>(a.bias + g * h + r) : typename Rows<W>::Values{};
        int64_t k = a.offsets[g];
        for (; k + kChains <= end; k += kChains) {
            OW_UNROLL
            for (int c = 0; c < kChains; ++c) {
                const float* from = x + few.columns[k + c];
                const auto values = load_rows<W>(w + (k + c) * h);
                OW_UNROLL
                for (int s = 0; s < S; ++s) sum[c * S + s] += values * from[s * few.inputs];
            }
        }
        for (; k < end; ++k) {
            const float* from = x + few.columns[k];
            const auto values = load_rows<W>(w + k * h);
            OW_UNROLL
            for (int s = 0; s < S; ++s) sum[s] += values * from[s * few.inputs];
        }
        const int32_t* rows = a.row_ids + g * h + r;
        OW_UNROLL
        for (int s = 0; s < S; ++s) {
            OW_UNROLL
            for (int c = 1; c < kChains; ++c) sum[s] += sum[c * S + s];
            OW_UNROLL
            for (int i = 0; i < W; ++i) {
                if (rows[i] >= 0) y[s * few.outputs + rows[i]] = sum[s][i];
            }
        }
    }
    template <int W, int S>
    void run() const {
        for (int64_t g = g0; g < g1; ++g) {
            for (int64_t r = 0; r < few.a.height; r += W) group<W, S>(few.a, few, g, r, x, y);
        }
    }
};

// dw[k][row] = sum_sample g[sample][row] * x[sample][column k], 0 in padded rows
struct FewDots {
    const Few& few;
    int64_t g0, g1;
    const float *g, *x;
    float* dw;

    template <int W, int S>
    OW_INLINE void group(const Lowered& a, const Few& few, int64_t group, int64_t r, const float* g, const float* x, float* dw) {
        const int32_t* rows = a.row_ids + group * a.height + r;
        const auto real = real_rows<W, W>(rows);
        typename Rows<W>::Values gradient[S];
        OW_UNROLL
        for (int s = 0; s < S; ++s) gradient[s] = gather_rows<W, W>(rows, g + s * few.outputs);
        for (int64_t k = a.offsets[group]; k < a.ends[group]; ++k) {
            const float* from = x + few.columns[k];
            auto sum = gradient[0] * from[0];
            OW_UNROLL
            for (int s = 1; s < S; ++s) sum += gradient[s] * from[s * few.inputs];
            sum = only<W>(sum, real);
            __builtin_memcpy(dw + k * a.height + r, &sum, sizeof sum);
        }
    }
    template <int W, int S>
    void run() const {
        for (int64_t i = g0; i < g1; ++i) {
            for (int64_t r = 0; r < few.a.height; r += W) group<W, S>(few.a, few, i, r, g, x, dw);
        }
    }
};

OW_INLINE int64_t few_stride(int64_t samples) { return up(samples, 4); }

// Lane i of every quad from lane i ^ BY of it: of a alone, or of a vector for each lane.
template <int BY, int... I>
OW_INLINE Vec crossed(Vec a, Index<I...>) { return __builtin_shufflevector(a, a, (I ^ BY)...); }
template <int BY, int... I>
OW_INLINE Vec crossed(const Vec* v, Index<I...>) {
    const Vec low = __builtin_shufflevector(v[0], v[1], ((I ^ BY) + I % 2 * kLanes)...);
    const Vec high = __builtin_shufflevector(v[2], v[3], ((I ^ BY) + I % 2 * kLanes)...);
    return __builtin_shufflevector(low, high, (I + I % 4 / 2 * kLanes)...);
}

// Adds to dx[column k][sample] the sum over rows of w[k][row] * g[sample][row], four samples at a time.
struct FewScatter {
    const Few& few;
    int64_t g0, g1;
    const float* g;
    float* dx;  // [inputs][few_stride(samples)]

    // As many columns as there are quads in a vector, from their weights: those of a column's rows are ROWS / 4 quads.  Lane i of
    // a quad is for sample i, so each weight passes through all four lanes, and the gradients were put where it meets its own.
    template <int ROWS, int FOURS>
    OW_INLINE void columns(const Vec* w, const Vec (&gradient)[FOURS * 4], const int32_t* column, int64_t count, float* dx) {
        constexpr int kVectors = ROWS / 4;
        Vec sum[FOURS][kVectors];
        OW_UNROLL
        for (int i = 0; i < kVectors; ++i) {
            const Vec one = crossed<1>(w[i], Lanes{}), two = crossed<2>(w[i], Lanes{}), three = crossed<3>(w[i], Lanes{});
            OW_UNROLL
            for (int f = 0; f < FOURS; ++f) {
                const Vec* of = gradient + 4 * f;
                sum[f][i] = w[i] * of[0] + one * of[1] + two * of[2] + three * of[3];
            }
        }
        OW_UNROLL
        for (int f = 0; f < FOURS; ++f) {
            Vec* v = sum[f];
            if constexpr (kVectors > 1) {
                OW_UNROLL
                for (int width = kVectors / 2; width >= 1; width /= 2) {
                    OW_UNROLL
                    for (int i = 0; i < width; ++i) v[i] = of_quads<0>(v[2 * i], v[2 * i + 1], Lanes{}) + of_quads<1>(v[2 * i], v[2 * i + 1], Lanes{});
                }
            }
            Quad part[kQuads];
            __builtin_memcpy(part, v, sizeof part);
            OW_UNROLL
            for (int i = 0; i < kQuads; ++i) {
                if (i >= count) break;
                QuadInMemory* to = reinterpret_cast<QuadInMemory*>(dx + column[i] * FOURS * 4 + f * 4);
                *to = *to + part[i];
            }
        }
    }
    template <int ROWS, int FOURS>
    OW_INLINE void group(const Lowered& a, const Few& few, int64_t group, int64_t r, const float* g, float* dx) {
        constexpr int kVectors = ROWS / 4, kTogether = kLanes / ROWS;
        const int64_t h = a.height, end = a.ends[group];
        const int32_t* rows = a.row_ids + group * h + r;
        const auto real = real_rows<kLanes, ROWS>(rows);
        Vec gradient[FOURS * 4];
        OW_UNROLL
        for (int s = 0; s < FOURS * 4; ++s) gradient[s] = s < few.samples ? gather_rows<kLanes, ROWS>(rows, g + s * few.outputs) : Vec{};
        OW_UNROLL
        for (int f = 0; f < FOURS * 4; f += 4) {
            const Vec of[4] = {gradient[f], gradient[f + 1], gradient[f + 2], gradient[f + 3]};
            gradient[f] = crossed<0>(of, Lanes{});
            gradient[f + 1] = crossed<1>(of, Lanes{});
            gradient[f + 2] = crossed<2>(of, Lanes{});
            gradient[f + 3] = crossed<3>(of, Lanes{});
        }
        int64_t k = a.offsets[group];
        Vec w[kVectors];
        for (; k + kQuads <= end; k += kQuads) {
            OW_UNROLL
            for (int i = 0; i < kVectors; ++i) w[i] = only<kLanes>(load(a.values + (k + i * kTogether) * h + r), real);
            columns<ROWS, FOURS>(w, gradient, few.columns + k, kQuads, dx);
        }
        if (k == end) return;
        float last[kQuads * ROWS] = {};
        for (int64_t i = 0; i < end - k; ++i) __builtin_memcpy(last + i * ROWS, a.values + (k + i) * h + r, 4 * ROWS);
        OW_UNROLL
        for (int i = 0; i < kVectors; ++i) w[i] = only<kLanes>(load(last + i * kLanes), real);
        columns<ROWS, FOURS>(w, gradient, few.columns + k, end - k, dx);
    }
    template <int ROWS, int S>
    void run() const {
        for (int64_t i = g0; i < g1; ++i) {
            for (int64_t r = 0; r < few.a.height; r += ROWS) group<ROWS, (S + 3) / 4>(few.a, few, i, r, g, dx);
        }
    }
};

// dx[sample][column] for the columns [from, to), of kParts sums.
OW_INLINE void add_parts(const Few& few, const float* parts, int64_t from, int64_t to, float* dx) {
    const int64_t stride = few_stride(few.samples);
    for (int64_t c = from; c < to; ++c) {
        for (int64_t f = 0; f < few.samples; f += 4) {
            Quad sum{};
            OW_UNROLL
            for (int64_t p = 0; p < kParts; ++p) sum += *reinterpret_cast<const QuadInMemory*>(parts + (p * few.inputs + c) * stride + f);
            for (int64_t s = f; s < least(f + 4, few.samples); ++s) dx[s * few.inputs + c] = sum[s - f];
        }
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
