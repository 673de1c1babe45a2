// Lines of blocked activations [panel][line][channel][pixel][16]: to and from the slabs of convolutions, and their moments.
#pragma once

#include "lazy.hpp"
#include "slab.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

OW_INLINE int64_t blocked_line(const Slab& s) { return s.channels * s.width * kBatchLanes; }
OW_INLINE int64_t blocked_lanes(int64_t batch, int64_t panel) { return least(kBatchLanes, batch - panel * kBatchLanes); }

// Whether an activation is numbers that a product can read where they are.
template <typename T>
OW_INLINE bool bare(const ActivationOf<T>& x) {
    const LazyOf<T>& z = x.lazy;
    return x.blocked() && z.y == nullptr && z.gate == nullptr && z.keep == nullptr && z.a == nullptr && z.shift == nullptr && !z.relu;
}
// Where padded line l of panel `panel` is, if it is a line of the image.
template <typename T>
OW_INLINE const T* bare_line(const Slab& s, const ActivationOf<T>& x, int64_t panel, int64_t l) {
    return x.lazy.x + (panel * s.height + l - s.pad_top) * s.line;
}

// A blocked tensor seen as the slab of an image without padding.
OW_INLINE int64_t unpadded_table_bytes(const Shape& shape, int64_t grain) { return up(grain * shape.width * 4, 64); }
OW_INLINE Slab unpadded_slab(const Shape& shape, int64_t grain, Memory& memory) {
    const int64_t channel = shape.width * kBatchLanes, line = shape.channels * channel;
    int32_t* at = memory.take<int32_t>(grain * shape.width);
    for (int64_t i = 0; i < grain; ++i) {
        for (int64_t w = 0; w < shape.width; ++w) at[i * shape.width + w] = static_cast<int32_t>(i * line + w * kBatchLanes);
    }
    return {kBatchLanes, shape.batch, shape.channels, shape.height, shape.width, 0, channel, line, grain, at, nullptr, 0, false, true};
}

template <typename To>
struct FillLine {
    const Slab& s;
    int64_t offset;
    To* to;

    template <typename R, typename From>
    void run(const LazyOf<From>& z) const {
        const int64_t strip = s.width * kBatchLanes, channels = s.channels;
        To* channel = to;
        for (int64_t c = 0; c < channels; ++c, channel += s.channel) {
            const R read(z, c, offset + c * strip);
            if (s.straight) {
                To* run = channel + s.at[0];
                for (int64_t i = 0; i < strip; i += kLanes) store(run + i, read(i));
                continue;
            }
            for (int64_t w = 0; w < s.width; ++w) {
                if (s.cropped && s.at[w] < 0) continue;
                OW_UNROLL
                for (int64_t l = 0; l < kBatchLanes; l += kLanes) store(channel + s.at[w] + l, read(w * kBatchLanes + l));
            }
        }
    }
};

// Which lanes of each vector of a pixel belong to the batch: 1 where they do, else 0.
struct Valid {
    Vec in[kBatchLanes / kLanes];
    explicit Valid(int64_t lanes) {
        float flags[kBatchLanes];
        for (int64_t l = 0; l < kBatchLanes; ++l) flags[l] = l < lanes ? 1.0f : 0.0f;
        for (int64_t l = 0; l < kBatchLanes / kLanes; ++l) in[l] = load(flags + l * kLanes);
    }
    template <bool Ragged>
    Vec only(Vec v, int64_t l) const {
        if constexpr (Ragged) return open(in[l], v);
        return v;
    }
};

// Padded lines [from, to) of panel `panel`, to `lines`; lanes beyond the batch read as 0.
template <typename From, typename To>
void fill_lines(const Slab& s, const LazyOf<From>& z, int64_t panel, int64_t from, int64_t to, To* lines) {
    const int64_t lanes = blocked_lanes(s.images, panel);
    const Valid valid(lanes);
    for (int64_t l = from; l < to; ++l) {
        To* base = lines + (l - from) * s.line;
        const int64_t h = l - s.pad_top;
        if (h < 0 || h >= s.height) {
            zero_lines(s, base, 1);
            continue;
        }
        with_reader(z, FillLine<To>{s, (panel * s.height + h) * blocked_line(s), base});
        for (int64_t c = 0; c < s.channels; ++c) {
            for (int64_t q = 0; q < s.n_holes; ++q) {
                for (int64_t i = 0; i < kBatchLanes; i += kLanes) store(base + c * s.channel + s.holes[q] + i, Vec{});
            }
            for (int64_t w = 0; lanes < kBatchLanes && w < s.width; ++w) {
                To* pixel = base + c * s.channel + s.at[w];
                for (int64_t i = 0; s.at[w] >= 0 && i < kBatchLanes; i += kLanes) store(pixel + i, valid.only<true>(load(pixel + i), i / kLanes));
            }
        }
    }
}

