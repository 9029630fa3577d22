// What there is to know about a rule without knowing its maths: its hyperparameters, their ranges, its state.
// Bindings, checks and messages are made from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "include/fusedstep/rules.hpp"
#include "sweep/kernel.hpp"

namespace fusedstep {

// An open or closed interval of the reals; every hyperparameter is finite.
struct Range {
  const char* text;  // as a message says it, with % for the value's name
  double lo;
  double hi;
  bool lo_open;
  bool hi_open;

  bool contains(double x) const;
};

enum class Kind : std::uint8_t { real, pair, flag, choice };

struct Field {
  const char* name;
  Kind kind;
  std::size_t offset;
  Range range[2] = {};                        // real: the first; pair: one for each
  std::span<const char* const> choices = {};  // choice: the names, in the order of the enumeration
  bool is_start = false;  // says where a state starts, and nothing after that
};

// A state has an element for each of the parameter's, of the parameter's type or int8; or it is one scalar of that type.
enum class Storage : std::uint8_t { as_parameter, int8, scalar };
inline constexpr std::int64_t stored_size(Storage storage, DType parameter) {
  return storage == Storage::int8 ? 1 : item_size(parameter);
}

struct State {
  const char* name;
  Storage storage;
  const char* switched_by = nullptr;  // the flag that asks for this state, where there is one
  const char* starts_at = nullptr;    // the hyperparameter at which an optimizer starts it; otherwise 0
};

struct Description {
  const char* name;
  std::size_t size;                // of the options
  void (*construct)(void* options);  // the defaults
  std::span<const Field> fields;
  std::span<const State> states;
  bool (*uses)(const void* options, int state);
  bool (*uses_time)(const void* options);  // whether the step count enters the formula
  bool (*needs_loss)(const void* options);  // whether the formula asks if the loss rose
  Prologue (*prologue)(const void* options);
  std::string (*conflict)(const void* options);  // what is wrong between two fields; empty: nothing

  const Field* field(const char* name) const;
};

inline constexpr std::size_t max_options_size = 160;

// Options of any rule, by value.
struct alignas(8) Options {
  unsigned char bytes[max_options_size];
};

const Description& description(RuleId rule);

// std::invalid_argument with the name, the value and the range, if a field is not finite, out of its range or at odds
// with another.
void check(const Description& rule, const void* options);
void check(const Field& field, const void* options);

}  // namespace fusedstep
