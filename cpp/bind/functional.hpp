// The functional form of every rule: one function, made from the rule's schema and its Python signature.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

// A function `name(param, grad, <states>, *, <hyperparameters>)`. `parameters` are the signature's: (name, default or
// None, required), the first `positional` of them positional; `documentation` begins with the text signature.
pybind11::object make_function(const std::string& rule, const std::string& name, const std::string& documentation,
                               const pybind11::list& parameters, int positional);

}  // namespace fusedstep::bind
