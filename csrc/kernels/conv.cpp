// Two-dimensional convolutions.  A thread carries 16 images at a time down their lines: it packs the input lines that the next output
// line needs, computes that line of every channel, and unpacks it.  What it reads and writes is NCHW or blocked; of NCHW the blocked
// form never leaves the caches, and a blocked activation that is a formula is computed on the way in.
#include "conv_plan.hpp"

#include <omp.h>

#include "../scratch.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

struct Forward {
    const Image* image;
    Slab in, out;
    const Activation& x;
    const float* bias;
    const Result& y;
    By by;
    int64_t vectors, out_height, out_lines;
    Sorted a;
};

// One output line of single rows, whose windows begin at `in`: a few pixels at a time, window by window of input channels.
void line_of_windows(const Sorted& a, const Range& kinds, const float* in, float* out, int64_t vectors, LinesAhead& ahead) {
    for (int64_t v = 0; v < vectors; v += piece_of(1)) {
        const int64_t at = v * kLanes, count = least(piece_of(1), vectors - v);
        for (int64_t w = 0; w < a.windows; ++w) {
            ahead.fetch(v * a.windows + w, vectors * a.windows);
            cut_product(a.range(w, kinds.from, kinds.to), w == 0, in + at, out + at, count);
        }
    }
}

// Output line h.
void forward_line(const Forward& f, int64_t h, const float* in, float* out, LinesAhead ahead) {
    const Sorted& a = f.a;
    const Range kinds = f.by == By::kTapLine ? taps_of_line(*f.image, h) : Range{0, 1};
    if (f.by == By::kTap) {
        line_of_taps<Gather, GatherMore>(a, *f.image, h, in, out, ahead);
    } else if (a.windows > 1) {
        line_of_windows(a, kinds, in, out, f.vectors, ahead);
    } else {
        line_of_pieces<Gather>(a.range(0, kinds.from, kinds.to), in, out, f.vectors, ahead);
    }
    fill_missing(a.a, f.bias, out, f.out.channel, f.vectors);
}

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
            forward_line(f, h, window.line(f.in, first), out + i * f.out.line, LinesAhead(f.in, f.x, panel, window.filled, stride));
        }
        write_lines(f.out, out, panel, h - flush, h, f.y);
    }
}

}  // namespace

Failure conv_forward(const Stored& m, const Image& image, const Activation& x, const float* bias, const Result& y, int threads) {
    if (image.batch == 0 || m.n_rows == 0) return nullptr;
    const Plan p = make_plan(m, image, x.plain != nullptr, y.plain != nullptr, x.blocked() || y.blocked != nullptr);
    const int64_t lines = window_lines(image, p.in, 1), out_lines = slab_grain(p.out);
    const int64_t floats = lines * slab_line(p.in) + out_lines * slab_line(p.out);
    const int64_t reach = least(p.vectors, piece_of(m.height)) * kLanes / p.lanes + image.span_w() - 1;
    const int64_t windows = cut_windows(m, image.taps(), image.kernel_h * reach * p.lanes, kWindowFloats);
    const Sorting sorting{image.taps(), image.kernel_w, windows, p.by};
    Scratch scratch(lowered_bytes(m) + sorted_bytes(m, sorting, threads) + slab_table_bytes(p.in) + slab_table_bytes(p.out) +
                    image.taps() * 8 + threads * floats * 4 + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    Lowered a;
    Forward f{&image, make_slab(p.in, memory), make_slab(p.out, memory), x, bias, y, p.by, p.vectors, p.out_height, out_lines, {}};
    const Addressing at{f.in.channel, image.taps(), tap_offsets(image, p, memory), f.out.channel};
    if (Failure wrong = lower(m, at, bias, memory.take<char>(lowered_bytes(m)), threads, a)) return wrong;
    f.a = sort_columns(m, a, sorting, memory, threads);
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

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