// One channel of a line, to `out`.
template <bool Stream, typename From, typename To>
OW_INLINE void write_channel(const Slab& s, const From* from, To* out) {
    const int64_t width = s.width;
    if (s.straight) {
        from += s.at[0];
        for (int64_t i = 0; i < width * kBatchLanes; i += kLanes) move<Stream>(from + i, out + i);
        return;
    }
    for (int64_t w = 0; w < width; ++w) {
        OW_UNROLL
        for (int64_t l = 0; l < kBatchLanes; l += kLanes) {
            if (s.cropped && s.at[w] < 0) {
                store(out + w * kBatchLanes + l, Vec{});
            } else {
                move<Stream>(from + s.at[w] + l, out + w * kBatchLanes + l);
            }
        }
    }
}

// How the pixels of a channel differ from the first: the sums of the differences and of their squares.  Neighbours are summed apart,
// so that one addition need not wait for the other.
template <bool Ragged, typename From>
OW_INLINE void spread(const From* from, const int32_t* at, int64_t width, const Valid& valid, Vec& sum, Vec& squares) {
    const Vec first = broadcast(number(from[at[0]]));
    Vec sums[2] = {Vec{}, Vec{}}, of_squares[2] = {Vec{}, Vec{}};
    const auto add = [&](int64_t w, int side) {
        OW_UNROLL
        for (int64_t l = 0; l < kBatchLanes / kLanes; ++l) {
            const Vec d = valid.template only<Ragged>(load(from + at[w] + l * kLanes) - first, l);
            sums[side] += d;
            of_squares[side] += d * d;
        }
    };
    int64_t w = 0;
    for (; w + 2 <= width; w += 2) {
        add(w, 0);
        add(w + 1, 1);
    }
    if (w < width) add(w, 0);
    sum = sums[0] + sums[1];
    squares = of_squares[0] + of_squares[1];
}

// Channels of a slab, by their ids if those are given.
struct Channels {
    const int32_t* ids;
    int64_t first, count;
    int64_t operator[](int64_t i) const { return ids == nullptr ? first + i : ids[first + i]; }
};

// Some channels of a line of a slab: written to `out` if that is given, and their moments, the mean and the sum of squared distances
// from it, if those are wanted.  Differences from the line's first pixel keep the squares free of the mean.
template <bool Ragged, bool Stream, typename From, typename To>
OW_INLINE void drain_channels(const Slab& s, const From* line, const Channels& channels, int64_t lanes, To* out, float* moments) {
    const Valid valid(lanes);
    const Vec count = broadcast(static_cast<float>(s.width * lanes));
    const int64_t strip = s.width * kBatchLanes;
    for (int64_t c = 0; c < channels.count; c += kLanes) {
        Vec sum[kLanes], squares[kLanes];
        float first[kLanes];
        const int64_t n = least<int64_t>(kLanes, channels.count - c);
        for (int64_t j = 0; j < n; ++j) {
            const From* from = line + channels[c + j] * s.channel;
            if (moments != nullptr) {
                first[j] = number(from[s.at[0]]);
                spread<Ragged>(from, s.at, s.width, valid, sum[j], squares[j]);
            }
            if (out != nullptr) write_channel<Stream>(s, from, out + channels[c + j] * strip);
        }
        if (moments == nullptr) continue;
        for (int64_t j = n; j < kLanes; ++j) {
            sum[j] = squares[j] = Vec{};
            first[j] = 0.0f;
        }
        const Vec total = sums(sum), off = total / count;
        float mean[kLanes], distance[kLanes];
        store(mean, load(first) + off);
        store(distance, sums(squares) - total * off);
        for (int64_t j = 0; j < n; ++j) {
            float* of_channel = moments + 2 * channels[c + j];
            of_channel[0] = mean[j];
            of_channel[1] = distance[j];
        }
    }
}

// Channels of line h of the image, from a slab's line to a blocked tensor, if that is given, and their moments, if those are.
template <typename From, typename To>
void drain_line(const Slab& s, const From* line, const Channels& channels, int64_t panel, int64_t h, const ResultOf<To>& y) {
    const int64_t panels = (s.images + kBatchLanes - 1) / kBatchLanes, lanes = blocked_lanes(s.images, panel);
    const bool large = panels * s.height * blocked_line(s) * static_cast<int64_t>(sizeof(To)) >= kStreamed;
    const bool past_caches = large && reinterpret_cast<uintptr_t>(y.blocked) % 64 == 0;
    const int64_t at = panel * s.height + h;
    To* out = y.blocked == nullptr ? nullptr : y.blocked + at * blocked_line(s);
    float* moments = y.moments == nullptr ? nullptr : y.moments + at * s.channels * 2;
    if (lanes < kBatchLanes) {
        drain_channels<true, false>(s, line, channels, lanes, out, moments);
    } else if (past_caches) {
        drain_channels<false, true>(s, line, channels, lanes, out, moments);
    } else {
        drain_channels<false, false>(s, line, channels, lanes, out, moments);
    }
}

