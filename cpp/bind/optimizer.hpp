// Python's objects for the optimizer: containers, arrays and dicts in, spans and options out.
#pragma once

#include <pybind11/pybind11.h>

#include "../optimizer.hpp"

namespace fusedstep::bind {

void register_optimizer(pybind11::module_& module);

// A step without options over these gradients, like the step before, where only floats of the groups, and the memory of
// gradients, may be others. What was checked then is compared, not checked again. Null without an error, and nothing is done,
// where anything else differs. Runs no Python code, so that what it looks at stays as it is.
PyObject* repeat_arrays(PyObject* optimizer, PyObject* const& grads);

// The same in parts, for who looks at parameters, states and gradients by himself.
class Repeatable {
 public:
  virtual OptimizerCore& core() = 0;
  // The gradient of parameter i is as last accepted, but may be in another place. False: it has to be checked in full.
  virtual bool take_again(std::size_t i, char* data) = 0;
  virtual void step_again() = 0;

 protected:
  ~Repeatable() = default;
};
Repeatable& repeatable(pybind11::handle optimizer);

}  // namespace fusedstep::bind
