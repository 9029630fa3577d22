// The optimizer as Python sees it: takes containers, arrays and dicts, and passes spans and options on.
#pragma once

#include <pybind11/pybind11.h>

#include "../optimizer.hpp"

namespace fusedstep::bind {

void register_optimizer(pybind11::module_& module);

// Imports the Python module of that name beside this extension module, whatever the package is called.
pybind11::module_ sibling(const char* name);

// Makes a step without options that is like the last one: only floats in the groups, and the memory of gradients, may
// differ. It compares with what was checked then instead of checking again. Returns null without an error, and does nothing,
// if anything else differs. Runs no Python code, so that nothing changes meanwhile.
PyObject* repeat_arrays(PyObject* optimizer, PyObject* const& grads);

// The same in parts, for a caller that looks at parameters, states and gradients itself.
class Repeatable {
 public:
  virtual OptimizerCore& core() = 0;
  // Takes a gradient of parameter i that is like the last accepted one, though perhaps in another place. Returns false if it
  // must be checked in full.
  virtual bool take_again(std::size_t i, char* data) = 0;
  virtual void step_again() = 0;

 protected:
  ~Repeatable() = default;
};
Repeatable& repeatable(pybind11::handle optimizer);

}  // namespace fusedstep::bind
