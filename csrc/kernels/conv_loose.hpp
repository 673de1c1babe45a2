// The last images of a batch where they are so few that all their outputs fit a few vectors.  Sixteen outputs lie side by side in the
// lanes of what looks like a single pixel of the other images' slabs, and at the place of every tap lies what they read there: the
// columns of the other images serve these, too, as they are, and their weight gradients are part of the same sums.
#pragma once

#include "conv_few.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

// Neighbouring numbers: of a channel's padded images, or of a row's outputs, and in the units.
struct Run {
    int64_t apart, at, count;
};

struct Loose {
    Image image;    // of these images alone
    int64_t units;  // of sixteen outputs
    Slab in, out;
    int64_t cut, window;    // where a unit's window begins, of so many floats
    int64_t plane;          // floats of a channel's padded images
    const int64_t* taps;    // from where a window begins
    const Run *inputs, *outputs;
    int64_t n_inputs, n_outputs;

    bool given() const { return units > 0; }
    bool ragged() const { return units * kBatchLanes != image.batch * image.out_height() * image.out_width(); }
};

// What one thread has of them.
struct LooseMemory {
    float *x, *y, *planes;
};

OW_INLINE int64_t loose_units(const Image& image) { return (image.batch * image.out_height() * image.out_width() + kBatchLanes - 1) / kBatchLanes; }
OW_INLINE int64_t loose_lines(const Image& image) { return image.batch * image.out_height() + loose_units(image); }
OW_INLINE int64_t loose_plane(const Image& m) { return up(m.batch * (m.height + 2 * m.pad_h) * (m.width + 2 * m.pad_w), kBatchLanes); }
OW_INLINE int64_t loose_bytes(const Image& m) {
    return ((m.taps() + 1) * loose_lines(m)) * static_cast<int64_t>(sizeof(Run)) + m.taps() * 8 + 192;
}
OW_INLINE int64_t loose_floats(const Image& m, const Plan& p) {
    return loose_units(m) * (m.span_h() * slab_line(p.in) + slab_line(p.out)) + p.in.channels * loose_plane(m);
}
OW_INLINE LooseMemory loose_memory(const Loose& l, float* memory) {
    float* y = memory + l.units * l.window;
    return {memory, y, y + l.units * l.out.line};
}

// Calls run(lane of the units, elements before, count) for what `count` lanes from `lane` on have in each unit.
template <typename F>
OW_INLINE void in_units(int64_t lane, int64_t count, const F& run) {
    for (int64_t done = 0; done < count;) {
        const int64_t n = least(count - done, kBatchLanes - (lane + done) % kBatchLanes);
        run(lane + done, done, n);
        done += n;
    }
}

OW_INLINE Loose make_loose(const Image& m, const Plan& p, const Slab& in, const Slab& out, Memory& memory) {
    const int64_t cut = p.by == By::kTap ? m.pad_w : 0, window = m.span_h() * in.line, lanes = kBatchLanes;
    const int64_t width = m.out_width(), pixels = m.out_height() * width, padded_h = m.height + 2 * m.pad_h, padded_w = m.width + 2 * m.pad_w;
    const int64_t* taps = tap_offsets(m, p.in, cut, memory);
    Run* inputs = memory.take<Run>(m.taps() * loose_lines(m));
    Run* outputs = memory.take<Run>(loose_lines(m));
    int64_t n_inputs = 0, n_outputs = 0;
    for (int64_t tap = 0; tap < m.taps(); ++tap) {
        const int64_t top = tap / m.kernel_w * m.dilation_h, left = tap % m.kernel_w * m.dilation_w;
        for (int64_t line = 0; line < m.batch * m.out_height(); ++line) {
            const int64_t from = (line / m.out_height() * padded_h + line % m.out_height() + top) * padded_w + left;
            in_units(line * width, width, [&](int64_t lane, int64_t done, int64_t n) {
                const int64_t at = lane / lanes * window + (cut * lanes + taps[tap]) + lane % lanes;
                inputs[n_inputs++] = {from + done, at, n};
            });
        }
    }
    for (int64_t image = 0; image < m.batch; ++image) {
        in_units(image * pixels, pixels, [&](int64_t lane, int64_t done, int64_t n) {
            const int64_t from = image * out.channels * pixels + done, at = lane / lanes * out.line + lane % lanes;
            outputs[n_outputs++] = {from, at, n};
        });
    }
    return {m, loose_units(m), in, out, cut * lanes, window, loose_plane(m), taps, inputs, outputs, n_inputs, n_outputs};
}

// Calls line(of the tensor, of the padded images) for every line of every channel.
template <typename F>
OW_INLINE void loose_image_lines(const Loose& l, const F& line) {
    const Image& m = l.image;
    const int64_t padded_h = m.height + 2 * m.pad_h, padded_w = m.width + 2 * m.pad_w;
    for (int64_t c = 0; c < l.in.channels; ++c) {
        for (int64_t image = 0; image < m.batch; ++image) {
            for (int64_t h = 0; h < m.height; ++h) {
                line(((image * l.in.channels + c) * m.height + h) * m.width, c * l.plane + (image * padded_h + m.pad_h + h) * padded_w + m.pad_w);
            }
        }
    }
}

