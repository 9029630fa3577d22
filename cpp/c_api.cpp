// The C interface over the C++ API. It takes names and structs, returns error codes, and lets no exception out.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <map>
#include <new>
#include <stdexcept>

#include "include/fusedstep/fusedstep.h"
#include "include/fusedstep/fusedstep.hpp"
#include "platform.hpp"
#include "schema.hpp"

namespace {

using namespace fusedstep;
using schema::Kind;

thread_local std::string last_error;

template <class F>
std::int32_t guarded(F f) noexcept {
  const auto fail = [](std::int32_t code, const char* what) {
    try {
      last_error = what;
    } catch (...) {
      last_error.clear();
    }
    return code;
  };
  try {
    f();
    return FUSEDSTEP_OK;
  } catch (const std::out_of_range& error) {
    return fail(FUSEDSTEP_INVALID_ARGUMENT, error.what());
  } catch (const std::invalid_argument& error) {
    return fail(FUSEDSTEP_INVALID_ARGUMENT, error.what());
  } catch (const std::domain_error& error) {
    return fail(FUSEDSTEP_NONFINITE, error.what());
  } catch (const std::bad_alloc&) {
    return fail(FUSEDSTEP_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return fail(FUSEDSTEP_INTERNAL, error.what());
  } catch (...) {
    return fail(FUSEDSTEP_INTERNAL, "unknown error");
  }
}

template <class T>
T& given(T* pointer, const char* name) {
  if (pointer == nullptr) refuse(std::string(name) + ": expected a pointer, got NULL");
  return *pointer;
}

// Checks the size of a caller's struct. A caller that was compiled with an older header lacks our last members: nothing is
// read or written beyond its size.
std::uint64_t checked_size(std::uint64_t size, std::uint64_t known, const char* name, const char* hint) {
  if (size > sizeof size && size <= known) return size;
  refuse(std::string(name) + ": expected a size of at most " + std::to_string(known) + ", got " + std::to_string(size) +
         "; " + hint);
}

static_assert(static_cast<int>(Type::bfloat16) == FUSEDSTEP_BFLOAT16 && static_cast<int>(Type::uint64) == FUSEDSTEP_UINT64);

AnySpan span_from(const fusedstep_array& array) {
  if (array.dtype < FUSEDSTEP_FLOAT32 || array.dtype > FUSEDSTEP_UINT64) {
    refuse("array: expected a dtype from 0 to 9, got " + std::to_string(array.dtype));
  }
  if (array.dimensions < 0 || array.dimensions > static_cast<int>(max_span_dimensions)) {
    refuse("array: expected at most 8 dimensions, got " + std::to_string(array.dimensions));
  }
  AnySpan span;
  span.data = array.data;
  span.type = static_cast<Type>(array.dtype);
  span.dimensions = static_cast<std::size_t>(array.dimensions);
  if (span.dimensions > 0) given(array.shape, "array.shape");
  std::int64_t dense = size_of(span.type);
  for (std::size_t k = span.dimensions; k-- > 0;) {
    span.shape[k] = array.shape[k];
    span.strides[k] = array.strides != nullptr ? array.strides[k] : dense;
    static_cast<void>(multiply_overflows(dense, span.shape[k], dense));  // a shape beyond 64 bits is refused later
  }
  return span;
}

std::vector<AnySpan> spans_from(const fusedstep_array* arrays, std::int64_t count) {
  if (count < 0) refuse("count: expected >= 0, got " + std::to_string(count));
  if (count > 0) given(arrays, "arrays");
  std::vector<AnySpan> spans;
  for (std::int64_t i = 0; i < count; ++i) spans.push_back(span_from(arrays[i]));
  return spans;
}

Narrow narrow_from(const std::uint64_t* key, const fusedstep_array* param_low) {
  Narrow narrow;
  if (key != nullptr) narrow.key = *key;
  if (param_low != nullptr) narrow.param_low = span_from(*param_low);
  return narrow;
}

GroupStorage storage_from(const fusedstep_storage& storage) {
  fusedstep_storage known{sizeof known, -1, FUSEDSTEP_STOCHASTIC, 0};
  std::memcpy(&known, &storage, checked_size(storage.size, sizeof known, "storage", "set it to sizeof the struct"));
  if (known.state_dtype < -1 || known.state_dtype > FUSEDSTEP_UINT16) {
    refuse("state_dtype: expected a dtype from 0 to 5, or -1, got " + std::to_string(known.state_dtype));
  }
  if (known.rounding > FUSEDSTEP_STOCHASTIC) {
    refuse("rounding: expected a value below 2, got " + std::to_string(known.rounding));
  }
  if (known.master > 1) refuse("master: expected a value below 2, got " + std::to_string(known.master));
  GroupStorage made{.rounding = static_cast<Rounding>(known.rounding), .master = known.master == 1};
  if (known.state_dtype >= 0) made.state_type = static_cast<Type>(known.state_dtype);
  return made;
}

constexpr fusedstep_step_options default_step_options{
    sizeof(fusedstep_step_options), 1.0, 0.0, 0.0, std::numeric_limits<double>::quiet_NaN(), 0, FUSEDSTEP_PROPAGATE};

StepOptions step_options_from(const fusedstep_step_options* options) {
  StepOptions result;
  if (options == nullptr) return result;
  fusedstep_step_options known = default_step_options;
  std::memcpy(&known, options,
              checked_size(options->size, sizeof known, "step options", "call fusedstep_step_options_init first"));
  if (known.zero_grads > 1) {
    refuse("zero_grads: expected a value below 2, got " + std::to_string(known.zero_grads));
  }
  if (known.nonfinite > FUSEDSTEP_RAISE) {
    refuse("nonfinite: expected a value below 3, got " + std::to_string(known.nonfinite));
  }
  result.grad_scale = known.grad_scale;
  result.clip_norm = known.clip_norm;
  result.clip_value = known.clip_value;
  if (!std::isnan(known.loss)) result.loss = known.loss;
  result.zero_grads = known.zero_grads != 0;
  result.nonfinite = static_cast<Nonfinite>(known.nonfinite);
  return result;
}

// Runs a step and writes its report, as far as the caller's struct has room for it.
template <class F>
void reported(fusedstep_step_report* report, F step) {
  if (report != nullptr) {
    checked_size(report->size, sizeof(fusedstep_step_report), "report", "set it to sizeof the struct");
  }
  const StepReport done = step();
  if (report == nullptr) return;
  const fusedstep_step_report full{report->size, done.step,
                                   done.grad_norm.value_or(std::numeric_limits<double>::quiet_NaN()), done.skipped};
  std::memcpy(report, &full, report->size);
}

}  // namespace

struct fusedstep_rule {
  RuleId id;
  Options options;

