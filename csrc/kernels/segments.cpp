// Linear layers whose row groups have height 1, window by window of columns.  Threads divide the rows among them: each reads its own part
// of the index and of the values only, which then stay in L2 from panel to panel of samples.
#include "segments.hpp"

#include "../scratch.hpp"
#include "../segments.hpp"
#include "panels.hpp"
#include "singles.hpp"

#include <limits>

#include <omp.h>

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kMostVectors = 8;      // of samples in a panel
constexpr int64_t kOutput = 96 << 10;    // floats of output that stay in L2 while all windows pass by

// A matrix of this call, its values in the order of its columns.
struct Matrix {
    Segments s;
    int64_t windows;
    float* values;

    const int32_t* ends(int64_t window, int64_t row) const { return s.offsets + window * s.n_rows + row; }
    Singles rows(int64_t window, int64_t from, int64_t to) const { return {ends(window, from), s.columns, values, to - from}; }
};

Matrix matrix(const Segments& s, Memory& memory) { return {s, segment_windows(s.n_columns), memory.take<float>(s.stored)}; }
int64_t matrix_bytes(const Segments& s) { return s.stored * 4 + 64; }

Failure check_offsets(const Segments& s) {
    const int64_t ends = segment_windows(s.n_columns) * s.n_rows;
    bool descends = false;
    for (int64_t i = 0; i < ends; ++i) descends |= s.offsets[i + 1] < s.offsets[i];
    if (descends) return "the pattern's offsets descend";
    if (s.offsets[0] != 0 || s.offsets[ends] != s.stored) return "the pattern's offsets do not run from 0 to the number of columns";
    return nullptr;
}

// The row at which share `part` of `parts` begins, by non-zeros.
int64_t first_row(const Matrix& m, int64_t part, int64_t parts) {
    if (part == parts) return m.s.n_rows;
    const int64_t goal = m.s.stored * part / parts;
    int64_t low = 0, high = m.s.n_rows;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        int64_t before = 0;
        for (int64_t w = 0; w < m.windows; ++w) before += *m.ends(w, middle) - *m.ends(w, 0);
        if (before < goal) low = middle + 1; else high = middle;
    }
    return part == 0 ? 0 : low;
}

// Checks the index of rows [from, to) and puts their values in its order.  Returns whether all of it is in range.
bool follow(const Matrix& m, int64_t from, int64_t to) {
    for (int64_t w = 0; w < m.windows; ++w) {
        const int64_t begin = *m.ends(w, from), end = *m.ends(w, to);
        uint16_t last_column = 0;
        uint32_t last = 0;
        for (int64_t k = begin; k < end; ++k) last_column = most(last_column, m.s.columns[k]);
        for (int64_t k = begin; k < end; ++k) last = most(last, static_cast<uint32_t>(m.s.order[k]));
        if (begin == end) continue;
        if (last_column >= least(kSegmentColumns, m.s.n_columns - w * kSegmentColumns) || last >= m.s.stored) return false;
        for (int64_t k = begin; k < end && m.s.values != nullptr; ++k) m.values[k] = m.s.values[m.s.order[k]];
    }
    return true;
}

// The batch in panels of nearly the same number of samples.
struct Panels {
    int64_t batch, units, count;

    explicit Panels(int64_t all) : batch(all), units(up(all, kBatchLanes) / kBatchLanes), count((units * kBatchLanes / kLanes + kMostVectors - 1) / kMostVectors) {}
    int64_t first(int64_t panel) const { return least(batch, units * panel / count * kBatchLanes); }
    int64_t samples(int64_t panel) const { return first(panel + 1) - first(panel); }
    int64_t widest() const { return up(units, count) / count * kBatchLanes; }
};

// f.run<V>() for a number of vectors.
template <int V = kMostVectors, typename F>
OW_INLINE void with_vectors(int64_t vectors, const F& f) {
    if constexpr (V > 1) {
        if (vectors < V) return with_vectors<V - 1>(vectors, f);
    }
    if constexpr (V % (kBatchLanes / kLanes) == 0) f.template run<V>();
}

// Two or three threads each pack whole panels: that takes less time than fetching what another core has just written.
constexpr int kApart = 3;

