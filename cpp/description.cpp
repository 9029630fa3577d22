#include "description.hpp"

#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

namespace fusedstep {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr Range nonnegative{"% >= 0", 0, inf, false, true};
constexpr Range unit{"0 <= % <= 1", 0, 1, false, false};
constexpr Range shrinking{"0 < % < 1", 0, 1, true, true};
constexpr Range growing{"% > 1", 1, inf, true, true};

constexpr const char* momentum_forms[] = {"torch", "tf"};
constexpr const char* rprop_variants[] = {"rprop-",  "rprop+",     "irprop-",   "irprop-move",
                                          "irprop+", "grprop-slr", "grprop-sag"};

#define REAL(Rule, name, range) {#name, Kind::real, offsetof(Rule, name), {range}}
#define PAIR(Rule, name, first, second) {#name, Kind::pair, offsetof(Rule, name), {first, second}}
#define FLAG(Rule, name) {#name, Kind::flag, offsetof(Rule, name)}
#define CHOICE(Rule, name, choices) {#name, Kind::choice, offsetof(Rule, name), {}, choices}
#define START(Rule, name) {#name, Kind::real, offsetof(Rule, name), {nonnegative}, {}, true}
#define PROLOGUE(Rule) \
  REAL(Rule, weight_decay, nonnegative), FLAG(Rule, decoupled_weight_decay), FLAG(Rule, maximize)

constexpr Field rmsprop_fields[] = {
    REAL(RMSprop, lr, nonnegative),       REAL(RMSprop, alpha, unit),
    REAL(RMSprop, eps, nonnegative),      FLAG(RMSprop, eps_inside_sqrt),
    FLAG(RMSprop, centered),              REAL(RMSprop, momentum, unit),
    FLAG(RMSprop, nesterov),              CHOICE(RMSprop, momentum_form, momentum_forms),
    FLAG(RMSprop, bias_correction),       PROLOGUE(RMSprop),
    START(RMSprop, initial_square_avg),
};
constexpr State rmsprop_states[] = {
    {"square_avg", Storage::as_parameter, nullptr, "initial_square_avg"},
    {"grad_avg", Storage::as_parameter, "centered"},
    {"momentum_buffer", Storage::as_parameter},
};
bool uses(const RMSprop& o, int state) { return state == 0 || (state == 1 ? o.centered : o.momentum != 0); }
bool uses_time(const RMSprop& o) { return o.bias_correction; }
bool needs_loss(const RMSprop&) { return false; }
std::string conflict(const RMSprop& o) {
  if (o.nesterov && o.momentum == 0) return "nesterov=True needs momentum > 0, got momentum=0.0";
  if (o.bias_correction && o.alpha == 1) return "bias correction needs alpha < 1, got alpha=1.0";
  return {};
}

constexpr Field adagrad_fields[] = {
    REAL(Adagrad, lr, nonnegative),      REAL(Adagrad, eps, nonnegative), FLAG(Adagrad, eps_inside_sqrt),
    REAL(Adagrad, lr_decay, nonnegative), PROLOGUE(Adagrad),              START(Adagrad, initial_accumulator_value),
};
constexpr State adagrad_states[] = {{"square_sum", Storage::as_parameter, nullptr, "initial_accumulator_value"}};
bool uses(const Adagrad&, int) { return true; }
bool uses_time(const Adagrad& o) { return o.lr_decay != 0; }
bool needs_loss(const Adagrad&) { return false; }
std::string conflict(const Adagrad&) { return {}; }

constexpr Field proximal_adagrad_fields[] = {
    REAL(ProximalAdagrad, lr, nonnegative),
    REAL(ProximalAdagrad, l1, nonnegative),
    REAL(ProximalAdagrad, l2, nonnegative),
    PROLOGUE(ProximalAdagrad),
    START(ProximalAdagrad, initial_accumulator_value),
};
bool uses(const ProximalAdagrad&, int) { return true; }
bool uses_time(const ProximalAdagrad&) { return false; }
bool needs_loss(const ProximalAdagrad&) { return false; }
std::string conflict(const ProximalAdagrad&) { return {}; }

constexpr Field adagrad_da_fields[] = {
    REAL(AdagradDA, lr, nonnegative),
    REAL(AdagradDA, l1, nonnegative),
    REAL(AdagradDA, l2, nonnegative),
    PROLOGUE(AdagradDA),
    START(AdagradDA, initial_accumulator_value),
};
constexpr State adagrad_da_states[] = {
    {"grad_sum", Storage::as_parameter},
    {"square_sum", Storage::as_parameter, nullptr, "initial_accumulator_value"},
};
bool uses(const AdagradDA&, int) { return true; }
bool uses_time(const AdagradDA&) { return true; }
bool needs_loss(const AdagradDA&) { return false; }
std::string conflict(const AdagradDA&) { return {}; }

constexpr Field adagrad_norm_fields[] = {
    REAL(AdagradNorm, lr, nonnegative),
    REAL(AdagradNorm, eps, nonnegative),
    PROLOGUE(AdagradNorm),
    START(AdagradNorm, initial_accumulator_value),
};
constexpr State adagrad_norm_states[] = {{"square_sum", Storage::scalar, nullptr, "initial_accumulator_value"}};
bool uses(const AdagradNorm&, int) { return true; }
bool uses_time(const AdagradNorm&) { return false; }
bool needs_loss(const AdagradNorm&) { return false; }
std::string conflict(const AdagradNorm&) { return {}; }

constexpr const char* traffic_counts[] = {"none", "one", "two", "three"};
constexpr Field traffic_fields[] = {CHOICE(Traffic, states, traffic_counts)};
constexpr State traffic_states[] = {
    {"first", Storage::as_parameter}, {"second", Storage::as_parameter}, {"third", Storage::as_parameter}};
bool uses(const Traffic& o, int state) { return state < static_cast<int>(o.states); }
bool uses_time(const Traffic&) { return false; }
bool needs_loss(const Traffic&) { return false; }
std::string conflict(const Traffic&) { return {}; }

constexpr State sign_traffic_states[] = {{"first", Storage::as_parameter}, {"sign", Storage::int8}};
bool uses(const SignTraffic&, int) { return true; }
bool uses_time(const SignTraffic&) { return false; }
bool needs_loss(const SignTraffic&) { return false; }
std::string conflict(const SignTraffic&) { return {}; }

constexpr Field rprop_fields[] = {
    REAL(Rprop, lr, nonnegative),
    PAIR(Rprop, etas, shrinking, growing),
    PAIR(Rprop, step_sizes, nonnegative, nonnegative),
    CHOICE(Rprop, variant, rprop_variants),
    FLAG(Rprop, loss_increased),
    PROLOGUE(Rprop),
};
constexpr State rprop_states[] = {{"step_size", Storage::as_parameter, nullptr, "lr"}, {"prev_sign", Storage::int8}};
bool uses(const Rprop&, int) { return true; }
bool uses_time(const Rprop&) { return false; }
bool needs_loss(const Rprop& o) { return o.variant == RpropVariant::irprop_plus; }

std::string text(double x) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof digits, x).ptr;
  return {digits, end};
}

