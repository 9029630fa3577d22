// All parameters of an optimizer, bound once: one step is one call.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

void register_plan(pybind11::module_& module);

}  // namespace fusedstep::bind
