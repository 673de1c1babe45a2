// Two-dimensional convolutions in bfloat16, summed in float, from and to either layout.  As in conv.cpp, a thread carries 16 images down
// their lines; a vector holds two neighbouring pixels of them.
#include "conv_bf16.hpp"

#include <omp.h>

#include "../scratch.hpp"
#include "conv_shapes.hpp"
#include "lines.hpp"
#include "tiles_bf16.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kDotTiles = 16;  // tiles that one reduction of the weight gradient runs over
constexpr int64_t kFetches = 8;    // of what is read next, during one pass over the weights

// The lanes of blocked activations are given.
Shapes shapes_of(const Stored& m, const Image& image, bool plain_in, bool plain_out, bool blocked) {
    return shapes(m, image, blocked ? kBatchLanes : batch_lanes(image.batch), kTile, plain_in, plain_out);
}

int64_t tiles_of(const Shapes& p) { return p.vectors * kLanes / kTile; }

struct Forward {
    const Lowered* a;
    const ColumnPairs* pairs;
    const Image* image;
    Slab in, out;
    ActivationBF16 x;
    const float* bias;
    ResultBF16 y;
    int64_t tiles, out_lines, piece;
};

// Output lines [from, to) of one panel.
void forward_lines(const Forward& f, int64_t panel, int64_t from, int64_t to, WindowOf<BFloat16> window, BFloat16* out) {
    const int64_t stride = f.image->stride_h, span = f.image->span_h(), end = (to - 1) * stride + span;
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
            BFloat16* to_line = out + i * f.out.line;
            LinesAhead ahead(f.in, f.x, panel, window.filled, stride);
            for (int64_t t = 0; t < f.tiles; t += f.piece) {
                const BFloat16* in = window.line(f.in, first) + t * kTile;
                ahead.fetch(t, f.tiles);
                gather_any(*f.a, *f.pairs, 0, f.a->groups, in, kTile, to_line + t * kTile, kTile, least(f.piece, f.tiles - t));
            }
            fill_missing(*f.a, f.bias, to_line, f.out.channel, kTile, f.tiles);
        }
        write_lines(f.out, out, panel, h - flush, h, f.y);
    }
}

}  // namespace

Failure conv_forward_bf16(const Stored& m, const Image& image, const ActivationBF16& x, const float* bias, const ResultBF16& y, int threads) {
    if (image.batch == 0 || m.n_rows == 0) return nullptr;
    Shapes p = shapes_of(m, image, x.plain != nullptr, y.plain != nullptr, x.blocked() || y.blocked != nullptr);
    p.in.spare = 1;  // a channel of zeros
    const int64_t lines = window_lines(image, p.in, 1), out_lines = slab_grain(p.out);
    const int64_t size = lines * slab_line(p.in) + out_lines * slab_line(p.out);
    Scratch scratch(static_cast<size_t>(lowered_bytes(m) + pairs_bytes(m) + slab_table_bytes(p.in) + slab_table_bytes(p.out) +
                                        image.taps() * 8 + threads * size * 2 + 1024));
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    Lowered a;
    const Slab in = make_slab(p.in, memory), out = make_slab(p.out, memory);
    const Addressing at{in.channel, image.taps(), tap_offsets(image, p.in, 0, memory), out.channel};
    if (Failure wrong = lower(m, at, bias, memory.take<char>(lowered_bytes(m)), threads, a)) return wrong;
    const ColumnPairs pairs = make_pairs(m, a, memory);
    const int64_t zeros = in.channels * in.channel;
    const Forward f{&a, &pairs, &image, in, out, x, bias, y, tiles_of(p), out_lines, m.height >= 8 ? 1 : m.height > 1 ? 2 : 4};
    BFloat16* buffers = memory.take<BFloat16>(threads * size);
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num();
        BFloat16* mine = buffers + id * size;
        for (int64_t l = 0; l < lines; ++l) std::memset(mine + l * in.line + zeros, 0, static_cast<size_t>(in.channel) * 2);
#pragma omp for schedule(static)
        for (int64_t g = 0; g < a.groups; ++g) pair_group(a, g, static_cast<int32_t>(zeros), pairs);
        share_lines(p.panels, p.out_height, 1, id, omp_get_num_threads(), [&](int64_t panel, int64_t from, int64_t to) {
            forward_lines(f, panel, from, to, {mine, lines, 0, 0}, mine + lines * in.line);
        });
        drain_streams();
    }
    return nullptr;
}

