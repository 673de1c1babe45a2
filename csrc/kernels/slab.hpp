// The layout that convolutions work on: lines of a padded image, [line][channel][phase][pixel][lane], the lanes being up to 16 images
// of the batch.  With a horizontal stride s the pixels of a line are split in s phases, so that neighbouring outputs always read
// neighbouring places.  Only a window of some lines exists at a time; it slides down the image.
#pragma once

#include <cstring>

#include "memory.hpp"
#include "pack.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

constexpr int64_t kRun = 256;             // contiguous elements that a transfer moves at least, if they fit kTransfer
constexpr int64_t kTransfer = 384 << 10;  // elements that a transfer moves at most, if it is not a single vector of pixels
constexpr int64_t kStreamed = 8 << 20;    // bytes from which on a tensor is written past the caches

struct Slab {
    int64_t lanes, images, channels, height, width;  // of the tensor [images, channels, height, width]
    int64_t pad_top;
    int64_t channel, line;       // strides, in elements
    int64_t grain;               // lines that are packed together
    const int32_t* at;           // [grain * width], where each pixel goes
    const int32_t* holes;        // places of a channel's line that no pixel goes to
    int64_t n_holes;
    bool cropped;
    bool straight;               // the pixels of a line lie side by side, in order
};

struct SlabShape {
    int64_t lanes, images, channels, height, width, pad_top, pad_left, phases;
    int64_t pixels;              // places in a phase
    bool plain;                  // the tensor is NCHW, where short lines cost
    int64_t spare = 0;           // channels after the tensor's, which packing leaves alone
    int64_t in_cache_line = 16;  // elements
    int64_t row = 0, pitch = 0;  // pixels of an image line, and places from one to the next, where a slab's line holds them all
    bool bare = false;           // strides are those of a blocked tensor, which is read where it is
};

OW_INLINE int64_t slab_channel(const SlabShape& s) {
    const int64_t channel = s.phases * s.pixels * s.lanes;
    return s.bare ? channel : odd_lines(channel, s.in_cache_line);
}
OW_INLINE int64_t slab_line(const SlabShape& s) {
    const int64_t line = (s.channels + s.spare) * slab_channel(s);
    return s.bare ? line : odd_lines(line, s.in_cache_line);
}

// Lines that move together: enough for whole vectors of pixels in narrow images, and for runs of memory that make the hardware
// prefetch.
OW_INLINE int64_t slab_grain(const SlabShape& s) {
    if (!s.plain) return 1;
    const int64_t least_lines = (kBatchLanes + s.width - 1) / s.width, run = (kRun + s.width - 1) / s.width;
    return most<int64_t>(1, least(most(least_lines, least(run, kTransfer / slab_line(s))), s.height));
}
OW_INLINE int64_t slab_table_bytes(const SlabShape& s) { return (slab_grain(s) * s.width + s.phases * s.pixels) * 4 + 128; }

OW_INLINE Slab make_slab(const SlabShape& s, Memory& memory) {
    const int64_t grain = slab_grain(s), line = slab_line(s), places = s.phases * s.pixels;
    int32_t* at = memory.take<int32_t>(grain * s.width);
    int32_t* holes = memory.take<int32_t>(places);
    for (int64_t p = 0; p < places; ++p) holes[p] = 1;
    bool cropped = false;
    for (int64_t w = 0; w < s.width; ++w) {
        const int64_t padded = s.pad_left + (s.row > 0 ? w / s.row * s.pitch + w % s.row : w);
        const int64_t place = padded % s.phases * s.pixels + padded / s.phases;
        const bool out = padded < 0 || padded / s.phases >= s.pixels;
        cropped = cropped || out;
        if (!out) holes[place] = 0;
        for (int64_t i = 0; i < grain; ++i) at[i * s.width + w] = out ? -1 : static_cast<int32_t>(i * line + place * s.lanes);
    }
    int64_t n = 0;
    for (int64_t p = 0; p < places; ++p) {
        if (holes[p]) holes[n++] = static_cast<int32_t>(p * s.lanes);
    }
    return {s.lanes, s.images, s.channels, s.height, s.width, s.pad_top, slab_channel(s), line, grain, at, holes, n, cropped,
            s.phases == 1 && !cropped && s.row == 0};
}

template <typename T>
OW_INLINE void zero_lines(const Slab& s, T* lines, int64_t count) { std::memset(lines, 0, static_cast<size_t>(count * s.line) * sizeof(T)); }

// Padded lines [from, to) of the images of panel `panel`, to `lines`.
template <typename From, typename To>
void pack_lines(const Slab& s, const From* x, int64_t panel, int64_t from, int64_t to, To* lines) {
    const int64_t image = panel * s.lanes, plane = s.height * s.width, first = from;
    Move move{s.at, 0, s.channels * plane, least(s.lanes, s.images - image), s.lanes, s.cropped, false, plane};
    while (from < to) {
        To* base = lines + (from - first) * s.line;
        const int64_t h = from - s.pad_top;
        if (h < 0 || h >= s.height) {
            zero_lines(s, base, 1);
            ++from;
            continue;
        }
        const int64_t n = least(least(s.grain, to - from), s.height - h);
        move.count = n * s.width;
        for (int64_t c = 0; c < s.channels; ++c) {
            pack(move, x + (image * s.channels + c) * plane + h * s.width, base + c * s.channel);
            for (int64_t i = 0; i < n; ++i) {
                for (int64_t q = 0; q < s.n_holes; ++q) {
                    To* hole = base + i * s.line + c * s.channel + s.holes[q];
                    for (int64_t l = 0; l < s.lanes; ++l) hole[l] = To{};
                }
            }
        }
        from += n;
    }
}

// The pixels of padded lines [from, to), back to the tensor.
template <typename From, typename To>
void unpack_lines(const Slab& s, const From* lines, int64_t panel, int64_t from, int64_t to, To* y) {
    const int64_t image = panel * s.lanes, plane = s.height * s.width, first = from;
    const bool streamed = s.images * s.channels * plane * static_cast<int64_t>(sizeof(To)) >= kStreamed;
    Move move{s.at, 0, s.channels * plane, least(s.lanes, s.images - image), s.lanes, s.cropped, streamed};
    from = most(from, s.pad_top);
    to = least(to, s.pad_top + s.height);
    while (from < to) {
        const From* base = lines + (from - first) * s.line;
        const int64_t n = least(s.grain, to - from);
        move.count = n * s.width;
        for (int64_t c = 0; c < s.channels; ++c) {
            unpack(move, base + c * s.channel, y + (image * s.channels + c) * plane + (from - s.pad_top) * s.width);
        }
        from += n;
    }
}

// A window of padded lines in memory, [base, base + capacity); those below `filled` are there.
template <typename T>
struct WindowOf {
    T* lines;
    int64_t capacity, base, filled;

    T* line(const Slab& s, int64_t l) const { return lines + (l - base) * s.line; }

    // Moves the window so that it holds [from, to), keeping what is in it already; lines before `from` are forgotten.
    void slide(const Slab& s, int64_t from, int64_t to) {
        if (to > base + capacity) {
            const int64_t keep = most<int64_t>(0, filled - from);
            if (keep > 0) std::memmove(lines, line(s, from), static_cast<size_t>(keep * s.line) * sizeof(T));
            base = from;
        }
        filled = most(filled, from);
    }
};
using Window = WindowOf<float>;

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