std::string conflict(const Rprop& o) {
  if (o.step_sizes[0] <= o.step_sizes[1]) return {};
  return "step_sizes must be (smallest, largest), got (" + text(o.step_sizes[0]) + ", " + text(o.step_sizes[1]) + ")";
}

template <class Rule>
constexpr Description describe(const char* name, std::span<const Field> fields, std::span<const State> states) {
  static_assert(sizeof(Rule) <= max_options_size);
  return {
      .name = name,
      .size = sizeof(Rule),
      .construct = [](void* options) { new (options) Rule; },
      .fields = fields,
      .states = states,
      .uses = [](const void* o, int state) { return uses(*static_cast<const Rule*>(o), state); },
      .uses_time = [](const void* o) { return uses_time(*static_cast<const Rule*>(o)); },
      .needs_loss = [](const void* o) { return needs_loss(*static_cast<const Rule*>(o)); },
      .prologue =
          [](const void* options) {
            const auto& o = *static_cast<const Rule*>(options);
            return Prologue{.lr = o.lr,
                            .weight_decay = o.weight_decay,
                            .decoupled_weight_decay = o.decoupled_weight_decay,
                            .maximize = o.maximize};
          },
      .conflict = [](const void* o) { return conflict(*static_cast<const Rule*>(o)); },
  };
}

constexpr Description descriptions[rule_count] = {
    describe<RMSprop>("rmsprop", rmsprop_fields, rmsprop_states),
    describe<Adagrad>("adagrad", adagrad_fields, adagrad_states),
    describe<Rprop>("rprop", rprop_fields, rprop_states),
    describe<ProximalAdagrad>("proximal_adagrad", proximal_adagrad_fields, adagrad_states),
    describe<AdagradDA>("adagrad_da", adagrad_da_fields, adagrad_da_states),
    describe<AdagradNorm>("adagrad_norm", adagrad_norm_fields, adagrad_norm_states),
    describe<Traffic>("traffic", traffic_fields, traffic_states),
    describe<SignTraffic>("sign_traffic", {}, sign_traffic_states),
};

// `part` names the value where the field has two.
void check(const Field& field, const Range& range, double value, const char* part = "") {
  if (range.contains(value)) return;
  std::string rule = range.text;
  rule.replace(rule.find('%'), 1, std::string(field.name) + part);
  throw std::invalid_argument(std::string(field.name) + ": expected a finite number with " + rule + ", got " +
                              text(value));
}

}  // namespace

bool Range::contains(double x) const {
  return std::isfinite(x) && (lo_open ? x > lo : x >= lo) && (hi_open ? x < hi : x <= hi);
}

const Field* Description::field(const char* wanted) const {
  for (const Field& field : fields) {
    if (std::strcmp(field.name, wanted) == 0) return &field;
  }
  return nullptr;
}

const Description& description(RuleId rule) { return descriptions[static_cast<int>(rule)]; }

void check(const Field& field, const void* options) {
  const void* at = static_cast<const unsigned char*>(options) + field.offset;
  if (field.kind == Kind::real) check(field, field.range[0], *static_cast<const double*>(at));
  if (field.kind == Kind::pair) {
    const auto* pair = static_cast<const double*>(at);
    check(field, field.range[0], pair[0], "[0]");
    check(field, field.range[1], pair[1], "[1]");
  }
}

void check(const Description& rule, const void* options) {
  for (const Field& field : rule.fields) check(field, options);
  if (const std::string wrong = rule.conflict(options); !wrong.empty()) throw std::invalid_argument(wrong);
}

}  // namespace fusedstep
