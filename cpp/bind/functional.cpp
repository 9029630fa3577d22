// pybind11's own parsing of such a signature costs 550 to 890 ns a call, several times the update of a small array: so
// these functions take their arguments by the vectorcall protocol, and match names by identity, as interned strings.
#include "functional.hpp"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../description.hpp"
#include "../step.hpp"
#include "arrays.hpp"
#include "hyperparameters.hpp"
#include "rules_by_name.hpp"

namespace fusedstep::bind {
namespace {

enum class Role : std::uint8_t { parameter, gradient, state, field, time };

struct Argument {
  py::str name;
  std::string text;
  Role role;
  int state = -1;
  const Field* field = nullptr;
  const Field* switched = nullptr;  // the flag that giving this argument turns on
  bool required = false;
};

constexpr int max_arguments = 32;

struct Function {
  RuleId rule;
  std::string name;
  std::string documentation;
  std::vector<Argument> arguments;
  int positional;
  Options defaults;
  PyMethodDef definition;
};

bool given(PyObject* value) { return value != nullptr && value != Py_None; }

std::size_t find(const Function& function, PyObject* keyword) {
  for (std::size_t k = 0; k < function.arguments.size(); ++k) {
    if (function.arguments[k].name.ptr() == keyword) return k;
  }
  for (std::size_t k = 0; k < function.arguments.size(); ++k) {
    if (PyUnicode_Compare(function.arguments[k].name.ptr(), keyword) == 0) return k;
  }
  throw py::type_error(function.name + "() got an unexpected keyword argument " + std::string(py::repr(keyword)));
}

void collect(const Function& function, PyObject* const* positional, Py_ssize_t count, PyObject* keywords,
             PyObject** values) {
  if (count > function.positional) {
    throw py::type_error(function.name + "() takes " + std::to_string(function.positional) +
                         " positional arguments but " + std::to_string(count) + " were given");
  }
  for (Py_ssize_t i = 0; i < count; ++i) values[i] = positional[i];
  const Py_ssize_t named = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
  for (Py_ssize_t i = 0; i < named; ++i) {
    const std::size_t k = find(function, PyTuple_GET_ITEM(keywords, i));
    if (values[k] != nullptr) {
      throw py::type_error(function.name + "() got multiple values for argument '" + function.arguments[k].text + "'");
    }
    values[k] = positional[count + i];
  }
  for (std::size_t k = 0; k < function.arguments.size(); ++k) {
    if (function.arguments[k].required && values[k] == nullptr) {
      throw py::type_error(function.name + "() missing required argument '" + function.arguments[k].text + "'");
    }
  }
}

void set_on(const Field& field, Options& options) {
  *reinterpret_cast<bool*>(options.bytes + field.offset) = true;
}

std::int64_t update_count(PyObject* value) {
  if (PyBool_Check(value) || PyIndex_Check(value) == 0) {
    throw py::type_error("step: expected a whole number, got " + std::string(py::repr(value)));
  }
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value));
  if (!index) {
    PyErr_Clear();
    throw py::type_error("step: expected a whole number, got " + std::string(py::repr(value)));
  }
  int overflow = 0;
  const long long t = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0 || t < 1) {
    throw py::value_error("step: expected a whole number from 1 to 2^63 - 1, got " + std::string(py::repr(value)));
  }
  return t;
}

// A state is passed exactly where the hyperparameters have a use for it.
void check_states(const Function& function, const Description& rule, const Options& options, PyObject* const* values) {
  for (std::size_t k = 0; k < function.arguments.size(); ++k) {
    const Argument& argument = function.arguments[k];
    if (argument.role != Role::state || argument.required) continue;
    const bool used = rule.uses(options.bytes, argument.state);
    if (used == given(values[k])) continue;
    throw py::value_error(argument.text + (used ? ": needed by these hyperparameters, got None; pass an array"
                                                : ": got an array, but these hyperparameters have no use for it"));
  }
}

