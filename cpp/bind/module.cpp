#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../dispatch.hpp"
#include "../include/fusedstep/fusedstep.h"
#include "../overlap.hpp"
#include "../parallel.hpp"
#include "arrays.hpp"
#include "functional.hpp"
#include "groups.hpp"
#include "hyperparameters.hpp"
#include "optimizer.hpp"
#include "step_method.hpp"
#include "tensors.hpp"
#include "timing.hpp"

namespace py = pybind11;

namespace fusedstep::bind {
namespace {

// Checks types, ranges and contradictions before anything is made from the values.
void check_hyperparameters(const std::string& rule, const py::dict& values) {
  const RuleSchema& schema = schema_of(rule_named(rule));
  check(schema, options_from(schema, values));
}

// Returns the names of the states that these hyperparameters use.
std::vector<std::string> used_states(const std::string& rule, const py::dict& values) {
  const RuleSchema& schema = schema_of(rule_named(rule));
  OwnArrays arrays;
  const Options options = options_from(schema, values, &arrays);
  std::vector<std::string> names;
  for (std::size_t s = 0; s < schema.states.size(); ++s) {
    if (schema.uses(options, s)) names.emplace_back(schema.state_name(options, s));
  }
  return names;
}

py::object text_or_none(const char* text) { return text == nullptr ? py::object(py::none()) : py::str(text); }

py::dict described(const schema::Field& field, const Options& defaults) {
  constexpr const char* kinds[] = {"real", "pair", "flag", "choice"};
  constexpr const char* purposes[] = {"option", "start", "loss"};
  py::dict made;
  made["default"] = get_field(field, defaults);
  made["kind"] = kinds[static_cast<int>(field.kind)];
  made["choices"] = py::tuple(py::cast(std::vector<std::string>(field.choices.begin(), field.choices.end())));
  made["range"] = text_or_none(field.range[0].text);
  made["purpose"] = purposes[static_cast<int>(field.purpose)];
  made["per_element"] = field.may_differ;
  return made;
}

// Returns what the rules declare: {rule: {"fields": {name: ...}, "states": {name: ...}, "step": None, "" or a field, "rows":
// bool}}.
py::dict rules() {
  constexpr const char* storages[] = {"parameter", "int8", "scalar"};
  py::dict all;
  for (int rule = 0; rule < Rules::size; ++rule) {
    const RuleSchema& schema = schema_of(static_cast<RuleId>(rule));
    py::dict fields;
    for (const schema::Field& field : schema.fields) fields[field.name] = described(field, schema.defaults());
    py::dict states;
    for (const schema::State& state : schema.states) {
      py::dict made;
      made["storage"] = storages[static_cast<int>(state.storage)];
      made["used_with"] = text_or_none(state.used_with);
      made["starts_at"] = text_or_none(state.starts_at);
      made["per_row_with"] = text_or_none(state.per_row_with);
      made["renamed_with"] = text_or_none(state.renamed_with);
      made["renamed"] = text_or_none(state.renamed);
      states[state.name] = made;
    }
    py::dict entry;
    entry["fields"] = fields;
    entry["states"] = states;
    entry["step"] = text_or_none(!schema.step_in_formula            ? nullptr
                                 : schema.step_used_with == nullptr ? schema::always
                                                                    : schema.step_used_with->name);
    entry["rows"] = schema.takes_rows;
    all[schema.name] = entry;
  }
  return all;
}

// Returns the addresses of the C functions by their names.
py::dict c_functions() {
  py::dict all;
  const auto add = [&](const char* name, auto* function) { all[name] = reinterpret_cast<std::uintptr_t>(function); };
#define FUSEDSTEP_ADD(name) add(#name, &name)
  FUSEDSTEP_ADD(fusedstep_rule_create);
  FUSEDSTEP_ADD(fusedstep_rule_destroy);
  FUSEDSTEP_ADD(fusedstep_rule_set);
  FUSEDSTEP_ADD(fusedstep_rule_set_pair);
  FUSEDSTEP_ADD(fusedstep_rule_set_choice);
  FUSEDSTEP_ADD(fusedstep_rule_get);
  FUSEDSTEP_ADD(fusedstep_rule_get_pair);
  FUSEDSTEP_ADD(fusedstep_rule_get_choice);
  FUSEDSTEP_ADD(fusedstep_rule_state);
  FUSEDSTEP_ADD(fusedstep_step);
  FUSEDSTEP_ADD(fusedstep_step_narrow);
  FUSEDSTEP_ADD(fusedstep_noise_key);
  FUSEDSTEP_ADD(fusedstep_step_rows);
  FUSEDSTEP_ADD(fusedstep_norm);
  FUSEDSTEP_ADD(fusedstep_optimizer_create);
  FUSEDSTEP_ADD(fusedstep_optimizer_create_narrow);
  FUSEDSTEP_ADD(fusedstep_optimizer_sync_master);
  FUSEDSTEP_ADD(fusedstep_optimizer_destroy);
  FUSEDSTEP_ADD(fusedstep_step_options_init);
  FUSEDSTEP_ADD(fusedstep_optimizer_step);
  FUSEDSTEP_ADD(fusedstep_optimizer_step_rows);
  FUSEDSTEP_ADD(fusedstep_optimizer_set);
  FUSEDSTEP_ADD(fusedstep_optimizer_state);
  FUSEDSTEP_ADD(fusedstep_num_threads);
  FUSEDSTEP_ADD(fusedstep_set_num_threads);
  FUSEDSTEP_ADD(fusedstep_isa);
  FUSEDSTEP_ADD(fusedstep_force_isa);
  FUSEDSTEP_ADD(fusedstep_last_error);
  FUSEDSTEP_ADD(fusedstep_abi_version);
  FUSEDSTEP_ADD(fusedstep_version);
#undef FUSEDSTEP_ADD
  return all;
}

// Returns {rule: [{"name", "source", "takes": [argument], "values": {argument: value}}]}.
py::dict dialects() {
  py::dict all;
  for (int rule = 0; rule < Rules::size; ++rule) {
    const RuleSchema& schema = schema_of(static_cast<RuleId>(rule));
    py::list rows;
    for (const AnyDialect& dialect : schema.dialects()) {
      py::dict values;
      for (const schema::Field& field : schema.fields) values[field.name] = get_field(field, dialect.options);
      py::dict row;
      row["name"] = dialect.name;
      row["source"] = dialect.source;
      row["takes"] = py::str(dialect.takes).attr("split")();
      row["values"] = values;
      rows.append(row);
    }
    if (!rows.empty()) all[schema.name] = rows;
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
  module.attr("block") = block;  // in elements; sums of a norm begin with such blocks
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
  module.def("c_functions", &bind::c_functions);
  module.def("check_hyperparameters", &bind::check_hyperparameters, py::arg("rule"), py::arg("values"));
  module.def(
      "check_parameter",
      [](py::handle array, const std::string& name, int group, const std::optional<std::string>& state_dtype, bool nearest,
         bool master) {
        const Label label{"", &name, group};
        bind::References references;
        const auto parameter = py::reinterpret_borrow<py::object>(bind::as_array(array, label, references, true));
        const Array borrowed = bind::borrow(parameter, label, parameter_types, true);
        check_distinct_elements(borrowed);
        check_storage(borrowed, bind::storage_from(state_dtype, nearest, master));
        return parameter;
      },
      py::arg("array"), py::arg("name"), py::arg("group"), py::arg("state_dtype") = py::none(), py::arg("nearest") = false,
      py::arg("master") = false);
  // Sets the floating-point settings of the calling thread and returns the ones before. None stands for those of IEEE 754.
  module.def(
      "exchange_floating_point", [](std::optional<std::uint64_t> state) { return exchange_floating_point(state); },
      py::arg("state"));
  module.def(
      "noise_key",
      [](std::uint64_t seed, std::int64_t step, const std::string& name) { return noise_key(seed, step, name); },
      py::arg("seed"), py::arg("step"), py::arg("name"));
  module.def("used_states", &bind::used_states, py::arg("rule"), py::arg("values"));
  module.def("make_function", &bind::make_function, py::arg("rule"), py::arg("name"), py::arg("documentation"),
             py::arg("parameters"), py::arg("positional"));
  bind::register_optimizer(module);
  bind::register_tensors(module);
  bind::register_step_method(module);
  bind::register_timing(module);
}
