// The gradients of a convolution, in one pass over the lines of the output gradient.
#include "conv_in_place.hpp"
#include "conv_loose.hpp"
#include "copies.hpp"

#include <omp.h>

#include "../scratch.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kDotFloats = 512;       // places that one reduction of the weight gradient runs over
constexpr int64_t kDotWhole = 192 << 10;  // floats of the input's lines up to which they stay in L2 as they are
constexpr int64_t kDotWindow = 8 << 10;   // floats of the input that a window of single rows reads for that
constexpr int64_t kFewestColumns = 24;    // of a row in such a window, at least

// The places over which a tap's weight gradients are summed.
struct Share {
    Places places;
    int64_t in, out;  // where they begin
};

struct Backward {
    Plan plan;
    Slab in, out;
    Activation g, x;
    Result dx;
    int64_t dot_lines, block, lines;  // lines summed at once, read at once, and of the windows
    Sorted a;
    bool in_place;  // x is read where it is
    Ring ring;
    Edges edges;
    Loose loose;
};

// What one thread works with: its memory, its sums, and the loose images that it has still to add to those of some row groups.
struct Own {
    float* memory;
    Share* shares;
    float* dw;
    Apart apart;
    Range groups;
};

// Of `count` output lines from h on, for the columns of a line of taps, or of a single one.
Share share_of(const Backward& b, int64_t h, int64_t count, int64_t taps) {
    const Image& m = b.plan.image;
    const int64_t in_line = m.stride_h * b.in.line;
    const Range lines = lines_of_tap(m, b.plan.by == By::kTap ? taps / m.kernel_w : taps, h, count);
    Share s{{lines.to - lines.from, in_line, b.out.line, b.plan.vectors}, lines.from * in_line, lines.from * b.out.line};
    if (b.plan.by == By::kTapLine) return s;
    const Range pixels = pixels_of_tap(m, taps % m.kernel_w);
    s.places.vectors = (pixels.to - pixels.from) * (kBatchLanes / kLanes);
    s.in += pixels.from * kBatchLanes;
    s.out += pixels.from * kBatchLanes;
    return s;
}

// Adds the weight gradients that `count` output lines from h on make; the windows of the first begin at `in`.
void add_dots(const Backward& b, int64_t h, int64_t count, const float* in, const float* out, LinesAhead ahead, Own& own) {
    Share* shares = own.shares;
    const Lowered& a = b.a.a;
    const Image& m = b.plan.image;
    const Range first = taps_of_line(m, h), last = taps_of_line(m, h + count - 1);
    const bool inner = b.plan.by == By::kTapLine && least(first.to, last.to) - most(first.from, last.from) == m.kernel_h;
    const bool whole = b.plan.by == By::kNothing || inner;
    const int64_t shared = whole ? 1 : b.plan.by == By::kTap ? m.taps() : m.kernel_h, each = b.a.kinds / shared;
    const int64_t step = (a.groups + kFetches - 1) / kFetches, all = b.a.windows * a.groups * shared;
    if (whole) shares[0] = {{count, m.stride_h * b.in.line, b.out.line, b.plan.vectors}, 0, 0};
    for (int64_t i = 0; i < shared && !whole; ++i) shares[i] = share_of(b, h, count, i);
    for (int64_t w = 0; w < b.a.windows; ++w) {
        const Lowered window = b.a.range(w, 0, each);
        for (int64_t g = 0; g < a.groups; ++g) {
            for (int64_t i = 0; i < shared; ++i) {
                if (g % step == 0) ahead.fetch((w * a.groups + g) * shared + i, all);
                const Share& s = shares[i];
                const int64_t at = i * each * b.a.stride + g;
                if (g >= own.groups.from && g < own.groups.to) {
                    const PlacesAndApart places{s.places, own.apart};
                    dot_group(a, g, window.offsets[at], window.ends[at], in + s.in, out + s.out, places, own.dw);
                    continue;
                }
                dot_group(a, g, window.offsets[at], window.ends[at], in + s.in, out + s.out, s.places, own.dw);
            }
        }
    }
    own.groups = {0, 0};
}

