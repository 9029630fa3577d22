// The C ABI over the C++ API: structs in, error codes out, and no exception past this border.
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <new>
#include <stdexcept>

#include "description.hpp"
#include "include/fusedstep/fusedstep.h"
#include "include/fusedstep/fusedstep.hpp"

namespace {

using namespace fusedstep;

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
  if (pointer == nullptr) throw std::invalid_argument(std::string(name) + ": expected a pointer, got NULL");
  return *pointer;
}

// The size that a caller's struct has, which may be from before the last members of ours: nothing is written beyond it.
std::uint64_t checked_size(std::uint64_t size, std::uint64_t known, const char* name, const char* hint) {
  if (size > sizeof size && size <= known) return size;
  throw std::invalid_argument(std::string(name) + ": expected a size of at most " + std::to_string(known) + ", got " +
                              std::to_string(size) + "; " + hint);
}

void check_bytes(const Description& rule, const unsigned char* options) {
  for (const Field& field : rule.fields) {
    const unsigned char value = options[field.offset];
    const std::size_t values = field.kind == Kind::flag ? 2 : field.kind == Kind::choice ? field.choices.size() : 256;
    if (value >= values) {
      throw std::invalid_argument(std::string(field.name) + ": expected a value below " + std::to_string(values) +
                                  ", got " + std::to_string(value));
    }
  }
}

// The C structs are the C++ structs after their size, member by member; a shorter one is from before its last members.
template <class Rule>
Rule options_from(const void* options) {
  const auto* bytes = &given(static_cast<const unsigned char*>(options), "options");
  std::uint64_t size = 0;
  std::memcpy(&size, bytes, sizeof size);
  checked_size(size, sizeof size + sizeof(Rule), "options", "call the _init function first");
  Rule rule;
  std::memcpy(static_cast<void*>(&rule), bytes + sizeof size, size - sizeof size);
  check_bytes(description(static_cast<RuleId>(AnyRule(Rule{}).id())), reinterpret_cast<const unsigned char*>(&rule));
  return rule;
}

template <class Rule>
void write(const Rule& rule, void* options, std::uint64_t size) {
  checked_size(size, sizeof size + sizeof rule, "options", "pass sizeof the struct");
  auto* bytes = static_cast<unsigned char*>(&given(static_cast<unsigned char*>(options), "options"));
  std::memcpy(bytes, &size, sizeof size);
  std::memcpy(bytes + sizeof size, static_cast<const void*>(&rule), size - sizeof size);
}

AnySpan span_from(const fusedstep_array& array) {
  if (array.dtype < FUSEDSTEP_FLOAT32 || array.dtype > FUSEDSTEP_INT8) {
    throw std::invalid_argument("array: there is no dtype " + std::to_string(array.dtype));
  }
  if (array.dimensions < 0 || array.dimensions > static_cast<int>(max_span_dimensions)) {
    throw std::invalid_argument("array: expected at most 8 dimensions, got " + std::to_string(array.dimensions));
  }
  AnySpan span;
  span.data = array.data;
  span.type = static_cast<Type>(array.dtype);
  span.dimensions = static_cast<std::size_t>(array.dimensions);
  if (span.dimensions > 0) given(array.shape, "array.shape");
  std::int64_t dense = span.type == Type::int8 ? 1 : span.type == Type::float32 ? 4 : 8;
  for (std::size_t k = span.dimensions; k-- > 0;) {
    span.shape[k] = array.shape[k];
    span.strides[k] = array.strides != nullptr ? array.strides[k] : dense;
    static_cast<void>(__builtin_mul_overflow(dense, span.shape[k], &dense));  // beyond 64 bits, the shape is refused
  }
  return span;
}

std::vector<AnySpan> spans_from(const fusedstep_array* arrays, std::int64_t count) {
  if (count < 0) throw std::invalid_argument("count: expected >= 0, got " + std::to_string(count));
  if (count > 0) given(arrays, "arrays");
  std::vector<AnySpan> spans;
  for (std::int64_t i = 0; i < count; ++i) spans.push_back(span_from(arrays[i]));
  return spans;
}

template <class Rule>
std::int32_t step_once(const void* options, std::int64_t time, const fusedstep_array* parameter,
                       const fusedstep_array* gradient, const fusedstep_array* states, std::int32_t count) {
  return guarded([&] {
    fusedstep::step(AnyRule(options_from<Rule>(options)), time, span_from(given(parameter, "parameter")),
                    span_from(given(gradient, "gradient")), spans_from(states, count));
  });
}

AnyRule rule_from(const std::string& name, const void* options) {
  if (name == "rmsprop") return options_from<RMSprop>(options);
  if (name == "adagrad") return options_from<Adagrad>(options);
  if (name == "rprop") return options_from<Rprop>(options);
  if (name == "proximal_adagrad") return options_from<ProximalAdagrad>(options);
  if (name == "adagrad_da") return options_from<AdagradDA>(options);
  if (name == "adagrad_norm") return options_from<AdagradNorm>(options);
  throw std::invalid_argument("rule: no rule is called '" + name + "'");
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
    throw std::invalid_argument("zero_grads: expected a value below 2, got " + std::to_string(known.zero_grads));
  }
  if (known.nonfinite > FUSEDSTEP_RAISE) {
    throw std::invalid_argument("nonfinite: expected a value below 3, got " + std::to_string(known.nonfinite));
  }
  result.grad_scale = known.grad_scale;
  result.clip_norm = known.clip_norm;
  result.clip_value = known.clip_value;
  if (!std::isnan(known.loss)) result.loss = known.loss;
  result.zero_grads = known.zero_grads != 0;
  result.nonfinite = static_cast<Nonfinite>(known.nonfinite);
  return result;
}

}  // namespace

