// The method `step` of Python's optimizers.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

// After register_optimizer() and register_tensors().
void register_step_method(pybind11::module_& module);

}  // namespace fusedstep::bind
