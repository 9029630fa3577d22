// The public C++ API over the same checks, kernels and optimizer that Python uses.
#include <algorithm>
#include <cstring>
#include <utility>

#include "loops/noise.hpp"
#include "norm.hpp"
#include "optimizer.hpp"
#include "parallel.hpp"
#include "spans.hpp"

namespace fusedstep {

AnyRule::AnyRule(int id, const void* options, std::size_t size) : id_(static_cast<std::uint8_t>(id)) {
  static_assert(sizeof(Options) <= sizeof(bytes_));
  std::memcpy(bytes_.data(), options, size);
}

AnyRule AnyRule::named(std::string_view rule, std::string_view dialect) {
  const RuleId id = rule_named(rule);
  const RuleSchema& schema = schema_of(id);
  if (dialect.empty()) return RuleAccess::make(id, schema.defaults());
  std::vector<const char*> names;
  for (const AnyDialect& row : schema.dialects()) {
    if (dialect == row.name) return RuleAccess::make(id, row.options);
    names.push_back(row.name);
  }
  refuse("dialect of " + std::string(schema.name) + ": expected " + (names.empty() ? "none" : "one of " + listed(names)) +
         ", got '" + std::string(dialect) + "'");
}

std::string AnyRule::name() const { return schema_of(id_).name; }

std::vector<std::string> AnyRule::states() const {
  const RuleSchema& schema = schema_of(id_);
  const Options options = RuleAccess::options(*this);
  std::vector<std::string> names;
  for (std::size_t s = 0; s < schema.states.size(); ++s) {
    if (schema.uses(options, s)) names.emplace_back(schema.state_name(options, s));
  }
  return names;
}

namespace {

void step_by(const AnyRule& rule, std::int64_t step, const AnySpan& parameter, const AnySpan& gradient,
             std::span<const AnySpan> states, const Array& index, const Narrow& narrow) {
  const RuleSchema& schema = RuleAccess::schema(rule);
  const Options options = RuleAccess::options(rule);
  check(schema, options);
  if (step < 1) refuse("step: expected a count from 1, got " + std::to_string(step));
  const Array p = checked(parameter, {"param"}, parameter_types, true);
  const Array g = checked(gradient, {"grad"}, gradient_types(p.type), false);
  Array s[state_arrays];
  std::size_t given = 0;
  for (std::size_t k = 0; k < schema.states.size(); ++k) {
    if (!schema.uses(options, k)) continue;
    if (given == states.size()) {
      refuse(std::string(schema.states[k].name) + ": needed by these hyperparameters, but not given; pass an array");
    }
    s[k] = checked(states[given++], {schema.states[k].name}, types_of_state(schema.states[k], p.type), true);
  }
  if (given != states.size()) {
    refuse("states: expected the " + std::to_string(given) + " that these hyperparameters use, got " +
           std::to_string(states.size()));
  }
  if (narrow.param_low.data != nullptr || narrow.param_low.dimensions > 0) {
    s[low_half] = checked_low_halves(checked(narrow.param_low, {low_halves.name}, Type::uint16, true), p);
  }
  SingleUpdate(RuleAccess::id(rule), options, step, p, g, s, index, narrow.key).run();
}

}  // namespace

void step(const AnyRule& rule, std::int64_t step, const AnySpan& parameter, const AnySpan& gradient,
          std::span<const AnySpan> states, const Narrow& narrow) {
  step_by(rule, step, parameter, gradient, states, {}, narrow);
}

void step(const AnyRule& rule, std::int64_t step, const AnySpan& parameter, const Rows& gradient,
          std::span<const AnySpan> states, const Narrow& narrow) {
  const Array index = checked(gradient.index, {"rows"}, gradient.index.type, false);
  step_by(rule, step, parameter, gradient.values, states, index, narrow);
}

std::uint64_t noise_key(std::uint64_t seed, std::int64_t step, std::string_view name) {
  if (step < 1) refuse("step: expected a count from 1, got " + std::to_string(step));
  return key_of(seed, step, hash_of(name));
}

double norm(std::span<const AnySpan> gradients) {
  std::vector<std::unique_ptr<StridedOrder>> orders;
  std::vector<NormOperand> operands;
  for (const AnySpan& gradient : gradients) {
    const Array array = checked(gradient, {"gradient"}, parameter_types, false);
    orders.push_back(c_order(array));
    operands.push_back({array.data, array.size(), array.type, compute_type(array.type), orders.back().get()});
  }
  const DefaultFloatingPoint guard;
  return norm(operands, StepOptions{}).norm;
}

struct Optimizer::Impl {
  OptimizerCore core;
  std::vector<AnySpan> accepted;  // the last step's gradients; null data: there was none
  bool accepted_as_written = false;

