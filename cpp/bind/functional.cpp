// pybind11 needs 550 to 890 ns per call to parse such a signature, several times the update of a small array. So these
// functions use the vectorcall protocol, and match names by identity, as interned strings.
#include "functional.hpp"

#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "../work.hpp"
#include "arrays.hpp"
#include "hyperparameters.hpp"

namespace fusedstep::bind {
namespace {

using schema::Field;

enum class Role : std::uint8_t { parameter, gradient, rows, state, field, step, key };

struct Argument {
  py::str name;
  std::string text;
  Role role;
  int state = -1;
  const Field* field = nullptr;
  const Field* turned_on = nullptr;  // the flag that this argument turns on
  bool required = false;
  bool may_be_none = false;  // its default is None
};

constexpr int max_arguments = 32;

// A call whose names and options were checked, with the result. The next call that is written the same, with the same
// options, only needs to look at its arrays.
struct Written {
  // One per passed argument: the stream of an array, or an object that must be the same in the next call. Such objects have
  // immutable types and are held, so that the same object has the same value.
  struct Passed {
    py::object value;
    int stream = -1;
  };
  std::vector<py::object> keywords;
  std::vector<Passed> passed;
  std::size_t parameter = 0;  // its place in `passed`
  const Kernels* kernels;     // those of `work`
  Work work;                  // no stream of it is narrow
};

struct Function {
  RuleId rule;
  std::string name;
  std::string documentation;
  std::vector<Argument> arguments;
  int positional;
  Options defaults;
  PyMethodDef definition;
  std::array<std::unique_ptr<const Written>, 4> written{};  // calls replace them in turn
  std::size_t next_written = 0;
  std::size_t missed = 0;  // how many calls since the last one that was remembered
};

bool given(PyObject* value) { return value != nullptr && value != Py_None; }

std::size_t find(const Function& function, PyObject* keyword) {
  for (std::size_t k = 0; k < function.arguments.size(); ++k) {
    if (function.arguments[k].name.ptr() == keyword) return k;
  }
  for (std::size_t k = 0; k < function.arguments.size(); ++k) {
    if (PyUnicode_Compare(function.arguments[k].name.ptr(), keyword) == 0) return k;
  }
  py::list known;
  for (const Argument& argument : function.arguments) known.append(argument.name);
  std::string hint = did_you_mean(keyword, known);
  if (const Field* const field = schema_of(function.rule).field(std::string(py::str(keyword)))) {
    hint = ", an option of the class only";
    for (const Argument& argument : function.arguments) {
      if (argument.turned_on == field) hint = "; pass " + argument.text + ", which turns it on";
    }
  }
  throw py::type_error(function.name + "() got an unexpected keyword argument " + std::string(py::repr(keyword)) + hint);
}

void collect(const Function& function, PyObject* const* positional, Py_ssize_t count, PyObject* keywords,
             PyObject** values) {
  if (count > function.positional) {
    throw py::type_error(function.name + "() takes " + std::to_string(function.positional) + " positional arguments but " +
                         std::to_string(count) + " were given");
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

std::int64_t step_count(PyObject* value) {
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

// The key of the noise in stochastic rounding.
std::uint64_t noise_key_from(PyObject* value) {
  if (PyBool_Check(value) || PyIndex_Check(value) == 0) {
    throw py::type_error("key: expected a whole number or None, got " + std::string(py::repr(value)));
  }
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value));
  if (!index) {
    PyErr_Clear();
    throw py::type_error("key: expected a whole number or None, got " + std::string(py::repr(value)));
  }
  const unsigned long long key = PyLong_AsUnsignedLongLong(index.ptr());
  if (key == static_cast<unsigned long long>(-1) && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw py::value_error("key: expected a whole number from 0 to 2^64 - 1, got " + std::string(py::repr(value)));
  }
  return key;
}

// Refuses a state that the hyperparameters do not use, and a missing one that they do.
void check_states(const Function& function, const RuleSchema& rule, const Options& options, PyObject* const* values) {
  for (std::size_t k = 0; k < function.arguments.size(); ++k) {
    const Argument& argument = function.arguments[k];
    if (argument.role != Role::state || argument.required || argument.state == low_half) continue;
    const bool used = rule.uses(options, static_cast<std::size_t>(argument.state));
    if (used == given(values[k])) continue;
    throw py::value_error(argument.text +
                          (used ? ": expected an array, which these hyperparameters need, got None"
                                : ": expected None, because these hyperparameters do not use it, got an array"));
  }
}

// Whether an array owns its memory and only this call holds it. W[rows], with an array of rows, makes such a copy, and its
// update would be lost. In free-threaded Python the reference count does not show this.
bool is_lost(PyObject* array) {
#if defined(Py_GIL_DISABLED)
  static_cast<void>(array);
  return false;
#else
  if (!is_plain_array(array)) return false;
#if PY_VERSION_HEX >= 0x030E0000
  if (PyUnstable_Object_IsUniqueReferencedTemporary(array) == 0) return false;
#else
  if (Py_REFCNT(array) != 1) return false;
#endif
  return (py::detail::array_proxy(array)->flags & py::detail::npy_api::NPY_ARRAY_OWNDATA_) != 0;
#endif
}

bool is_same(PyObject* value, PyObject* remembered) {
  if (value == remembered) return true;
  if (!PyFloat_CheckExact(value) || !PyFloat_CheckExact(remembered)) return false;
  const double numbers[] = {PyFloat_AS_DOUBLE(value), PyFloat_AS_DOUBLE(remembered)};
  return std::memcmp(&numbers[0], &numbers[1], sizeof(double)) == 0;
}

bool is_written(const Written& written, PyObject* const* passed, Py_ssize_t count, PyObject* keywords) {
  const auto named = keywords == nullptr ? 0 : static_cast<std::size_t>(PyTuple_GET_SIZE(keywords));
  const std::size_t n = static_cast<std::size_t>(count) + named;
  if (named != written.keywords.size() || n != written.passed.size()) return false;
  for (std::size_t k = 0; k < named; ++k) {
    if (PyTuple_GET_ITEM(keywords, static_cast<Py_ssize_t>(k)) != written.keywords[k].ptr()) return false;
  }
  for (std::size_t k = 0; k < n; ++k) {
    if (written.passed[k].stream < 0 && !is_same(passed[k], written.passed[k].value.ptr())) return false;
  }
  PyObject* const parameter = passed[written.parameter];
  return is_plain_array(parameter) &&
         py::detail::array_proxy(parameter)->descr == descriptor_of(written.work.storage.type[0]);
}

// Updates a few elements by what was remembered. It checks the arrays in full: they must be ndarrays of native types, of one
// shape, in C order, aligned and without shared memory; written ones must be writeable and held by the caller. Otherwise it
// does nothing and returns false, and update() says what is wrong or supports it. Runs no Python code.
bool update_as_written(const Written& written, PyObject* const* passed) {
  using npy = py::detail::npy_api;
  const PyTypeObject* const array_type = npy::get().PyArray_Type_;
  PyObject* arrays[max_streams] = {};
  for (std::size_t k = 0; k < written.passed.size(); ++k) {
    const int stream = written.passed[k].stream;
    if (stream < 0) continue;
    if (Py_TYPE(passed[k]) != array_type || (stream != gradient_stream && is_lost(passed[k]))) return false;
    arrays[stream] = passed[k];
  }
  const auto* const parameter = py::detail::array_proxy(arrays[0]);
  const Storage& storage = written.work.storage;
  std::int64_t size = 1;
  for (int axis = 0; axis < parameter->nd && size < small; ++axis) size *= parameter->dimensions[axis];
  if (size == 0 || size >= small) return false;
  void* streams[max_streams] = {};
  for (int s = 0; s < max_streams; ++s) {
    if (arrays[s] == nullptr) continue;
    const auto* const array = py::detail::array_proxy(arrays[s]);
    const int flags = npy::NPY_ARRAY_C_CONTIGUOUS_ | npy::NPY_ARRAY_ALIGNED_ |
                      (s == gradient_stream ? 0 : npy::NPY_ARRAY_WRITEABLE_);
    if (array->descr != descriptor_of(storage.type[s]) || (array->flags & flags) != flags || array->nd != parameter->nd) {
      return false;
    }
    for (int axis = 0; axis < array->nd; ++axis) {
      if (array->dimensions[axis] != parameter->dimensions[axis]) return false;
    }
    for (int other = 0; other < s; ++other) {
      const auto* const before = static_cast<const char*>(streams[other]);
      if (before != nullptr && array->data < before + size * storage.item_size[other] &&
          before < array->data + size * storage.item_size[s]) {
        return false;
      }
    }
    streams[s] = array->data;
  }
  const DefaultFloatingPoint guard;
  written.work.kernel.update(written.work.prepared, size, streams);
  return true;
}

// What a call has found out.
struct Made {
  Options options;
  Storage storage;
};

// Remembers a call, if the next one can use what it found out.
void remember(Function& function, const Made& made, PyObject* const* passed, Py_ssize_t count, PyObject* keywords) {
#if !defined(Py_GIL_DISABLED)
  auto written = std::make_unique<Written>();
  written->kernels = &kernels();
  const Py_ssize_t named = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
  for (Py_ssize_t k = 0; k < count + named; ++k) {
    PyObject* const keyword = k < count ? nullptr : PyTuple_GET_ITEM(keywords, k - count);
    const Argument& argument =
        function.arguments[keyword == nullptr ? static_cast<std::size_t>(k) : find(function, keyword)];
    Written::Passed each;
    if (argument.role == Role::parameter) {
      each.stream = 0;
      written->parameter = written->passed.size();
    } else if (argument.role == Role::gradient) {
      each.stream = gradient_stream;
    } else if (argument.role == Role::state && passed[k] != Py_None) {
      each.stream = first_state + argument.state;
    } else if (passed[k] == Py_None || (argument.role == Role::field && is_immutable(passed[k]))) {
      each.value = py::reinterpret_borrow<py::object>(passed[k]);
    } else {
      return;
    }
    written->passed.push_back(std::move(each));
    if (keyword != nullptr) written->keywords.push_back(py::reinterpret_borrow<py::object>(keyword));
  }
  const DefaultFloatingPoint guard;
  written->work = make_work(function.rule, made.options, 1, made.storage, {}, 1.0);
  if (written->work.kernel.reduce != nullptr) return;
  // The entry that this replaces is freed when nothing points to it any more.
  std::unique_ptr<const Written> last = std::move(written);
  std::swap(last, function.written[function.next_written++ % function.written.size()]);
#else
  static_cast<void>(function), static_cast<void>(made), static_cast<void>(passed), static_cast<void>(count),
      static_cast<void>(keywords);
#endif
}

// Does everything that may run Python code first (numbers and foreign arrays). Then it looks at the memory and updates.
// Returns what the next call can use, if there is nothing else to do in it.
std::optional<Made> update(const Function& function, PyObject* const* values) {
  const RuleSchema& rule = schema_of(function.rule);
  Options options = function.defaults;
  std::int64_t step = 1;
  std::optional<std::uint64_t> key;
  bool lr_given = true;
  PyObject* arrays[max_arguments] = {};
  References references;
  for (std::size_t k = 0; k < function.arguments.size(); ++k) {
    const Argument& argument = function.arguments[k];
    PyObject* const value = values[k];
    if (argument.role == Role::field) {
      if (value == nullptr || (value == Py_None && argument.may_be_none)) {
        lr_given = lr_given && !(argument.may_be_none && argument.text == "lr");
      } else {
        set_field(*argument.field, value, options);
      }
    } else if (given(value) || argument.required) {
      if (argument.turned_on != nullptr) options.at<bool>(*argument.turned_on) = true;
      if (argument.role == Role::step) {
        step = step_count(value);
      } else if (argument.role == Role::key) {
        key = noise_key_from(value);
      } else {
        const bool written = argument.role != Role::gradient && argument.role != Role::rows;
        arrays[k] = as_array(value, {argument.text.c_str()}, references, written);
        if (written && is_lost(value)) {
          const bool by_rows = schema_of(function.rule).takes_rows;
          throw py::value_error(argument.text + ": expected an array that the caller holds, got a temporary copy, whose " +
                                "update would be lost (indexing by an array or a mask copies); " +
                                (by_rows ? "pass whole arrays and rows=index, or " : "") + "keep it in a variable and " +
                                "write it back");
        }
      }
    }
  }
  if (const std::string wrong = rule.conflict(options); !wrong.empty()) throw py::value_error(wrong);
  const Prologue prologue = rule.prologue(options);
  if (!lr_given && prologue.decoupled_weight_decay && prologue.weight_decay != 0) {
    throw py::value_error("lr: needed by decoupled weight decay, got None; pass a number");
  }
  check_states(function, rule, options, values);

  Array parameter;
  Array gradient;
  Array index;
  Array states[state_arrays];
  for (std::size_t k = 0; k < function.arguments.size(); ++k) {
    if (arrays[k] == nullptr) continue;
    const Argument& argument = function.arguments[k];
    const Label label{argument.text.c_str()};
    if (argument.role == Role::parameter) {
      parameter = borrow(arrays[k], label, parameter_types, true);
    } else if (argument.role == Role::gradient) {
      gradient = borrow(arrays[k], label, gradient_types(parameter.type), false);
    } else if (argument.role == Role::rows) {
      index = borrow_index(arrays[k], label);
    } else if (argument.state == low_half) {
      states[low_half] = checked_low_halves(borrow(arrays[k], label, Type::uint16, true), parameter);
    } else {
      const schema::State& state = rule.states[static_cast<std::size_t>(argument.state)];
      states[argument.state] = borrow(arrays[k], label, types_of_state(state, parameter.type), true);
    }
  }
  SingleUpdate prepared(function.rule, options, step, parameter, gradient, states, index, key);
  if (parameter.size() < small) {
    prepared.run();
  } else {
    without_gil([&] { prepared.run(); });  // the caller's frame keeps the arrays alive
  }
  if (parameter.size() >= small) return std::nullopt;
  const Storage storage = storage_of(rule, options, parameter, gradient, states, Rounding::nearest);
  if (storage.is_narrow) return std::nullopt;
  return Made{options, storage};
}

// The object that a built-in function is bound to is its module; with any other object it would look like a method, and not
// pickle. A call sees only that object. So each function has a module object of its own, with the package's name, whose
// state is the function.
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
    Function& function = *held_by(self);
    bool known = false;
    for (const auto& written : function.written) {
      if (written == nullptr || known) break;
      if (written->kernels != &kernels() || !is_written(*written, positional, count, keywords)) continue;
      known = true;
      function.missed = 0;
      if (update_as_written(*written, positional)) Py_RETURN_NONE;
    }
    PyObject* values[max_arguments] = {};
    collect(function, positional, count, keywords, values);
    const auto made = update(function, values);
    // If options change in every call, remembering them is useless: fewer and fewer calls try.
    if (made && !known && std::has_single_bit(++function.missed)) {
      remember(function, *made, positional, count, keywords);
    }
    Py_RETURN_NONE;
  });
}

