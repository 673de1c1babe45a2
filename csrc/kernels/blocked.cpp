// What lies between convolutions, on the blocked layout: conversions, formulas turned into numbers, and the sums of batch norm.
// Sums go line by line, and the lines are added up in one order, so that no result depends on the number of threads.
#include "blocked.hpp"

#include <omp.h>

#include "../scratch.hpp"
#include "lines.hpp"
#ifdef __AVX512BF16__
#include "pack_bf16.hpp"
#endif

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

template <typename From, typename To>
Failure convert(const Shape& shape, const ActivationOf<From>& from, const ResultOf<To>& to, int threads) {
    const int64_t panels = (shape.batch + kBatchLanes - 1) / kBatchLanes, line = shape.channels * shape.width * kBatchLanes;
    const int64_t wanted = most<int64_t>((kBatchLanes + shape.width - 1) / shape.width, (kRun + shape.width - 1) / shape.width);
    const int64_t grain = most<int64_t>(1, least(least(wanted, shape.height), kTransfer / most<int64_t>(line, 1)));
    if (shape.batch == 0 || line == 0 || shape.height == 0) return nullptr;
    if (grain * line > (int64_t{1} << 31) - 1) return "a line of the image is too large for 32-bit offsets";
    Scratch scratch(unpadded_table_bytes(shape, grain) + threads * grain * line * static_cast<int64_t>(sizeof(To)) + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    const Slab slab = unpadded_slab(shape, grain, memory);
    To* buffers = memory.take<To>(threads * grain * line);
    const int64_t pieces = (shape.height + grain - 1) / grain;
#pragma omp parallel num_threads(threads)
    {
        To* mine = buffers + omp_get_thread_num() * grain * line;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < panels * pieces; ++i) {
            const int64_t panel = i / pieces, first = i % pieces * grain, last = least(first + grain, shape.height);
            read_lines(slab, from, panel, first, last, mine);
            write_lines(slab, mine, panel, first, last, to);
        }
        drain_streams();
    }
    return nullptr;
}

template <typename T>
void line_moments(const Shape& shape, const T* x, float* moments, int threads) {
    const int64_t panels = (shape.batch + kBatchLanes - 1) / kBatchLanes, line = shape.channels * shape.width * kBatchLanes;
    Scratch scratch(unpadded_table_bytes(shape, 1) + 64);
    Memory memory{scratch.data()};
    const Slab slab = unpadded_slab(shape, 1, memory);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < panels * shape.height; ++i) {
        const int64_t h = i % shape.height;
        drain_lines(slab, x + i * line, i / shape.height, h, h + 1, ResultOf<T>{nullptr, nullptr, moments});
    }
}

namespace {

template <typename T>
struct SumLine {
    const Shape& shape;
    const T* x;
    const float* mean;
    int64_t offset, lanes;
    float* sums_out;

    template <typename R>
    void run(const LazyOf<T>& g) const {
        if (lanes == kBatchLanes) return channels<R, false>(g);
        channels<R, true>(g);
    }

    template <typename R, bool Ragged>
    void channels(const LazyOf<T>& g) const {
        const Valid valid(lanes);
        const int64_t strip = shape.width * kBatchLanes;
        for (int64_t c = 0; c < shape.channels; c += kLanes) {
            Vec plain[kLanes], weighted[kLanes];
            const int64_t n = least<int64_t>(kLanes, shape.channels - c);
            for (int64_t j = 0; j < kLanes; ++j) {
                plain[j] = weighted[j] = Vec{};
                if (j >= n) continue;
                const int64_t at = offset + (c + j) * strip;
                const R read(g, c + j, at);
                const Vec middle = broadcast(mean[c + j]);
                for (int64_t i = 0; i < strip; i += kBatchLanes) {
                    OW_UNROLL
                    for (int64_t l = 0; l < kBatchLanes / kLanes; ++l) {
                        const Vec v = valid.template only<Ragged>(read(i + l * kLanes), l);
                        plain[j] += v;
                        weighted[j] += valid.template only<Ragged>(v * (load(x + at + i + l * kLanes) - middle), l);
                    }
                }
            }
            float first[kLanes], second[kLanes];
            store(first, sums(plain));
            store(second, sums(weighted));
            for (int64_t j = 0; j < n; ++j) {
                sums_out[2 * (c + j)] = first[j];
                sums_out[2 * (c + j) + 1] = second[j];
            }
        }
    }
};

}  // namespace

template <typename T>
void gradient_sums(const Shape& shape, const LazyOf<T>& g, const T* x, const float* mean, float* sums_out, int threads) {
    const int64_t panels = (shape.batch + kBatchLanes - 1) / kBatchLanes, line = shape.channels * shape.width * kBatchLanes;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < panels * shape.height; ++i) {
        const int64_t lanes = blocked_lanes(shape.batch, i / shape.height);
        with_reader(g, SumLine<T>{shape, x, mean, i * line, lanes, sums_out + i * shape.channels * 2});
    }
}

template Failure convert(const Shape&, const ActivationOf<float>&, const ResultOf<float>&, int);
template Failure convert(const Shape&, const ActivationOf<float>&, const ResultOf<BFloat16>&, int);
template Failure convert(const Shape&, const ActivationOf<BFloat16>&, const ResultOf<float>&, int);
template Failure convert(const Shape&, const ActivationOf<BFloat16>&, const ResultOf<BFloat16>&, int);
template void line_moments(const Shape&, const float*, float*, int);
template void line_moments(const Shape&, const BFloat16*, float*, int);
template void gradient_sums(const Shape&, const LazyOf<float>&, const float*, const float*, float*, int);
template void gradient_sums(const Shape&, const LazyOf<BFloat16>&, const BFloat16*, const float*, float*, int);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
