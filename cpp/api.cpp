// The public C++ API over the same checks and kernels that Python uses.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <utility>

#include "description.hpp"
#include "include/fusedstep/fusedstep.hpp"
#include "memory.hpp"
#include "norm.hpp"
#include "parallel.hpp"
#include "step.hpp"

namespace fusedstep {
namespace {

RuleId rule_id(const AnyRule& rule) { return static_cast<RuleId>(rule.id()); }
const Description& about(const AnyRule& rule) { return description(rule_id(rule)); }

Options options_of(const AnyRule& rule) {
  Options options{};
  std::memcpy(options.bytes, rule.options(), about(rule).size);
  return options;
}

const char* name(Type type) {
  constexpr const char* names[] = {"float32", "float64", "int8"};
  return names[static_cast<int>(type)];
}

std::int64_t size_of(Type type) { return type == Type::int8 ? 1 : type == Type::float32 ? 4 : 8; }

Type stored_type(Storage storage, Type parameter) { return storage == Storage::int8 ? Type::int8 : parameter; }

[[noreturn]] void wrong_type(const Label& label, const char* expected, Type found) {
  throw std::invalid_argument(label.text() + ": expected dtype " + expected + ", got " + name(found) +
                              "; arrays are borrowed, never converted: pass one of that dtype");
}

void check_extents(const AnySpan& span, const Label& label) {
  if (span.dimensions > max_span_dimensions) {
    throw std::invalid_argument(label.text() + ": expected at most 8 dimensions, got " +
                                std::to_string(span.dimensions));
  }
  bool empty = false;
  for (std::size_t k = 0; k < span.dimensions; ++k) {
    empty |= span.shape[k] == 0;
    if (span.shape[k] < 0) {
      throw std::invalid_argument(label.text() + ": expected extents >= 0, got " + std::to_string(span.shape[k]));
    }
  }
  if (span.data == nullptr && !empty) throw std::invalid_argument(label.text() + ": expected data, got NULL");
}

Array checked(const AnySpan& span, const Label& label, Type type, bool written) {
  check_extents(span, label);
  if (span.type != type) wrong_type(label, name(type), span.type);
  if (written && span.read_only) {
    throw std::invalid_argument(label.text() +
                                ": expected a writeable array, got a read-only one; pass a writeable array");
  }
  Array array;
  array.label = label;
  array.data = static_cast<char*>(span.data);
  array.shape = {span.shape.data(), span.dimensions};
  array.strides = span.strides.data();
  array.item_size = size_of(type);
  check_reach(array);
  if (array.data == nullptr) {
    alignas(double) static constexpr char nowhere[1] = {};
    array.data = const_cast<char*>(nowhere);  // null stands for an array that there is not; this one there is, and it is empty
  }
  bool aligned = reinterpret_cast<std::uintptr_t>(array.data) % static_cast<std::uintptr_t>(array.item_size) == 0;
  for (std::size_t k = 0; k < span.dimensions; ++k) {
    aligned &= span.shape[k] <= 1 || span.strides[k] % array.item_size == 0;
  }
  if (!aligned) {
    throw std::invalid_argument(label.text() + ": expected an array aligned to its dtype " + name(type) +
                                ", got a misaligned one; pass a copy");
  }
  return array;
}

bool same(const AnySpan& a, const AnySpan& b) {
  return a.data == b.data && a.type == b.type && a.read_only == b.read_only && a.dimensions == b.dimensions &&
         std::equal(a.shape.begin(), a.shape.begin() + a.dimensions, b.shape.begin()) &&
         std::equal(a.strides.begin(), a.strides.begin() + a.dimensions, b.strides.begin());
}

Array checked_parameter(const AnySpan& span, const Label& label) {
  if (span.type == Type::int8) wrong_type(label, "float32 or float64", span.type);
  return checked(span, label, span.type, true);
}

DType dtype_of(Type type) { return type == Type::float32 ? DType::float32 : DType::float64; }

template <class Rule>
constexpr int id_of();
template <>
constexpr int id_of<RMSprop>() { return static_cast<int>(RuleId::rmsprop); }
template <>
constexpr int id_of<Adagrad>() { return static_cast<int>(RuleId::adagrad); }
template <>
constexpr int id_of<Rprop>() { return static_cast<int>(RuleId::rprop); }
template <>
constexpr int id_of<ProximalAdagrad>() { return static_cast<int>(RuleId::proximal_adagrad); }
template <>
constexpr int id_of<AdagradDA>() { return static_cast<int>(RuleId::adagrad_da); }
template <>
constexpr int id_of<AdagradNorm>() { return static_cast<int>(RuleId::adagrad_norm); }

void check_positive(double x, const std::string& name) {
  if (std::isfinite(x) && x > 0) return;
  char digits[32];
  const std::string text(digits, std::to_chars(digits, digits + sizeof digits, x).ptr);
  throw std::invalid_argument(name + ": expected a finite number with " + name + " > 0, got " + text);
}

void check(const StepOptions& options) {
  check_positive(options.grad_scale, "grad_scale");
  if (options.clip_norm != 0) check_positive(options.clip_norm, "clip_norm");
  if (options.clip_value != 0) check_positive(options.clip_value, "clip_value");
}

}  // namespace

template <class Rule>
AnyRule::AnyRule(int id, const Rule& options) : id_(id) {
  static_assert(sizeof(Rule) <= sizeof(bytes_));
  std::memcpy(bytes_.data(), &options, sizeof(Rule));
}

AnyRule::AnyRule(const RMSprop& options) : AnyRule(id_of<RMSprop>(), options) {}
AnyRule::AnyRule(const Adagrad& options) : AnyRule(id_of<Adagrad>(), options) {}
AnyRule::AnyRule(const Rprop& options) : AnyRule(id_of<Rprop>(), options) {}
AnyRule::AnyRule(const ProximalAdagrad& options) : AnyRule(id_of<ProximalAdagrad>(), options) {}
AnyRule::AnyRule(const AdagradDA& options) : AnyRule(id_of<AdagradDA>(), options) {}
AnyRule::AnyRule(const AdagradNorm& options) : AnyRule(id_of<AdagradNorm>(), options) {}

std::vector<std::string> AnyRule::states() const {
  const Description& rule = description(static_cast<RuleId>(id_));
  std::vector<std::string> names;
  for (std::size_t s = 0; s < rule.states.size(); ++s) {
    if (rule.uses(options(), static_cast<int>(s))) names.emplace_back(rule.states[s].name);
  }
  return names;
}

void step(const AnyRule& rule, std::int64_t time, const AnySpan& parameter, const AnySpan& gradient,
          std::span<const AnySpan> states) {
  const Description& description = about(rule);
  const Options options = options_of(rule);
  check(description, options.bytes);
  if (time < 1) throw std::invalid_argument("time: expected a count from 1, got " + std::to_string(time));
  const Array p = checked_parameter(parameter, {"param"});
  const Array g = checked(gradient, {"grad"}, parameter.type, false);
  Array s[max_states];
  std::size_t given = 0;
  for (std::size_t k = 0; k < description.states.size(); ++k) {
    if (!description.uses(options.bytes, static_cast<int>(k))) continue;
    if (given == states.size()) {
      throw std::invalid_argument(std::string(description.states[k].name) + ": needed by these hyperparameters, got None; pass an array");
    }
    s[k] = checked(states[given++], {description.states[k].name},
                   stored_type(description.states[k].storage, parameter.type), true);
  }
  if (given != states.size()) {
    throw std::invalid_argument("states: these hyperparameters use " + std::to_string(given) + " of " +
                                std::to_string(states.size()) + " arrays");
  }
  SingleUpdate(rule_id(rule), options, time, dtype_of(parameter.type), p, g, {s, description.states.size()}).run();
}

double norm(std::span<const AnySpan> gradients) {
  std::vector<std::unique_ptr<MemoryOrder>> orders;
  std::vector<NormOperand> operands;
  for (const AnySpan& gradient : gradients) {
    if (gradient.type == Type::int8) wrong_type({"gradient"}, "float32 or float64", gradient.type);
    const Array array = checked(gradient, {"gradient"}, gradient.type, false);
    orders.push_back(memory_order(array));
    operands.push_back({array.data, array.size(), dtype_of(gradient.type), orders.back().get()});
  }
  const DefaultFloatingPoint guard;
  return norm(operands, StepOptions{}).norm;
}

struct Optimizer::Impl {
  std::vector<AnyRule> rules;
  std::vector<Options> options;
  std::unique_ptr<Plan> plan;
  Memory memory;
  std::vector<AnySpan> accepted;  // the gradients of last time, null where there was none
  bool accepted_as_written = false;
  std::int64_t steps = 0;
  std::optional<double> last_loss;
};

Optimizer::Optimizer(std::vector<AnyRule> groups, const std::vector<Parameter>& parameters)
    : impl_(std::make_unique<Impl>()) {
  const DefaultFloatingPoint guard;
  if (groups.empty()) throw std::invalid_argument("groups: expected at least one rule, got none");
  const RuleId rule = rule_id(groups[0]);
  const Description& description = fusedstep::description(rule);
  for (const AnyRule& group : groups) {
    if (rule_id(group) != rule) throw std::invalid_argument("groups: expected the same rule in all, got two");
    impl_->options.push_back(options_of(group));
    check(description, impl_->options.back().bytes);
  }
  impl_->rules = std::move(groups);
  impl_->plan = std::make_unique<Plan>(rule, impl_->rules.size() > 1);
  struct Member {
    Array parameter;
    Array states[max_states];
  };
  std::vector<Member> members;
  std::deque<std::vector<std::int64_t>> geometry;
  std::vector<Array*> made;
  std::vector<std::size_t> sizes;
  members.reserve(parameters.size());
  for (const Parameter& parameter : parameters) {
    if (parameter.group >= impl_->rules.size()) {
      throw std::invalid_argument("parameter '" + parameter.name + "': there is no group " +
                                  std::to_string(parameter.group));
    }
    Member& member = members.emplace_back();
    const int group = impl_->rules.size() > 1 ? static_cast<int>(parameter.group) : -1;
    const Array& p = member.parameter = checked_parameter(parameter.array, {"", &parameter.name, group});
    check_distinct_elements(p);  // before memory for its states is asked for: it may seem larger than it is
    for (std::size_t s = 0; s < description.states.size(); ++s) {
      if (!description.uses(impl_->options[parameter.group].bytes, static_cast<int>(s))) continue;
      const Storage storage = description.states[s].storage;
      Array& array = member.states[s];
      array.item_size = size_of(stored_type(storage, parameter.array.type));
      if (storage != Storage::scalar) {
        array.shape = p.shape;
        array.strides = geometry.emplace_back(dense_strides(p.shape, p.strides, array.item_size)).data();
      }
      made.push_back(&array);
      sizes.push_back(static_cast<std::size_t>(array.size() * array.item_size));
    }
  }

  const Placement placement = place(sizes);
  impl_->memory = allocate(placement.bytes);
  for (std::size_t k = 0; k < made.size(); ++k) {
    made[k]->data = reinterpret_cast<char*>(impl_->memory.get() + placement.offsets[k]);
  }
  for (std::size_t i = 0; i < members.size(); ++i) {
    const Parameter& parameter = parameters[i];
    for (std::size_t s = 0; s < description.states.size(); ++s) {
      Array& array = members[i].states[s];
      if (array.data == nullptr) continue;
      const State& state = description.states[s];
      if (state.starts_at != nullptr) {
        const unsigned char* options = impl_->options[parameter.group].bytes;
        const double start = *reinterpret_cast<const double*>(options + description.field(state.starts_at)->offset);
        const Type type = stored_type(state.storage, parameter.array.type);
        if (type == Type::float32) fill(reinterpret_cast<float*>(array.data), array.size(), start);
        if (type == Type::float64) fill(reinterpret_cast<double*>(array.data), array.size(), start);
      }
      for (std::size_t k = 0; k < array.shape.size(); ++k) {
        if (array.strides[k] < 0) array.data -= (array.shape[k] - 1) * array.strides[k];
      }
    }
    impl_->plan->add(parameter.name, static_cast<int>(parameter.group), dtype_of(parameter.array.type),
                     members[i].parameter, {members[i].states, description.states.size()});
  }
  impl_->plan->bind();
  impl_->accepted.resize(parameters.size());
}

Optimizer::~Optimizer() = default;
Optimizer::Optimizer(Optimizer&&) noexcept = default;
Optimizer& Optimizer::operator=(Optimizer&&) noexcept = default;

StepReport Optimizer::step(std::span<const AnySpan> gradients, const StepOptions& options) {
  Plan& plan = *impl_->plan;
  check(options);
  if (gradients.size() != plan.size()) {
    throw std::invalid_argument("gradients: expected one for each of " + std::to_string(plan.size()) +
                                " parameters, got " + std::to_string(gradients.size()));
  }
  const Description& description = fusedstep::description(plan.rule());
  std::vector<Options> now = impl_->options;
  for (Options& group : now) {
    if (!description.needs_loss(group.bytes)) continue;
    if (!options.loss) throw std::invalid_argument("loss: needed by variant 'irprop+'");
    *reinterpret_cast<bool*>(group.bytes + description.field("loss_increased")->offset) =
        impl_->last_loss && *options.loss > *impl_->last_loss;
  }
  // A gradient that is the array of last time was checked then.
  const bool writable = std::exchange(impl_->accepted_as_written, false);
  bool any_new = false;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    AnySpan& accepted = impl_->accepted[i];
    if ((writable || !options.zero_grads) && accepted.data != nullptr && same(gradients[i], accepted)) {
      plan.keep(i);
      continue;
    }
    accepted = {};
    any_new = true;
    // An empty array may have no data either, but it has a shape.
    if (gradients[i].data == nullptr && (gradients[i].dimensions == 0 || plan.member(i).parameter.size() != 0)) {
      plan.leave_out(i);
      continue;
    }
    const Type type = plan.member(i).dtype == DType::float32 ? Type::float32 : Type::float64;
    plan.accept(i, checked(gradients[i], plan.member(i).gradient.label, type, options.zero_grads), options.zero_grads);
    accepted = gradients[i];
  }
  if (options.zero_grads && any_new) plan.check_gradients_disjoint();
  impl_->accepted_as_written = options.zero_grads || (writable && !any_new);

