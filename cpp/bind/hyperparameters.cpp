#include "hyperparameters.hpp"

#include <algorithm>
#include <string>

namespace fusedstep::bind {
namespace {

using schema::Field;
using schema::Kind;

[[noreturn]] void wrong_type(const char* name, const char* expected, py::handle value) {
  throw py::type_error(std::string(name) + ": expected " + expected + ", got " + std::string(py::repr(value)) + " (" +
                       std::string(py::str(py::type::handle_of(value).attr("__name__"))) + ")");
}

bool is_real_number(py::handle value) {
  return py::isinstance(value, py::module_::import("numbers").attr("Real"));
}

}  // namespace

std::string did_you_mean(py::handle name, const py::list& known) {
  return py::cast<std::string>(py::module_::import("fusedstep._hints").attr("did_you_mean")(name, known));
}

double real(py::handle value, const char* name) {
  if (PyFloat_CheckExact(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
  if (PyBool_Check(value.ptr()) || !is_real_number(value)) wrong_type(name, "a real number", value);
  const double x = PyFloat_AsDouble(value.ptr());
  if (x == -1.0 && PyErr_Occurred() != nullptr) {
    if (PyErr_ExceptionMatches(PyExc_OverflowError) == 0) throw py::error_already_set();
    PyErr_Clear();
    throw py::value_error(std::string(name) + ": expected a number within the range of double, got a larger one");
  }
  return x;
}

bool flag(py::handle value, const char* name) {
  if (value.ptr() == Py_True) return true;
  if (value.ptr() == Py_False) return false;
  if (py::isinstance(value, py::module_::import("numpy").attr("bool"))) return value.cast<bool>();
  wrong_type(name, "True or False", value);
}

bool is_immutable(PyObject* value) {
  if (PyFloat_CheckExact(value) || PyLong_CheckExact(value) || PyBool_Check(value) || PyUnicode_CheckExact(value)) {
    return true;
  }
  if (!PyTuple_CheckExact(value)) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value); ++i) {
    if (!is_immutable(PyTuple_GET_ITEM(value, i))) return false;
  }
  return true;
}

void set_field(const Field& field, py::handle value, Options& options) {
  switch (field.kind) {
    case Kind::real:
      options.at<double>(field) = real(value, field.name);
      break;
    case Kind::pair: {
      if (!(PyTuple_Check(value.ptr()) || PyList_Check(value.ptr())) || PySequence_Size(value.ptr()) != 2) {
        wrong_type(field.name, "a pair of real numbers", value);
      }
      const auto pair = py::reinterpret_borrow<py::sequence>(value);
      const double first = real(py::object(pair[0]), field.name);
      const double second = real(py::object(pair[1]), field.name);
      options.at<double[2]>(field)[0] = first;
      options.at<double[2]>(field)[1] = second;
      break;
    }
    case Kind::flag:
      options.at<bool>(field) = flag(value, field.name);
      break;
    case Kind::choice: {
      if (!PyUnicode_Check(value.ptr())) wrong_type(field.name, "a name (str)", value);
      const auto found = std::find_if(field.choices.begin(), field.choices.end(), [&](const char* choice) {
        return PyUnicode_CompareWithASCIIString(value.ptr(), choice) == 0;
      });
      if (found == field.choices.end()) {
        py::list known;
        for (const char* choice : field.choices) known.append(choice);
        throw py::value_error(std::string(field.name) + ": expected one of " + listed(field.choices) + ", got " +
                              std::string(py::repr(value)) + did_you_mean(value, known));
      }
      options.at<std::uint8_t>(field) = static_cast<std::uint8_t>(found - field.choices.begin());
      break;
    }
  }
  check(field, options);
}

py::object get_field(const Field& field, const Options& options) {
  switch (field.kind) {
    case Kind::real:
      return py::float_(options.at<double>(field));
    case Kind::pair:
      return py::make_tuple(options.at<double[2]>(field)[0], options.at<double[2]>(field)[1]);
    case Kind::flag:
      return py::bool_(options.at<bool>(field));
    case Kind::choice:
      return py::str(field.choices[options.at<std::uint8_t>(field)]);
  }
  return py::none();
}

Options options_from(const RuleSchema& rule, const py::dict& values) {
  Options options = rule.defaults();
  for (const auto& [key, value] : values) {
    const auto name = key.cast<std::string>();
    const Field* field = rule.field(name);
    if (field == nullptr) throw py::type_error("'" + name + "' is no hyperparameter of " + rule.name);
    set_field(*field, value, options);
  }
  return options;
}

}  // namespace fusedstep::bind
