#include "dispatch.hpp"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace openwork {

int supported_kernels(const Kernels* (&out)[3]) {
    int count = 0;
    out[count++] = &baseline::kernels;
#ifdef OPENWORK_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        out[count++] = &avx2::kernels;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
            out[count++] = &avx512::kernels;
        }
    }
#endif
    return count;
}

const Kernels& choose_kernels() {
    const Kernels* supported[3];
    const int count = supported_kernels(supported);
    const char* wanted = std::getenv("OPENWORK_ISA");
    if (wanted == nullptr || *wanted == 0) return *supported[count - 1];
    std::string names;
    for (int i = 0; i < count; ++i) {
        if (std::strcmp(wanted, supported[i]->isa) == 0) return *supported[i];
        names += (i ? ", " : "") + std::string(supported[i]->isa);
    }
    throw std::runtime_error("OPENWORK_ISA='" + std::string(wanted) + "' is unknown or not supported by this processor; it can be: " + names);
}

}  // namespace openwork
