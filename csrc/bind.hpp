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

inline int team(int threads) { return threads < 1 ? 1 : threads; }

}  // namespace openwork
