// Python's objects for the optimizer: containers, arrays and dicts in, spans and options out.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

void register_optimizer(pybind11::module_& module);

}  // namespace fusedstep::bind