// What a thread has to itself.
struct Own {
    float* out;           // kOutput floats or one row
    float* partial;
    int32_t* places;      // of features in a panel
};

int64_t output_floats(int64_t widest) { return most(kOutput, widest); }
int64_t own_bytes(int64_t features, int64_t widest) {
    return (output_floats(widest) + (kWaiting + kSegmentColumns) * kLanes + features) * 4 + 192;
}
Own own(int64_t features, int64_t widest, Memory& memory) {
    return {memory.take<float>(output_floats(widest)), memory.take<float>((kWaiting + kSegmentColumns) * kLanes), memory.take<int32_t>(features)};
}
void place(int32_t* at, int64_t features, int64_t stride) {
    for (int64_t f = 0; f < features; ++f) at[f] = static_cast<int32_t>(f * stride);
}

// The features that a thread packs.
struct Share {
    int64_t id, team;
    bool apart;

    void pack(const float* x, int64_t features, int64_t samples, const int32_t* at, float* panel) const {
        const int64_t blocks = up(features, kBatchLanes) / kBatchLanes;
        const int64_t from = apart ? 0 : blocks * id / team * kBatchLanes;
        const int64_t to = apart ? features : least(features, blocks * (id + 1) / team * kBatchLanes);
        if (from < to) pack_panel(x, features, from, to, samples, at, panel);
    }
    // Between writing a panel and reading it, and the other way round.
    void meet() const {
        if (apart) return;
#pragma omp barrier
    }
};

// out[samples, rows] = bias + m . in for rows [from, to), some of them at a time.
struct Product {
    const Matrix& m;
    int64_t from, to, samples;
    const float *in, *bias;
    const Own& own;
    float* to_plain;

    template <int V>
    void run() const {
        constexpr int64_t kStride = V * kLanes;
        const int64_t blocks = ((to - from) * kStride + kOutput - 1) / kOutput;
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t first = from + (to - from) * b / blocks, end = from + (to - from) * (b + 1) / blocks;
            for (int64_t w = 0; w < m.windows; ++w) {
                add_singles<V>(m.rows(w, first, end), in + w * kSegmentColumns * kStride, w == 0, bias == nullptr ? nullptr : bias + first, own.out);
            }
            unpack_panel(own.out, m.s.n_rows, 0, end - first, samples, own.places, to_plain + first);
        }
    }
};

struct Dots {
    const Matrix& m;
    int64_t from, to;
    const float *x, *g;
    bool first;
    const Own& own;
    float* total;

    template <int V>
    void run() const {
        constexpr int64_t kStride = V * kLanes;
        for (int64_t w = 0; w < m.windows; ++w) {
            dot_singles<V>(m.rows(w, from, to), x + w * kSegmentColumns * kStride, g + from * kStride, first, own.partial, total);
        }
    }
};

}  // namespace

Failure segments_forward(const Segments& s, const float* x, const float* bias, float* y, int64_t batch, int threads) {
    if (batch == 0 || s.n_rows == 0) return nullptr;
    if (Failure wrong = check_offsets(s)) return wrong;
    const Panels panels(batch);
    const int64_t widest = panels.widest(), features = most(s.n_rows, s.n_columns);
    if (features * widest > std::numeric_limits<int32_t>::max()) return "the layer's blocked layout is too large for 32-bit offsets";
    Scratch scratch(matrix_bytes(s) + least(threads, kApart) * s.n_columns * widest * 4 + threads * own_bytes(features, widest) + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    const Matrix m = matrix(s, memory);
    const bool apart = threads <= kApart;
    float* in = memory.take<float>((apart ? threads : 1) * s.n_columns * widest);
    char* of_threads = memory.take<char>(threads * own_bytes(features, widest));
    bool good = true;
#pragma omp parallel num_threads(threads) reduction(&& : good)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        const int64_t from = first_row(m, id, team), to = first_row(m, id + 1, team);
        Memory mine{of_threads + id * own_bytes(features, widest)};
        const Own own_memory = own(features, widest, mine);
        const Share share{id, team, apart};
        float* panel = in + (apart ? id * s.n_columns * widest : 0);
        good = follow(m, from, to);
        for (int64_t p = 0; p < panels.count; ++p) {
            const int64_t first = panels.first(p), samples = panels.samples(p), stride = up(samples, kBatchLanes);
            place(own_memory.places, features, stride);
            if (p > 0) share.meet();
            share.pack(x + first * s.n_columns, s.n_columns, samples, own_memory.places, panel);
            share.meet();
            if (good) with_vectors(stride / kLanes, Product{m, from, to, samples, panel, bias, own_memory, y + first * s.n_rows});
        }
    }
    return good ? nullptr : "the pattern's columns are out of range";
}

