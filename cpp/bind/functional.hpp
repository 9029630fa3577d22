// The functional form of every rule: a function made from the rule's schema and its Python signature.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

// Makes a function `name(param, grad, <states>, *, <hyperparameters>)`. `parameters` is the signature: (name, default or
// None, required), the first `positional` of them positional. `documentation` begins with the text signature.
pybind11::object make_function(const std::string& rule, const std::string& name, const std::string& documentation,
                               const pybind11::list& parameters, int positional);

}  // namespace fusedstep::bind
