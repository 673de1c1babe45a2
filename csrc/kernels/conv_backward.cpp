// The gradients of a convolution, in one pass over the lines of the output gradient.
#include "conv_plan.hpp"

#include <omp.h>

#include "../scratch.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kDotFloats = 512;       // places that one reduction of the weight gradient runs over
constexpr int64_t kDotWhole = 192 << 10;  // floats of the input's lines up to which they stay in L2 as they are
constexpr int64_t kDotWindow = 16 << 10;  // floats of the input that a window of single rows reads for that
constexpr int64_t kDotColumns = 24;       // of a row in such a window, at least

// The places over which a tap's weight gradients are summed.
struct Share {
    Places places;
    int64_t in, out;  // where they begin
};

struct Backward {
    const Image* image;
    Slab in, out;
    const Activation &g, &x;
    const Result& dx;
    By by;
    int64_t vectors, out_height, block, dot_lines;
    Sorted a;
};

// Of `count` output lines from h on, for columns of kind `kind`.
Share share_of(const Backward& b, int64_t h, int64_t count, int64_t kind) {
    const Image& m = *b.image;
    const int64_t in_line = m.stride_h * b.in.line;
    if (b.by == By::kNothing) return {{count, in_line, b.out.line, b.vectors}, 0, 0};
    const Range lines = lines_of_tap(m, b.by == By::kTap ? kind / m.kernel_w : kind, h, count);
    Share s{{lines.to - lines.from, in_line, b.out.line, b.vectors}, lines.from * in_line, lines.from * b.out.line};
    if (b.by == By::kTapLine) return s;
    const Range pixels = pixels_of_tap(m, kind % m.kernel_w);
    s.places.vectors = (pixels.to - pixels.from) * (kBatchLanes / kLanes);
    s.in += pixels.from * kBatchLanes;
    s.out += pixels.from * kBatchLanes;
    return s;
}

// Adds the weight gradients that `count` output lines from h on make; the windows of the first begin at `in`.
void add_dots(const Backward& b, int64_t h, int64_t count, const float* in, const float* out, LinesAhead ahead, Share* shares, float* dw) {
    const Lowered& a = b.a.a;
    const Range first = taps_of_line(*b.image, h), last = taps_of_line(*b.image, h + count - 1);
    const bool whole = b.by == By::kTapLine && least(first.to, last.to) - most(first.from, last.from) == b.image->kernel_h;
    const int64_t kinds = whole ? 1 : b.a.kinds, step = (a.groups + kFetches - 1) / kFetches, all = b.a.windows * a.groups * kinds;
    for (int64_t kind = 0; kind < kinds; ++kind) shares[kind] = share_of(b, h, count, kind);
    if (whole) shares[0] = {{count, b.image->stride_h * b.in.line, b.out.line, b.vectors}, 0, 0};
    for (int64_t w = 0; w < b.a.windows; ++w) {
        const Lowered window = b.a.range(w, 0, whole ? b.a.kinds : 1);
        for (int64_t g = 0; g < a.groups; ++g) {
            for (int64_t kind = 0; kind < kinds; ++kind) {
                if (g % step == 0) ahead.fetch((w * a.groups + g) * kinds + kind, all);
                const Share& s = shares[kind];
                const int64_t at = kind * a.groups + g;
                dot_group(a, g, window.offsets[at], window.ends[at], in + s.in, out + s.out, s.places, dw);
            }
        }
    }
}

// Adds what output line h passes on to the inputs, whose windows begin at `in`.
void scatter_line(const Backward& b, int64_t h, float* in, const float* out, LinesAhead ahead) {
    if (b.by == By::kTap) return line_of_taps<Scatter, Scatter>(b.a, *b.image, h, in, out, ahead);
    const Range kinds = b.by == By::kTapLine ? taps_of_line(*b.image, h) : Range{0, 1};
    for (int64_t w = 0; w < b.a.windows; ++w) {
        line_of_pieces<Scatter>(b.a.range(w, kinds.from, kinds.to), in, out, b.vectors, ahead);
    }
}

// Output lines [from, to) of one panel: their share of the weight gradient is added to dw, and dx is written from the padded line at
// which the window of line `from` begins to that of line `to`.  The windows of some lines before reach into it: those are added
// again, in the same order as by whoever has these lines.
void backward_lines(const Backward& b, int64_t panel, int64_t from, int64_t to, Window x, Window dx, float* g, Share* shares, float* dw) {
    const int64_t stride = b.image->stride_h, span = b.image->span_h(), own = from * stride;
    const int64_t all = most(b.image->height + b.image->pad_h, (b.out_height - 1) * stride + span);
    const int64_t before = b.dx.given() ? least(from, (span - 1) / stride) : 0;
    x.base = x.filled = own;
    dx.base = dx.filled = own - before * stride;
    for (int64_t h = from - before; h < to;) {
        const int64_t count = least(b.block, (h < from ? from : to) - h), first = h * stride, last = first + (count - 1) * stride + span;
        read_lines(b.out, b.g, panel, h, h + count, g);
        if (dw != nullptr && h >= from) {
            x.slide(b.in, first, last);
            if (x.filled < last) read_lines(b.in, b.x, panel, x.filled, last, x.line(b.in, x.filled));
            x.filled = most(x.filled, last);
            for (int64_t i = 0; i < count; i += b.dot_lines) {
                const int64_t n = least(b.dot_lines, count - i);
                const LinesAhead ahead(b.in, b.x, panel, last + i * stride, n * stride);
                add_dots(b, h + i, n, x.line(b.in, first + i * stride), g + i * b.out.line, ahead, shares, dw);
            }
        }
        h += count;
        if (!b.dx.given()) continue;
        dx.slide(b.in, first, last);
        zero_lines(b.in, dx.line(b.in, dx.filled), last - dx.filled);
        dx.filled = last;
        for (int64_t i = 0; i < count; ++i) {
            const LinesAhead ahead(b.out, b.g, panel, h + i, 1);
            scatter_line(b, h - count + i, dx.line(b.in, first + i * stride), g + i * b.out.line, ahead);
        }
        // The lines before the next block's first one are complete.
        const bool end = h == b.out_height;
        const int64_t done = end ? last : least(last, first + count * stride), begin = most(first, own);
        if (begin < done) write_lines(b.in, dx.line(b.in, begin), panel, begin, done, b.dx);
        for (int64_t l = most(done, own); l < (end ? all : least(all, first + count * stride)); ++l) {
            zero_lines(b.in, dx.lines, 1);
            dx.base = dx.filled = l;
            write_lines(b.in, dx.lines, panel, l, l + 1, b.dx);
        }
    }
}

}  // namespace