OW_INLINE void zero_floats(float* x, int64_t count) { std::memset(x, 0, static_cast<size_t>(count) * 4); }

OW_INLINE void pack_loose_inputs(const Loose& l, const float* x, const LooseMemory& to) {
    zero_floats(to.planes, l.in.channels * l.plane);
    if (l.ragged()) zero_floats(to.x, l.units * l.window);
    loose_image_lines(l, [&](int64_t from, int64_t plane) { copy_column(x + from, to.planes + plane, l.image.width); });
    for (int64_t i = 0; i < l.n_inputs; ++i) {
        const Run& run = l.inputs[i];
        const float* from = to.planes + run.apart;
        float* unit = to.x + run.at;
        for (int64_t c = 0; c < l.in.channels; ++c, from += l.plane, unit += l.in.channel) {
            if (run.count == 4) copy_column(from, unit, 4); else copy_column(from, unit, run.count);
        }
    }
}

OW_INLINE void pack_loose_outputs(const Loose& l, const float* y, const LooseMemory& to) {
    const int64_t pixels = l.image.out_height() * l.image.out_width();
    if (l.ragged()) zero_floats(to.y, l.units * l.out.line);
    for (int64_t row = 0; row < l.out.channels; ++row) {
        for (int64_t i = 0; i < l.n_outputs; ++i) {
            copy_column(y + row * pixels + l.outputs[i].apart, to.y + row * l.out.channel + l.outputs[i].at, l.outputs[i].count);
        }
    }
}

OW_INLINE void unpack_loose_row(const Loose& l, const LooseMemory& from, int64_t row, float* y) {
    const int64_t pixels = l.image.out_height() * l.image.out_width();
    for (int64_t i = 0; i < l.n_outputs; ++i) {
        copy_column(from.y + row * l.out.channel + l.outputs[i].at, y + row * pixels + l.outputs[i].apart, l.outputs[i].count);
    }
}

// The rows of one thread's groups.  The inputs are packed by every thread for itself.
[[maybe_unused]] static void loose_forward(const Loose& l, const Sorted& a, const float* x, const float* bias, float* y, float* memory,
                                           int64_t id, int64_t team) {
    const LooseMemory mine = loose_memory(l, memory);
    const Range groups{share(a.a, id, team), share(a.a, id + 1, team)};
    constexpr int64_t kVectors = kBatchLanes / kLanes;
    pack_loose_inputs(l, x, mine);
    for (int64_t u = 0; u < l.units; ++u) {
        few_product(a, groups, mine.x + u * l.window + l.cut, mine.y + u * l.out.line, kVectors);
        if (id == 0) fill_missing(a.a, bias, mine.y + u * l.out.line, l.out.channel, kVectors);
    }
    for (int64_t i = groups.from * a.a.height; i < groups.to * a.a.height; ++i) {
        if (a.a.rows[i] >= 0) unpack_loose_row(l, mine, a.a.rows[i] / l.out.channel, y);
    }
    for (int64_t i = 0; i < a.a.n_missing && id == 0; ++i) unpack_loose_row(l, mine, a.a.missing[i], y);
}

// What the columns address; there is more between the taps.
OW_INLINE void zero_taps(const Loose& l, float* units) {
    for (int64_t u = 0; u < l.units; ++u) {
        for (int64_t tap = 0; tap < l.image.taps(); ++tap) {
            float* place = units + u * l.window + l.cut + l.taps[tap];
            for (int64_t c = 0; c < l.in.channels; ++c, place += l.in.channel) {
                OW_UNROLL
                for (int64_t i = 0; i < kBatchLanes; i += kLanes) store(place + i, Vec{});
            }
        }
    }
}

// The input gradient.
[[maybe_unused]] static void loose_scatter(const Loose& l, const Sorted& a, const float* g, float* dx, float* memory) {
    const LooseMemory mine = loose_memory(l, memory);
    pack_loose_outputs(l, g, mine);
    zero_taps(l, mine.x);
    zero_floats(mine.planes, l.in.channels * l.plane);
    for (int64_t u = 0; u < l.units; ++u) {
        few_scatter(a, {0, a.a.groups}, mine.x + u * l.window + l.cut, mine.y + u * l.out.line, kBatchLanes / kLanes);
    }
    // Run by run, for neighbouring runs of a channel overlap: the processor would wait for what it has just written.
    for (int64_t i = 0; i < l.n_inputs; ++i) {
        const Run& run = l.inputs[i];
        const float* unit = mine.x + run.at;
        float* to = mine.planes + run.apart;
        for (int64_t c = 0; c < l.in.channels; ++c, unit += l.in.channel, to += l.plane) {
            if (run.count == 4) add_column(unit, to, 4); else add_column(unit, to, run.count);
        }
    }
    loose_image_lines(l, [&](int64_t to, int64_t plane) { copy_column(mine.planes + plane, dx + to, l.image.width); });
}

// What the weight gradients are summed over.
OW_INLINE Apart loose_places(const Loose& l, const float* g, const float* x, float* memory) {
    const LooseMemory mine = loose_memory(l, memory);
    pack_loose_outputs(l, g, mine);
    pack_loose_inputs(l, x, mine);
    return {mine.x + l.cut, mine.y, l.units, l.window, l.out.line};
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
