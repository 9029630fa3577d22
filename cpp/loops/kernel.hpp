// The kernels as the rest of the library calls them: plain functions over dense streams, one table per instruction set.
#pragma once

#include <cstdint>
#include <limits>

#include "../include/fusedstep/rules.hpp"
#include "limits.hpp"

namespace fusedstep {

// A rule's place in this list is its id. The limits come after the rules.
template <class... A, class... B>
constexpr TypeList<A..., B...> joined(TypeList<A...>, TypeList<B...>) {
  return {};
}
using AllRules = decltype(joined(Rules{}, Limits{}));

using RuleId = std::uint8_t;

template <class Rule>
inline constexpr RuleId id_of = index_in<Rule>(AllRules{});

// The types that a parameter may have: the first ones of Type.
inline constexpr int parameter_types = 2;

// The streams of an update, in this order: parameter, gradient, and the states of the rule (null where not used).
inline constexpr int max_states = 3;
inline constexpr int max_streams = 2 + max_states;
inline constexpr int gradient_stream = 1;
inline constexpr int first_state = 2;

// The unit in which arrays are cut: with all its streams it fits in the first-level cache.
inline constexpr std::int64_t block = 1024;

// What a tensor costs besides its elements, in elements.
inline constexpr std::int64_t tensor_overhead = 32;

// What is done to a gradient, and by decoupled decay to its parameter, before any rule: the same for every rule.
struct Prologue {
  double unscale = 1.0;
  double clip_value = std::numeric_limits<double>::infinity();
  double clip_coef = 1.0;
  double lr = 0.0;
  double weight_decay = 0.0;
  bool decoupled_weight_decay = false;
  bool maximize = false;

  // Whether nothing is done.
  bool idle() const {
    return unscale == 1.0 && clip_value == std::numeric_limits<double>::infinity() && clip_coef == 1.0 &&
           weight_decay == 0 && !maximize;
  }
};

// The constants of a rule and its prologue, rounded to the compute type.
struct alignas(64) Prepared {
  unsigned char bytes[192];
};

// The result of a reduction over elements: a sum, and the first element with the smallest key.
struct Reduced {
  double sum = 0;
  double key = std::numeric_limits<double>::infinity();
  std::int64_t position = -1;  // in the order of the reduction; -1: there is none

  void add(const Reduced& after) {
    sum += after.sum;
    if (after.key < key) {
      key = after.key;
      position = after.position;
    }
  }
};

// The last three are null unless the rule needs a reduction over all elements before it updates any. Over an array: then
// settle() updates the rule's scalar by the sum and completes the constants. Over the whole list of arrays: then
// update_chosen() takes the place of the update of the one element found.
struct Kernel {
  // The constants for update number `step` of a parameter.
  void (*prepare)(const void* options, const Prologue& prologue, std::int64_t step, Prepared& out) noexcept;
  void (*update)(const Prepared& prepared, std::int64_t n, void* const* streams) noexcept;
  // The same where elements lie apart, so many bytes in each stream. Null for a rule whose loop is then not vectorised.
  void (*update_apart)(const Prepared& prepared, std::int64_t n, void* const* streams, const std::int64_t* strides) noexcept;
  Reduced (*reduce)(const Prepared& prepared, std::int64_t n, void* const* streams) noexcept;
  void (*settle)(double sum, void* scalar, Prepared& prepared) noexcept;
  void (*update_chosen)(double sum, const Prepared& prepared, void* const* streams) noexcept;
};

// The squares of at most `block` gradients, summed in double in a fixed order, after unscale and clip_value. `poison` is 0
// where all of them are finite before clip_value, NaN where one is not.
struct NormKernel {
  void (*prepare)(const Prologue& prologue, Prepared& out) noexcept;
  double (*sum_of_squares)(const Prepared& prepared, std::int64_t n, const void* g, double& poison) noexcept;
  // The same of the gradients times `scale`, where their squares would leave the range of double.
  double (*scaled_sum_of_squares)(const Prepared& prepared, double scale, std::int64_t n, const void* g) noexcept;
};

struct Kernels {
  // With a prologue that is not idle, or without.
  Kernel (*update[AllRules::size][parameter_types])(const void* options, bool with_prologue);
  NormKernel norm[parameter_types];
  // Adds n gradients to sums.
  void (*add[parameter_types])(std::int64_t n, const void* gradients, void* sums) noexcept;
  double (*divide_and_root[division_count][parameter_types])(std::int64_t n) noexcept;
};

}  // namespace fusedstep