Argument make_argument(const RuleSchema& rule, const std::string& text) {
  Argument argument{
      .name = py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text.c_str())), .text = text, .role = Role::field};
  const auto turn_on = [&](const Field* field) {
    if (field != nullptr && field->kind == schema::Kind::flag) argument.turned_on = field;
  };
  if (text == "param") {
    argument.role = Role::parameter;
  } else if (text == "grad") {
    argument.role = Role::gradient;
  } else if (text == "rows") {
    argument.role = Role::rows;
  } else if (text == "step") {
    argument.role = Role::step;
    turn_on(rule.step_used_with);
  } else if (text == "key") {
    argument.role = Role::key;
  } else if (text == low_halves.name) {
    argument.role = Role::state;
    argument.state = low_half;
  } else if ((argument.field = rule.field(text)) == nullptr) {
    for (std::size_t s = 0; s < rule.states.size(); ++s) {
      if (text != rule.states[s].name) continue;
      argument.role = Role::state;
      argument.state = static_cast<int>(s);
      turn_on(rule.used_with[s]);
    }
    if (argument.role != Role::state) throw py::type_error(std::string(rule.name) + " has no '" + text + "'");
  }
  return argument;
}

}  // namespace

py::object make_function(const std::string& rule_name, const std::string& name, const std::string& documentation,
                         const py::list& parameters, int positional) {
  auto function = std::make_unique<Function>();
  function->rule = rule_named(rule_name);
  function->name = name;
  function->documentation = documentation;
  function->positional = positional;
  const RuleSchema& rule = schema_of(function->rule);
  function->defaults = rule.defaults();
  if (parameters.size() > max_arguments) throw py::type_error(name + "() has too many arguments");
  for (const py::handle entry : parameters) {
    const auto parameter = entry.cast<py::tuple>();
    Argument argument = make_argument(rule, parameter[0].cast<std::string>());
    argument.required = parameter[2].cast<bool>();
    argument.may_be_none = !argument.required && parameter[1].is_none();
    if (argument.role == Role::field && !parameter[1].is_none()) {
      set_field(*argument.field, parameter[1], function->defaults);
    }
    function->arguments.push_back(std::move(argument));
  }
  function->definition = {function->name.c_str(), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)),
                          METH_FASTCALL | METH_KEYWORDS, function->documentation.c_str()};
  const auto self = py::reinterpret_steal<py::object>(PyModule_Create(&holder));
  if (!self) throw py::error_already_set();
  Function* const held = held_by(self.ptr()) = function.release();
  return py::reinterpret_steal<py::object>(PyCFunction_NewEx(&held->definition, self.ptr(), py::str(holder.m_name).ptr()));
}

}  // namespace fusedstep::bind
