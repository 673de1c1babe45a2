// Carving one scratch block into arrays.
#pragma once

#include "vec.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

struct Memory {
    char* next;
    template <typename T>
    T* take(int64_t count) {
        T* start = reinterpret_cast<T*>(next);
        next += up(count * static_cast<int64_t>(sizeof(T)), 64);
        return start;
    }
};

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
