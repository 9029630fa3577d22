// The dicts of hyperparameters, which the caller may change between steps.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../optimizer.hpp"
#include "hyperparameters.hpp"
#include "objects.hpp"

namespace fusedstep::bind {

// Converts the arguments that Python's `_storage.checked` returns for a group.
GroupStorage storage_from(const std::optional<std::string>& state_dtype, bool nearest, bool master);

// Returns the arrays of a group for each of its parameters.
OptimizerCore::Own own_options(const OwnArrays& arrays, std::size_t group, const OptimizerCore& core);

// Runs f; if there are several groups, messages of its errors get the place of this one.
template <class F>
auto in_group(std::size_t index, std::size_t groups, F f) {
  const auto placed = [=](const std::exception& error) {
    return (groups > 1 ? "param_groups[" + std::to_string(index) + "]: " : "") + error.what();
  };
  try {
    return f();
  } catch (const py::type_error& error) {
    throw py::type_error(placed(error));
  } catch (const py::value_error& error) {
    throw py::value_error(placed(error));
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(placed(error));
  }
}

class Groups {
 public:
  explicit Groups(const RuleSchema& rule);

  // From now on read() accepts only this list of these dicts, each with its "params" and exactly its present keys. The
  // optimizer takes their values as those that its states belong to. If it has them already, no Python code runs.
  void own(const py::list& groups, OptimizerCore& core, bool has_their_values);

  // Passes what has changed to the optimizer. May run any Python code.
  void read(py::handle groups, OptimizerCore& core);

  // The same if at most some floats were replaced by others. Returns false, and changes nothing, if anything else differs;
  // then call read(). Runs no Python code.
  bool read_floats(OptimizerCore& core);

  // From now on read_floats() compares with these groups. They may have further keys, and "params" of any kind. Returns
  // false if they can't be compared, or are not those of the core.
  bool remember(py::handle groups, const OptimizerCore& core);
  bool are(PyObject* groups) const { return groups != nullptr && groups == list_.ptr(); }
  py::handle params(std::size_t group) const { return groups_[group].params; }

  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  struct Group {
    py::object dict;    // null until owned
    py::object params;  // null until owned
    std::size_t keys = 0;
    Entries seen;  // as read last, in the dict's order; empty: it must be read
    std::uint64_t version = 0;  // of the dict when it was compared last; 0: unknown
  };

  Options read_group(std::size_t index, PyObject* values, const OptimizerCore& core, OwnArrays& arrays);
  void check_keys(std::size_t index, const Group& group, const Entries& entries) const;
  const schema::Field* field(const py::object& key) const;
  bool is_start(const schema::Field& field) const;

  const RuleSchema& rule_;
  std::vector<py::object> names_;  // of the fields, interned
  py::object list_;                // null until owned
  std::vector<Group> groups_;
};

}  // namespace fusedstep::bind
