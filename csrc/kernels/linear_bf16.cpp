// Linear layers in bfloat16, summed in float.  As in linear.cpp, a panel is packed from [batch, feature] just before it is used; the
// stored weights, floats, are rounded at the start of every call.
#include "linear_bf16.hpp"

#include "../scratch.hpp"
#include "memory.hpp"
#include "tiles_bf16.hpp"

#include <omp.h>

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kForwardTiles = 2;      // tiles in a panel, which stays in L2
constexpr int64_t kInputTiles = 2;        // the same of an input gradient, whose panel is of floats
constexpr int64_t kWeightPanel = 512;     // samples that one pass of a weight gradient runs over, at most

// An odd number of cache lines: even ones thrash the sets of L1 and L2.  In bfloat16s.
int64_t odd_stride(int64_t samples) { return (up(samples, kTile) / kTile | 1) * kTile; }

}  // namespace

Failure linear_forward_bf16(const Stored& m, const BFloat16* x, const float* bias, BFloat16* y, int64_t batch, int threads) {
    const int64_t inputs = m.n_columns, outputs = m.n_rows;
    if (batch == 0 || outputs == 0) return nullptr;
    const int64_t units = (batch + kTile - 1) / kTile;
    // With fewer tiles than threads, the threads of a tile share its output panel and split the row groups.
    const int64_t parts = most<int64_t>(1, threads / units), owners = least<int64_t>(units, threads);
    const int64_t width = least(kForwardTiles, (units + owners - 1) / owners) * kTile;
    const Panel in_at{kTile, (inputs + 1) * kTile}, out_at{kTile, outputs * kTile};
    const int64_t in_size = (inputs + 1) * width, out_size = outputs * width;
    Scratch scratch(static_cast<size_t>(lowered_bytes(m) + pairs_bytes(m) + threads * (in_size + out_size) * 2 + 1024));
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    Lowered a;
    const int64_t zero = 0;
    if (Failure wrong = lower(m, {kTile, 1, &zero, kTile}, bias, memory.take<char>(lowered_bytes(m)), threads, a)) return wrong;
    const ColumnPairs c = make_pairs(m, a, memory);
    BFloat16* in = memory.take<BFloat16>(threads * in_size);
    BFloat16* out = memory.take<BFloat16>(threads * out_size);
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
#pragma omp for schedule(static)
        for (int64_t g = 0; g < a.groups; ++g) pair_group(a, g, static_cast<int32_t>(inputs * kTile), c);
        BFloat16* my_in = in + id * in_size;
        for (int64_t t = 0; t < width / kTile; ++t) std::memset(my_in + t * in_at.tile + inputs * kTile, 0, kTile * 2);
        // A runtime that grants fewer threads than asked for must still cover every share.
        for (int64_t t = id; t < owners * parts; t += team) {
            const int64_t owner = t % owners, part = t / owners;
            BFloat16* my_out = out + owner * out_size;
            const int64_t begin = units * owner / owners * kTile, end = least(batch, units * (owner + 1) / owners * kTile);
            for (int64_t s = begin; s < end; s += width) {
                const int64_t samples = least(width, end - s), tiles = up(samples, kTile) / kTile;
                pack_tiles(x + s * inputs, inputs, samples, my_in, in_at);
                gather_any(a, c, share(a, part, parts), share(a, part + 1, parts), my_in, in_at.tile, my_out, out_at.tile, tiles);
                if (part == 0) fill_missing(a, bias, my_out, out_at.feature, out_at.tile, tiles);
                if (parts == 1) unpack_tiles(my_out, out_at, outputs, 0, outputs, samples, y + s * outputs);
            }
        }
#pragma omp barrier
        for (int64_t t = id; parts > 1 && t < owners * parts; t += team) {
            const int64_t owner = t % owners, part = t / owners, begin = units * owner / owners * kTile;
            unpack_tiles(out + owner * out_size, out_at, outputs, outputs * part / parts, outputs * (part + 1) / parts,
                         least(kTile, batch - begin), y + begin * outputs);
        }
    }
    return nullptr;
}

