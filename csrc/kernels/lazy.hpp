// Reading a blocked activation that may exist as a formula only, one vector at a time.
#pragma once

#include "pack.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

enum class Gate { kNone, kTensor, kLine };
enum class End { kNone, kRelu, kKeep };

// `value` unless `test` is at or below 0; a NaN lets it through, as PyTorch's ReLU does.
OW_INLINE Vec open(Vec test, Vec value) { return test <= Vec{} ? Vec{} : value; }

OW_INLINE Vec of_channel(const float* of, int64_t channel, float otherwise) { return broadcast(of == nullptr ? otherwise : of[channel]); }
template <typename T>
OW_INLINE const T* place(const T* of, int64_t offset) { return of == nullptr ? nullptr : of + offset; }

// One channel of one line of a formula whose parts are known when this is compiled.
template <typename T, bool Second, Gate G, End E>
struct Reader {
    const T *x, *y, *gate, *keep;
    Vec a, b, shift, open_scale, open_shift;

    Reader(const LazyOf<T>& z, int64_t channel, int64_t offset)
        : x(place(z.x, offset)), y(place(z.y, offset)), gate(place(z.gate, offset)), keep(place(z.keep, offset)),
          a(of_channel(z.a, channel, 1.0f)), b(of_channel(z.b, channel, G == Gate::kLine ? 0.0f : 1.0f)),
          shift(of_channel(z.shift, channel, 0.0f)), open_scale(of_channel(z.open_scale, channel, 1.0f)),
          open_shift(of_channel(z.open_shift, channel, 0.0f)) {}

    // Element i and those after it.
    Vec operator()(int64_t i) const {
        Vec v = load(x + i), second{};
        if constexpr (Second) second = load(y + i);
        if constexpr (G == Gate::kTensor) v = open(load(gate + i), v);
        if constexpr (G == Gate::kLine) v = open(open_scale * second + open_shift, v);
        v = a * v + shift;
        if constexpr (Second) v += b * second;
        if constexpr (E == End::kRelu) v = open(v, v);
        if constexpr (E == End::kKeep) v = open(load(keep + i), v);
        return v;
    }
};

template <bool Second, Gate G, typename T, typename F>
OW_INLINE void with_end(const LazyOf<T>& z, const F& f) {
    if (z.keep != nullptr) return f.template run<Reader<T, Second, G, End::kKeep>>(z);
    if (z.relu) return f.template run<Reader<T, Second, G, End::kRelu>>(z);
    f.template run<Reader<T, Second, G, End::kNone>>(z);
}

// f.run<Reader type>(z) for the form that z has.
template <typename T, typename F>
OW_INLINE void with_reader(const LazyOf<T>& z, const F& f) {
    if (z.y == nullptr) {
        if (z.gate != nullptr) return with_end<false, Gate::kTensor>(z, f);
        return with_end<false, Gate::kNone>(z, f);
    }
    if (z.open_scale != nullptr) return with_end<true, Gate::kLine>(z, f);
    if (z.gate != nullptr) return with_end<true, Gate::kTensor>(z, f);
    with_end<true, Gate::kNone>(z, f);
}

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
