#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../dialects.hpp"
#include "../dispatch.hpp"
#include "../memory.hpp"
#include "../parallel.hpp"
#include "arrays.hpp"
#include "functional.hpp"
#include "hyperparameters.hpp"
#include "plan.hpp"
#include "rules_by_name.hpp"
#include "timing.hpp"

namespace py = pybind11;

namespace fusedstep::bind {
namespace {

// Types, ranges and what does not go together, before anything is made of it.
void check_hyperparameters(const std::string& rule_name, const py::dict& values) {
  const Description& rule = description(rule_by_name(rule_name));
  Options options;
  rule.construct(options.bytes);
  for (const auto& [key, value] : values) {
    const auto name = key.cast<std::string>();
    const Field* field = rule.field(name.c_str());
    if (field == nullptr) throw py::type_error("'" + name + "' is no hyperparameter of " + rule_name);
    set_field(*field, value, options.bytes);
  }
  check(rule, options.bytes);
}

// The names of the states that these hyperparameters use.
std::vector<std::string> used_states(const std::string& rule_name, const py::dict& values) {
  const Description& rule = description(rule_by_name(rule_name));
  Options options;
  rule.construct(options.bytes);
  for (const auto& [key, value] : values) {
    if (const Field* field = rule.field(key.cast<std::string>().c_str())) set_field(*field, value, options.bytes);
  }
  std::vector<std::string> names;
  for (std::size_t s = 0; s < rule.states.size(); ++s) {
    if (rule.uses(options.bytes, static_cast<int>(s))) names.emplace_back(rule.states[s].name);
  }
  return names;
}

// {rule: {"fields": {name: default}, "states": {name: "parameter" | "int8" | "scalar"}, "starts": {state: name}}}. What
// only says where a state starts is no field; a state that is not among the starts starts at 0.
py::dict rules() {
  py::dict all;
  for (int r = 0; r < rule_count; ++r) {
    const Description& rule = description(static_cast<RuleId>(r));
    Options options;
    rule.construct(options.bytes);
    py::dict fields;
    for (const Field& field : rule.fields) {
      if (!field.is_start) fields[field.name] = get_field(field, options.bytes);
    }
    py::dict states;
    py::dict starts;
    for (const State& state : rule.states) {
      constexpr const char* storages[] = {"parameter", "int8", "scalar"};
      states[state.name] = storages[static_cast<int>(state.storage)];
      if (state.starts_at != nullptr) starts[state.name] = state.starts_at;
    }
    py::dict entry;
    entry["fields"] = fields;
    entry["states"] = states;
    entry["starts"] = starts;
    all[rule.name] = entry;
  }
  return all;
}

// {rule: [{"name", "source", "takes": [argument], "values": {argument: value}}]}
py::dict dialects() {
  py::dict all;
  for (int r = 0; r < rule_count; ++r) {
    const Description& rule = description(static_cast<RuleId>(r));
    py::list rows;
    for (const Dialect& dialect : fusedstep::dialects(static_cast<RuleId>(r))) {
      py::dict values;
      for (const Field& field : rule.fields) values[field.name] = get_field(field, dialect.options);
      py::dict row;
      row["name"] = dialect.name;
      row["source"] = dialect.source;
      row["takes"] = py::str(dialect.takes).attr("split")();
      row["values"] = values;
      rows.append(row);
    }
    if (!rows.empty()) all[rule.name] = rows;
  }
  return all;
}

}  // namespace
}  // namespace fusedstep::bind

PYBIND11_MODULE(_core, module, py::mod_gil_not_used(), py::multiple_interpreters::per_interpreter_gil()) {
  using namespace fusedstep;
  module.attr("version") = FUSEDSTEP_VERSION;
  module.attr("compiler") = FUSEDSTEP_COMPILER;
  module.attr("flags") = FUSEDSTEP_FLAGS;
  module.def("isa", &isa);
  module.def("compiled_isas", &compiled_isas);
  module.def("available_isas", &available_isas);
  module.def("force_isa", [](const std::string& name) { force_isa(name); }, py::arg("name"));
  module.def("num_threads", &num_threads);
  module.def("set_num_threads", &set_num_threads, py::arg("n"));
  module.def("default_num_threads", &default_num_threads);
  module.def("share_all_work", &share_all_work, py::arg("share"));
  module.def("rules", &bind::rules);
  module.def("dialects", &bind::dialects);
  module.def("check_hyperparameters", &bind::check_hyperparameters, py::arg("rule"), py::arg("values"));
  module.def(
      "check_parameter",
      [](py::handle array, const std::string& name, int group) {
        const Label label{"", &name, group};
        bind::Arrays arrays;
        const auto parameter = py::reinterpret_borrow<py::object>(arrays(array, label));
        // Also here, before memory for its states is asked for: an array of zero strides may seem larger than it is.
        check_distinct_elements(bind::borrow_parameter(parameter, label).array);
        return parameter;
      },
      py::arg("array"), py::arg("name"), py::arg("group"));
  module.def(
      "allocate",
      [](std::size_t bytes) {
        Memory memory = allocate(bytes);
        std::byte* data = memory.get();
        const py::capsule owner(new Memory(std::move(memory)), [](void* held) { delete static_cast<Memory*>(held); });
        return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(bytes), reinterpret_cast<std::uint8_t*>(data), owner);
      },
      py::arg("bytes"));
  // Swaps the floating-point settings of the calling thread; None: those of IEEE 754. Returns the ones before.
  module.def(
      "exchange_floating_point",
      [](std::optional<std::uint64_t> state) { return exchange_floating_point(state); }, py::arg("state"));
  module.def(
      "place",
      [](const std::vector<std::size_t>& sizes) {
        const Placement placement = place(sizes);
        return std::pair(placement.offsets, placement.bytes);
      },
      py::arg("sizes"));
  module.def(
      "fill",
      [](const py::array& array, double value) {
        const bind::Borrowed borrowed = bind::borrow_parameter(array, {"array", nullptr, -1});
        const std::int64_t n = borrowed.array.size();
        const py::gil_scoped_release release;
        if (borrowed.element == bind::Element::float32) {
          fill(reinterpret_cast<float*>(borrowed.array.data), n, value);
        } else {
          fill(reinterpret_cast<double*>(borrowed.array.data), n, value);
        }
      },
      py::arg("array"), py::arg("value"));
  module.def("used_states", &bind::used_states, py::arg("rule"), py::arg("values"));
  module.def("make_function", &bind::make_function, py::arg("rule"), py::arg("name"), py::arg("documentation"),
             py::arg("parameters"), py::arg("positional"));
  bind::register_plan(module);
  bind::register_timing(module);
}
