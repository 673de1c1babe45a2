// Two-dimensional convolutions.  A thread carries 16 images at a time down their lines: it packs the input lines that the next output
// line needs, computes that line of every channel, and unpacks it.  What it reads and writes is NCHW or blocked; of NCHW the blocked
// form never leaves the caches, and a blocked activation that is a formula is computed on the way in.
#include "conv.hpp"

#include <omp.h>

#include "../scratch.hpp"
#include "conv_plan.hpp"
#include "cut.hpp"
#include "lines.hpp"
#include "tiles.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kDotFloats = 512;  // places that one reduction of the weight gradient runs over

// Vectors that are computed between two fetches of what is read next: a tile's.
int64_t piece_of(const Stored& m) { return m.height >= 8 ? 2 : m.height >= 4 ? 4 : 8; }

// The lanes of blocked activations are given: they have 16.
Plan plan_of(const Stored& m, const Image& image, bool plain_in, bool plain_out, bool blocked) {
    return plan(m, image, blocked ? kBatchLanes : batch_lanes(image.batch), kBatchLanes, plain_in, plain_out);
}

struct Forward {
    const Lowered* a;
    const Image* image;
    Slab in, out;
    const Activation& x;
    const float* bias;
    const Result& y;
    int64_t vectors, out_height, out_lines;
    int64_t piece;
    Cuts cuts;
};

// Output lines [from, to) of one panel.
void forward_lines(const Forward& f, int64_t panel, int64_t from, int64_t to, Window window, float* out) {
    const int64_t stride = f.image->stride_h, span = f.image->span_h();
    const int64_t end = (to - 1) * stride + span;
    window.base = window.filled = from * stride;
    for (int64_t h = from; h < to;) {
        const int64_t flush = least(f.out_lines, to - h);
        for (int64_t i = 0; i < flush; ++i, ++h) {
            const int64_t first = h * stride, last = first + span;
            window.slide(f.in, first, last);
            if (window.filled < last) {
                const int64_t fill = least(least(end, window.base + window.capacity), most(last, window.filled + f.in.grain));
                read_lines(f.in, f.x, panel, window.filled, fill, window.line(f.in, window.filled));
                window.filled = fill;
            }
            float* to_line = out + i * f.out.line;
            LinesAhead ahead(f.in, f.x, panel, window.filled, stride);
            for (int64_t v = 0; v < f.vectors; v += f.piece) {
                ahead.fetch(v / f.piece, (f.vectors + f.piece - 1) / f.piece);
                const int64_t at = v * kLanes, count = least(f.piece, f.vectors - v);
                const float* in = window.line(f.in, first) + at;
                if (f.cuts.windows > 1) {
                    cut_product(*f.a, f.cuts, in, to_line + at, count);
                } else {
                    product<Gather>(*f.a, 0, f.a->groups, in, to_line + at, count, 1);
                }
            }
            fill_missing(*f.a, f.bias, to_line, f.out.channel, f.vectors);
        }
        write_lines(f.out, out, panel, h - flush, h, f.y);
    }
}

}  // namespace

Failure conv_forward(const Stored& m, const Image& image, const Activation& x, const float* bias, const Result& y, int threads) {
    if (image.batch == 0 || m.n_rows == 0) return nullptr;
    const Plan p = plan_of(m, image, x.plain != nullptr, y.plain != nullptr, x.blocked() || y.blocked != nullptr);
    const int64_t lines = window_lines(image, p.in, 1), out_lines = slab_grain(p.out);
    const int64_t floats = lines * slab_line(p.in) + out_lines * slab_line(p.out);
    const int64_t reach = least(p.vectors, piece_of(m)) * kLanes / p.lanes + image.span_w() - 1;
    const int64_t windows = cut_windows(m, image.taps(), image.kernel_h * reach * p.lanes);
    Scratch scratch(lowered_bytes(m) + slab_table_bytes(p.in) + slab_table_bytes(p.out) + image.taps() * 8 + cut_bytes(m, windows) +
                    threads * floats * 4 + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    Lowered a;
    Forward f{&a, &image, make_slab(p.in, memory), make_slab(p.out, memory), x, bias, y, p.vectors, p.out_height, out_lines,
              piece_of(m), {nullptr, 1}};
    const Addressing at{f.in.channel, image.taps(), tap_offsets(image, p.in, memory), f.out.channel};
    if (Failure wrong = lower(m, at, bias, memory.take<char>(lowered_bytes(m)), threads, a)) return wrong;
    if (windows > 1) f.cuts = cut_columns(m, image.taps(), windows, memory.take<int32_t>((windows + 1) * m.groups), threads);
    float* buffers = memory.take<float>(threads * floats);
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads(), total = p.panels * p.out_height;
        float* mine = buffers + id * floats;
        const int64_t stop = total * (id + 1) / team;
        for (int64_t line = total * id / team; line < stop;) {
            const int64_t panel = line / p.out_height, from = line % p.out_height;
            const int64_t to = least(p.out_height, from + stop - line);
            forward_lines(f, panel, from, to, {mine, lines, 0, 0}, mine + lines * f.in.line);
            line += to - from;
        }
        drain_streams();
    }
    return nullptr;
}