Failure conv_backward(const Stored& m, const Image& image, const Activation& g, const Activation& x, const Result& dx, float* dw, int threads) {
    const int64_t weights = m.stored * m.height;
    if (dw != nullptr) std::memset(dw, 0, static_cast<size_t>(weights) * 4);
    if (image.batch == 0) return nullptr;
    const bool blocked = g.blocked() || x.blocked() || dx.blocked != nullptr;
    const Plan p = make_plan(m, image, x.plain != nullptr || dx.plain != nullptr, g.plain != nullptr, blocked);
    const int64_t dot_lines = most<int64_t>(1, kDotFloats / (p.vectors * kLanes));
    const int64_t block = most(least(dot_lines, p.out_height), slab_grain(p.out));
    const int64_t lines = window_lines(image, p.in, block);
    const int64_t windows = (dx.given() ? 1 : 0) + (dw ? 1 : 0), private_dw = dw ? up(weights, 16) : 0;
    const int64_t floats = windows * lines * slab_line(p.in) + block * slab_line(p.out);
    const int64_t reach = ((dot_lines - 1) * image.stride_h + image.span_h()) * slab_channel(p.in);
    const bool large = ((dot_lines - 1) * image.stride_h + image.span_h()) * slab_line(p.in) > kDotWhole;
    const int64_t cut = least(cut_windows(m, image.taps(), reach, kDotWindow), m.stored / (most<int64_t>(m.groups, 1) * kDotColumns));
    const Sorting sorting{image.taps(), image.kernel_w, large ? most<int64_t>(cut, 1) : 1, m.height == 1 ? By::kNothing : p.by};
    const int64_t shares = up(sorting.kinds(), 8);
    Scratch scratch(lowered_bytes(m) + sorted_bytes(m, sorting, threads) + slab_table_bytes(p.in) + slab_table_bytes(p.out) +
                    image.taps() * 8 + threads * ((floats + private_dw) * 4 + shares * static_cast<int64_t>(sizeof(Share))) + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    Lowered a;
    Backward b{&image, make_slab(p.in, memory), make_slab(p.out, memory), g, x, dx, sorting.by, p.vectors, p.out_height, block, dot_lines, {}};
    const Addressing at{b.in.channel, image.taps(), tap_offsets(image, p, memory), b.out.channel};
    if (Failure wrong = lower(m, at, nullptr, memory.take<char>(lowered_bytes(m)), threads, a)) return wrong;
    b.a = sort_columns(m, a, sorting, memory, threads);
    const bool sorted = !b.a.whole;
    float* buffers = memory.take<float>(threads * floats);
    float* copies = memory.take<float>(threads * private_dw);
    Share* all_shares = memory.take<Share>(threads * shares);
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        float* mine = buffers + id * floats;
        float* my_dw = dw == nullptr ? nullptr : id == 0 && !sorted ? dw : copies + id * private_dw;
        if (my_dw != nullptr && my_dw != dw) std::memset(my_dw, 0, static_cast<size_t>(weights) * 4);
        float* out = mine + windows * lines * b.in.line;
        // Whole panels where they can be shared out evenly, for the lines between two threads are computed twice.
        const int64_t grain = p.panels % team == 0 ? p.out_height : 1, total = p.panels * p.out_height / grain;
        const int64_t stop = total * (id + 1) / team * grain;
        for (int64_t line = total * id / team * grain; line < stop;) {
            const int64_t panel = line / p.out_height, from = line % p.out_height;
            const int64_t to = least(p.out_height, from + stop - line);
            float* dx_lines = mine + (windows - 1) * lines * b.in.line;
            backward_lines(b, panel, from, to, {mine, lines, 0, 0}, {dx_lines, lines, 0, 0}, out, all_shares + id * shares, my_dw);
            line += to - from;
        }
        drain_streams();
#pragma omp barrier
        for (int64_t k = m.stored * id / team; dw != nullptr && k < m.stored * (id + 1) / team; ++k) {
            float* to = dw + (sorted ? b.a.order[k] : k) * m.height;
            const float* first = sorted ? copies : dw;
            for (int64_t r = 0; r < m.height; ++r) {
                float sum = first[k * m.height + r];
                for (int64_t t = 1; t < team; ++t) sum += copies[t * private_dw + k * m.height + r];
                to[r] = sum;
            }
        }
    }
    return nullptr;
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
