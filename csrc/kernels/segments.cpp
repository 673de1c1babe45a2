// Linear layers whose row groups have height 1, forward (and, transposed, the input gradient), window by window of columns.
#include "../scratch.hpp"
#include "../segments.hpp"
#include "panels.hpp"
#include "segments.hpp"
#include "tiles.hpp"

#include <limits>

#include <omp.h>

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kRows = 128;  // rows between two requests for what is used next

struct Cut {
    const int32_t* offsets;
    const int32_t* columns;  // element offsets
    const float* values;     // in the order of the columns
    const float* bias;       // or null
    int64_t n_rows, windows;
};

// Rows [r0, r1) of window w against NV vectors.
template <int NV>
OW_INLINE void rows_tile(const Cut& c, int64_t w, int64_t r0, int64_t r1, const float* in, float* out, int64_t stride) {
    const int32_t* offsets = c.offsets + w * c.n_rows;
    for (int64_t r = r0; r < r1; ++r) {
        const float bias = c.bias == nullptr ? 0.0f : c.bias[r];
        add_columns<NV>(in, c.columns, c.values, offsets[r], offsets[r + 1], w == 0, bias, out + r * stride);
    }
}

void rows_product(const Cut& c, int64_t r0, int64_t r1, const float* in, float* out, int64_t stride, int64_t vectors, const Ahead& ahead) {
    const int64_t pieces = (r1 - r0 + kRows - 1) / kRows;
    for (int64_t w = 0; w < c.windows; ++w) {
        for (int64_t p = 0; p < pieces; ++p) {
            const int64_t from = r0 + p * kRows, to = least(r1, from + kRows);
            fetch(ahead, w * pieces + p, c.windows * pieces);
            int64_t v = 0;
            for (; v + 8 <= vectors; v += 8) rows_tile<8>(c, w, from, to, in + v * kLanes, out + v * kLanes, stride);
            for (; v + 4 <= vectors; v += 4) rows_tile<4>(c, w, from, to, in + v * kLanes, out + v * kLanes, stride);
            for (; v + 3 <= vectors; v += 3) rows_tile<3>(c, w, from, to, in + v * kLanes, out + v * kLanes, stride);
            for (; v + 2 <= vectors; v += 2) rows_tile<2>(c, w, from, to, in + v * kLanes, out + v * kLanes, stride);
            for (; v < vectors; ++v) rows_tile<1>(c, w, from, to, in + v * kLanes, out + v * kLanes, stride);
        }
    }
}

}  // namespace

Failure segments_forward(const Stored& m, const float* x, const float* bias, float* y, int64_t batch, int threads) {
    const int64_t inputs = m.n_columns, outputs = m.n_rows, windows = segment_windows(inputs);
    if (batch == 0 || outputs == 0) return nullptr;
    // Every thread has as many panels to itself; the samples left over they share, each taking some of the rows.
    const int64_t own = batch / (kPanel * threads) * kPanel, stride = least(kPanel, up(batch, kBatchLanes));
    if (most(inputs, outputs) * stride > std::numeric_limits<int32_t>::max()) return "the layer's blocked layout is too large for 32-bit offsets";
    if (m.offsets[0] != 0 || m.offsets[windows * outputs] != m.stored) return "the pattern's offsets do not run from 0 to the number of columns";
    for (int64_t i = 0; i < windows * outputs; ++i) {
        if (m.offsets[i + 1] < m.offsets[i]) return "the pattern's offsets descend";
    }
    Scratch scratch((2 * m.stored + inputs + outputs + (threads + 1) * (inputs + outputs) * stride) * 4 + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    const int32_t* in_at = places(memory, inputs, stride);
    const int32_t* out_at = places(memory, outputs, stride);
    int32_t* columns = memory.take<int32_t>(m.stored);
    float* values = memory.take<float>(m.stored);
    float* in = memory.take<float>((threads + 1) * inputs * stride);
    float* out = memory.take<float>((threads + 1) * outputs * stride);
    bool bad = false;
    const uint32_t limit = static_cast<uint32_t>(inputs), stored = static_cast<uint32_t>(m.stored);
#pragma omp parallel for schedule(static) num_threads(threads) reduction(|| : bad) if (m.stored > 16384)
    for (int64_t k = 0; k < m.stored; ++k) {
        const uint32_t column = static_cast<uint32_t>(m.columns[k]), from = static_cast<uint32_t>(m.order[k]);
        bad = bad || column >= limit || from >= stored;
        columns[k] = static_cast<int32_t>((column < limit ? column : 0) * static_cast<uint32_t>(stride));
        values[k] = from < stored ? m.values[from] : 0.0f;
    }
    if (bad) return "the pattern's columns are out of range";
    const Cut c{m.offsets, columns, values, bias, outputs, windows};
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        float* my_in = in + id * inputs * stride;
        // A runtime that grants fewer threads than asked for must still cover every share.
        for (int64_t t = id; t < threads && own > 0; t += team) {
            float* my_out = out + t * outputs * stride;
            for (int64_t s = t * own; s < (t + 1) * own; s += kPanel) {
                const int64_t after = s + kPanel < (t + 1) * own ? kPanel : 0;
                pack_panel(x + s * inputs, inputs, 0, inputs, kPanel, in_at, my_in);
                const Ahead ahead{x + (s + kPanel) * inputs, after * inputs, y + s * outputs, kPanel * outputs};
                rows_product(c, 0, outputs, my_in, my_out, stride, kPanel / kLanes, ahead);
                unpack_panel(my_out, outputs, 0, outputs, kPanel, out_at, y + s * outputs);
            }
        }
        float *shared_in = in + threads * inputs * stride, *shared_out = out + threads * outputs * stride;
        for (int64_t s = own * threads; s < batch; s += kPanel) {
            const int64_t samples = least(kPanel, batch - s), from = outputs * id / team, to = outputs * (id + 1) / team;
            pack_panel(x + s * inputs, inputs, inputs * id / team, inputs * (id + 1) / team, samples, in_at, shared_in);
#pragma omp barrier
            rows_product(c, from, to, shared_in, shared_out, stride, up(samples, kBatchLanes) / kLanes, {});
            unpack_panel(shared_out, outputs, from, to, samples, out_at, y + s * outputs);
#pragma omp barrier
        }
    }
    return nullptr;
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
