// Linear layers whose row groups have height 1, window by window of columns.  Threads divide the rows among them: each reads its own part
// of the index and of the values only, which then stay in L2 from panel to panel of samples.  Each packs what it reads by itself, a window
// at a time, straight into L1: that takes less time than fetching what another core has just written.
#include "segments.hpp"

#include "../scratch.hpp"
#include "../segments.hpp"
#include "panels.hpp"
#include "singles.hpp"

#include <omp.h>

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kMostVectors = 8;      // of samples in a panel
constexpr int64_t kOutput = 128 << 10;   // floats of output that stay in L2 while all windows pass by

// A matrix of this call, or a weight gradient.  Where several panels of samples use its values, they are copied in the order of its columns.
struct Matrix {
    Segments s;
    int64_t windows;
    bool sorted;
    float* values;

    const int32_t* ends(int64_t window, int64_t row) const { return s.offsets + window * s.n_rows + row; }
    Singles rows(int64_t window, int64_t from, int64_t to) const { return {ends(window, from), s.columns, s.order, values, to - from}; }
};

Matrix matrix(const Segments& s, float* values, int64_t panels, Memory& memory) {
    return {s, segment_windows(s.n_columns, s.width), panels > 1, panels > 1 ? memory.take<float>(s.stored) : values};
}
int64_t matrix_bytes(const Segments& s, int64_t panels) { return panels > 1 ? s.stored * 4 + 64 : 0; }

Failure check_offsets(const Segments& s) {
    const int64_t ends = segment_windows(s.n_columns, s.width) * s.n_rows;
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

// Whether the index of rows [from, to) is in range in one window.
bool in_range(const Matrix& m, int64_t w, int64_t from, int64_t to) {
    const int64_t begin = *m.ends(w, from), end = *m.ends(w, to);
    uint16_t last_column = 0;
    uint32_t last = 0;
    for (int64_t k = begin; k < end; ++k) last_column = most(last_column, m.s.columns[k]);
    for (int64_t k = begin; k < end; ++k) last = most(last, static_cast<uint32_t>(m.s.order[k]));
    return begin == end || (last_column < least(m.s.width, m.s.n_columns - w * m.s.width) && last < m.s.stored);
}

// Checks the index of rows [from, to) and puts their values in its order.  Returns whether all of it is in range.
bool follow(const Matrix& m, int64_t from, int64_t to) {
    for (int64_t w = 0; w < m.windows; ++w) {
        if (!in_range(m, w, from, to)) return false;
        for (int64_t k = *m.ends(w, from), end = *m.ends(w, to); k < end && m.s.values != nullptr; ++k) m.values[k] = m.s.values[m.s.order[k]];
    }
    return true;
}

// The batch in panels of nearly the same number of samples.
struct Panels {
    int64_t batch, units, count;

    explicit Panels(int64_t all)
        : batch(all), units(up(all, kBatchLanes) / kBatchLanes), count((units * kBatchLanes / kLanes + kMostVectors - 1) / kMostVectors) {}
    int64_t first(int64_t panel) const { return least(batch, units * panel / count * kBatchLanes); }
    int64_t samples(int64_t panel) const { return first(panel + 1) - first(panel); }
    int64_t widest() const { return up(units, count) / count * kBatchLanes; }
};

// f.run<V>() for a number of vectors.
template <int V = kMostVectors, typename F>
OW_INLINE bool with_vectors(int64_t vectors, const F& f) {
    if constexpr (V > 1) {
        if (vectors < V) return with_vectors<V - 1>(vectors, f);
    }
    if constexpr (V % (kBatchLanes / kLanes) == 0) return f.template run<V>();
    return true;
}

// What a thread has to itself.
struct Own {
    float* window;
    float* rows;          // of the output, or of its gradient
    float* partial;
    int32_t* places;      // of rows or columns
};

int64_t own_bytes(int64_t width, int64_t widest) {
    const int64_t floats = width * widest + kOutput + (kWaiting + width) * kLanes;
    return (floats + most(width, kOutput / kBatchLanes)) * 4 + 256;
}
Own own(int64_t width, int64_t widest, Memory memory) {
    return {memory.take<float>(width * widest), memory.take<float>(kOutput), memory.take<float>((kWaiting + width) * kLanes),
            memory.take<int32_t>(most(width, kOutput / kBatchLanes))};
}

// Some samples of the matrix [samples, features] that a product reads or writes.
template <typename T>
struct Plain {
    T* data;
    int64_t features;
};

// Rows [from, to) of a matrix against the samples of one panel, as many rows at a time as stay in L2.
struct Pass {
    const Matrix& m;
    int64_t from, to, samples;
    const Own& own;
    Plain<const float> x;

    // For some rows at a time before(first, end), each(rows, window, first) for every window, and after(first, end).  Returns whether the
    // index is in range.
    template <int V, typename Before, typename Each, typename After>
    bool run(const Before& before, const Each& each, const After& after) const {
        constexpr int64_t kStride = V * kLanes;
        const int64_t width = m.s.width, in_block = kOutput / kStride, blocks = (to - from + in_block - 1) / in_block;
        for (int64_t i = 0; i < most(width, least(in_block, to - from)); ++i) own.places[i] = static_cast<int32_t>(i * kStride);
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t first = from + (to - from) * b / blocks, end = from + (to - from) * (b + 1) / blocks;
            before(first, end);
            for (int64_t w = 0; w < m.windows; ++w) {
                if (!m.sorted && !in_range(m, w, first, end)) return false;
                const int64_t column = w * width, columns = least(width, x.features - column);
                pack_panel(x.data + column, x.features, 0, columns, samples, own.places, own.window);
                each(m.rows(w, first, end), w, first);
            }
            after(first, end);
        }
        return true;
    }
};

