#include "schema.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <iomanip>
#include <locale>
#include <new>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace fusedstep {
namespace {

using schema::Field;
using schema::Kind;
using schema::Range;

template <class Rule>
Options erased(const Rule& rule) {
  Options options{};
  std::memcpy(options.bytes, static_cast<const void*>(&rule), sizeof rule);
  return options;
}

template <class Rule>
const Rule& as(const Options& options) {
  return *reinterpret_cast<const Rule*>(options.bytes);
}

template <class Rule>
std::span<const AnyDialect> dialects() {
  if constexpr (requires { Schema<Rule>::dialects; }) {
    static const std::vector<AnyDialect> rows = [] {
      std::vector<AnyDialect> made;
      for (const auto& row : Schema<Rule>::dialects) made.push_back({row.name, row.source, row.takes, erased(row.options)});
      return made;
    }();
    return rows;
  } else {
    return {};
  }
}

template <class Rule>
constexpr const Field* field_of(const char* name) {
  if (name == nullptr) return nullptr;
  for (const Field& field : Schema<Rule>::fields) {
    if (std::string_view(field.name) == name) return &field;
  }
  return nullptr;
}

template <class Rule>
constexpr RuleSchema erased_schema() {
  using About = Schema<Rule>;
  static_assert(schema::listed(About::fields) == schema::members<Rule>(),
                "Schema::fields: expected each member of the rule's struct, once");
  static_assert(schema::names_are_unique(About::fields), "Schema::fields: a member stands there twice");
  static_assert(schema::states_name_fields(About::states, About::fields),
                "Schema::states: used_with, starts_at, per_row_with or renamed_with names no field");
  static_assert(std::size(About::states) <= max_states, "Schema::states: more than max_states");
  RuleSchema made{
      .name = About::name,
      .size = sizeof(Rule),
      .fields = About::fields,
      .states = About::states,
      .used_with = {},
      .per_row_with = nullptr,
      .renamed_with = {},
      .uses_otherwise = nullptr,
      .step_in_formula = false,
      .step_used_with = nullptr,
      .defaults = [] { return erased(Rule{}); },
      .needs_loss = [](const Options&) { return false; },
      .conflict = [](const Options&) { return std::string(); },
      .change = [](const Options&, const Options&) { return std::string(); },
      .bad_start = [](const Options&) { return std::string(); },
      .squares_gradient = !requires { About::signs_only; },
      .takes_rows = !requires { About::dense_only; },
      .prologue =
          [](const Options& options) {
            const Rule& o = as<Rule>(options);
            return Prologue{
                .weight_decay = o.weight_decay, .decoupled_weight_decay = o.decoupled_weight_decay, .maximize = o.maximize};
          },
      .dialects = dialects<Rule>,
  };
  for (std::size_t s = 0; s < std::size(About::states); ++s) {
    made.used_with[s] = field_of<Rule>(About::states[s].used_with);
    if (About::states[s].per_row_with != nullptr) made.per_row_with = field_of<Rule>(About::states[s].per_row_with);
    made.renamed_with[s] = field_of<Rule>(About::states[s].renamed_with);
  }
  if constexpr (requires(const Rule& o) { About::uses(o, 0); }) {
    made.uses_otherwise = [](const Options& options, int state) { return About::uses(as<Rule>(options), state); };
  }
  if constexpr (requires { About::step_used_with; }) {
    static_assert(schema::is_field(About::fields, About::step_used_with), "Schema::step_used_with names no field");
    made.step_in_formula = true;
    made.step_used_with = field_of<Rule>(About::step_used_with);
  }
  if constexpr (requires(const Rule& o) { About::needs_loss(o); }) {
    made.needs_loss = [](const Options& options) { return About::needs_loss(as<Rule>(options)); };
  }
  if constexpr (requires(const Rule& o) { About::change(o, o); }) {
    made.change = [](const Options& before, const Options& after) {
      return About::change(as<Rule>(before), as<Rule>(after));
    };
  }
  if constexpr (requires(const Rule& o) { About::bad_start(o); }) {
    made.bad_start = [](const Options& options) { return About::bad_start(as<Rule>(options)); };
  }
  if constexpr (requires(const Rule& o) { About::conflict(o); }) {
    made.conflict = [](const Options& options) { return About::conflict(as<Rule>(options)); };
  }
  return made;
}

template <class... R>
constexpr std::array<RuleSchema, sizeof...(R)> all_schemas(TypeList<R...>) {
  return {erased_schema<R>()...};
}

constexpr std::array<RuleSchema, AllRules::size> schemas = all_schemas(AllRules{});

bool contains(const Range& range, double x) {
  return std::isfinite(x) && (range.lo_open ? x > range.lo : x >= range.lo) &&
         (range.hi_open ? x < range.hi : x <= range.hi);
}

// `part` says which of a pair the value is.
[[noreturn]] void refuse_value(const Field& field, const Range& range, double value, const char* part) {
  std::string rule = range.text;
  rule.replace(rule.find('%'), 1, std::string(field.name) + part);
  refuse(std::string(field.name) + ": expected a finite number with " + rule + ", got " + schema::text(value));
}

void check(const Field& field, const Range& range, double value, const char* part = "") {
  if (!contains(range, value)) refuse_value(field, range, value, part);
}

}  // namespace