namespace {

struct Backward {
    const Lowered *for_dx, *for_dw;
    const BFloat16 *g, *x;
    BFloat16* dx;
    float* dw;
    int64_t inputs, outputs;
    Panel wide, narrow;             // of g and x, and of an input gradient
    BFloat16 *g_panel, *x_panel, *weights;
    float *dx_panels, *packed;
    int64_t dx_size, packed_size;   // of one thread
};

// One thread's share of one weight panel of `samples` samples from sample `s` on; the whole team runs it together.
void backward_panel(const Backward& b, int64_t s, int64_t samples, int64_t id, int64_t team) {
    const int64_t units = (samples + kTile - 1) / kTile;
    const int64_t first = units * id / team * kTile, last = least(samples, units * (id + 1) / team * kTile);
    if (first < last) {
        pack_tiles(b.g + (s + first) * b.outputs, b.outputs, last - first, b.g_panel + first, b.wide);
        if (b.dw != nullptr) pack_tiles(b.x + (s + first) * b.inputs, b.inputs, last - first, b.x_panel + first, b.wide);
    }
    float* panel = b.dx_panels + id * b.dx_size;
    for (int64_t t = first; b.dx != nullptr && t < last; t += kInputTiles * kTile) {
        const int64_t count = least(kInputTiles * kTile, last - t), tiles = up(count, kTile) / kTile;
        std::memset(panel, 0, static_cast<size_t>(tiles * b.narrow.tile) * 4);
        scatter_any(*b.for_dx, 0, b.for_dx->groups, b.weights, panel, b.narrow.tile, b.g_panel + t, b.wide.tile, tiles);
        unpack_tiles(panel, b.narrow, b.inputs, 0, b.inputs, count, b.dx + (s + t) * b.inputs);
    }
    if (b.dw == nullptr) return;
    const Lowered& a = *b.for_dw;
#pragma omp barrier
    dots(a, share(a, id, team), share(a, id + 1, team), b.x_panel, b.g_panel, {1, 0, 0, units}, b.packed + id * b.packed_size, b.dw);
#pragma omp barrier
}

}  // namespace

Failure linear_backward_bf16(const Stored& m, const BFloat16* g, const BFloat16* x, BFloat16* dx, float* dw, int64_t batch, int threads) {
    const int64_t inputs = m.n_columns, outputs = m.n_rows;
    if (dw != nullptr) std::memset(dw, 0, static_cast<size_t>(m.stored * m.height) * 4);
    if (batch == 0) return nullptr;
    const int64_t wide = least(kWeightPanel, up(batch, kTile)), stride = odd_stride(wide), even = up(m.height, 2);
    Backward b{};
    b.g = g, b.x = x, b.dx = dx, b.dw = dw, b.inputs = inputs, b.outputs = outputs;
    b.wide = {stride, kTile}, b.narrow = {kTile, inputs * kTile};
    b.dx_size = dx != nullptr ? inputs * least(kInputTiles * kTile, wide) : 0;
    b.packed_size = dw != nullptr ? wide / 2 * 16 : 0;
    const int64_t halves = (outputs + (dw != nullptr ? inputs : 0)) * stride + (dx != nullptr ? m.stored * even : 0);
    Scratch scratch(static_cast<size_t>(2 * lowered_bytes(m) + halves * 2 + threads * (b.dx_size + b.packed_size) * 4 + 1024));
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    const int64_t zero = 0;
    Lowered for_dx{}, for_dw{};
    if (dx != nullptr) {
        if (Failure wrong = lower(m, {kTile, 1, &zero, stride}, nullptr, memory.take<char>(lowered_bytes(m)), threads, for_dx)) return wrong;
    }
    if (dw != nullptr) {
        if (Failure wrong = lower(m, {stride, 1, &zero, stride}, nullptr, memory.take<char>(lowered_bytes(m)), threads, for_dw)) return wrong;
    }
    b.for_dx = &for_dx, b.for_dw = &for_dw;
    b.g_panel = memory.take<BFloat16>(outputs * stride);
    if (dw != nullptr) b.x_panel = memory.take<BFloat16>(inputs * stride);
    if (dx != nullptr) b.weights = memory.take<BFloat16>(m.stored * even);
    b.dx_panels = memory.take<float>(threads * b.dx_size);
    b.packed = memory.take<float>(threads * b.packed_size);
#pragma omp parallel num_threads(threads)
    {
        if (dx != nullptr) {
#pragma omp for schedule(static)
            for (int64_t group = 0; group < for_dx.groups; ++group) narrow_group(for_dx, group, b.weights);
        }
        for (int64_t s = 0; s < batch; s += wide) {
            backward_panel(b, s, least(wide, batch - s), omp_get_thread_num(), omp_get_num_threads());
        }
    }
    return nullptr;
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
