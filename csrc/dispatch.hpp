// Which build of the kernels this processor runs.
#pragma once

#include "api.hpp"

namespace openwork {

// The widest build that the processor supports, or the one named by the environment variable OPENWORK_ISA.
// Throws std::runtime_error if that names no build, or one that the processor cannot run.
const Kernels& choose_kernels();

// All builds that can run here, narrowest first, and how many.
constexpr int kMostBuilds = 4;
int supported_kernels(const Kernels* (&out)[kMostBuilds]);

}  // namespace openwork
