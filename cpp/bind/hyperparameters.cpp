#include "hyperparameters.hpp"

#include <algorithm>
#include <string>

#include "../loops/layout.hpp"
#include "arrays.hpp"
#include "optimizer.hpp"

namespace fusedstep::bind {
namespace {

using schema::Field;
using schema::Kind;

[[noreturn]] void wrong_type(const char* name, const char* expected, py::handle value) {
  throw py::type_error(std::string(name) + ": expected " + expected + ", got " + std::string(py::repr(value)) + " (" +
                       std::string(py::str(py::type::handle_of(value).attr("__name__"))) + ")");
}

bool is_real_number(py::handle value) { return py::isinstance(value, py::module_::import("numbers").attr("Real")); }

// Returns a number. If the field may have an array, returns its first number, which stands for the others.
double real_or_array(const Field& field, std::size_t offset, py::handle value, double otherwise, OwnArrays* arrays) {
  if (arrays == nullptr || !field.may_differ || !is_array(value.ptr())) return real(value, field.name);
  const auto array = py::reinterpret_borrow<py::array>(value);
  if (!is_plain_array(value.ptr()) || array.dtype().kind() != 'f' || array.itemsize() > py::ssize_t{sizeof(double)}) {
    wrong_type(field.name, "a real number, or a numpy.ndarray of float16, float32 or float64", value);
  }
  const py::array_t<double, py::array::c_style | py::array::forcecast> values(array);
  arrays->push_back({field.name, offset, values});
  return values.size() == 0 ? otherwise : *values.data();
}

}  // namespace

std::string did_you_mean(py::handle name, const py::list& known) {
  return py::cast<std::string>(sibling("_hints").attr("did_you_mean")(name, known));
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

OwnOptions::Values OwnArray::of(const Array& parameter) const {
  const std::span<const std::int64_t> shape = parameter.shape;
  const auto axes = static_cast<std::size_t>(values.ndim());
  std::vector<std::int64_t> strides(shape.size());
  bool fits = axes <= shape.size();
  for (std::size_t k = 0; fits && k < axes; ++k) {
    const auto axis = static_cast<py::ssize_t>(k);
    const std::size_t theirs = shape.size() - axes + k;
    if (values.shape(axis) != 1) strides[theirs] = values.strides(axis);
    fits = values.shape(axis) == 1 || values.shape(axis) == shape[theirs];
  }
  if (!fits) {
    const std::vector<std::int64_t> own(values.shape(), values.shape() + axes);
    throw py::value_error(std::string(name) + " of " + parameter.label.text() + ": expected a shape that broadcasts to " +
                          shape_text(shape) + ", got " + shape_text(own));
  }
  OwnOptions::Values made{name, offset, std::vector<double>(static_cast<std::size_t>(parameter.size()))};
  if (made.numbers.empty()) return made;
  gather(shape, strides.data(), reinterpret_cast<const char*>(values.data()), sizeof(double), 0, parameter.size(),
         reinterpret_cast<char*>(made.numbers.data()));
  return made;
}

void set_field(const Field& field, py::handle value, Options& options, OwnArrays* arrays) {
  switch (field.kind) {
    case Kind::real: {
      double& number = options.at<double>(field);
      number = real_or_array(field, field.offset, value, number, arrays);
      break;
    }
    case Kind::pair: {
      if (!(PyTuple_Check(value.ptr()) || PyList_Check(value.ptr())) || PySequence_Size(value.ptr()) != 2) {
        wrong_type(field.name, "a pair of real numbers", value);
      }
      const auto pair = py::reinterpret_borrow<py::sequence>(value);
      auto& numbers = options.at<double[2]>(field);
      const double first = real_or_array(field, field.offset, py::object(pair[0]), numbers[0], arrays);
      const double second = real_or_array(field, field.offset + sizeof first, py::object(pair[1]), numbers[1], arrays);
      numbers[0] = first;
      numbers[1] = second;
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

Options options_from(const RuleSchema& rule, const py::dict& values, OwnArrays* arrays) {
  Options options = rule.defaults();
  for (const auto& [key, value] : values) {
    const auto name = key.cast<std::string>();
    const Field* field = rule.field(name);
    if (field == nullptr) throw py::type_error("'" + name + "' is no hyperparameter of " + rule.name);
    set_field(*field, value, options, arrays);
  }
  return options;
}

}  // namespace fusedstep::bind
