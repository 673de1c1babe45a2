#include "dispatch.hpp"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#ifdef OPENWORK_X86
#define OPENWORK_ISA_NAMESPACE avx512_bf16
#include "kernels/blocked.hpp"
#include "kernels/conv_bf16.hpp"
#include "kernels/linear_bf16.hpp"
#endif

namespace openwork {

#ifdef OPENWORK_X86
namespace {

// The AVX-512 build and the few functions that use one more of its extensions.
const Kernels& with_bf16() {
    static const Kernels extended = [] {
        Kernels k = avx512::kernels;
        k.isa = "avx512_bf16";
        k.linear_forward_bf16 = avx512_bf16::linear_forward_bf16;
        k.linear_backward_bf16 = avx512_bf16::linear_backward_bf16;
        k.conv_forward_bf16 = avx512_bf16::conv_forward_bf16;
        k.conv_backward_bf16 = avx512_bf16::conv_backward_bf16;
        k.blocked.to_bf16 = avx512_bf16::convert<float, BFloat16>;
        k.blocked_bf16 = avx512_bf16::blocked_kernels<BFloat16>();
        k.plane_sums_bf16 = avx512_bf16::plane_sums_bf16;
        return k;
    }();
    return extended;
}

}  // namespace
#endif

int supported_kernels(const Kernels* (&out)[kMostBuilds]) {
    int count = 0;
    out[count++] = &baseline::kernels;
#ifdef OPENWORK_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        out[count++] = &avx2::kernels;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
            out[count++] = &avx512::kernels;
            if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512bf16")) out[count++] = &with_bf16();
        }
    }
#endif
    return count;
}

const Kernels& choose_kernels() {
    const Kernels* supported[kMostBuilds];
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