namespace {

struct Backward {
    const Lowered* a;
    const Image* image;
    Slab in, out;
    ActivationBF16 g, x;
    ResultBF16 dx;
    BFloat16* weights;
    int64_t tiles, out_height, block, dot_lines;
};

// What one thread works in.
struct Own {
    WindowOf<BFloat16> x;
    WindowOf<float> dx;
    BFloat16* g;
    float *packed, *dw;
};

// The weight gradient of `count` output lines whose windows begin at `x`.
void dot_block(const Backward& b, const BFloat16* x, const BFloat16* g, int64_t count, const Own& own) {
    const int64_t step = b.image->stride_h * b.in.line;
    for (int64_t i = 0; i < count; i += b.dot_lines) {
        for (int64_t t = 0; t < b.tiles; t += kDotTiles) {
            const Places places{least(b.dot_lines, count - i), step, b.out.line, least(kDotTiles, b.tiles - t)};
            dots(*b.a, 0, b.a->groups, x + i * step + t * kTile, g + i * b.out.line + t * kTile, places, own.packed, own.dw);
        }
    }
}

// Output lines [from, to) of one panel: their share of the weight gradient is added to dw, and dx is written from the padded line at
// which the window of line `from` begins to that of line `to`.  The windows of some lines before reach into it: those are added
// again, in the same order as by whoever has these lines.
void backward_lines(const Backward& b, int64_t panel, int64_t from, int64_t to, Own own) {
    const int64_t stride = b.image->stride_h, span = b.image->span_h(), start = from * stride, some = (b.a->groups + kFetches - 1) / kFetches;
    const int64_t all = most(b.image->height + b.image->pad_h, (b.out_height - 1) * stride + span);
    const int64_t before = b.dx.given() ? least(from, (span - 1) / stride) : 0;
    own.x.base = own.x.filled = start;
    own.dx.base = own.dx.filled = start - before * stride;
    for (int64_t h = from - before; h < to;) {
        const int64_t count = least(b.block, (h < from ? from : to) - h), first = h * stride, last = first + (count - 1) * stride + span;
        read_lines(b.out, b.g, panel, h, h + count, own.g);
        if (own.dw != nullptr && h >= from) {
            own.x.slide(b.in, first, last);
            if (own.x.filled < last) read_lines(b.in, b.x, panel, own.x.filled, last, own.x.line(b.in, own.x.filled));
            own.x.filled = most(own.x.filled, last);
            dot_block(b, own.x.line(b.in, first), own.g, count, own);
        }
        h += count;
        if (!b.dx.given()) continue;
        own.dx.slide(b.in, first, last);
        zero_lines(b.in, own.dx.line(b.in, own.dx.filled), last - own.dx.filled);
        own.dx.filled = last;
        for (int64_t i = 0; i < count; ++i) {
            LinesAhead ahead(b.out, b.g, panel, h + i, 1);
            for (int64_t group = 0; group < b.a->groups; group += some) {
                ahead.fetch(group, b.a->groups);
                scatter_any(*b.a, group, least(group + some, b.a->groups), b.weights, own.dx.line(b.in, first + i * stride), kTile,
                            own.g + i * b.out.line, kTile, b.tiles);
            }
        }
        // The lines before the next block's first one are complete.
        const bool end = h == b.out_height;
        const int64_t done = end ? last : least(last, first + count * stride), begin = most(first, start);
        if (begin < done) write_lines(b.in, own.dx.line(b.in, begin), panel, begin, done, b.dx);
        for (int64_t l = most(done, start); l < (end ? all : least(all, first + count * stride)); ++l) {
            zero_lines(b.in, own.dx.lines, 1);
            own.dx.base = own.dx.filled = l;
            write_lines(b.in, own.dx.lines, panel, l, l + 1, b.dx);
        }
    }
}

}  // namespace

