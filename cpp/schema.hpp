// The declarations of the rules with their types erased: what checks, messages, bindings and the C interface are made from.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "include/fusedstep/fusedstep.hpp"
#include "loops/kernel.hpp"

namespace fusedstep {

// A dialect, with the options of any rule.
struct AnyDialect {
  const char* name;
  const char* source;
  const char* takes;
  Options options;
};

struct RuleSchema {
  const char* name;
  std::size_t size;  // of the options
  std::span<const schema::Field> fields;
  std::span<const schema::State> states;
  const schema::Field* used_with[max_states];  // of a state; null: it is always used
  const schema::Field* per_row_with;            // of the state that may be one for each row; null: none may
  const schema::Field* renamed_with[max_states];
  bool (*uses_otherwise)(const Options& options, int state);  // null: as `used_with` says
  bool step_in_formula;
  const schema::Field* step_used_with;  // null: always, where the step count is in the formula at all
  Options (*defaults)();
  bool (*needs_loss)(const Options& options);
  std::string (*conflict)(const Options& options);  // what is wrong between two fields; empty: nothing
  std::string (*change)(const Options& before, const Options& after);  // what may not change after the start
  std::string (*bad_start)(const Options& options);  // what an optimizer may not start with
  bool squares_gradient;
  bool takes_rows;  // a gradient of 0 changes nothing that would have to be remembered
  Prologue (*prologue)(const Options& options);
  std::span<const AnyDialect> (*dialects)();

  // Null if there is none of that name.
  const schema::Field* field(std::string_view name) const;

  // The state must exist where these options are set.
  bool uses(const Options& options, std::size_t state) const {
    if (uses_otherwise != nullptr) return uses_otherwise(options, static_cast<int>(state));
    return used_with[state] == nullptr || options.is_on(*used_with[state]);
  }

  schema::Storage storage(const Options& options, std::size_t state) const {
    return states[state].per_row_with != nullptr && is_per_row(options) ? schema::Storage::row : states[state].storage;
  }

  // Whether a state is one for each row.
  bool is_per_row(const Options& options) const { return per_row_with != nullptr && options.is_on(*per_row_with); }

  // What the state is called with these options.
  const char* state_name(const Options& options, std::size_t state) const {
    const schema::Field* with = renamed_with[state];
    return with != nullptr && options.is_on(*with) ? states[state].renamed : states[state].name;
  }

  // The update depends on its number.
  bool uses_step(const Options& options) const {
    return step_in_formula && (step_used_with == nullptr || options.is_on(*step_used_with));
  }
};

const RuleSchema& schema_of(RuleId rule);

// By name. std::invalid_argument, which lists the names, for any other than those of the rules.
RuleId rule_named(std::string_view name);

// By name, limits included. For the benchmark.
RuleId rule_or_limit_named(std::string_view name);

// "'a', 'b', 'c'"
std::string listed(std::span<const char* const> names);

// std::invalid_argument, with the name, the value and the range, if a field is not finite, out of its range or at odds
// with another.
void check(const RuleSchema& rule, const Options& options);
void check(const schema::Field& field, const Options& options);

// An AnyRule's insides, which embedders do not see.
struct RuleAccess {
  static RuleId id(const AnyRule& rule) { return rule.id_; }
  static const RuleSchema& schema(const AnyRule& rule) { return schema_of(rule.id_); }
  static Options options(const AnyRule& rule);
  static AnyRule make(RuleId rule, const Options& options);
};

}  // namespace fusedstep
