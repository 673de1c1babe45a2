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

// How many samples at the end of a batch are computed here.
OW_INLINE int64_t few_samples(const Stored& m, int64_t batch) {
    const int64_t rest = batch % kBatchLanes, h = m.height;
    const bool whole_vectors = h >= 4 && (h % kLanes == 0 || kLanes % h == 0);
    return whole_vectors && m.rows != nullptr && rest <= least(kFew, h) ? rest : 0;
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

// Adds to dx[column k][sample] the sum over rows of w[k][row] * g[sample][row], four samples at a time.
struct FewScatter {
    const Few& few;
    int64_t g0, g1;
    const float* g;
    float* dx;  // [inputs][few_stride(samples)]

    // As many columns as there are quads in a vector, from their weights: those of W rows of a column are ROWS / 4 quads.
    template <int ROWS, int FOURS>
    OW_INLINE void columns(const Vec* w, const Vec (&gradient)[FOURS * 4], const int32_t* column, int64_t count, float* dx) {
        constexpr int kVectors = ROWS / 4;
        OW_UNROLL
        for (int f = 0; f < FOURS; ++f) {
            Vec v[kVectors];
            OW_UNROLL
            for (int i = 0; i < kVectors; ++i) {
                const Vec* of = gradient + 4 * f;
                v[i] = pairs(pairs(w[i] * of[0], w[i] * of[1]), pairs(w[i] * of[2], w[i] * of[3]));
            }
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
        for (int64_t s = 0; s < few.samples; ++s) {
            float sum = 0;
            for (int64_t p = 0; p < kParts; ++p) sum += parts[(p * few.inputs + c) * stride + s];
            dx[s * few.inputs + c] = sum;
        }
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