  const Outcome outcome = plan.step(now, options);
  if (outcome.skipped && options.nonfinite == Nonfinite::raise) {
    std::string names;
    for (const std::size_t i : outcome.nonfinite) names += (names.empty() ? "'" : ", '") + plan.member(i).name + "'";
    throw std::domain_error("inf or NaN in the gradient of " + names + "; nothing was changed");
  }
  if (!outcome.skipped) {
    ++impl_->steps;
    if (options.loss) impl_->last_loss = options.loss;
  }
  return {impl_->steps, outcome.grad_norm, outcome.nonfinite, outcome.skipped};
}

void Optimizer::set_rule(std::size_t group, const AnyRule& rule) {
  if (group >= impl_->rules.size()) throw std::invalid_argument("there is no group " + std::to_string(group));
  if (rule.id() != impl_->rules[group].id()) throw std::invalid_argument("rule: expected new values of the same rule");
  const Description& description = about(rule);
  const Options options = options_of(rule);
  check(description, options.bytes);
  impl_->plan->check_states(static_cast<int>(group), options);
  impl_->options[group] = options;
  impl_->rules[group] = rule;
}

AnySpan Optimizer::state(std::size_t parameter, std::string_view name) const {
  const Plan& plan = *impl_->plan;
  if (parameter >= plan.size()) throw std::invalid_argument("there is no parameter " + std::to_string(parameter));
  const Description& description = fusedstep::description(plan.rule());
  const Plan::Member& member = plan.member(parameter);
  AnySpan span;
  for (std::size_t s = 0; s < description.states.size(); ++s) {
    const Array& array = member.states[s];
    if (name != description.states[s].name || array.data == nullptr) continue;
    span.data = array.data;
    span.type = array.item_size == 1 ? Type::int8 : array.item_size == 4 ? Type::float32 : Type::float64;
    span.dimensions = array.shape.size();
    std::copy(array.shape.begin(), array.shape.end(), span.shape.begin());
    std::copy_n(array.strides, span.dimensions, span.strides.begin());
  }
  return span;
}

}  // namespace fusedstep
