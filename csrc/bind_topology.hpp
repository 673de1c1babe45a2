// The part of the Python module that topology updates use.
#pragma once

#include <nanobind/nanobind.h>

namespace openwork {

void bind_topology(nanobind::module_& m);

}  // namespace openwork
