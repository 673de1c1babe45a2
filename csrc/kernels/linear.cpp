// Linear layers.  A panel is up to 64 samples of every feature, [feature][sample], packed from [batch, feature] just before it is
// used and small enough to stay in L2; nothing of the size of an activation is ever held.
#include <cstring>

#include "../scratch.hpp"
#include "few.hpp"
#include "linear.hpp"
#include "outer.hpp"
#include "panels.hpp"
#include "tiles.hpp"
#include "windows.hpp"

#include <omp.h>

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kChunk = 256;          // samples whose dot products are summed by themselves
constexpr int64_t kWindow = 128 << 10;   // floats of a packed input that stay in L2 while a weight gradient uses them
constexpr int64_t kHalved = 2;           // units of samples up to which an input gradient goes by halves of the row groups
constexpr int64_t kHalves = 2;
constexpr int64_t kSteps = 32;           // pieces that a product is cut into, to spread what is fetched ahead

template <typename Op>
void product_with(const Ahead& ahead, const Lowered& a, int64_t g0, int64_t g1, typename Op::In* in, typename Op::Out* out, int64_t vectors) {
    const int64_t steps = most<int64_t>(1, least(kSteps, g1 - g0));
    for (int64_t i = 0; i < steps; ++i) {
        fetch(ahead, i, steps);
        product<Op>(a, g0 + (g1 - g0) * i / steps, g0 + (g1 - g0) * (i + 1) / steps, in, out, vectors, kTilesPerGroup);
    }
}

}  // namespace

Failure linear_forward(const Stored& m, const float* x, const float* bias, float* y, int64_t batch, int threads) {
    const int64_t inputs = m.n_columns, outputs = m.n_rows;
    if (batch == 0 || outputs == 0) return nullptr;
    // Every thread has as many units of 16 samples to itself; those left over they share, each taking some of the row groups.  A unit alone
    // would leave registers empty, and every thread would read all weights for it: then they share all of them.
    const int64_t rest = few_samples(m, batch), whole = batch - rest;
    const int64_t units = (whole + kBatchLanes - 1) / kBatchLanes;
    const int64_t own = units / threads > 1 ? units / threads * kBatchLanes : 0;
    const int64_t first_shared = least(whole, own * threads);
    const int64_t width = most(kBatchLanes, least(kPanel, own > 0 ? own : units * kBatchLanes)), stride = odd_lines(width);
    Scratch scratch(lowered_bytes(m) + (inputs + outputs) * 4 + (threads * inputs + (threads + 1) * outputs) * stride * 4 + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    const int32_t* in_at = places(memory, inputs, stride);
    const int32_t* out_at = places(memory, outputs, stride);
    Lowered a;
    const int64_t zero = 0;
    if (Failure wrong = lower(m, {stride, 1, &zero, stride}, bias, memory.take<char>(lowered_bytes(m)), threads, a)) return wrong;
    const Few few{a, m.columns, inputs, outputs, rest};
    float* in = memory.take<float>(threads * inputs * stride);
    float* out = memory.take<float>((threads + 1) * outputs * stride);
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        float* my_in = in + id * inputs * stride;
        // A runtime that grants fewer threads than asked for must still cover every share.
        for (int64_t t = id; t < threads && own > 0; t += team) {
            float* my_out = out + t * outputs * stride;
            const int64_t last = least(whole, (t + 1) * own);
            for (int64_t s = t * own; s < last; s += width) {
                const int64_t samples = least(width, last - s), vectors = up(samples, kBatchLanes) / kLanes;
                pack_panel(x + s * inputs, inputs, 0, inputs, samples, in_at, my_in);
                const int64_t after = least(width, last - s - samples);
                const Ahead ahead{x + (s + samples) * inputs, after * inputs, y + s * outputs, samples * outputs};
                product_with<Gather>(ahead, a, 0, a.groups, my_in, my_out, vectors);
                fill_missing(a, bias, my_out, stride, vectors);
                unpack_panel(my_out, outputs, 0, outputs, samples, out_at, y + s * outputs);
            }
        }
        float* shared = out + threads * outputs * stride;
        for (int64_t s = first_shared; s < whole; s += width) {
            const int64_t samples = least(width, whole - s), vectors = up(samples, kBatchLanes) / kLanes;
            // Packing all of it again costs a thread less than fetching what another one has just packed.
            pack_panel(x + s * inputs, inputs, 0, inputs, samples, in_at, my_in);
            product<Gather>(a, share(a, id, team), share(a, id + 1, team), my_in, shared, vectors, kTilesPerGroup);
            if (id == 0) fill_missing(a, bias, shared, stride, vectors);
#pragma omp barrier
            unpack_panel(shared, outputs, outputs * id / team, outputs * (id + 1) / team, samples, out_at, y + s * outputs);
#pragma omp barrier
        }
        if (rest > 0) {
            float* last = y + whole * outputs;
            with_rows(m.height, rest, FewForward{few, share(a, id, team), share(a, id + 1, team), x + whole * inputs, last});
            for (int64_t s = 0; s < rest && id == 0; ++s) {
                for (int64_t i = 0; i < a.n_missing; ++i) last[s * outputs + a.missing[i]] = bias == nullptr ? 0.0f : bias[a.missing[i]];
            }
        }
    }
    return nullptr;
}