namespace {

struct Backward {
    const Lowered* a;
    const Image* image;
    Slab in, out;
    const Activation &g, &x;
    const Result& dx;
    int64_t vectors, out_height, block, dot_lines, piece;
};

// Output lines [from, to) of one panel: their share of the weight gradient is added to dw, and dx is written from the padded line at
// which the window of line `from` begins to that of line `to`.  The windows of some lines before reach into it: those are added
// again, in the same order as by whoever has these lines.
void backward_lines(const Backward& b, int64_t panel, int64_t from, int64_t to, Window x, Window dx, float* g, float* dw) {
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
            LinesAhead ahead(b.in, b.x, panel, last, b.block * stride);
            for (int64_t i = 0; i < count; i += b.dot_lines) {
                const Places places{least(b.dot_lines, count - i), stride * b.in.line, b.out.line, b.vectors};
                for (int64_t group = 0; group < b.a->groups; ++group) {
                    ahead.fetch(i * b.a->groups + group, count * b.a->groups);
                    dots(*b.a, group, group + 1, x.line(b.in, first + i * stride), g + i * b.out.line, places, dw);
                }
            }
        }
        h += count;
        if (!b.dx.given()) continue;
        dx.slide(b.in, first, last);
        zero_lines(b.in, dx.line(b.in, dx.filled), last - dx.filled);
        dx.filled = last;
        LinesAhead ahead(b.out, b.g, panel, h, b.block);
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t v = 0; v < b.vectors; v += b.piece) {
                ahead.fetch(i * b.vectors + v, count * b.vectors);
                const int64_t at = v * kLanes, vectors = least(b.piece, b.vectors - v);
                product<Scatter>(*b.a, 0, b.a->groups, dx.line(b.in, first + i * stride) + at, g + i * b.out.line + at, vectors, 1);
            }
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
    const Plan p = plan_of(m, image, x.plain != nullptr || dx.plain != nullptr, g.plain != nullptr, blocked);
    const int64_t dot_lines = most<int64_t>(1, kDotFloats / (p.vectors * kLanes));
    const int64_t block = most(least(dot_lines, p.out_height), slab_grain(p.out));
    const int64_t lines = window_lines(image, p.in, block);
    const int64_t windows = (dx.given() ? 1 : 0) + (dw ? 1 : 0), private_dw = dw ? up(weights, 16) : 0;
    const int64_t floats = windows * lines * slab_line(p.in) + block * slab_line(p.out);
    Scratch scratch(lowered_bytes(m) + slab_table_bytes(p.in) + slab_table_bytes(p.out) + image.taps() * 8 +
                    threads * (floats + private_dw) * 4 + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    Lowered a;
    Backward b{&a, &image, make_slab(p.in, memory), make_slab(p.out, memory), g, x, dx, p.vectors, p.out_height, block, dot_lines,
               piece_of(m)};
    const Addressing at{b.in.channel, image.taps(), tap_offsets(image, p.in, memory), b.out.channel};
    if (Failure wrong = lower(m, at, nullptr, memory.take<char>(lowered_bytes(m)), threads, a)) return wrong;
    float* buffers = memory.take<float>(threads * floats);
    float* copies = memory.take<float>(threads * private_dw);
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        float* mine = buffers + id * floats;
        float* my_dw = dw == nullptr ? nullptr : id == 0 ? dw : copies + id * private_dw;
        if (my_dw != nullptr && id > 0) std::memset(my_dw, 0, static_cast<size_t>(weights) * 4);
        float* out = mine + windows * lines * b.in.line;
        // Whole panels where they can be shared out evenly, for the lines between two threads are computed twice.
        const int64_t grain = p.panels % team == 0 ? p.out_height : 1, total = p.panels * p.out_height / grain;
        const int64_t stop = total * (id + 1) / team * grain;
        for (int64_t line = total * id / team * grain; line < stop;) {
            const int64_t panel = line / p.out_height, from = line % p.out_height;
            const int64_t to = least(p.out_height, from + stop - line);
            float* dx_lines = mine + (windows - 1) * lines * b.in.line;
            backward_lines(b, panel, from, to, {mine, lines, 0, 0}, {dx_lines, lines, 0, 0}, out, my_dw);
            line += to - from;
        }
        drain_streams();
#pragma omp barrier
        for (int64_t i = weights * id / team; dw != nullptr && i < weights * (id + 1) / team; ++i) {
            float sum = dw[i];
            for (int64_t t = 1; t < team; ++t) sum += copies[t * private_dw + i];
            dw[i] = sum;
        }
    }
    return nullptr;
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