Failure conv_backward_bf16(const Stored& m, const Image& image, const ActivationBF16& g, const ActivationBF16& x, const ResultBF16& dx,
                           float* dw, int threads) {
    const int64_t weights = m.stored * m.height, even = up(m.height, 2);
    if (dw != nullptr) std::memset(dw, 0, static_cast<size_t>(weights) * 4);
    if (image.batch == 0) return nullptr;
    const bool blocked = g.blocked() || x.blocked() || dx.blocked != nullptr;
    const Shapes p = shapes_of(m, image, x.plain != nullptr || dx.plain != nullptr, g.plain != nullptr, blocked);
    const int64_t tiles = tiles_of(p), dot_lines = most<int64_t>(1, kDotTiles / tiles);
    const int64_t block = most(least(dot_lines, p.out_height), slab_grain(p.out)), lines = window_lines(image, p.in, block);
    const int64_t window = lines * slab_line(p.in), g_size = block * slab_line(p.out);
    const int64_t halves = g_size + (dw != nullptr ? window : 0);
    const int64_t dx_size = dx.given() ? window : 0, packed = dw != nullptr ? kDotTiles * 16 * kLanes : 0, copy = dw != nullptr ? up(weights, 16) : 0;
    const int64_t floats = dx_size + packed + copy;
    Scratch scratch(static_cast<size_t>(lowered_bytes(m) + slab_table_bytes(p.in) + slab_table_bytes(p.out) + image.taps() * 8 +
                                        m.stored * even * 2 + threads * (halves * 2 + floats * 4) + 1024));
    if (scratch.data() == nullptr) return "out of memory";
    Memory memory{scratch.data()};
    Lowered a;
    const Slab in = make_slab(p.in, memory), out = make_slab(p.out, memory);
    const Addressing at{in.channel, image.taps(), tap_offsets(image, p.in, 0, memory), out.channel};
    if (Failure wrong = lower(m, at, nullptr, memory.take<char>(lowered_bytes(m)), threads, a)) return wrong;
    const Backward b{&a, &image, in, out, g, x, dx, memory.take<BFloat16>(m.stored * even), tiles, p.out_height, block, dot_lines};
    BFloat16* all_halves = memory.take<BFloat16>(threads * halves);
    float* all_floats = memory.take<float>(threads * floats);
#pragma omp parallel num_threads(threads)
    {
        const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
        BFloat16* mine = all_halves + id * halves;
        float* sums = all_floats + id * floats;
        float* copies = sums + dx_size + packed;
        float* my_dw = dw == nullptr ? nullptr : id == 0 ? dw : copies;
        if (my_dw != nullptr && id > 0) std::memset(my_dw, 0, static_cast<size_t>(weights) * 4);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < (dx.given() ? a.groups : 0); ++group) narrow_group(a, group, b.weights);
        const Own own{{mine + g_size, lines, 0, 0}, {sums, lines, 0, 0}, mine, sums + dx_size, my_dw};
        // Whole panels where they can be shared out evenly, for the lines between two threads are computed twice.
        share_lines(p.panels, p.out_height, p.panels % team == 0 ? p.out_height : 1, id, team,
                    [&](int64_t panel, int64_t from, int64_t to) { backward_lines(b, panel, from, to, own); });
        drain_streams();
#pragma omp barrier
        for (int64_t i = weights * id / team; dw != nullptr && i < weights * (id + 1) / team; ++i) {
            float sum = dw[i];
            for (int64_t t = 1; t < team; ++t) sum += all_floats[t * floats + dx_size + packed + i];
            dw[i] = sum;
        }
    }
    return nullptr;
}

void plane_sums_bf16(const BFloat16* x, int64_t planes, int64_t pixels, float* sums_out, int threads) {
    const __m512i ones = _mm512_set1_epi16(0x3f80);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t p = 0; p < planes; ++p) {
        const BFloat16* from = x + p * pixels;
        Vec sum[4] = {};
        int64_t i = 0;
        for (; i + 4 * kTile <= pixels; i += 4 * kTile) {
            OW_UNROLL
            for (int v = 0; v < 4; ++v) sum[v] = dot2(sum[v], words(from + i + v * kTile), ones);
        }
        for (; i < pixels; i += kTile) sum[0] = dot2(sum[0], _mm512_maskz_loadu_epi16(first_words(pixels - i), from + i), ones);
        sums_out[p] = _mm512_reduce_add_ps((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