  inline bool take(std::size_t i, const AnySpan& gradient, bool known, bool written);  // inline: not exported
  inline bool take(std::size_t i, const Rows& gradient, bool known, bool written);
  template <class F>
  StepReport step(std::size_t count, const StepOptions& options, F take_one);
};

Optimizer::Optimizer(std::vector<AnyRule> groups, const std::vector<Parameter>& parameters,
                     std::span<const GroupStorage> storage, std::uint64_t seed) {
  if (groups.empty()) refuse("groups: expected at least one rule, got none");
  const RuleId rule = RuleAccess::id(groups[0]);
  std::vector<Options> options;
  for (const AnyRule& group : groups) {
    if (RuleAccess::id(group) != rule) {
      refuse("groups: expected the same rule in all, got '" + groups[0].name() + "' and '" + group.name() + "'");
    }
    options.push_back(RuleAccess::options(group));
  }
  std::vector<OptimizerCore::NewParameter> added;
  for (const Parameter& parameter : parameters) {
    const int group = groups.size() > 1 ? static_cast<int>(parameter.group) : -1;
    added.push_back({parameter.name, parameter.group,
                     checked(parameter.array, {"", &parameter.name, group}, parameter_types, true), std::nullopt});
  }
  impl_ = std::make_unique<Impl>(Impl{OptimizerCore(rule), std::vector<AnySpan>(parameters.size())});
  impl_->core.add(options, added, storage);
  impl_->core.seed() = seed;
}

Optimizer::~Optimizer() = default;
Optimizer::Optimizer(Optimizer&&) noexcept = default;
Optimizer& Optimizer::operator=(Optimizer&&) noexcept = default;

// If `known`, a gradient that is the last step's array needs no new checks: nothing that they look at has changed.
bool Optimizer::Impl::take(std::size_t i, const AnySpan& gradient, bool known, bool written) {
  if (known && accepted[i].data != nullptr && same(gradient, accepted[i])) {
    core.keep(i);
    return false;
  }
  accepted[i] = {};
  // Null data means that there is no gradient, except for an empty array, which has a shape.
  if (gradient.data == nullptr && (gradient.dimensions == 0 || core.parameter(i).size() != 0)) {
    core.leave_out(i);
    return true;
  }
  core.accept(i, checked(gradient, core.gradient(i).label, gradient_types(core.parameter(i).type), written), written);
  accepted[i] = gradient;
  return true;
}

bool Optimizer::Impl::take(std::size_t i, const Rows& gradient, bool, bool written) {
  accepted[i] = {};
  Label index = core.gradient(i).label;
  Label values = index;
  index.role = "index";
  values.role = "values";
  core.accept_rows(i, checked(gradient.index, index, gradient.index.type, false),
                   checked(gradient.values, values, gradient_types(core.parameter(i).type), written), written);
  return true;
}

// take_one(i, known) takes the gradient of parameter i and returns whether it is a new one.
template <class F>
StepReport Optimizer::Impl::step(std::size_t count, const StepOptions& options, F take_one) {
  if (count != core.size()) {
    refuse("gradients: expected one for each of " + std::to_string(core.size()) + " parameters, got " +
           std::to_string(count));
  }
  const bool writable = std::exchange(accepted_as_written, false);
  bool any_new = false;
  for (std::size_t i = 0; i < count; ++i) any_new |= take_one(i, writable || !options.zero_grads);
  accepted_as_written = options.zero_grads || (writable && !any_new);
  return core.step(options);
}

StepReport Optimizer::step(std::span<const AnySpan> gradients, const StepOptions& options) {
  return impl_->step(gradients.size(), options,
                     [&](std::size_t i, bool known) { return impl_->take(i, gradients[i], known, options.zero_grads); });
}

StepReport Optimizer::step(std::span<const Gradient> gradients, const StepOptions& options) {
  return impl_->step(gradients.size(), options, [&](std::size_t i, bool known) {
    return std::visit([&](const auto& gradient) { return impl_->take(i, gradient, known, options.zero_grads); },
                      gradients[i]);
  });
}

void Optimizer::set_rule(std::size_t group, const AnyRule& rule) {
  OptimizerCore& core = impl_->core;
  if (group >= core.groups()) {
    refuse("group: expected one below " + std::to_string(core.groups()) + ", got " + std::to_string(group));
  }
  if (RuleAccess::id(rule) != core.rule()) {
    refuse("rule: expected '" + std::string(core.schema().name) + "', as in this optimizer, got '" + rule.name() + "'");
  }
  core.set_options(group, RuleAccess::options(rule));
}

void Optimizer::sync_master(std::size_t parameter) {
  if (state(parameter, low_halves.name).data == nullptr) {
    refuse("parameter '" + impl_->core.name(parameter) + "': expected one of a group with master, got another");
  }
  impl_->core.sync_master(parameter);
}

AnySpan Optimizer::state(std::size_t parameter, std::string_view name) const {
  const OptimizerCore& core = impl_->core;
  if (parameter >= core.size()) {
    refuse("parameter: expected one below " + std::to_string(core.size()) + ", got " + std::to_string(parameter));
  }
  for (std::size_t s = 0; s < state_arrays; ++s) {
    const Array& array = core.state(parameter, s);
    if (array.data != nullptr && name == core.state_name(parameter, s)) return span_of(array);
  }
  return {};
}

}  // namespace fusedstep
