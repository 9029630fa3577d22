#include "groups.hpp"

#include <pybind11/critical_section.h>
#include <pybind11/numpy.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

#include "hyperparameters.hpp"

namespace fusedstep::bind {
namespace {

std::string at(std::size_t index) { return "param_groups[" + std::to_string(index) + "]"; }

// Returns a number that changes whenever a dict changes, or 0 if this Python has none.
std::uint64_t version_of(PyObject* dict) {
#if PY_VERSION_HEX < 0x030C0000
  return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
#else
  static_cast<void>(dict);
  return 0;
#endif
}

bool is_params(const py::object& key) {
  return PyUnicode_Check(key.ptr()) && PyUnicode_CompareWithASCIIString(key.ptr(), "params") == 0;
}

}  // namespace

GroupStorage storage_from(const std::optional<std::string>& state_dtype, bool nearest, bool master) {
  GroupStorage storage{.rounding = nearest ? Rounding::nearest : Rounding::stochastic, .master = master};
  for (int k = 0; state_dtype && k < type_count; ++k) {
    if (*state_dtype == name_of(static_cast<Type>(k))) storage.state_type = static_cast<Type>(k);
  }
  if (state_dtype && !storage.state_type) {
    throw py::value_error("state_dtype: expected None or 'bfloat16', got '" + *state_dtype + "'");
  }
  return storage;
}

OptimizerCore::Own own_options(const OwnArrays& arrays, std::size_t group, const OptimizerCore& core) {
  OptimizerCore::Own own;
  if (!arrays.empty() && core.is_shared()) {
    throw py::value_error(std::string(arrays[0].name) + ": expected a number over several processes, got an array");
  }
  for (std::size_t i = 0; !arrays.empty() && i < core.size(); ++i) {
    if (core.group(i) != group) continue;
    for (auto& values = own.emplace_back(); const OwnArray& array : arrays) values.push_back(array.of(core.parameter(i)));
  }
  return own;
}

Groups::Groups(const RuleSchema& rule) : rule_(rule) {
  for (const schema::Field& field : rule.fields) {
    names_.push_back(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(field.name)));
  }
}

void Groups::own(const py::list& groups, OptimizerCore& core, bool has_their_values) {
  std::vector<Group> owned;
  for (const py::handle group : groups) {
    Group& made = owned.emplace_back();
    made.dict = py::reinterpret_borrow<py::dict>(group);
    made.params = group["params"];
    made.keys = py::len(group);
  }
  if (owned.size() != core.groups()) throw py::value_error("groups: expected one for each group that was added");
  groups_ = std::move(owned);
  list_ = groups;
  for (std::size_t k = 0; k < core.groups() && !has_their_values; ++k) {
    OwnArrays arrays;
    const Options options = read_group(k, groups_[k].dict.ptr(), core, arrays);
    core.restore_options(k, options, own_options(arrays, k, core));
  }
}

void Groups::read(py::handle groups, OptimizerCore& core) {
  groups_.resize(core.groups());
  const bool owned = list_.ptr() != nullptr;
  if (!PyList_Check(groups.ptr()) || static_cast<std::size_t>(PyList_GET_SIZE(groups.ptr())) != core.groups() ||
      (owned && !groups.is(list_))) {
    throw py::value_error("param_groups: expected the list of " + std::to_string(core.groups()) +
                          " groups that the optimizer was made with; change the values in its dicts instead");
  }
  for (std::size_t k = 0; k < core.groups(); ++k) {
    py::object values;
    {
      const py::scoped_critical_section locked(groups);
      if (k >= static_cast<std::size_t>(PyList_GET_SIZE(groups.ptr()))) {
        throw py::value_error("param_groups: the list became shorter during the step");
      }
      values = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(groups.ptr(), static_cast<Py_ssize_t>(k)));
    }
    if (owned && !values.is(groups_[k].dict)) {
      if (!PyDict_Check(values.ptr())) {
        throw py::type_error(at(k) + ": expected a dict of hyperparameters, got " + type_name(values));
      }
      throw py::value_error(at(k) + ": expected the dict that the optimizer was made with, in its place, got another; " +
                            "change its values instead");
    }
    if (!PyDict_Check(values.ptr())) {
      throw py::type_error(at(k) + ": expected a dict of hyperparameters, got " + type_name(values));
    }
    if (owned && !groups_[k].seen.empty() && holds(values.ptr(), groups_[k].seen)) continue;
    OwnArrays arrays;
    const Options options = read_group(k, values.ptr(), core, arrays);
    Entries seen = std::exchange(groups_[k].seen, {});  // if the optimizer refuses them, they are read again
    in_group(k, core.groups(), [&] { core.set_options(k, options, own_options(arrays, k, core)); });
    groups_[k].seen = std::move(seen);
  }
}