// out[samples, rows] = bias + m . x
struct Product {
    const Pass& pass;
    const float* bias;
    Plain<float> out;

    template <int V>
    bool run() const {
        const Own& own = pass.own;
        return pass.run<V>(
            [](int64_t, int64_t) {},
            [&](const Singles& rows, int64_t w, int64_t first) {
                const float* start = bias == nullptr ? nullptr : bias + first;
                if (pass.m.sorted) add_singles<V, true>(rows, own.window, w == 0, start, own.rows);
                else add_singles<V, false>(rows, own.window, w == 0, start, own.rows);
            },
            [&](int64_t first, int64_t end) { unpack_panel(own.rows, out.features, 0, end - first, pass.samples, own.places, out.data + first); });
    }
};

// The value of k += g[row] . x[column k], or = in the first panel.
struct Dots {
    const Pass& pass;
    Plain<const float> g;
    bool first_panel;

    template <int V>
    bool run() const {
        const Own& own = pass.own;
        return pass.run<V>(
            [&](int64_t first, int64_t end) { pack_panel(g.data + first, g.features, 0, end - first, pass.samples, own.places, own.rows); },
            [&](const Singles& rows, int64_t, int64_t) {
                if (pass.m.sorted) dot_singles<V, true>(rows, own.window, own.rows, first_panel, own.partial);
                else dot_singles<V, false>(rows, own.window, own.rows, true, own.partial);
            },
            [](int64_t, int64_t) {});
    }
};

// One thread's part of out = bias + m . x: some of the rows, and, where there are many threads and panels, some of the panels.
struct Part {
    int64_t rows, row_parts, panel, panel_parts;

    Part(int64_t id, int64_t team, int64_t panels) : row_parts(team) {
        while (row_parts > 2 && row_parts % 2 == 0 && panels >= team / row_parts * 2) row_parts /= 2;
        rows = id % row_parts, panel = id / row_parts, panel_parts = team / row_parts;
    }
};

bool products(const Matrix& m, const Part& part, const Panels& panels, const Own& own, const float* x, const float* bias, float* out) {
    const int64_t from = first_row(m, part.rows, part.row_parts), to = first_row(m, part.rows + 1, part.row_parts);
    for (int64_t p = part.panel; p < panels.count; p += part.panel_parts) {
        const int64_t first = panels.first(p), samples = panels.samples(p);
        const Pass pass{m, from, to, samples, own, {x + first * m.s.n_columns, m.s.n_columns}};
        if (!with_vectors(up(samples, kBatchLanes) / kLanes, Product{pass, bias, {out + first * m.s.n_rows, m.s.n_rows}})) return false;
    }
    return true;
}

