// Steps over PyTorch's tensors that are like the one before.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

void register_tensors(pybind11::module_& module);

// A step of an optimizer by the TensorStep that it remembers. Null without an error, and nothing is done, where
// anything but floats of the groups and gradients is other than it was.
PyObject* repeat_tensors(PyObject* tensor_step, PyObject* optimizer);

}  // namespace fusedstep::bind
