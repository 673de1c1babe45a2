// Two-dimensional convolutions.  A thread carries 16 images at a time down their lines: it packs the input lines that the next output
// line needs, computes that line of every channel, and unpacks it.  What it reads and writes is NCHW or blocked; of NCHW the blocked
// form never leaves the caches, and a blocked activation that is a formula is computed on the way in.
#include "conv_in_place.hpp"
#include "conv_loose.hpp"

#include <omp.h>

#include "../scratch.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kRowsBehind = 2;  // written out between two tiles

struct Forward {
    Plan plan;
    Slab in, out;
    Activation x;
    const float* bias;
    Result y;
    int64_t lines, out_lines;  // of the windows
    Sorted a;
    bool in_place;  // x is read where it is
    Grouped rows;
};

// One output line of single rows, whose windows begin at `in`: a few pixels at a time, window by window of input channels.
void line_of_windows(const Sorted& a, const Range& kinds, const float* in, float* out, int64_t vectors, LinesAhead& ahead) {
    const int64_t piece = piece_of(1, vectors);
    for (int64_t v = 0; v < vectors; v += piece) {
        const int64_t at = v * kLanes, count = least(piece, vectors - v);
        for (int64_t w = 0; w < a.windows; ++w) {
            ahead.fetch(v * a.windows + w, vectors * a.windows);
            cut_product(a.range(w, kinds.from, kinds.to), w == 0, in + at, out + at, count);
        }
    }
}

// Output line h.
void forward_line(const Forward& f, int64_t h, const float* in, float* out, LinesAhead ahead) {
    const Sorted& a = f.a;
    const Range kinds = kinds_of_line(f.plan, a, h);
    if (f.plan.by == By::kTap) {
        line_of_taps<Gather, GatherMore>(a, f.plan.image, h, in, out, ahead);
    } else if (a.windows > 1) {
        line_of_windows(a, kinds, in, out, f.plan.vectors, ahead);
    } else {
        line_of_pieces<Gather>(a.range(0, kinds.from, kinds.to), in, out, f.plan.vectors, ahead);
    }
    fill_missing(a.a, f.bias, out, f.out.channel, f.plan.vectors);
}

// The same where x is read where it is; rows are written out while they are in L1.
void forward_in_place(const Forward& f, int64_t panel, int64_t from, int64_t to, float* out) {
    const int64_t stride = f.plan.image.stride_h, span = f.plan.image.span_h(), groups = f.a.a.groups;
    LineBehind behind(f.out, f.y);
    for (int64_t h = from; h < to; ++h) {
        const auto drain = [&](int64_t first, int64_t last) {
            const Channels rows{f.rows.rows, f.rows.bounds[first], f.rows.count(first, last)};
            if (f.y.moments != nullptr) drain_line(f.out, out, rows, panel, h, Result{nullptr, nullptr, f.y.moments});
            behind.begin(out, rows, panel, h);
        };
        Meanwhile ahead{LinesAhead(f.in, f.x, panel, h * stride + span, stride, true), behind, kRowsBehind};
        line_of_taps<Gather, GatherMore>(f.a, f.plan.image, h, bare_line(f.in, f.x, panel, h * stride), out, ahead, drain);
        fill_missing(f.a.a, f.bias, out, f.out.channel, f.plan.vectors);
        if (f.a.a.n_missing > 0) drain(groups, groups + 1);
        if (groups < 2) behind.finish();  // before the same rows are computed again
    }
    behind.finish();
}

// Output lines [from, to) of one panel.
void forward_lines(const Forward& f, int64_t panel, int64_t from, int64_t to, Window window, float* out) {
    const int64_t stride = f.plan.image.stride_h, span = f.plan.image.span_h();
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
    Plans plans = make_plans(m, image, x.plain != nullptr, y.plain != nullptr, x.blocked() || y.blocked != nullptr);
    const bool in_place = can_read_in_place(m, image, x) && y.blocked != nullptr;
    if (in_place) read_in_place(plans.parts[0], false);
    const Plan& p = plans.parts[0];
    const int64_t reach = least(p.vectors, piece_of(m.height, p.vectors)) * kLanes / p.lanes + image.span_w() - 1;
    const int64_t windows = cut_windows(m, image.taps(), image.kernel_h * reach * p.lanes, kWindowFloats);
    const Sorting sorting{image.taps(), image.kernel_w, windows, p.by, plans.count > 1};
    Forward parts[2];
    int64_t floats = 0, shared = 0;
    for (int i = 0; i < plans.count; ++i) {
        Forward& f = parts[i];
        f.plan = plans.parts[i];
        if (f.plan.folded()) {
            shared = few_forward_floats(f.plan);
            continue;
        }
        f.in_place = in_place;
        f.lines = in_place ? 0 : window_lines(image, f.plan.in, 1);
        f.out_lines = slab_grain(f.plan.out);
        floats = most(floats, f.lines * slab_line(f.plan.in) + f.out_lines * slab_line(f.plan.out));
    }
    const Image few_image = plans.loose_image();
    if (plans.loose > 0) floats = most(floats, loose_floats(few_image, p));
    Scratch scratch(plans_bytes(plans, m, sorting, threads) + grouped_bytes(m) + loose_bytes(few_image) + (threads * floats + shared) * 4 + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    for (int i = 0; i < plans.count; ++i) {
        Forward& f = parts[i];
        f.in = make_slab(f.plan.in, memory);
        f.out = make_slab(f.plan.out, memory);
        f.x = from_image(x, f.plan.first, f.plan.in);
        f.y = from_image(y, f.plan.first, f.plan.out);
        f.bias = bias;
        if (Failure wrong = lower_for(m, f.plan, sorting, bias, i == 0 ? nullptr : &parts[0].a, memory, threads, f.a)) return wrong;
        if (in_place) f.rows = make_grouped(m, f.a.a, f.out.channel, memory);
    }
    const Loose loose = plans.loose > 0 ? make_loose(few_image, p, parts[0].in, parts[0].out, memory) : Loose{};
    const int64_t first_loose = p.image.batch;
    float* buffers = memory.take<float>(threads * floats);
    float* few = memory.take<float>(shared);
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        float* mine = buffers + id * floats;
        if (loose.given()) {
            const float* x_of = from_image(x, first_loose, p.in).plain;
            loose_forward(loose, parts[0].a, x_of, bias, from_image(y, first_loose, p.out).plain, mine, id, team);
        }
        for (int i = 0; i < plans.count; ++i) {
            const Forward& f = parts[i];
            if (f.plan.folded()) {
                few_forward(few_images(f.plan, f.in, f.out, f.a, few), f.x.plain, bias, f.y.plain, id, team);
                continue;
            }
            share_lines(f.plan.panels, f.plan.out_height, 1, id, team, [&](int64_t panel, int64_t from, int64_t to) {
                if (f.in_place) return forward_in_place(f, panel, from, to, mine);
                forward_lines(f, panel, from, to, {mine, f.lines, 0, 0}, mine + f.lines * f.in.line);
            });
        }
        drain_streams();
    }
    return nullptr;
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
