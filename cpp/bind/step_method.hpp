// The method `step` of Python's optimizers. It repeats the last step if possible.
//
// Most steps and calls are like an earlier one. The package remembers what was checked then, and compares instead of
// checking again. If anything differs, the call takes the full path, which raises an error or remembers anew. Remembered
// objects are held, and they are compared with the GIL while no Python code runs. The parts:
//   steps over arrays     PyOptimizer::repeat(): groups, containers, and the memory of each array
//   steps over tensors    TensorStep: the same for PyTorch's tensors, its hooks and its profiler
//   work                  OptimizerCore::plan_: the next step uses the kernels and constants of the last one
//   calls of functions    Written in functional.cpp: names and options; each call checks its arrays
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

// Call it after register_optimizer() and register_tensors().
void register_step_method(pybind11::module_& module);

}  // namespace fusedstep::bind
