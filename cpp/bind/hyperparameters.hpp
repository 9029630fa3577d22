// Converts Python values to hyperparameters, by the schema of a rule.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../checks.hpp"
#include "../loops/tensors.hpp"
#include "../schema.hpp"

namespace fusedstep::bind {

namespace py = pybind11;

// TypeError unless the value is a real number: an int, a float or a NumPy scalar, but no bool, str or array.
double real(py::handle value, const char* name);
bool flag(py::handle value, const char* name);

// Returns " (did you mean 'lr'?)" if one of the known names is close, otherwise nothing.
std::string did_you_mean(py::handle name, const py::list& known);

// Whether the object can't change its value. A list can, and so may a number of a foreign type.
bool is_immutable(PyObject* value);

// An array given for a number: the place of the option, and the values as C-contiguous float64.
struct OwnArray {
  const char* name;
  std::size_t offset;
  py::array_t<double> values;

  // The values for each element of a parameter. ValueError if the shape does not broadcast to the parameter's.
  OwnOptions::Values of(const Array& parameter) const;
};
using OwnArrays = std::vector<OwnArray>;

// Writes a value into the options. TypeError for a wrong type, ValueError for a value out of range. If the option may differ
// between elements, the value may be an array; its first number then stands for the others.
void set_field(const schema::Field& field, py::handle value, Options& options, OwnArrays* arrays = nullptr);
py::object get_field(const schema::Field& field, const Options& options);

// Returns the defaults, changed by a dict of hyperparameters. TypeError for an unknown name.
Options options_from(const RuleSchema& rule, const py::dict& values, OwnArrays* arrays = nullptr);

// Runs f as the body of a C function. A C++ exception becomes a Python exception.
template <class F>
PyObject* raising(F f) {
  try {
    return f();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::out_of_range& error) {
    PyErr_SetString(PyExc_IndexError, error.what());
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::domain_error& error) {
    PyErr_SetString(PyExc_FloatingPointError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace fusedstep::bind
