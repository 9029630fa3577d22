// Repeats and times calls in C++ for the benchmark: the cost for an embedder, and the limits, without Python in between.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

void register_timing(pybind11::module_& module);

}  // namespace fusedstep::bind