void refuse(const std::string& why) { throw std::invalid_argument(why); }

// Writes as few digits as distinguish a number from its neighbours, but at least six. Streams do this on every system.
std::string schema::text(double x) {
  for (int digits = 6;; ++digits) {
    std::stringstream text;
    text.imbue(std::locale::classic());
    text << std::setprecision(digits) << x;
    if (double back = 0; digits == 17 || (std::istringstream(text.str()) >> back && back == x)) return text.str();
  }
}

bool Options::is_on(const Field& field) const {
  switch (field.kind) {
    case Kind::real:
      return at<double>(field) != 0;
    case Kind::flag:
      return at<bool>(field);
    case Kind::choice:
      return at<std::uint8_t>(field) != 0;
    case Kind::pair:
      break;
  }
  return true;
}

const Field* RuleSchema::field(std::string_view wanted) const {
  for (const Field& field : fields) {
    if (wanted == field.name) return &field;
  }
  return nullptr;
}

const RuleSchema& schema_of(RuleId rule) { return schemas[rule]; }

RuleId rule_or_limit_named(std::string_view name) {
  for (int rule = 0; rule < AllRules::size; ++rule) {
    if (name == schemas[static_cast<std::size_t>(rule)].name) return static_cast<RuleId>(rule);
  }
  return rule_named(name);
}

RuleId rule_named(std::string_view name) {
  std::vector<const char*> names;
  for (int rule = 0; rule < Rules::size; ++rule) {
    names.push_back(schema_of(static_cast<RuleId>(rule)).name);
    if (name == names.back()) return static_cast<RuleId>(rule);
  }
  refuse("rule: expected one of " + listed(names) + ", got '" + std::string(name) + "'");
}

std::string listed(std::span<const char* const> names) {
  std::string text;
  for (const char* name : names) text += (text.empty() ? "'" : ", '") + std::string(name) + "'";
  return text;
}

void check(const Field& field, const Options& options) {
  if (field.kind == Kind::real) check(field, field.range[0], options.at<double>(field));
  if (field.kind == Kind::pair) {
    const auto& pair = options.at<double[2]>(field);
    check(field, field.range[0], pair[0], "[0]");
    check(field, field.range[1], pair[1], "[1]");
  }
}

void check(const RuleSchema& rule, const Options& options) {
  for (const Field& field : rule.fields) check(field, options);
  if (const std::string wrong = rule.conflict(options); !wrong.empty()) refuse(wrong);
}

Options RuleAccess::options(const AnyRule& rule) {
  Options options;
  static_assert(sizeof options <= sizeof rule.bytes_);
  std::memcpy(options.bytes, rule.bytes_.data(), sizeof options);
  return options;
}

AnyRule RuleAccess::make(RuleId id, const Options& options) { return AnyRule(id, options.bytes, schema_of(id).size); }

}  // namespace fusedstep
