// The declarations of the rules, with their types erased. Checks, messages, bindings and the C interface are made from them.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "include/fusedstep/fusedstep.hpp"
#include "loops/kernel.hpp"

namespace fusedstep {

// A dialect with its options, of any rule.
struct AnyDialect {
  const char* name;
  const char* source;
  const char* takes;
  Options options;
};

struct RuleSchema {
  const char* name;
  std::size_t size;  // of the rule's struct
  std::span<const schema::Field> fields;
  std::span<const schema::State> states;
  const schema::Field* used_with[max_states];  // of each state; null: it is always used
  const schema::Field* per_row_with;  // turns the state with one number per row on; null: there is none
  const schema::Field* renamed_with[max_states];
  bool (*uses_otherwise)(const Options& options, int state);  // null: `used_with` decides
  bool step_in_formula;
  const schema::Field* step_used_with;  // null: always, if the step count is in the formula
  Options (*defaults)();
  bool (*needs_loss)(const Options& options);
  std::string (*conflict)(const Options& options);  // which fields contradict each other; empty: none
  std::string (*change)(const Options& before, const Options& after);  // what may not change so; empty: nothing
  std::string (*bad_start)(const Options& options);  // why an optimizer may not start with these; empty: it may
  bool squares_gradient;
  bool takes_rows;  // rows without a gradient need no update
  Prologue (*prologue)(const Options& options);
  std::span<const AnyDialect> (*dialects)();

  // Returns null if there is no field of that name.
  const schema::Field* field(std::string_view name) const;

  // Whether these options need the state.
  bool uses(const Options& options, std::size_t state) const {
    if (uses_otherwise != nullptr) return uses_otherwise(options, static_cast<int>(state));
    return used_with[state] == nullptr || options.is_on(*used_with[state]);
  }

  schema::Storage storage(const Options& options, std::size_t state) const {
    return states[state].per_row_with != nullptr && is_per_row(options) ? schema::Storage::row : states[state].storage;
  }

  // Whether the rule has a state with one number per row.
  bool is_per_row(const Options& options) const { return per_row_with != nullptr && options.is_on(*per_row_with); }

  // The name of the state with these options.
  const char* state_name(const Options& options, std::size_t state) const {
    const schema::Field* with = renamed_with[state];
    return with != nullptr && options.is_on(*with) ? states[state].renamed : states[state].name;
  }

  // Whether the update depends on the step count.
  bool uses_step(const Options& options) const {
    return step_in_formula && (step_used_with == nullptr || options.is_on(*step_used_with));
  }
};

const RuleSchema& schema_of(RuleId rule);

// Finds a rule by its name. Throws std::invalid_argument, which lists the names.
RuleId rule_named(std::string_view name);

// The same for the benchmark, which also has limits.
RuleId rule_or_limit_named(std::string_view name);

// Returns "'a', 'b', 'c'".
std::string listed(std::span<const char* const> names);

// Throws std::invalid_argument, with name, value and range, if a field is not finite, out of its range or in conflict with
// another one.
void check(const RuleSchema& rule, const Options& options);
void check(const schema::Field& field, const Options& options);

// The inside of AnyRule, which embedders do not see.
struct RuleAccess {
  static RuleId id(const AnyRule& rule) { return rule.id_; }
  static const RuleSchema& schema(const AnyRule& rule) { return schema_of(rule.id_); }
  static Options options(const AnyRule& rule);
  static AnyRule make(RuleId rule, const Options& options);
};

}  // namespace fusedstep