void update(const Function& function, PyObject* const* values) {
  const Description& rule = description(function.rule);
  Options options = function.defaults;
  std::int64_t time = 1;
  bool lr_given = true;
  for (std::size_t k = 0; k < function.arguments.size(); ++k) {
    const Argument& argument = function.arguments[k];
    if (argument.role == Role::field) {
      if (given(values[k]) || (values[k] != nullptr && argument.required)) {
        set_field(*argument.field, values[k], options.bytes);
      } else if (values[k] == Py_None && argument.text != "lr") {
        set_field(*argument.field, values[k], options.bytes);  // raises: None is no value of it
      } else if (argument.text == "lr") {
        lr_given = false;
      }
    } else if (given(values[k]) || (argument.role == Role::time && argument.required)) {
      if (argument.switched != nullptr) set_on(*argument.switched, options);
      if (argument.role == Role::time) time = update_count(values[k]);
    }
  }
  if (const std::string wrong = rule.conflict(options.bytes); !wrong.empty()) throw py::value_error(wrong);
  const Prologue prologue = rule.prologue(options.bytes);
  if (!lr_given && prologue.decoupled_weight_decay && prologue.weight_decay != 0) {
    throw py::value_error("lr: needed by decoupled weight decay, got None; pass a number");
  }
  check_states(function, rule, options, values);

  Arrays arrays;
  Borrowed parameter{};
  Array gradient;
  Array states[max_states];
  for (std::size_t k = 0; k < function.arguments.size(); ++k) {
    const Argument& argument = function.arguments[k];
    const Label label{argument.text.c_str()};
    if (argument.role == Role::parameter) {
      parameter = borrow_parameter(arrays(values[k], label), label);
    } else if (argument.role == Role::gradient) {
      gradient = borrow(arrays(values[k], label), label, parameter.element, false);
    } else if (argument.role == Role::state && given(values[k])) {
      const bool int8 = rule.states[static_cast<std::size_t>(argument.state)].storage == Storage::int8;
      states[argument.state] = borrow(arrays(values[k], label), label, int8 ? Element::int8 : parameter.element, true);
    }
  }
  const SingleUpdate prepared(function.rule, options, time, dtype_of(parameter.element), parameter.array, gradient,
                              {states, rule.states.size()});
  if (parameter.array.size() < small) {
    prepared.run();
    return;
  }
  const py::gil_scoped_release release;  // the caller's frame holds what the arrays belong to
  prepared.run();
}

// What a built-in function is bound to is its module, or else it shows as a method and does not pickle. A call gets to
// see nothing but that: so each function has a module object of its own, under the package's name, whose state it is.
Function*& held_by(PyObject* module) { return *static_cast<Function**>(PyModule_GetState(module)); }

PyModuleDef holder = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "fusedstep",
    .m_doc = nullptr,
    .m_size = sizeof(Function*),
    .m_methods = nullptr,
    .m_slots = nullptr,
    .m_traverse = nullptr,
    .m_clear = nullptr,
    .m_free = [](void* module) { delete held_by(static_cast<PyObject*>(module)); },
};

PyObject* call(PyObject* self, PyObject* const* positional, Py_ssize_t count, PyObject* keywords) {
  return raising([&]() -> PyObject* {
    const Function& function = *held_by(self);
    PyObject* values[max_arguments] = {};
    collect(function, positional, count, keywords, values);
    update(function, values);
    Py_RETURN_NONE;
  });
}

Argument make_argument(const Description& rule, const std::string& text) {
  Argument argument{.name = py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text.c_str())),
                    .text = text,
                    .role = Role::field};
  if (text == "param") {
    argument.role = Role::parameter;
  } else if (text == "grad") {
    argument.role = Role::gradient;
  } else if (text == "step") {
    argument.role = Role::time;
    argument.switched = rule.field("bias_correction");
  } else if ((argument.field = rule.field(text.c_str())) == nullptr) {
    for (std::size_t s = 0; s < rule.states.size(); ++s) {
      if (text != rule.states[s].name) continue;
      argument.role = Role::state;
      argument.state = static_cast<int>(s);
      if (rule.states[s].switched_by != nullptr) argument.switched = rule.field(rule.states[s].switched_by);
    }
    if (argument.role != Role::state) throw py::type_error(std::string(rule.name) + " has no '" + text + "'");
  }
  return argument;
}

}  // namespace

py::object make_function(const std::string& rule_name, const std::string& name, const std::string& documentation,
                         const py::list& parameters, int positional) {
  auto function = std::make_unique<Function>();
  function->rule = rule_by_name(rule_name);
  function->name = name;
  function->documentation = documentation;
  function->positional = positional;
  const Description& rule = description(function->rule);
  rule.construct(function->defaults.bytes);
  if (parameters.size() > max_arguments) throw py::type_error(name + "() has too many arguments");
  for (const py::handle entry : parameters) {
    const auto parameter = entry.cast<py::tuple>();
    Argument argument = make_argument(rule, parameter[0].cast<std::string>());
    argument.required = parameter[2].cast<bool>();
    if (argument.role == Role::field && !parameter[1].is_none()) {
      set_field(*argument.field, parameter[1], function->defaults.bytes);
    }
    function->arguments.push_back(std::move(argument));
  }
  function->definition = {function->name.c_str(), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)),
                          METH_FASTCALL | METH_KEYWORDS, function->documentation.c_str()};
  const auto self = py::reinterpret_steal<py::object>(PyModule_Create(&holder));
  if (!self) throw py::error_already_set();
  Function* const held = held_by(self.ptr()) = function.release();
  return py::reinterpret_steal<py::object>(
      PyCFunction_NewEx(&held->definition, self.ptr(), py::str(holder.m_name).ptr()));
}

}  // namespace fusedstep::bind