  AnyRule any() const { return RuleAccess::make(id, options); }

  const schema::Field& field(const char* option) const {
    const RuleSchema& rule = schema_of(id);
    if (const schema::Field* field = rule.field(&given(option, "option"))) return *field;
    std::vector<const char*> names;
    for (const schema::Field& field : rule.fields) names.push_back(field.name);
    refuse("option of " + std::string(rule.name) + ": expected one of " + listed(names) + ", got '" + option + "'");
  }

  // Sets an option of one of these kinds, if its value is in range.
  template <class Write>
  void set(const char* option, std::initializer_list<schema::Kind> kinds, Write write) {
    const schema::Field& field = of_kind(option, kinds, "set");
    Options changed = options;
    write(changed, field);
    check(field, changed);
    options = changed;
  }

  const schema::Field& of_kind(const char* option, std::initializer_list<schema::Kind> kinds, const char* verb) const {
    const schema::Field& field = this->field(option);
    if (std::find(kinds.begin(), kinds.end(), field.kind) != kinds.end()) return field;
    constexpr const char* expected[] = {"a number", "a pair", "a flag", "a name"};
    constexpr const char* suffixes[] = {"", "_pair", "", "_choice"};
    const auto kind = static_cast<std::size_t>(field.kind);
    refuse(std::string(option) + ": expected " + expected[kind] + ", use fusedstep_rule_" + verb + suffixes[kind]);
  }
};

struct fusedstep_optimizer {
  Optimizer optimizer;
  std::map<std::pair<std::int64_t, std::string>, AnySpan> states;  // the caller holds their shapes and strides
};

extern "C" {

std::int32_t fusedstep_rule_create(const char* name, const char* dialect, fusedstep_rule** rule) {
  return guarded([&] {
    given(rule, "rule") = nullptr;
    const AnyRule any = AnyRule::named(&given(name, "name"), dialect == nullptr ? "" : dialect);
    *rule = new fusedstep_rule{RuleAccess::id(any), RuleAccess::options(any)};
  });
}

void fusedstep_rule_destroy(fusedstep_rule* rule) { delete rule; }

std::int32_t fusedstep_rule_set(fusedstep_rule* rule, const char* option, double value) {
  return guarded([&] {
    given(rule, "rule").set(option, {Kind::real, Kind::flag}, [&](Options& options, const schema::Field& field) {
      if (field.kind == Kind::real) {
        options.at<double>(field) = value;
      } else if (value == 0 || value == 1) {
        options.at<bool>(field) = value == 1;
      } else {
        refuse(std::string(option) + ": expected 0 or 1, got " + schema::text(value));
      }
    });
  });
}

std::int32_t fusedstep_rule_set_pair(fusedstep_rule* rule, const char* option, double first, double second) {
  return guarded([&] {
    given(rule, "rule").set(option, {Kind::pair}, [&](Options& options, const schema::Field& field) {
      options.at<double[2]>(field)[0] = first;
      options.at<double[2]>(field)[1] = second;
    });
  });
}

std::int32_t fusedstep_rule_set_choice(fusedstep_rule* rule, const char* option, const char* value) {
  return guarded([&] {
    given(rule, "rule").set(option, {Kind::choice}, [&](Options& options, const schema::Field& field) {
      const auto found = std::find(field.choices.begin(), field.choices.end(), std::string_view(&given(value, "value")));
      if (found == field.choices.end()) {
        refuse(std::string(option) + ": expected one of " + listed(field.choices) + ", got '" + value + "'");
      }
      options.at<std::uint8_t>(field) = static_cast<std::uint8_t>(found - field.choices.begin());
    });
  });
}

std::int32_t fusedstep_rule_get(const fusedstep_rule* rule, const char* option, double* value) {
  return guarded([&] {
    const schema::Field& field = given(rule, "rule").of_kind(option, {Kind::real, Kind::flag}, "get");
    const Options& options = rule->options;
    given(value, "value") = field.kind == Kind::real ? options.at<double>(field) : options.at<bool>(field);
  });
}

std::int32_t fusedstep_rule_get_pair(const fusedstep_rule* rule, const char* option, double* first, double* second) {
  return guarded([&] {
    const schema::Field& field = given(rule, "rule").of_kind(option, {Kind::pair}, "get");
    const auto& pair = rule->options.at<double[2]>(field);
    given(first, "first");
    given(second, "second");
    *first = pair[0];
    *second = pair[1];
  });
}

std::int32_t fusedstep_rule_get_choice(const fusedstep_rule* rule, const char* option, const char** value) {
  return guarded([&] {
    const schema::Field& field = given(rule, "rule").of_kind(option, {Kind::choice}, "get");
    given(value, "value") = field.choices[rule->options.at<std::uint8_t>(field)];
  });
}

const char* fusedstep_rule_state(const fusedstep_rule* rule, std::int32_t index) {
  if (rule == nullptr || index < 0) return nullptr;
  const RuleSchema& schema = schema_of(rule->id);
  for (std::size_t s = 0; s < schema.states.size(); ++s) {
    if (schema.uses(rule->options, s) && index-- == 0) return schema.state_name(rule->options, s);
  }
  return nullptr;
}

std::int32_t fusedstep_step(const fusedstep_rule* rule, std::int64_t step, const fusedstep_array* parameter,
                            const fusedstep_array* gradient, const fusedstep_array* states, std::int32_t count) {
  return guarded([&] {
    fusedstep::step(given(rule, "rule").any(), step, span_from(given(parameter, "parameter")),
                    span_from(given(gradient, "gradient")), spans_from(states, count));
  });
}

std::int32_t fusedstep_step_narrow(const fusedstep_rule* rule, std::int64_t step, const fusedstep_array* parameter,
                                   const fusedstep_array* gradient, const fusedstep_array* states, std::int32_t count,
                                   const std::uint64_t* key, const fusedstep_array* param_low) {
  return guarded([&] {
    fusedstep::step(given(rule, "rule").any(), step, span_from(given(parameter, "parameter")),
                    span_from(given(gradient, "gradient")), spans_from(states, count), narrow_from(key, param_low));
  });
}

std::int32_t fusedstep_noise_key(std::uint64_t seed, std::int64_t step, const char* name, std::uint64_t* key) {
  return guarded([&] {
    const std::uint64_t made = noise_key(seed, step, &given(name, "name"));
    given(key, "key") = made;
  });
}

std::int32_t fusedstep_step_rows(const fusedstep_rule* rule, std::int64_t step, const fusedstep_array* parameter,
                                 const fusedstep_array* index, const fusedstep_array* values, const fusedstep_array* states,
                                 std::int32_t count, const std::uint64_t* key, const fusedstep_array* param_low) {
  return guarded([&] {
    const Rows rows{span_from(given(index, "index")), span_from(given(values, "values"))};
    fusedstep::step(given(rule, "rule").any(), step, span_from(given(parameter, "parameter")), rows,
                    spans_from(states, count), narrow_from(key, param_low));
  });
}

std::int32_t fusedstep_norm(const fusedstep_array* gradients, std::int64_t count, double* norm) {
  return guarded([&] { given(norm, "norm") = fusedstep::norm(spans_from(gradients, count)); });
}

std::int32_t fusedstep_optimizer_create(const fusedstep_rule* const* rules, std::int64_t groups,
                                        const fusedstep_parameter* parameters, std::int64_t count,
                                        fusedstep_optimizer** optimizer) {
  return fusedstep_optimizer_create_narrow(rules, nullptr, groups, parameters, count, 0, optimizer);
}

std::int32_t fusedstep_optimizer_create_narrow(const fusedstep_rule* const* rules, const fusedstep_storage* storage,
                                               std::int64_t groups, const fusedstep_parameter* parameters,
                                               std::int64_t count, std::uint64_t seed, fusedstep_optimizer** optimizer) {
  return guarded([&] {
    given(optimizer, "optimizer") = nullptr;
    if (groups < 1) refuse("groups: expected at least 1, got " + std::to_string(groups));
    if (count < 0) refuse("count: expected >= 0, got " + std::to_string(count));
    if (count > 0) given(parameters, "parameters");
    given(rules, "rules");
    std::vector<AnyRule> list;
    for (std::int64_t k = 0; k < groups; ++k) list.push_back(given(rules[k], "rules[]").any());
    std::vector<Optimizer::Parameter> added;
    for (std::int64_t i = 0; i < count; ++i) {
      const fusedstep_parameter& parameter = parameters[i];
      if (parameter.group < 0) refuse("parameters: expected groups from 0, got " + std::to_string(parameter.group));
      added.push_back({&given(parameter.name, "parameters[].name"), span_from(parameter.array),
                       static_cast<std::size_t>(parameter.group)});
    }
    std::vector<GroupStorage> stored;
    for (std::int64_t k = 0; storage != nullptr && k < groups; ++k) stored.push_back(storage_from(storage[k]));
    *optimizer = new fusedstep_optimizer{Optimizer(std::move(list), added, stored, seed), {}};
  });
}

void fusedstep_optimizer_destroy(fusedstep_optimizer* optimizer) { delete optimizer; }

std::int32_t fusedstep_step_options_init(fusedstep_step_options* options, std::uint64_t size) {
  return guarded([&] {
    fusedstep_step_options defaults = default_step_options;
    defaults.size = checked_size(size, sizeof defaults, "step options", "pass sizeof the struct");
    std::memcpy(&given(options, "options"), &defaults, size);
  });
}

std::int32_t fusedstep_optimizer_step(fusedstep_optimizer* optimizer, const fusedstep_array* gradients, std::int64_t count,
                                      const fusedstep_step_options* options, fusedstep_step_report* report) {
  return guarded([&] {
    reported(report, [&] {
      return given(optimizer, "optimizer").optimizer.step(spans_from(gradients, count), step_options_from(options));
    });
  });
}

std::int32_t fusedstep_optimizer_step_rows(fusedstep_optimizer* optimizer, const fusedstep_array* indices,
                                           const fusedstep_array* gradients, std::int64_t count,
                                           const fusedstep_step_options* options, fusedstep_step_report* report) {
  return guarded([&] {
    const std::vector<AnySpan> index = spans_from(indices, count);
    const std::vector<AnySpan> values = spans_from(gradients, count);
    std::vector<Gradient> list;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const bool dense = index[i].data == nullptr && index[i].dimensions == 0;
      list.push_back(dense ? Gradient(values[i]) : Gradient(Rows{index[i], values[i]}));
    }
    reported(report, [&] { return given(optimizer, "optimizer").optimizer.step(list, step_options_from(options)); });
  });
}

std::int32_t fusedstep_optimizer_set(fusedstep_optimizer* optimizer, std::int64_t group, const fusedstep_rule* rule) {
  return guarded([&] {
    if (group < 0) refuse("group: expected >= 0, got " + std::to_string(group));
    given(optimizer, "optimizer").optimizer.set_rule(static_cast<std::size_t>(group), given(rule, "rule").any());
  });
}

std::int32_t fusedstep_optimizer_state(fusedstep_optimizer* optimizer, std::int64_t parameter, const char* name,
                                       fusedstep_array* state) {
  return guarded([&] {
    if (parameter < 0) refuse("parameter: expected >= 0, got " + std::to_string(parameter));
    auto& held = given(optimizer, "optimizer");
    const AnySpan span = held.optimizer.state(static_cast<std::size_t>(parameter), &given(name, "name"));
    if (span.data == nullptr) refuse("state: there is no '" + std::string(name) + "'");
    const AnySpan& kept = held.states.insert_or_assign({parameter, name}, span).first->second;
    given(state, "state") = {kept.data, kept.shape.data(), kept.strides.data(), static_cast<std::int32_t>(kept.type),
                             static_cast<std::int32_t>(kept.dimensions)};
  });
}

std::int32_t fusedstep_optimizer_sync_master(fusedstep_optimizer* optimizer, std::int64_t parameter) {
  return guarded([&] {
    if (parameter < 0) refuse("parameter: expected >= 0, got " + std::to_string(parameter));
    given(optimizer, "optimizer").optimizer.sync_master(static_cast<std::size_t>(parameter));
  });
}

std::int32_t fusedstep_num_threads(void) {
  std::int32_t n = 0;
  return guarded([&] { n = num_threads(); }) == FUSEDSTEP_OK ? n : 1;
}

std::int32_t fusedstep_set_num_threads(std::int32_t n) {
  return guarded([&] { set_num_threads(n); });
}

const char* fusedstep_isa(void) {
  static thread_local std::string name;
  return guarded([&] { name = isa(); }) == FUSEDSTEP_OK ? name.c_str() : "";
}

std::int32_t fusedstep_force_isa(const char* name) {
  return guarded([&] { force_isa(&given(name, "name")); });
}

const char* fusedstep_last_error(void) { return last_error.c_str(); }

std::int32_t fusedstep_abi_version(void) { return FUSEDSTEP_ABI_VERSION; }

const char* fusedstep_version(void) { return FUSEDSTEP_VERSION; }

}  // extern "C"