bool Groups::remember(py::handle groups, const OptimizerCore& core) {
  clear();
  if (!PyList_CheckExact(groups.ptr()) || static_cast<std::size_t>(PyList_GET_SIZE(groups.ptr())) != core.groups())
    return false;
  std::vector<Group> remembered(core.groups());
  for (std::size_t k = 0; k < remembered.size(); ++k) {
    Group& group = remembered[k];
    group.dict = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(groups.ptr(), static_cast<Py_ssize_t>(k)));
    if (!PyDict_CheckExact(group.dict.ptr())) return false;
    group.seen = entries_of(group.dict.ptr());
    Options options = core.options(k);
    for (const auto& [key, value] : group.seen) {
      if (is_params(key)) {
        group.params = value;
        continue;
      }
      if (!value.is_none() && !is_immutable(value.ptr())) return false;
      if (const schema::Field* const field = this->field(key)) set_field(*field, value, options);
    }
    if (!group.params || std::memcmp(&options, &core.options(k), sizeof options) != 0) return false;
  }
  groups_ = std::move(remembered);
  list_ = py::reinterpret_borrow<py::object>(groups);
  return true;
}

bool Groups::read_floats(OptimizerCore& core) {
  PyObject* const list = list_.ptr();
  if (list == nullptr || static_cast<std::size_t>(PyList_GET_SIZE(list)) != groups_.size()) return false;
  for (std::size_t k = 0; k < groups_.size(); ++k) {
    Group& group = groups_[k];
    PyObject* const dict = group.dict.ptr();
    if (PyList_GET_ITEM(list, static_cast<Py_ssize_t>(k)) != dict || group.seen.empty()) return false;
    const std::uint64_t version = version_of(dict);
    if (version != 0 && version == group.version) continue;
    Entries seen = std::exchange(group.seen, {});  // if anything else differs, or the optimizer refuses, all is read again
    std::optional<Options> changed;
    Py_ssize_t position = 0;
    PyObject* key;
    PyObject* value;
    std::size_t i = 0;
    for (; PyDict_Next(dict, &position, &key, &value) != 0; ++i) {
      if (i == seen.size() || key != seen[i].first.ptr()) return false;
      if (value == seen[i].second.ptr()) continue;
      const schema::Field* const field = this->field(seen[i].first);
      if (field == nullptr || field->kind != schema::Kind::real || is_start(*field) || !PyFloat_CheckExact(value))
        return false;
      if (!changed) changed = core.options(k);
      set_field(*field, value, *changed);
      seen[i].second = py::reinterpret_borrow<py::object>(value);
    }
    if (i != seen.size()) return false;
    if (changed) core.set_options(k, *changed);
    group.seen = std::move(seen);
    group.version = version;
  }
  return true;
}

// Whether a state starts at the value of an option. A later change of it may have no effect.
bool Groups::is_start(const schema::Field& field) const {
  return std::any_of(rule_.states.begin(), rule_.states.end(), [&](const schema::State& state) {
    return state.starts_at != nullptr && std::string_view(state.starts_at) == field.name;
  });
}

const schema::Field* Groups::field(const py::object& key) const {
  for (std::size_t f = 0; f < names_.size(); ++f) {
    if (names_[f].ptr() == key.ptr()) return &rule_.fields[f];
  }
  if (!PyUnicode_Check(key.ptr())) return nullptr;
  for (const schema::Field& field : rule_.fields) {
    if (PyUnicode_CompareWithASCIIString(key.ptr(), field.name) == 0) return &field;
  }
  return nullptr;
}

void Groups::check_keys(std::size_t index, const Group& group, const Entries& entries) const {
  for (const auto& [key, value] : entries) {
    const schema::Field* field = this->field(key);
    if (is_params(key)) {
      if (value.is(group.params)) continue;
      throw py::value_error(at(index) + ": expected the 'params' that the optimizer was made with, got others; write into " +
                            "the arrays, or make a new optimizer");
    }
    if (field == nullptr || field->purpose != schema::Purpose::option) {
      py::list known;
      for (const schema::Field& each : rule_.fields) {
        if (each.purpose == schema::Purpose::option) known.append(each.name);
      }
      throw py::type_error(at(index) + ": unknown hyperparameter " + std::string(py::repr(key)) + did_you_mean(key, known));
    }
  }
  if (entries.size() == group.keys) return;
  for (const schema::Field& field : rule_.fields) {
    if (field.purpose != schema::Purpose::option) continue;
    const bool present = std::any_of(entries.begin(), entries.end(),
                                     [&](const auto& entry) { return this->field(entry.first) == &field; });
    if (!present) throw py::value_error(at(index) + ": expected a value for '" + field.name + "', got none");
  }
  throw py::value_error(at(index) + ": expected 'params', got none");
}

Options Groups::read_group(std::size_t index, PyObject* values, const OptimizerCore& core, OwnArrays& arrays) {
  Group& group = groups_[index];
  group.version = 0;
  Entries entries = entries_of(values);
  if (group.dict) check_keys(index, group, entries);
  Options options = core.options(index);
  bool immutable = true;
  for (const auto& [key, value] : entries) {
    const schema::Field* field = this->field(key);
    if (field == nullptr) continue;
    in_group(index, groups_.size(), [&] { set_field(*field, value, options, &arrays); });
    immutable = immutable && is_immutable(value.ptr());
  }
  group.seen = immutable ? std::move(entries) : Entries{};
  return options;
}

int Groups::traverse(visitproc visit, void* arg) const {
  Py_VISIT(list_.ptr());
  for (const Group& group : groups_) {
    Py_VISIT(group.dict.ptr());
    Py_VISIT(group.params.ptr());
    if (const int result = bind::traverse(group.seen, visit, arg); result != 0) return result;
  }
  return 0;
}

void Groups::clear() {
  list_ = py::object();
  std::vector<Group>().swap(groups_);
}

}  // namespace fusedstep::bind