namespace {

struct Backward {
    const Lowered* for_dx;
    const Lowered* for_dw;
    const float *g, *x;
    float *dx, *dw;
    int64_t batch, inputs, outputs, stride, panel_stride;  // the batch without its last few samples
    const int32_t *g_at, *x_at, *dx_at;
    bool outer;    // the weight gradient goes panel by panel, not over a whole window
    float* halves;  // the input gradient's panels, if it goes by halves of the row groups and not by samples
};

struct Share : Packing {
    float *g_panel, *x_panel, *dx_panel, *dw;
    bool add;
};

OW_INLINE void pack_share(const Share& own, const float* from, int64_t features, const int32_t* at, float* panel) {
    const int64_t first = own.first(), count = own.last() - first;
    if (count > 0) pack_panel(from + (own.s + first) * features, features, 0, features, count, at, panel + first);
}

// Single units of samples would leave registers empty, and each thread would read all weights for its own: then they share the row groups.
void half_gradient(const Backward& b, int64_t half, const Share& own) {
    const Lowered& a = *b.for_dx;
    float* panel = b.halves + half * b.inputs * b.panel_stride;
    std::memset(panel, 0, static_cast<size_t>(b.inputs * b.panel_stride) * 4);
    product<Scatter>(a, share(a, half, kHalves), share(a, half + 1, kHalves), panel, own.g_panel, up(b.batch, kBatchLanes) / kLanes, kTilesPerGroup);
}

// The features [from, to) of the input gradient, of its halves.
void add_halves(const Backward& b, int64_t from, int64_t to) {
    for (int64_t f = from; f < to; ++f) {
        float* sum = b.halves + f * b.panel_stride;
        for (int64_t s = 0; s < b.batch; s += kLanes) store(sum + s, load(sum + s) + load(sum + b.inputs * b.panel_stride + s));
    }
    unpack_panel(b.halves, b.inputs, from, to, b.batch, b.dx_at, b.dx);
}

void input_gradient(const Backward& b, const Share& own) {
    if (b.halves != nullptr) {
        for (int64_t i = kHalves * own.rank / own.size; i < kHalves * (own.rank + 1) / own.size; ++i) half_gradient(b, i, own);
        return;
    }
    const int64_t last = least(own.last(), b.batch - own.s);
    for (int64_t t = own.first(); t < last; t += kPanel) {
        const int64_t count = least(kPanel, last - t), s = own.s + t;
        std::memset(own.dx_panel, 0, static_cast<size_t>(b.inputs * b.panel_stride) * 4);
        product_with<Scatter>({nullptr, 0, b.dx + s * b.inputs, count * b.inputs}, *b.for_dx, 0, b.for_dx->groups, own.dx_panel,
                              own.g_panel + t, up(count, kBatchLanes) / kLanes);
        unpack_panel(own.dx_panel, b.inputs, 0, b.inputs, count, b.dx_at, b.dx + s * b.inputs);
    }
}

// Whoever had fewer units of the input gradient takes more of the weight gradient, which costs about as much altogether; where few had
// any, the others take all of it.
void weight_gradient(const Backward& b, const Share& own, int32_t* next) {
    if (own.samples == 0) return;
    const int64_t size = own.size, whole = most<int64_t>(0, least(own.samples, b.batch - own.s));
    const int64_t shared = b.halves != nullptr ? kHalves : own.units();
    const int64_t units = b.halves != nullptr ? kHalves : (whole + kBatchLanes - 1) / kBatchLanes;
    const bool even = b.dx == nullptr || units == 0;
    const auto boundary = [&](int64_t i) {
        const int64_t had = least(units, shared * i / size);
        if (even) return i;
        return 2 * units < size ? units * size * (i - had) / (size - units) : 2 * units * i - had * size;
    };
    const Lowered& a = *b.for_dw;
    const int64_t all = even ? size : units * size, from = share(a, boundary(own.rank), all), to = share(a, boundary(own.rank + 1), all);
    for (int64_t t = 0; t < own.samples && b.outer; t += kPanel) {
        outer_products(a, from, to, own.x_panel + t, own.g_panel + t, least(kPanel, own.samples - t), own.add || t > 0, own.dw);
    }
    for (int64_t t = 0; t < own.samples && !b.outer; t += kChunk) {
        const int64_t lanes = up(least(kChunk, own.samples - t), kBatchLanes), window = kWindow / lanes * b.stride;
        dots_in_windows(a, from, to, b.inputs * b.stride, window, own.x_panel + t, own.g_panel + t, {1, 0, 0, lanes / kLanes}, next + from, own.dw);
    }
}

// Packs, and uses at once, what `own` says; all threads of the team run it together, and wait for each other where they are `joined`.
void backward_share(const Backward& b, const Share& own, bool joined, int32_t* next) {
    pack_share(own, b.g, b.outputs, b.g_at, own.g_panel);
    if (joined) {
        if (b.dw != nullptr) pack_share(own, b.x, b.inputs, b.x_at, own.x_panel);
#pragma omp barrier
    }
    if (b.dx != nullptr) input_gradient(b, own);
    if (b.dw == nullptr) return;
    if (!joined) pack_share(own, b.x, b.inputs, b.x_at, own.x_panel);
    weight_gradient(b, own, next);
}

// One thread's share of the last samples, which come first: dw is set, not added to.  Outer products take them with the others.  The input
// gradient is left in parts.
void backward_few(const Backward& b, const Few& few, float* parts, int64_t id, int64_t team) {
    const float* g = b.g + b.batch * b.outputs;
    const int64_t height = few.a.height, of_part = b.inputs * few_stride(few.samples);
    for (int64_t p = id; p < kParts && b.dx != nullptr; p += team) {
        std::memset(parts + p * of_part, 0, static_cast<size_t>(of_part) * 4);
        with_rows(height, few.samples, FewScatter{few, share(few.a, p, kParts), share(few.a, p + 1, kParts), g, parts + p * of_part});
    }
    if (b.dw == nullptr || b.outer) return;
    with_rows(height, few.samples, FewDots{few, share(few.a, id, team), share(few.a, id + 1, team), g, b.x + b.batch * b.inputs, b.dw});
}

}  // namespace

