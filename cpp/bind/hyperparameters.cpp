#include "hyperparameters.hpp"

#include <stdexcept>
#include <string>

namespace fusedstep::bind {
namespace {

[[noreturn]] void wrong_type(const char* name, const char* expected, py::handle value) {
  throw py::type_error(std::string(name) + ": expected " + expected + ", got " + std::string(py::repr(value)) + " (" +
                       std::string(py::str(py::type::handle_of(value).attr("__name__"))) + ")");
}

bool is_real_number(py::handle value) {
  return py::isinstance(value, py::module_::import("numbers").attr("Real"));
}

}  // namespace

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
  if (std::string(py::str(py::type::handle_of(value).attr("__name__"))).starts_with("bool")) return value.cast<bool>();
  wrong_type(name, "True or False", value);
}

void set_field(const Field& field, py::handle value, void* options) {
  void* at = static_cast<unsigned char*>(options) + field.offset;
  switch (field.kind) {
    case Kind::real:
      *static_cast<double*>(at) = real(value, field.name);
      break;
    case Kind::pair: {
      if (!(PyTuple_Check(value.ptr()) || PyList_Check(value.ptr())) || PySequence_Size(value.ptr()) != 2) {
        wrong_type(field.name, "a pair of real numbers", value);
      }
      const auto pair = py::reinterpret_borrow<py::sequence>(value);
      static_cast<double*>(at)[0] = real(pair[0], field.name);
      static_cast<double*>(at)[1] = real(pair[1], field.name);
      break;
    }
    case Kind::flag:
      *static_cast<bool*>(at) = flag(value, field.name);
      break;
    case Kind::choice: {
      if (!PyUnicode_Check(value.ptr())) wrong_type(field.name, "a name (str)", value);
      std::string names;
      for (std::size_t k = 0; k < field.choices.size(); ++k) {
        if (PyUnicode_CompareWithASCIIString(value.ptr(), field.choices[k]) == 0) {
          *static_cast<std::uint8_t*>(at) = static_cast<std::uint8_t>(k);
          return;
        }
        names += (k == 0 ? "'" : ", '") + std::string(field.choices[k]) + "'";
      }
      throw py::value_error(std::string(field.name) + ": expected one of " + names + ", got " +
                            std::string(py::repr(value)));
    }
  }
  check(field, options);
}

py::object get_field(const Field& field, const void* options) {
  const void* at = static_cast<const unsigned char*>(options) + field.offset;
  switch (field.kind) {
    case Kind::real:
      return py::float_(*static_cast<const double*>(at));
    case Kind::pair:
      return py::make_tuple(static_cast<const double*>(at)[0], static_cast<const double*>(at)[1]);
    case Kind::flag:
      return py::bool_(*static_cast<const bool*>(at));
    case Kind::choice:
      return py::str(field.choices[*static_cast<const std::uint8_t*>(at)]);
  }
  return py::none();
}

void set_flag(const Description& rule, const char* name, bool value, void* options) {
  const Field* field = rule.field(name);
  *reinterpret_cast<bool*>(static_cast<unsigned char*>(options) + field->offset) = value;
}

}  // namespace fusedstep::bind