// Some rows of the weight gradient, all panels of it: how it is summed must not depend on the number of threads.
bool weight_gradient(const Matrix& m, int64_t from, int64_t to, const Panels& panels, const Own& own, const float* g, const float* x, float* dw) {
    for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t first = panels.first(p), samples = panels.samples(p);
        const Pass pass{m, from, to, samples, own, {x + first * m.s.n_columns, m.s.n_columns}};
        if (!with_vectors(up(samples, kBatchLanes) / kLanes, Dots{pass, {g + first * m.s.n_rows, m.s.n_rows}, p == 0})) return false;
    }
    for (int64_t w = 0; w < m.windows && m.sorted; ++w) {
        for (int64_t k = *m.ends(w, from); k < *m.ends(w, to); ++k) dw[m.s.order[k]] = m.values[k];
    }
    return true;
}

// What a thread has found in the index.  Copied values are only used once every thread has checked and copied its own.
class Checks {
public:
    explicit Checks(bool copied) : copied_(copied) {}
    bool all(bool good) {
        note(good);
        if (!copied_) return good;
#pragma omp barrier
        return wrong_ == 0;
    }
    void note(bool good) {
        if (good) return;
#pragma omp atomic write
        wrong_ = 1;
    }
    Failure failure() const { return wrong_ == 0 ? nullptr : "the pattern's columns are out of range"; }

private:
    bool copied_;
    int wrong_ = 0;
};

}  // namespace

Failure segments_forward(const Segments& s, const float* x, const float* bias, float* y, int64_t batch, int threads) {
    if (batch == 0 || s.n_rows == 0) return nullptr;
    if (Failure failure = check_offsets(s)) return failure;
    const Panels panels(batch);
    const int64_t bytes = own_bytes(s.width, panels.widest());
    Scratch scratch(matrix_bytes(s, panels.count) + threads * bytes + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    const Matrix m = matrix(s, const_cast<float*>(s.values), panels.count, memory);
    char* of_threads = memory.take<char>(threads * bytes);
    Checks checks(m.sorted);
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        const Own mine = own(s.width, panels.widest(), Memory{of_threads + id * bytes});
        const bool good = !m.sorted || follow(m, first_row(m, id, team), first_row(m, id + 1, team));
        if (checks.all(good)) checks.note(products(m, Part(id, team, panels.count), panels, mine, x, bias, y));
    }
    return checks.failure();
}

Failure segments_backward(const Segments& weight, const Segments& turned, const float* g, const float* x, float* dx, float* dw, int64_t batch,
                          int threads) {
    if (Failure failure = dx != nullptr ? check_offsets(turned) : nullptr) return failure;
    if (Failure failure = dw != nullptr ? check_offsets(weight) : nullptr) return failure;
    for (int64_t k = 0; batch == 0 && dw != nullptr && k < weight.stored; ++k) dw[k] = 0.0f;
    if (batch == 0) return nullptr;
    const Panels panels(batch);
    const int64_t width = most(turned.width, weight.width), bytes = own_bytes(width, panels.widest());
    Scratch scratch(matrix_bytes(turned, panels.count) + matrix_bytes(weight, panels.count) + threads * bytes + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    const Matrix for_dx = matrix(turned, const_cast<float*>(turned.values), panels.count, memory), for_dw = matrix(weight, dw, panels.count, memory);
    char* of_threads = memory.take<char>(threads * bytes);
    Checks checks(for_dx.sorted);
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        const Own mine = own(width, panels.widest(), Memory{of_threads + id * bytes});
        const int64_t from = dw == nullptr ? 0 : first_row(for_dw, id, team), to = dw == nullptr ? 0 : first_row(for_dw, id + 1, team);
        bool good = dw == nullptr || !for_dw.sorted || follow(for_dw, from, to);
        if (dx != nullptr && for_dx.sorted) good = follow(for_dx, first_row(for_dx, id, team), first_row(for_dx, id + 1, team)) && good;
        if (checks.all(good)) {
            if (dx != nullptr) checks.note(products(for_dx, Part(id, team, panels.count), panels, mine, g, nullptr, dx));
            if (dw != nullptr) checks.note(weight_gradient(for_dw, from, to, panels, mine, g, x, dw));
        }
    }
    return checks.failure();
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
