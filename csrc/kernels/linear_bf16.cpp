// Linear layers in bfloat16, summed in float.  As in linear.cpp, a panel is packed from [batch, feature] just before it is used; the
// stored weights, floats, are rounded at the start of every call.
#include "linear_bf16.hpp"

#include "../scratch.hpp"
#include "memory.hpp"
#include "tiles_bf16.hpp"
#include "windows.hpp"

#include <omp.h>

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kForwardTiles = 2;      // tiles in a panel, which stays in L2
constexpr int64_t kInputTiles = 2;        // the same of an input gradient, whose panel is of floats
constexpr int64_t kShared = 512;          // samples in a window that all threads share

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
    int64_t inputs, outputs;
    Panel wide, narrow;             // of g and x, and of an input gradient
    const BFloat16* weights;
};

struct Share : Packing {
    BFloat16 *g_panel, *x_panel;
    float *dx_panel, *packed, *dw, *db;
};

OW_INLINE void pack_share(const Share& own, const BFloat16* from, int64_t features, BFloat16* panel, const Panel& at) {
    const int64_t first = own.first(), count = own.last() - first;
    if (count > 0) pack_tiles(from + (own.s + first) * features, features, count, panel + first, at);
}

void input_gradient(const Backward& b, const Share& own) {
    const int64_t last = own.last();
    for (int64_t t = own.first(); t < last; t += kInputTiles * kTile) {
        const int64_t count = least(kInputTiles * kTile, last - t), tiles = up(count, kTile) / kTile;
        std::memset(own.dx_panel, 0, static_cast<size_t>(tiles * b.narrow.tile) * 4);
        scatter_any(*b.for_dx, 0, b.for_dx->groups, b.weights, own.dx_panel, b.narrow.tile, own.g_panel + t, b.wide.tile, tiles);
        unpack_tiles(own.dx_panel, b.narrow, b.inputs, 0, b.inputs, count, b.dx + (own.s + t) * b.inputs);
    }
}

// Packs, and uses at once, what `own` says; all threads of the team run it together, and wait for each other where they are `joined`.
void backward_share(const Backward& b, const Share& own, bool joined) {
    pack_share(own, b.g, b.outputs, own.g_panel, b.wide);
    if (b.dx != nullptr) input_gradient(b, own);
    if (own.dw == nullptr && own.db == nullptr) return;
    if (own.dw != nullptr) pack_share(own, b.x, b.inputs, own.x_panel, b.wide);
    if (joined) {
#pragma omp barrier
    }
    if (own.db != nullptr) add_samples(own.g_panel, b.wide, b.outputs * own.rank / own.size, b.outputs * (own.rank + 1) / own.size, own.units(), own.db);
    if (own.dw != nullptr) {
        const Lowered& a = *b.for_dw;
        const int64_t from = share(a, own.rank, own.size), to = share(a, own.rank + 1, own.size);
        dots(a, from, to, own.x_panel, own.g_panel, {1, 0, 0, own.units()}, own.packed, own.dw);
    }
    if (joined) {
#pragma omp barrier
    }
}

}  // namespace

Failure linear_backward_bf16(const Stored& m, const BFloat16* g, const BFloat16* x, BFloat16* dx, float* dw, float* db, int64_t batch,
                             int threads) {
    const int64_t inputs = m.n_columns, outputs = m.n_rows, weights = dw != nullptr ? m.stored * m.height : 0;
    if (batch == 0) {
        set_zero(dw, weights, 0, 1);
        set_zero(db, outputs, 0, 1);
        return nullptr;
    }
    const bool own_sums = 2 * weights <= kSums;
    const Windows w(batch, kTile, threads, own_sums, kShared);
    const int64_t stride = odd_stride(w.wide), even = up(m.height, 2), kept = own_sums ? w.together : 0;
    const int64_t dx_size = dx != nullptr ? inputs * kInputTiles * kTile : 0, packed_size = dw != nullptr ? w.wide / 2 * 16 : 0;
    const int64_t halves = w.together * (outputs + (dw != nullptr ? inputs : 0)) * stride + (dx != nullptr ? m.stored * even : 0);
    const int64_t floats = threads * (dx_size + packed_size) + kept * (up(weights, kLanes) + up(outputs, kLanes));
    Scratch scratch(static_cast<size_t>(2 * lowered_bytes(m) + halves * 2 + floats * 4 + 1024));
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
    BFloat16* rounded = dx != nullptr ? memory.take<BFloat16>(m.stored * even) : nullptr;
    const Backward b{&for_dx, &for_dw, g, x, dx, inputs, outputs, {stride, kTile}, {kTile, inputs * kTile}, rounded};
    BFloat16* g_panels = memory.take<BFloat16>(w.together * outputs * stride);
    BFloat16* x_panels = dw != nullptr ? memory.take<BFloat16>(w.together * inputs * stride) : nullptr;
    const Sums dws{dw, memory.take<float>(kept * up(weights, kLanes)), weights, up(weights, kLanes)};
    const Sums dbs{db, memory.take<float>(kept * up(outputs, kLanes)), outputs, up(outputs, kLanes)};
    float* dx_panels = memory.take<float>(threads * dx_size);
    float* packed = memory.take<float>(threads * packed_size);
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        if (!own_sums) {
            set_zero(dw, weights, id, team);
            set_zero(db, outputs, id, team);
        }
        if (dx != nullptr) {
#pragma omp for schedule(static)
            for (int64_t group = 0; group < for_dx.groups; ++group) narrow_group(for_dx, group, rounded);
        }
        for (int64_t i = 0; i < w.count;) {
            const Turn turn(w, i, id, team);
            const int64_t start = w.start(i + turn.mine), end = w.start(i + turn.mine + 1);
            float *to_dw = dws.of(turn.mine, !own_sums || i == 0), *to_db = dbs.of(turn.mine, !own_sums || i == 0);
            if (own_sums) {
                set_zero(to_dw, weights, turn.rank, turn.size);
                set_zero(to_db, outputs, turn.rank, turn.size);
            }
            const Packing packing{start, end - start, turn.rank, turn.size, kTile};
            const Share own{packing, g_panels + turn.mine * outputs * stride, x_panels + turn.mine * inputs * stride,
                            dx_panels + id * dx_size, packed + id * packed_size, to_dw, to_db};
            backward_share(b, own, !turn.alone(team));
            if (own_sums) {
#pragma omp barrier
                dws.add(turn.count, i == 0, id, team);
                dbs.add(turn.count, i == 0, id, team);
#pragma omp barrier
            }
            i += turn.count;
        }
    }
    return nullptr;
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