// Adds what output line h passes on to the inputs, whose windows begin at `in`.
void scatter_line(const Backward& b, int64_t h, float* in, const float* out, LinesAhead ahead) {
    if (b.plan.by == By::kTap) return line_of_taps<Scatter, Scatter>(b.a, b.plan.image, h, in, out, ahead);
    const Range kinds = kinds_of_line(b.plan, b.a, h);
    for (int64_t w = 0; w < b.a.windows; ++w) {
        line_of_pieces<Scatter>(b.a.range(w, kinds.from, kinds.to), in, out, b.plan.vectors, ahead);
    }
}

// Output lines [from, to) of one panel: their share of the weight gradient is added to dw, and dx is written from the padded line at
// which the window of line `from` begins to that of line `to`.  The windows of some lines before reach into it: those are added
// again, in the same order as by whoever has these lines.
void backward_lines(const Backward& b, int64_t panel, int64_t from, int64_t to, Window x, Window dx, float* g, Own& mine) {
    const int64_t stride = b.plan.image.stride_h, span = b.plan.image.span_h(), own = from * stride;
    const int64_t all = most(b.plan.image.height + b.plan.image.pad_h, (b.plan.out_height - 1) * stride + span);
    const int64_t before = b.dx.given() ? least(from, (span - 1) / stride) : 0;
    x.base = x.filled = own;
    dx.base = dx.filled = own - before * stride;
    for (int64_t h = from - before; h < to;) {
        const int64_t count = least(b.block, (h < from ? from : to) - h), first = h * stride, last = first + (count - 1) * stride + span;
        read_lines(b.out, b.g, panel, h, h + count, g);
        if (mine.dw != nullptr && h >= from) {
            x.slide(b.in, first, last);
            if (x.filled < last) read_lines(b.in, b.x, panel, x.filled, last, x.line(b.in, x.filled));
            x.filled = most(x.filled, last);
            for (int64_t i = 0; i < count; i += b.dot_lines) {
                const int64_t n = least(b.dot_lines, count - i);
                const LinesAhead ahead(b.in, b.x, panel, last + i * stride, n * stride);
                add_dots(b, h + i, n, x.line(b.in, first + i * stride), g + i * b.out.line, ahead, mine);
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
        const bool end = h == b.plan.out_height;
        const int64_t done = end ? last : least(last, first + count * stride), begin = most(first, own);
        if (begin < done) write_lines(b.in, dx.line(b.in, begin), panel, begin, done, b.dx);
        for (int64_t l = most(done, own); l < (end ? all : least(all, first + count * stride)); ++l) {
            zero_lines(b.in, dx.lines, 1);
            dx.base = dx.filled = l;
            write_lines(b.in, dx.lines, panel, l, l + 1, b.dx);
        }
    }
}

// The same where x is read where it is, and g, too, if it can be; dx is a ring of lines.
void backward_in_place(const Backward& b, int64_t panel, int64_t from, int64_t to, float* dx, float* g, float* dw) {
    const Image& m = b.plan.image;
    const int64_t span = m.span_h(), before = b.dx.given() ? least(from, span - 1) : 0;
    const Places places{1, b.in.line, b.out.line, (b.edges.right - b.edges.left) * (kBatchLanes / kLanes), &b.edges};
    LineBehind behind(b.in, b.dx);
    int64_t zeroed = from - before;
    for (int64_t h = from - before; h < to; ++h) {
        const float* out = bare(b.g) ? bare_line(b.out, b.g, panel, h) : g;
        if (out == g) read_lines(b.out, b.g, panel, h, h + 1, g);
        if (dw != nullptr && h >= from) {
            Meanwhile ahead{LinesAhead(b.in, b.x, panel, h + span, 1, true), behind, 1};
            add_dots_in_place(b.plan, b.a, b.edges, h, places, bare_line(b.in, b.x, panel, h), out, ahead, dw);
        }
        if (!b.dx.given()) continue;
        behind.finish();
        for (; zeroed < h + span; ++zeroed) zero_lines(b.in, dx + zeroed % span * b.in.line, 1);
        LinesAhead ahead(b.out, b.g, panel, h + 1, 1, true);
        line_of_taps<Scatter, Scatter>(b.ring.from(b.a, h), m, h, dx, out, ahead);
        const int64_t done = h + 1 == b.plan.out_height ? h + span : h + 1;
        for (int64_t l = most(most(h, from), m.pad_h); l < least(done, m.pad_h + m.height); ++l) {
            behind.begin(dx + l % span * b.in.line, {nullptr, 0, b.in.channels}, panel, l - m.pad_h);
        }
    }
    behind.finish();
}

// Worth it where a line is long enough to be a reduction alone.
bool can_go_backward_in_place(const Stored& m, const Image& image, const Activation& g, const Activation& x, const Result& dx) {
    return can_read_in_place(m, image, x) && g.blocked() && (!dx.given() || dx.blocked != nullptr) && image.stride_h == 1 &&
           image.batch % kBatchLanes == 0 && 2 * image.out_width() * kBatchLanes > kDotFloats;
}

Sorting sorting_for_dots(const Stored& m, const Plan& p, int64_t dot_lines) {
    const Image& image = p.image;
    const int64_t lines = p.folded() ? 1 : (dot_lines - 1) * image.stride_h + image.span_h(), rows = most<int64_t>(m.groups, 1);
    if (m.height > 1) return {image.taps(), image.kernel_w, 1, p.by};
    const int64_t windows = least(cut_windows(m, image.taps(), lines * slab_channel(p.in), kDotWindow), m.stored / (rows * kFewestColumns));
    return {image.taps(), image.kernel_w, lines * slab_line(p.in) > kDotWhole ? most<int64_t>(windows, 1) : 1, By::kNothing};
}

// Takes the loose images' part of what thread `id` of those that have lines does: the last one passes their gradient on to the inputs,
// the others, or all where there is nothing to pass on, share the row groups whose weight gradients they add to.
void begin_loose(const Backward& b, int64_t units, int64_t id, int64_t team, Own& own) {
    const int64_t working = least(units, team), rank = units < team ? units * id / team : id;
    const bool idle = units * id / team == units * (id + 1) / team, pass = b.dx.given() && rank == working - 1;
    const int64_t first = b.plan.image.batch, adding = b.dx.given() ? most<int64_t>(1, working - 1) : working;
    if (idle) return;
    const float* g = from_image(b.g, first, b.plan.out).plain;
    if (pass) loose_scatter(b.loose, b.a, g, from_image(b.dx, first, b.plan.in).plain, own.memory);
    if (own.dw == nullptr || rank >= adding) return;
    own.groups = {share(b.a.a, rank, adding), share(b.a.a, rank + 1, adding)};
    own.apart = loose_places(b.loose, g, from_image(b.x, first, b.plan.in).plain, own.memory);
    own.memory += loose_floats(b.loose.image, b.plan);
}

// One thread's lines of one part, or its groups.
void backward_share(const Backward& b, int64_t id, int64_t team, float* few, Own own) {
    if (b.plan.folded()) {
        return few_backward(few_images(b.plan, b.in, b.out, b.a, few), b.g.plain, b.x.plain, b.dx.plain, own.dw, id, team);
    }
    const int64_t height = b.plan.out_height, window = b.lines * b.in.line, windows = (b.dx.given() ? 1 : 0) + (own.dw != nullptr ? 1 : 0);
    // Whole panels where they can be shared out evenly, for the lines between two threads are computed twice.
    const int64_t grain = b.plan.panels % team == 0 ? height : 1;
    if (b.loose.given()) begin_loose(b, b.plan.panels * height / grain, id, team, own);
    float* const mine = own.memory;
    share_lines(b.plan.panels, height, grain, id, team, [&](int64_t panel, int64_t from, int64_t to) {
        if (b.in_place) return backward_in_place(b, panel, from, to, mine, mine + window, own.dw);
        const Window x{mine, b.lines, 0, 0}, dx{mine + (windows - 1) * window, b.lines, 0, 0};
        backward_lines(b, panel, from, to, x, dx, mine + windows * window, own);
    });
}

}  // namespace

Failure conv_backward(const Stored& matrix, const Image& image, const Activation& g, const Activation& x, const Result& dx, float* dw,
                      int threads) {
    Stored m = matrix;
    if (!dx.given()) m.values = nullptr;  // the weight gradient alone needs none
    const int64_t weights = m.stored * m.height;
    if (image.batch == 0) {
        if (dw != nullptr) std::memset(dw, 0, static_cast<size_t>(weights) * 4);
        return nullptr;
    }
    const bool blocked = g.blocked() || x.blocked() || dx.blocked != nullptr;
    Plans plans = make_plans(m, image, x.plain != nullptr || dx.plain != nullptr, g.plain != nullptr, blocked);
    const int64_t windows = (dx.given() ? 1 : 0) + (dw ? 1 : 0), private_dw = dw ? up(weights, 16) : 0;
    const bool in_place = can_go_backward_in_place(m, image, g, x, dx);
    if (in_place) read_in_place(plans.parts[0], true);
    Backward parts[2] = {};
    int64_t floats = 0, shared = 0;
    for (int i = 0; i < plans.count; ++i) {
        Backward& b = parts[i];
        b.plan = plans.parts[i];
        if (b.plan.folded()) {
            shared = few_backward_floats(b.plan);
            continue;
        }
        b.dot_lines = most<int64_t>(1, kDotFloats / (b.plan.vectors * kLanes));
        b.block = most(least(b.dot_lines, b.plan.out_height), slab_grain(b.plan.out));
        b.in_place = in_place;
        b.lines = in_place ? image.span_h() : window_lines(image, b.plan.in, b.block);
        floats = most(floats, windows * b.lines * slab_line(b.plan.in) + b.block * slab_line(b.plan.out));
    }
    const Image few_image = plans.loose_image();
    if (plans.loose > 0) floats += loose_floats(few_image, parts[0].plan);
    Sorting sorting = sorting_for_dots(m, parts[0].plan, parts[0].dot_lines);
    sorting.again = plans.count > 1, sorting.back = dw != nullptr;
    const int64_t shares = up(sorting.kinds(), 8);
    Scratch scratch(plans_bytes(plans, m, sorting, threads) + (in_place ? in_place_bytes(m, image) : 0) + loose_bytes(few_image) +
                    threads * ((floats + private_dw) * 4 + shares * static_cast<int64_t>(sizeof(Share))) + shared * 4 + 1024);
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    for (int i = 0; i < plans.count; ++i) {
        Backward& b = parts[i];
        b.in = make_slab(b.plan.in, memory);
        b.out = make_slab(b.plan.out, memory);
        b.g = from_image(g, b.plan.first, b.plan.out);
        b.x = from_image(x, b.plan.first, b.plan.in);
        b.dx = from_image(dx, b.plan.first, b.plan.in);
        if (Failure wrong = lower_for(m, b.plan, sorting, nullptr, i == 0 ? nullptr : &parts[0].a, memory, threads, b.a)) return wrong;
        if (sorting.by == By::kNothing) b.plan.by = By::kNothing;
        if (in_place) b.ring = make_ring(m, image, b.plan.in, b.a, memory);
        if (in_place) b.edges = make_edges(m, image, b.a, memory);
    }
    if (plans.loose > 0) parts[0].loose = make_loose(few_image, parts[0].plan, parts[0].in, parts[0].out, memory);
    const int32_t* order = parts[0].a.order;
    float* buffers = memory.take<float>(threads * floats);
    float* few = memory.take<float>(shared);
    float* copies = memory.take<float>(threads * private_dw);
    Share* all_shares = memory.take<Share>(threads * shares);
    // Where there are few images alone, every thread has row groups of its own to add to.
    const bool together = parts[0].plan.folded();
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads(), sums = together ? 1 : team;
        float* sum_of = dw == nullptr ? nullptr : (together || id == 0) && order == nullptr ? dw : copies + (together ? 0 : id * private_dw);
        const int64_t begin = together ? weights * id / team : 0, end = together ? weights * (id + 1) / team : weights;
        if (dw != nullptr) std::memset(sum_of + begin, 0, static_cast<size_t>(end - begin) * 4);
        for (int i = 0; i < plans.count; ++i) {
            backward_share(parts[i], id, team, few, {buffers + id * floats, all_shares + id * shares, sum_of, {}, {0, 0}});
        }
        drain_streams();
        const bool add = dw != nullptr && (sums > 1 || order != nullptr);
#pragma omp barrier
        const Copies all{order == nullptr ? dw : copies, copies, private_dw, sums, order};
        if (add) add_copies(m, all, m.stored * id / team, m.stored * (id + 1) / team, dw);
    }
    return nullptr;
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