struct fusedstep_optimizer {
  std::string rule;
  Optimizer optimizer;
  std::map<std::pair<std::int64_t, std::string>, AnySpan> states;  // whose geometry was handed out
};

extern "C" {

#define FUSEDSTEP_DEFINE(rule, Rule)                                                                              \
  static_assert(sizeof(fusedstep_##rule) == sizeof(std::uint64_t) + sizeof(Rule));                               \
  std::int32_t fusedstep_##rule##_init(fusedstep_##rule* options, std::uint64_t size) {                          \
    return guarded([&] { write(Rule{}, options, size); });                                                       \
  }                                                                                                              \
  std::int32_t fusedstep_##rule##_step(const fusedstep_##rule* options, std::int64_t time,                       \
                                       const fusedstep_array* parameter, const fusedstep_array* gradient,        \
                                       const fusedstep_array* states, std::int32_t count) {                      \
    return step_once<Rule>(options, time, parameter, gradient, states, count);                                   \
  }
FUSEDSTEP_DEFINE(rmsprop, RMSprop)
FUSEDSTEP_DEFINE(adagrad, Adagrad)
FUSEDSTEP_DEFINE(rprop, Rprop)
FUSEDSTEP_DEFINE(proximal_adagrad, ProximalAdagrad)
FUSEDSTEP_DEFINE(adagrad_da, AdagradDA)
FUSEDSTEP_DEFINE(adagrad_norm, AdagradNorm)
#undef FUSEDSTEP_DEFINE

#define FUSEDSTEP_DEFINE_LIKE(rule, Rule)                                                                          \
  std::int32_t fusedstep_##rule##_like(fusedstep_##rule* options, std::uint64_t size, const char* dialect) {     \
    return guarded([&] { write(Rule::like(&given(dialect, "dialect")), options, size); });                       \
  }
FUSEDSTEP_DEFINE_LIKE(rmsprop, RMSprop)
FUSEDSTEP_DEFINE_LIKE(adagrad, Adagrad)
FUSEDSTEP_DEFINE_LIKE(rprop, Rprop)
#undef FUSEDSTEP_DEFINE_LIKE

std::int32_t fusedstep_norm(const fusedstep_array* gradients, std::int64_t count, double* norm) {
  return guarded([&] {
    given(norm, "norm") = fusedstep::norm(spans_from(gradients, count));
  });
}

std::int32_t fusedstep_optimizer_create(const char* rule, const void* const* options, std::int64_t groups,
                                        const fusedstep_parameter* parameters, std::int64_t count,
                                        fusedstep_optimizer** optimizer) {
  return guarded([&] {
    given(optimizer, "optimizer") = nullptr;
    const std::string name = &given(rule, "rule");
    if (groups < 1) throw std::invalid_argument("groups: expected at least 1, got " + std::to_string(groups));
    if (count < 0) throw std::invalid_argument("count: expected >= 0, got " + std::to_string(count));
    if (count > 0) given(parameters, "parameters");
    given(options, "options");
    std::vector<AnyRule> rules;
    for (std::int64_t k = 0; k < groups; ++k) rules.push_back(rule_from(name, options[k]));
    std::vector<Optimizer::Parameter> list;
    for (std::int64_t i = 0; i < count; ++i) {
      const fusedstep_parameter& parameter = parameters[i];
      if (parameter.group < 0) throw std::invalid_argument("parameters: expected groups from 0");
      list.push_back({&given(parameter.name, "parameters[].name"), span_from(parameter.array),
                      static_cast<std::size_t>(parameter.group)});
    }
    *optimizer = new fusedstep_optimizer{name, Optimizer(std::move(rules), list), {}};
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

std::int32_t fusedstep_optimizer_step(fusedstep_optimizer* optimizer, const fusedstep_array* gradients,
                                      std::int64_t count, const fusedstep_step_options* options,
                                      fusedstep_step_report* report) {
  return guarded([&] {
    if (report != nullptr) {
      checked_size(report->size, sizeof(fusedstep_step_report), "report", "set it to sizeof the struct");
    }
    const StepReport done =
        given(optimizer, "optimizer").optimizer.step(spans_from(gradients, count), step_options_from(options));
    if (report == nullptr) return;
    const fusedstep_step_report full{report->size, done.step,
                                     done.grad_norm.value_or(std::numeric_limits<double>::quiet_NaN()), done.skipped};
    std::memcpy(report, &full, report->size);
  });
}

std::int32_t fusedstep_optimizer_set(fusedstep_optimizer* optimizer, std::int64_t group, const void* options) {
  return guarded([&] {
    if (group < 0) throw std::invalid_argument("group: expected >= 0, got " + std::to_string(group));
    auto& held = given(optimizer, "optimizer");
    held.optimizer.set_rule(static_cast<std::size_t>(group), rule_from(held.rule, options));
  });
}

std::int32_t fusedstep_optimizer_state(fusedstep_optimizer* optimizer, std::int64_t parameter, const char* name,
                                       fusedstep_array* state) {
  return guarded([&] {
    if (parameter < 0) throw std::invalid_argument("parameter: expected >= 0, got " + std::to_string(parameter));
    auto& held = given(optimizer, "optimizer");
    const AnySpan span = held.optimizer.state(static_cast<std::size_t>(parameter), &given(name, "name"));
    if (span.data == nullptr) throw std::invalid_argument("state: there is no '" + std::string(name) + "'");
    const AnySpan& kept = held.states.insert_or_assign({parameter, name}, span).first->second;
    given(state, "state") = {kept.data, kept.shape.data(), kept.strides.data(), static_cast<std::int32_t>(kept.type),
                             static_cast<std::int32_t>(kept.dimensions)};
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
