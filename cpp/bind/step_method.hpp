// The method `step` of Python's optimizers, which repeats the step before where that can be.
//
// Most steps and calls are written like an earlier one. They remember what was checked then, and compare instead of
// checking again; whatever differs takes the full way, which says what is wrong, or remembers anew. What is remembered
// is held, and compared with the GIL, while no Python code runs. The parts:
//   steps over arrays     PyOptimizer::repeat(): groups, containers, and the memory of each array
//   steps over tensors    TensorStep: the same of PyTorch's, and its hooks and profiler
//   work                  OptimizerCore::plan_: the next step needs the kernels and constants of the last one
//   calls of functions    Written in functional.cpp: names and options; arrays are checked in each call
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

// After register_optimizer() and register_tensors().
void register_step_method(pybind11::module_& module);

}  // namespace fusedstep::bind
