#include "blocked.hpp"
#include "conv.hpp"
#include "grouping.hpp"
#include "linear.hpp"
#include "pooling.hpp"
#include "segments.hpp"

#define OW_NAME_(x) #x
#define OW_NAME(x) OW_NAME_(x)

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

extern const Kernels kernels;

const Kernels kernels = {
    OW_NAME(OPENWORK_ISA_NAMESPACE), linear_forward, linear_backward, segments_forward, segments_backward, conv_forward,
    conv_backward, blocked_kernels<float>(), blocked_kernels<BFloat16>(), common_columns, merges, nullptr, nullptr,
    nullptr, nullptr, nullptr,
};

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