// The pixels of padded lines [from, to).
template <typename From, typename To>
OW_INLINE void drain_lines(const Slab& s, const From* lines, int64_t panel, int64_t from, int64_t to, const ResultOf<To>& y) {
    for (int64_t l = most(from, s.pad_top); l < least(to, s.pad_top + s.height); ++l) {
        drain_line(s, lines + (l - from) * s.line, {nullptr, 0, s.channels}, panel, l - s.pad_top, y);
    }
}

// The lines of a blocked activation that will be read next, fetched into L2 bit by bit while something else is computed.
class LinesAhead {
public:
    // `count` lines from padded line l of panel `panel` on; those of the next panel follow the panel's last.
    // `near`: into L1, too, on their way.
    template <typename T>
    LinesAhead(const Slab& s, const ActivationOf<T>& x, int64_t panel, int64_t l, int64_t count, bool near = false)
        : near_(near), arrays_{bytes(x.lazy.x), bytes(x.lazy.y), bytes(x.lazy.gate), bytes(x.lazy.keep)} {
        const int64_t panels = (s.images + kBatchLanes - 1) / kBatchLanes, line = panel * s.height + l - s.pad_top;
        const int64_t a_line = blocked_line(s) * static_cast<int64_t>(sizeof(T));
        done_ = least(panels * s.height, most<int64_t>(0, line)) * a_line;
        start_ = done_;
        end_ = least(panels * s.height, most<int64_t>(0, line + count)) * a_line;
        if (x.plain != nullptr) end_ = start_;
    }

    // What is fetched when part `part` of `parts` of the computation begins.
    void fetch(int64_t part, int64_t parts) {
        const int64_t end = start_ + (end_ - start_) * (part + 1) / parts / 64 * 64;
        for (const char* array : arrays_) {
            if (array == nullptr) continue;
            for (int64_t i = done_; i < end && !near_; i += 64) __builtin_prefetch(array + i, 0, 2);
            for (int64_t i = done_; i < end && near_; i += 64) __builtin_prefetch(array + i, 0, 3);
        }
        done_ = most(done_, end);
    }

private:
    static const char* bytes(const void* array) { return static_cast<const char*>(array); }

    int64_t start_, done_, end_;
    bool near_;
    const char* arrays_[4];
};

// Channels of one line of a slab, written to a blocked tensor bit by bit while something else is computed.
class LineBehind {
public:
    LineBehind(const Slab& s, const Result& y) : s_(s), y_{nullptr, y.blocked, nullptr}, line_(nullptr), channels_{}, panel_(0), h_(0) {}

    void begin(const float* line, const Channels& channels, int64_t panel, int64_t h) {
        write(channels_.count);
        line_ = line, channels_ = channels, panel_ = panel, h_ = h;
    }
    // `count` more channels.
    void write(int64_t count) {
        const int64_t n = least(count, channels_.count);
        if (n <= 0) return;
        drain_line(s_, line_, {channels_.ids, channels_.first, n}, panel_, h_, y_);
        channels_.first += n, channels_.count -= n;
    }
    void finish() { write(channels_.count); }

private:
    const Slab& s_;
    Result y_;
    const float* line_;
    Channels channels_;
    int64_t panel_, h_;
};

// What is read and written while something else is computed.
struct Meanwhile {
    LinesAhead ahead;
    LineBehind& behind;
    int64_t channels;  // written at a time

    void fetch(int64_t part, int64_t parts) {
        ahead.fetch(part, parts);
        behind.write(channels);
    }
};

// Either layout.
template <typename From, typename To>
OW_INLINE void read_lines(const Slab& s, const ActivationOf<From>& x, int64_t panel, int64_t from, int64_t to, To* lines) {
    if (x.plain != nullptr) return pack_lines(s, x.plain, panel, from, to, lines);
    fill_lines(s, x.lazy, panel, from, to, lines);
}

template <typename From, typename To>
OW_INLINE void write_lines(const Slab& s, const From* lines, int64_t panel, int64_t from, int64_t to, const ResultOf<To>& y) {
    if (y.plain != nullptr) return unpack_lines(s, lines, panel, from, to, y.plain);
    drain_lines(s, lines, panel, from, to, y);
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