Failure segments_backward(const Segments& weight, const Segments& turned, const float* g, const float* x, float* dx, float* dw, int64_t batch,
                          int threads) {
    const Segments& any = dx != nullptr ? turned : weight;
    const int64_t inputs = dx != nullptr ? turned.n_rows : weight.n_columns, outputs = dx != nullptr ? turned.n_columns : weight.n_rows;
    if (Failure wrong = dx != nullptr ? check_offsets(turned) : nullptr) return wrong;
    if (Failure wrong = dw != nullptr ? check_offsets(weight) : nullptr) return wrong;
    for (int64_t k = 0; batch == 0 && dw != nullptr && k < weight.stored; ++k) dw[k] = 0.0f;
    if (batch == 0) return nullptr;
    const Panels panels(batch);
    const int64_t widest = panels.widest(), features = most(inputs, outputs);
    if (features * widest > std::numeric_limits<int32_t>::max()) return "the layer's blocked layout is too large for 32-bit offsets";
    Scratch scratch(2 * matrix_bytes(any) + any.stored * 4 + least(threads, kApart) * (outputs + inputs) * widest * 4 + threads * own_bytes(features, widest) + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    const Matrix for_dx = matrix(turned, memory), for_dw = matrix(weight, memory);
    float* total = memory.take<float>(any.stored);
    const bool apart = threads <= kApart;
    float* g_panels = memory.take<float>((apart ? threads : 1) * outputs * widest);
    float* x_panels = memory.take<float>((apart ? threads : 1) * inputs * widest);
    char* of_threads = memory.take<char>(threads * own_bytes(features, widest));
    bool good = true;
#pragma omp parallel num_threads(threads) reduction(&& : good)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        Memory mine{of_threads + id * own_bytes(features, widest)};
        const Own own_memory = own(features, widest, mine);
        const int64_t dx_from = dx == nullptr ? 0 : first_row(for_dx, id, team), dx_to = dx == nullptr ? 0 : first_row(for_dx, id + 1, team);
        const int64_t dw_from = dw == nullptr ? 0 : first_row(for_dw, id, team), dw_to = dw == nullptr ? 0 : first_row(for_dw, id + 1, team);
        const Share share{id, team, apart};
        float *g_panel = g_panels + (apart ? id * outputs * widest : 0), *x_panel = x_panels + (apart ? id * inputs * widest : 0);
        if (dx != nullptr) good = follow(for_dx, dx_from, dx_to);
        if (dw != nullptr) good = follow(for_dw, dw_from, dw_to) && good;
        for (int64_t p = 0; p < panels.count; ++p) {
            const int64_t first = panels.first(p), samples = panels.samples(p), stride = up(samples, kBatchLanes), vectors = stride / kLanes;
            place(own_memory.places, features, stride);
            if (p > 0) share.meet();
            share.pack(g + first * outputs, outputs, samples, own_memory.places, g_panel);
            if (dw != nullptr) share.pack(x + first * inputs, inputs, samples, own_memory.places, x_panel);
            share.meet();
            if (dx != nullptr && good) {
                with_vectors(vectors, Product{for_dx, dx_from, dx_to, samples, g_panel, nullptr, own_memory, dx + first * inputs});
            }
            if (dw != nullptr && good) with_vectors(vectors, Dots{for_dw, dw_from, dw_to, x_panel, g_panel, p == 0, own_memory, total});
        }
        for (int64_t w = 0; w < for_dw.windows && dw != nullptr && good; ++w) {
            for (int64_t k = *for_dw.ends(w, dw_from); k < *for_dw.ends(w, dw_to); ++k) dw[weight.order[k]] = total[k];
        }
    }
    return good ? nullptr : "the pattern's columns are out of range";
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
