// Max pooling of blocked activations, which may be formulas, and its gradient.
#include "pooling.hpp"

#include <omp.h>

#include "lines.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {
namespace {

constexpr int64_t kChannels = 8;  // that one thread takes at a time

struct Geometry {
    const Image& window;
    int64_t channels, out_height, out_width;

    int64_t line(int64_t h, int64_t i) const { return h * window.stride_h - window.pad_h + i * window.dilation_h; }
    int64_t place(int64_t w, int64_t j) const { return w * window.stride_w - window.pad_w + j * window.dilation_w; }
    int64_t in(int64_t panel, int64_t line, int64_t c) const {
        return ((panel * window.height + line) * channels + c) * window.width * kBatchLanes;
    }
    int64_t out(int64_t panel, int64_t line, int64_t c) const {
        return ((panel * out_height + line) * channels + c) * out_width * kBatchLanes;
    }
    bool has_line(int64_t line) const { return line >= 0 && line < window.height; }
    bool has_place(int64_t place) const { return place >= 0 && place < window.width; }
};

struct Largest {
    const Geometry& at;
    int64_t panel, h, c;
    float *best, *tap;

    template <typename R>
    void run(const Lazy& z) const {
        for (int64_t i = 0; i < at.out_width * kBatchLanes; i += kLanes) {
            store(best + i, broadcast(-__builtin_inff()));
            store(tap + i, broadcast(-1.0f));
        }
        for (int64_t i = 0; i < at.window.kernel_h; ++i) {
            const int64_t line = at.line(h, i);
            if (!at.has_line(line)) continue;
            const R read(z, c, at.in(panel, line, c));
            for (int64_t j = 0; j < at.window.kernel_w; ++j) {
                const Vec number = broadcast(static_cast<float>(i * at.window.kernel_w + j));
                for (int64_t w = 0; w < at.out_width; ++w) {
                    const int64_t place = at.place(w, j);
                    if (!at.has_place(place)) continue;
                    OW_UNROLL
                    for (int64_t l = 0; l < kBatchLanes; l += kLanes) {
                        const Vec v = read(place * kBatchLanes + l), old = load(best + w * kBatchLanes + l);
                        const Vec which = load(tap + w * kBatchLanes + l);
                        // The first of equals, and the first place before any; a NaN wins and stays.
                        const auto keeps = ((v <= old) & (which >= Vec{})) | (old != old);
                        store(best + w * kBatchLanes + l, keeps ? old : v);
                        store(tap + w * kBatchLanes + l, keeps ? which : number);
                    }
                }
            }
        }
    }
};

struct Spread {
    const Geometry& at;
    int64_t panel, h, c;
    const float* tap;
    float* dx;

    template <typename R>
    void run(const Lazy& g) const {
        const R read(g, c, at.out(panel, h, c));
        for (int64_t i = 0; i < at.window.kernel_h; ++i) {
            const int64_t line = at.line(h, i);
            if (!at.has_line(line)) continue;
            float* to = dx + at.in(panel, line, c);
            for (int64_t j = 0; j < at.window.kernel_w; ++j) {
                const Vec number = broadcast(static_cast<float>(i * at.window.kernel_w + j));
                for (int64_t w = 0; w < at.out_width; ++w) {
                    const int64_t place = at.place(w, j);
                    if (!at.has_place(place)) continue;
                    OW_UNROLL
                    for (int64_t l = 0; l < kBatchLanes; l += kLanes) {
                        const Vec from = load(tap + w * kBatchLanes + l) == number ? read(w * kBatchLanes + l) : Vec{};
                        store(to + place * kBatchLanes + l, load(to + place * kBatchLanes + l) + from);
                    }
                }
            }
        }
    }
};

}  // namespace

void max_pool(const Image& window, int64_t channels, const Lazy& x, float* y, float* taps, int threads) {
    const Geometry at{window, channels, window.out_height(), window.out_width()};
    const int64_t panels = (window.batch + kBatchLanes - 1) / kBatchLanes;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t line = 0; line < panels * at.out_height; ++line) {
        const int64_t panel = line / at.out_height, h = line % at.out_height;
        for (int64_t c = 0; c < channels; ++c) with_reader(x, Largest{at, panel, h, c, y + at.out(panel, h, c), taps + at.out(panel, h, c)});
    }
}

void max_pool_backward(const Image& window, int64_t channels, const Lazy& g, const float* taps, float* dx, int threads) {
    const Geometry at{window, channels, window.out_height(), window.out_width()};
    const int64_t panels = (window.batch + kBatchLanes - 1) / kBatchLanes, pieces = (channels + kChannels - 1) / kChannels;
    // Windows may overlap, so a thread has all lines of a channel.
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t piece = 0; piece < panels * pieces; ++piece) {
        const int64_t panel = piece / pieces, first = piece % pieces * kChannels, last = least(first + kChannels, channels);
        for (int64_t h = 0; h < window.height; ++h) {
            std::memset(dx + at.in(panel, h, first), 0, static_cast<size_t>((last - first) * window.width * kBatchLanes) * 4);
        }
        for (int64_t h = 0; h < at.out_height; ++h) {
            for (int64_t c = first; c < last; ++c) with_reader(g, Spread{at, panel, h, c, taps + at.out(panel, h, c), dx});
        }
    }
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
