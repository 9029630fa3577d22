// What other frameworks mean by these names: a dialect is a row of a table, its formula and its defaults.
#pragma once

#include <vector>

#include "description.hpp"

namespace fusedstep {

// One framework's optimizer, in the options of ours.
struct Dialect {
  const char* name;
  const char* source;
  const char* takes;  // the options that are arguments of it, in words; the others are its formula, or not its own
  const void* options;  // its defaults and its formula; NaN where an argument has no default
};

// None, where a rule has no dialects.
std::vector<Dialect> dialects(RuleId rule);

}  // namespace fusedstep
