// What the bindings share: addresses as integers, and failures as exceptions.
#pragma once

#include "api.hpp"

#include <nanobind/nanobind.h>

namespace openwork {

using Address = uintptr_t;

template <typename T>
T* at(Address address) { return reinterpret_cast<T*>(address); }

inline void check(Failure wrong) {
    if (wrong != nullptr) throw nanobind::value_error(wrong);
}

// Runs without the interpreter's lock: nothing in it touches a Python object.
template <typename Work>
auto unlocked(Work work) {
    nanobind::gil_scoped_release released;
    return work();
}

inline int team(int threads) { return threads < 1 ? 1 : threads; }

}  // namespace openwork
