// Linear layers.  A panel is up to 64 samples of every feature, [feature][sample], packed from [batch, feature] just before it is
// used and small enough to stay in L2; nothing of the size of an activation is ever held.
#include <cstring>

#include "../scratch.hpp"
#include "few.hpp"
#include "linear.hpp"
#include "panels.hpp"
#include "tiles.hpp"

#include <omp.h>

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kChunk = 256;          // samples whose gradients are taken together, for each four threads
constexpr int64_t kWindow = 128 << 10;   // floats of a packed input that stay in L2 while a weight gradient uses them
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
    int64_t batch, wide, reduction, inputs, outputs, stride, panel_stride;
    const int32_t *g_at, *x_at, *dx_at;
    int32_t* next;
    float *g_panel, *x_panel, *dx_panels;
};

// One thread's share of the `wide` samples from sample `s` on; the whole team runs it together.
void backward_panel(const Backward& b, int64_t s, int64_t id, int64_t team) {
    const int64_t samples = least(b.wide, b.batch - s), units = (samples + kBatchLanes - 1) / kBatchLanes;
    const int64_t first = units * id / team * kBatchLanes, last = least(samples, units * (id + 1) / team * kBatchLanes);
    if (first < last) {
        pack_panel(b.g + (s + first) * b.outputs, b.outputs, 0, b.outputs, last - first, b.g_at, b.g_panel + first);
        if (b.dw != nullptr) pack_panel(b.x + (s + first) * b.inputs, b.inputs, 0, b.inputs, last - first, b.x_at, b.x_panel + first);
    }
#pragma omp barrier
    if (b.dx != nullptr) {
        float* panel = b.dx_panels + id * b.inputs * b.panel_stride;
        for (int64_t t = first; t < last; t += kPanel) {
            const int64_t count = least(kPanel, last - t), ahead = most<int64_t>(0, least(count, b.batch - b.wide - s - t));
            std::memset(panel, 0, static_cast<size_t>(b.inputs * b.panel_stride) * 4);
            product_with<Scatter>({b.g + (s + t + b.wide) * b.outputs, ahead * b.outputs, b.dx + (s + t) * b.inputs, count * b.inputs},
                                  *b.for_dx, 0, b.for_dx->groups, panel, b.g_panel + t, up(count, kBatchLanes) / kLanes);
            unpack_panel(panel, b.inputs, 0, b.inputs, count, b.dx_at, b.dx + (s + t) * b.inputs);
        }
    }
    // Whoever had fewer units of the input gradient takes more of the weight gradient, which costs about as much altogether; where few
    // had any, the others take all of it.
    const auto boundary = [&](int64_t i) {
        const int64_t had = units * i / team;
        if (b.dx == nullptr) return units * i;
        return 2 * units < team ? units * team * (i - had) / (team - units) : 2 * units * i - had * team;
    };
    for (int64_t t = 0; t < samples && b.dw != nullptr; t += b.reduction) {
        const Lowered& a = *b.for_dw;
        const int64_t from = share(a, boundary(id), units * team), to = share(a, boundary(id + 1), units * team);
        const int64_t count = least(b.reduction, samples - t);
        const int64_t window = kWindow / up(count, kBatchLanes) * b.stride;
        dots_in_windows(a, from, to, b.inputs * b.stride, window, b.x_panel + t, b.g_panel + t,
                        {1, 0, 0, up(count, kBatchLanes) / kLanes}, b.next + from, b.dw);
    }
#pragma omp barrier
}

// One thread's share of the last samples, which come first: dw is set, not added to.  The input gradient is left in parts.
void backward_few(const Backward& b, const Few& few, float* parts, int64_t id, int64_t team) {
    const float* g = b.g + b.batch * b.outputs;
    const int64_t height = few.a.height, of_part = b.inputs * few_stride(few.samples);
    for (int64_t p = id; p < kParts && b.dx != nullptr; p += team) {
        std::memset(parts + p * of_part, 0, static_cast<size_t>(of_part) * 4);
        with_rows(height, few.samples, FewScatter{few, share(few.a, p, kParts), share(few.a, p + 1, kParts), g, parts + p * of_part});
    }
    if (b.dw == nullptr) return;
    with_rows(height, few.samples, FewDots{few, share(few.a, id, team), share(few.a, id + 1, team), g, b.x + b.batch * b.inputs, b.dw});
}

}  // namespace

Failure linear_backward(const Stored& m, const float* g, const float* x, float* dx, float* dw, int64_t batch, int threads) {
    const int64_t inputs = m.n_columns, outputs = m.n_rows;
    if (batch == 0) {
        if (dw != nullptr) std::memset(dw, 0, static_cast<size_t>(m.stored * m.height) * 4);
        return nullptr;
    }
    // Wide enough for four units a thread; how the weight gradient is summed must not depend on it.
    const int64_t rest = few_samples(m, batch), whole = batch - rest;
    const int64_t wide = least((threads + 3) / 4 * kChunk, up(whole, kBatchLanes)), stride = odd_lines(wide);
    const int64_t narrow = odd_lines(least(kPanel, wide));
    const int64_t panels = (outputs + (dw ? inputs : 0)) * stride + (dx ? threads * inputs * narrow + kParts * inputs * few_stride(rest) : 0);
    // Single rows use every input once for each weight: wider windows matter more to them than fewer reductions.
    const int64_t reduction = m.height < 4 ? kChunk / 2 : kChunk;
    Scratch scratch(2 * lowered_bytes(m) + (outputs + 2 * inputs + m.groups) * 4 + panels * 4 + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    const int64_t zero = 0;
    Lowered for_dx{}, for_dw{};
    Backward b{&for_dx, &for_dw, g, x, dx, dw, whole, wide, reduction, inputs, outputs, stride, narrow, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    b.g_at = places(memory, outputs, stride);
    b.x_at = places(memory, inputs, stride);
    b.dx_at = places(memory, inputs, narrow);
    b.next = memory.take<int32_t>(m.groups);
    if (dx != nullptr) {
        if (Failure wrong = lower(m, {narrow, 1, &zero, stride}, nullptr, memory.take<char>(lowered_bytes(m)), threads, for_dx)) return wrong;
    }
    if (dw != nullptr) {
        // Small batches have one panel for both.
        if (dx != nullptr && narrow == stride) for_dw = for_dx;
        else if (Failure wrong = lower(m, {stride, 1, &zero, stride}, nullptr, memory.take<char>(lowered_bytes(m)), threads, for_dw)) return wrong;
    }
    b.g_panel = memory.take<float>(outputs * stride);
    if (dw != nullptr) b.x_panel = memory.take<float>(inputs * stride);
    if (dx != nullptr) b.dx_panels = memory.take<float>(threads * inputs * narrow);
    float* parts = dx != nullptr ? memory.take<float>(kParts * inputs * few_stride(rest)) : nullptr;
    const Few few{dx != nullptr ? for_dx : for_dw, m.columns, inputs, outputs, rest};
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads(), weights = m.stored * m.height;
        const int64_t first = weights * id / team;
        if (rest > 0) {
            backward_few(b, few, parts, id, team);
#pragma omp barrier
        } else if (dw != nullptr) std::memset(dw + first, 0, static_cast<size_t>(weights * (id + 1) / team - first) * 4);
        for (int64_t s = 0; s < whole; s += wide) backward_panel(b, s, id, team);
        if (rest > 0 && dx != nullptr) add_parts(few, parts, inputs * id / team, inputs * (id + 1) / team, dx + whole * inputs);
    }
    return nullptr;
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
