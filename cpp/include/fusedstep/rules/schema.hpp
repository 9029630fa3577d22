// The words in which a rule declares itself: its options with their ranges, its states, its dialects. Everything else that
// knows about rules (checks, bindings, the C interface, messages) is derived from these declarations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "../types.hpp"

namespace fusedstep {

/// What a rule declares: `name`, `fields`, `states`; and where they apply, `step_used_with`, `dialects`, `conflict()` (what
/// is wrong between two options), `bad_start()` (what an optimizer may not start with), `change()` (what may not change
/// after the start), `needs_loss()`, `signs_only` (gradients are not squared),
/// `dense_only` (a gradient of 0 changes what is remembered, so that rows can't be left out). Specialised beside each rule.
template <class Rule>
struct Schema;

namespace schema {

/// An open or closed interval of finite numbers. In `text`, % stands for the option's name.
struct Range {
  const char* text;
  double lo;
  double hi;
  bool lo_open;
  bool hi_open;
};

inline constexpr double infinity = std::numeric_limits<double>::infinity();
inline constexpr Range nonnegative{"% >= 0", 0, infinity, false, true};
inline constexpr Range unit{"0 <= % <= 1", 0, 1, false, false};
inline constexpr Range shrinking{"0 < % < 1", 0, 1, true, true};
inline constexpr Range growing{"% > 1", 1, infinity, true, true};

enum class Kind : std::uint8_t { real, pair, flag, choice };

/// An option is used in every step, unless it only says where a state starts, or whether the loss rose.
enum class Purpose : std::uint8_t { option, start, loss };

/// A member of a rule's struct.
struct Field {
  const char* name;
  Kind kind;
  std::size_t offset;
  Range range[2] = {};                        ///< real: the first; pair: one each
  std::span<const char* const> choices = {};  ///< choice: the names, in the order of the enumeration
  Purpose purpose = Purpose::option;
  bool may_differ = false;  ///< each element of a parameter may have a number of its own

  constexpr Field as(Purpose other) const {
    Field field = *this;
    field.purpose = other;
    return field;
  }
  constexpr Field per_element() const {
    Field field = *this;
    field.may_differ = true;
    return field;
  }
};

template <class Member>
  requires std::is_same_v<Member, double>
constexpr Field field(const char* name, std::size_t offset, const Range& range) {
  return {name, Kind::real, offset, {range}};
}

template <class Member>
  requires std::is_same_v<Member, double[2]>
constexpr Field field(const char* name, std::size_t offset, const Range& first, const Range& second) {
  return {name, Kind::pair, offset, {first, second}};
}

template <class Member>
  requires std::is_same_v<Member, bool>
constexpr Field field(const char* name, std::size_t offset) {
  return {name, Kind::flag, offset};
}

template <class Member>
  requires std::is_enum_v<Member>
constexpr Field field(const char* name, std::size_t offset, std::span<const char* const> choices) {
  return {name, Kind::choice, offset, {}, choices};
}

/// A state has an element for each of the parameter's, of the parameter's type or int8; or it is one scalar, or one for each
/// row.
enum class Storage : std::uint8_t { as_parameter, int8, scalar, row };

struct State {
  const char* name;
  Storage storage = Storage::as_parameter;
  const char* used_with = nullptr;  ///< the option without which (0, false) the rule does without this state
  const char* starts_at = nullptr;  ///< the option at which an optimizer starts it; otherwise 0
  const char* per_row_with = nullptr;  ///< the option with which a scalar is one for each row instead
  const char* renamed_with = nullptr;  ///< the option with which the state holds something else,
  const char* renamed = nullptr;       ///< and is called this
};

/// For `step_used_with`: the formula has the step count in it, whatever the options.
inline constexpr const char* always = "";

/// A framework's optimizer in the options of ours.
template <class Rule>
struct Dialect {
  const char* name;
  const char* source;
  const char* takes;  ///< the options that are arguments there, in words; the others are part of its formula
  Rule options;       ///< its formula and its defaults; NaN where an argument has no default
};

/// The shortest text of a number that reads back as the same number.
FUSEDSTEP_API std::string text(double x);

/// For `bad_start()`: a gradient of 0 would be divided by 0.
inline std::string zero_over_zero(double eps, double start, const char* name) {
  if (eps != 0 || start != 0) return {};
  return "eps: expected eps > 0 with " + std::string(name) + " 0, got 0; a gradient of 0 would make the parameter NaN";
}

inline constexpr double required = std::numeric_limits<double>::quiet_NaN();

/// The options of a dialect, by name. std::invalid_argument, which lists the names, for any other.
template <class Rule>
Rule like(std::string_view name) {
  std::string names;
  for (const auto& dialect : Schema<Rule>::dialects) {
    if (name == dialect.name) return dialect.options;
    names += (names.empty() ? "'" : ", '") + std::string(dialect.name) + "'";
  }
  refuse("dialect of " + std::string(Schema<Rule>::name) + ": expected one of " + names + ", got '" + std::string(name) +
         "'");
}

// ------------------------------------------------------------------------------------------- that nothing is forgotten

struct Anything {
  template <class T>
  constexpr operator T() const;
};

template <class Rule, std::size_t... k>
constexpr bool takes(std::index_sequence<k...>) {
  return requires { Rule{(static_cast<void>(k), Anything{})...}; };
}

/// The members of a rule's struct; a pair counts twice.
template <class Rule, std::size_t n = 0>
constexpr std::size_t members() {
  if constexpr (takes<Rule>(std::make_index_sequence<n + 1>{})) {
    return members<Rule, n + 1>();
  } else {
    return n;
  }
}

constexpr std::size_t listed(std::span<const Field> fields) {
  std::size_t n = 0;
  for (const Field& field : fields) n += field.kind == Kind::pair ? 2 : 1;
  return n;
}

constexpr bool is_field(std::span<const Field> fields, const char* name) {
  if (name == nullptr || *name == '\0') return true;
  for (const Field& field : fields) {
    if (std::string_view(field.name) == name) return true;
  }
  return false;
}

constexpr bool names_are_unique(std::span<const Field> fields) {
  for (std::size_t i = 0; i < fields.size(); ++i) {
    for (std::size_t k = 0; k < i; ++k) {
      if (std::string_view(fields[i].name) == fields[k].name) return false;
    }
  }
  return true;
}

constexpr bool states_name_fields(std::span<const State> states, std::span<const Field> fields) {
  for (const State& state : states) {
    for (const char* name : {state.used_with, state.starts_at, state.per_row_with, state.renamed_with}) {
      if (!is_field(fields, name)) return false;
    }
  }
  return true;
}

}  // namespace schema
}  // namespace fusedstep

/// A member of `Rule` with its range (a number), two ranges (a pair), nothing (a flag) or its names (a choice).
#define FUSEDSTEP_FIELD(member, ...) \
  ::fusedstep::schema::field<decltype(Rule::member)>(#member, offsetof(Rule, member) __VA_OPT__(, ) __VA_ARGS__)

/// One that only says where a state starts.
#define FUSEDSTEP_START(member) \
  FUSEDSTEP_FIELD(member, ::fusedstep::schema::nonnegative).as(::fusedstep::schema::Purpose::start)