Failure linear_backward(const Stored& m, const float* g, const float* x, float* dx, float* dw, int64_t batch, int threads) {
    const int64_t inputs = m.n_columns, outputs = m.n_rows, weights = m.stored * m.height;
    if (batch == 0) {
        if (dw != nullptr) std::memset(dw, 0, static_cast<size_t>(weights) * 4);
        return nullptr;
    }
    const int64_t rest = few_samples(m, batch), whole = batch - rest;
    const bool outer = dw != nullptr && whole > 0 && outer_products_pay(m.height, batch) && weights * (batch > kOwnWindow ? 2 : 1) < kSums;
    const Windows w(outer ? batch : whole, kBatchLanes, threads, outer, (threads + 3) / 4 * kChunk);
    // Outer products go panel by panel.
    const int64_t step = outer ? least(w.wide, (threads + w.together - 1) / w.together * kPanel) : w.wide;
    const int64_t stride = odd_lines(step), narrow = odd_lines(least(kPanel, step)), of_sum = up(weights, kBatchLanes);
    const bool halved = dx != nullptr && whole > 0 && whole <= kHalved * kBatchLanes;
    const int64_t dx_count = halved ? kHalves : threads;
    const int64_t panels = w.together * ((outputs + (dw ? inputs : 0)) * stride + (outer ? of_sum : 0)) +
                           (dx ? dx_count * inputs * narrow + kParts * inputs * few_stride(rest) : 0);
    Scratch scratch(2 * lowered_bytes(m) + (outputs + 2 * inputs + w.together * m.groups) * 4 + panels * 4 + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    const int64_t zero = 0;
    Lowered for_dx{}, for_dw{};
    Backward b{&for_dx, &for_dw, g, x, dx, dw, whole, inputs, outputs, stride, narrow, nullptr, nullptr, nullptr, outer, nullptr};
    b.g_at = places(memory, outputs, stride);
    b.x_at = places(memory, inputs, stride);
    b.dx_at = places(memory, inputs, narrow);
    int32_t* next = memory.take<int32_t>(w.together * m.groups);
    if (dx != nullptr) {
        if (Failure wrong = lower(m, {narrow, 1, &zero, stride}, nullptr, memory.take<char>(lowered_bytes(m)), threads, for_dx)) return wrong;
    }
    if (dw != nullptr) {
        // Where both gradients go panel by panel, they read the same index.
        if (dx != nullptr && narrow == stride) for_dw = for_dx;
        else if (Failure wrong = lower(m, {stride, 1, &zero, stride}, nullptr, memory.take<char>(lowered_bytes(m)), threads, for_dw)) return wrong;
    }
    float* g_panels = memory.take<float>(w.together * outputs * stride);
    float* x_panels = dw != nullptr ? memory.take<float>(w.together * inputs * stride) : nullptr;
    const Sums sums{dw, outer ? memory.take<float>(w.together * of_sum) : nullptr, weights, of_sum};
    float* dx_panels = dx != nullptr ? memory.take<float>(dx_count * inputs * narrow) : nullptr;
    if (halved) b.halves = dx_panels;
    float* parts = dx != nullptr ? memory.take<float>(kParts * inputs * few_stride(rest)) : nullptr;
    const Few few{dx != nullptr ? for_dx : for_dw, m.columns, inputs, outputs, rest};
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        if (rest > 0) {
            backward_few(b, few, parts, id, team);
            if (!outer) {
#pragma omp barrier
            }
        } else if (!outer) {
            set_zero(dw, weights, id, team);
        }
        for (int64_t i = 0; i < w.count;) {
            const Turn turn(w, i, id, team);
            const int64_t start = w.start(i + turn.mine), end = w.start(i + turn.mine + 1);
            for (int64_t t = 0; t < w.wide; t += step) {
                const Packing packing{start + t, most<int64_t>(0, least(step, end - start - t)), turn.rank, turn.size, kBatchLanes};
                const Share own{packing, g_panels + turn.mine * outputs * stride, x_panels + turn.mine * inputs * stride,
                                halved ? nullptr : dx_panels + id * inputs * narrow, sums.of(turn.mine, !outer || i == 0), t > 0};
                backward_share(b, own, !turn.alone(team), next + turn.mine * m.groups);
                if (!turn.alone(team)) {
#pragma omp barrier
                }
            }
            if (outer) {
#pragma omp barrier
                sums.add(turn.count, i == 0, id, team);
#pragma omp barrier
            }
            i += turn.count;
        }
        if (halved) add_halves(b, inputs * id / team, inputs * (id + 1) / team);
        if (rest > 0 && dx != nullptr) add_parts(few, parts, inputs * id / team, inputs * (id + 1) / team, dx + whole * inputs);
    }
    return nullptr;
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
