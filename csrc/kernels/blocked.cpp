// What lies between convolutions, on the blocked layout: conversions, formulas turned into numbers, and the sums of batch norm.
// Sums go line by line, and the lines are added up in one order, so that no result depends on the number of threads.
#include "blocked.hpp"

#include <omp.h>

#include "../scratch.hpp"
#include "lines.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

Failure convert(const Shape& shape, const Activation& from, const Result& to, int threads) {
    const int64_t panels = (shape.batch + kBatchLanes - 1) / kBatchLanes, line = shape.channels * shape.width * kBatchLanes;
    const int64_t wanted = most<int64_t>((kBatchLanes + shape.width - 1) / shape.width, (kRun + shape.width - 1) / shape.width);
    const int64_t grain = most<int64_t>(1, least(least(wanted, shape.height), kTransfer / most<int64_t>(line, 1)));
    if (shape.batch == 0 || line == 0 || shape.height == 0) return nullptr;
    if (grain * line > (int64_t{1} << 31) - 1) return "a line of the image is too large for 32-bit offsets";
    Scratch scratch(unpadded_table_bytes(shape, grain) + threads * grain * line * 4 + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    const Slab slab = unpadded_slab(shape, grain, memory);
    float* buffers = memory.take<float>(threads * grain * line);
    const int64_t pieces = (shape.height + grain - 1) / grain;
#pragma omp parallel num_threads(threads)
    {
        float* mine = buffers + omp_get_thread_num() * grain * line;
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

void line_moments(const Shape& shape, const float* x, float* moments, int threads) {
    const int64_t panels = (shape.batch + kBatchLanes - 1) / kBatchLanes, line = shape.channels * shape.width * kBatchLanes;
    Scratch scratch(unpadded_table_bytes(shape, 1) + 64);
    Memory memory{scratch.data()};
    const Slab slab = unpadded_slab(shape, 1, memory);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < panels * shape.height; ++i) {
        const int64_t h = i % shape.height;
        drain_lines(slab, x + i * line, i / shape.height, h, h + 1, {nullptr, nullptr, moments});
    }
}

namespace {

struct SumLine {
    const Shape& shape;
    const float *x, *mean;
    int64_t offset, lanes;
    float* sums_out;

    template <typename R>
    void run(const Lazy& g) const {
        if (lanes == kBatchLanes) return channels<R, false>(g);
        channels<R, true>(g);
    }

    template <typename R, bool Ragged>
    void channels(const Lazy& g) const {
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

void gradient_sums(const Shape& shape, const Lazy& g, const float* x, const float* mean, float* sums_out, int threads) {
    const int64_t panels = (shape.batch + kBatchLanes - 1) / kBatchLanes, line = shape.channels * shape.width * kBatchLanes;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < panels * shape.height; ++i) {
        const int64_t lanes = blocked_lanes(shape.batch, i / shape.height);
        with_reader(g, SumLine{shape, x, mean, i * line, lanes, sums_out + i * shape.channels * 2});
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
