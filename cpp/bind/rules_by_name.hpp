#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "../description.hpp"

namespace fusedstep::bind {

// Work on fewer elements than this takes less time than handing the interpreter to another thread.
inline constexpr std::int64_t small = 4096;

inline RuleId rule_by_name(const std::string& name) {
  for (int rule = 0; rule < rule_count; ++rule) {
    if (name == description(static_cast<RuleId>(rule)).name) return static_cast<RuleId>(rule);
  }
  throw pybind11::value_error("no rule is called '" + name + "'");
}

}  // namespace fusedstep::bind
