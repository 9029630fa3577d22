// Repeats steps over PyTorch's tensors.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

void register_tensors(pybind11::module_& module);

// Makes a step with the TensorStep that an optimizer remembers. Returns null without an error, and does nothing, if anything
// differs except floats in the groups and gradients.
PyObject* repeat_tensors(PyObject* tensor_step, PyObject* optimizer);

}  // namespace fusedstep::bind
