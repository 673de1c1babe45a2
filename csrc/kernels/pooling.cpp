// Max pooling of blocked activations, which may be formulas, and its gradient.
#include "pooling.hpp"

#include <omp.h>

#include <type_traits>

#include "../scratch.hpp"
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

template <typename T>
struct Largest {
    const Geometry& at;
    int64_t panel, h, c;
    T* best;
    float* tap;

    template <typename R>
    void run(const LazyOf<T>& z) const {
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
                        const Vec v = as_stored<T>(read(place * kBatchLanes + l)), old = load(best + w * kBatchLanes + l);
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

// To one channel of floats, whose lines lie `line_stride` apart.
struct Spread {
    const Geometry& at;
    int64_t panel, h, c;
    const float* tap;
    float* dx;
    int64_t line_stride;

    template <typename R, typename T>
    void run(const LazyOf<T>& g) const {
        const R read(g, c, at.out(panel, h, c));
        for (int64_t i = 0; i < at.window.kernel_h; ++i) {
            const int64_t line = at.line(h, i);
            if (!at.has_line(line)) continue;
            float* to = dx + line * line_stride;
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

template <typename T>
void max_pool(const Image& window, int64_t channels, const LazyOf<T>& x, T* y, float* taps, int threads) {
    const Geometry at{window, channels, window.out_height(), window.out_width()};
    const int64_t panels = (window.batch + kBatchLanes - 1) / kBatchLanes;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t line = 0; line < panels * at.out_height; ++line) {
        const int64_t panel = line / at.out_height, h = line % at.out_height;
        for (int64_t c = 0; c < channels; ++c) with_reader(x, Largest<T>{at, panel, h, c, y + at.out(panel, h, c), taps + at.out(panel, h, c)});
    }
}

// Sums are floats: for bfloat16 those of a thread's channels, rounded once they are complete.
template <typename T>
Failure max_pool_backward(const Image& window, int64_t channels, const LazyOf<T>& g, const float* taps, T* dx, int threads) {
    const Geometry at{window, channels, window.out_height(), window.out_width()};
    const int64_t panels = (window.batch + kBatchLanes - 1) / kBatchLanes, pieces = (channels + kChannels - 1) / kChannels;
    const int64_t strip = window.width * kBatchLanes, apart = std::is_same_v<T, float> ? 0 : window.height * kChannels * strip;
    Scratch scratch(threads * apart * 4 + 64);
    if (scratch.data() == nullptr) return "out of memory";
    // Windows may overlap, so a thread has all lines of a channel.
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t piece = 0; piece < panels * pieces; ++piece) {
        const int64_t panel = piece / pieces, first = piece % pieces * kChannels, count = least(kChannels, channels - first);
        T* own = dx + at.in(panel, 0, first);
        float* sums;
        int64_t line;
        if constexpr (std::is_same_v<T, float>) {
            sums = own, line = channels * strip;
        } else {
            sums = reinterpret_cast<float*>(scratch.data()) + omp_get_thread_num() * apart, line = count * strip;
        }
        for (int64_t h = 0; h < window.height; ++h) std::memset(sums + h * line, 0, static_cast<size_t>(count * strip) * 4);
        for (int64_t h = 0; h < at.out_height; ++h) {
            for (int64_t c = 0; c < count; ++c) {
                with_reader(g, Spread{at, panel, h, first + c, taps + at.out(panel, h, first + c), sums + c * strip, line});
            }
        }
        for (int64_t h = 0; !std::is_same_v<T, float> && h < window.height; ++h) {
            for (int64_t i = 0; i < count * strip; i += kLanes) move<false>(sums + h * line + i, own + h * channels * strip + i);
        }
    }
    return nullptr;
}

template void max_pool(const Image&, int64_t, const LazyOf<float>&, float*, float*, int);
template void max_pool(const Image&, int64_t, const LazyOf<BFloat16>&, BFloat16*, float*, int);
template Failure max_pool_backward(const Image&, int64_t, const LazyOf<float>&, const float*, float*, int);
template Failure max_pool_backward(const Image&, int64_t, const LazyOf<BFloat16>&, const float*, BFloat16*, int);

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
