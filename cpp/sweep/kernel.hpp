// The kernels as the rest of the library calls them: plain functions over dense streams, one table an instruction set.
#pragma once

#include <cstdint>
#include <limits>

#include "../include/fusedstep/rules.hpp"

namespace fusedstep {

enum class DType : std::uint8_t { float32, float64 };
inline constexpr int dtype_count = 2;
inline constexpr std::int64_t item_size(DType dtype) { return dtype == DType::float32 ? 4 : 8; }

enum class RuleId : std::uint8_t {
  rmsprop,
  adagrad,
  rprop,
  proximal_adagrad,
  adagrad_da,
  adagrad_norm,
  traffic,
  sign_traffic,
};
inline constexpr int rule_count = 8;

// The streams of an update, in this order: parameter, gradient, and the states of the rule (null where not used).
inline constexpr int max_states = 3;
inline constexpr int max_streams = 2 + max_states;

// The unit in which arrays are cut: what fits in the first-level cache with all its streams.
inline constexpr std::int64_t block = 1024;

// What a tensor costs beside its elements, in elements.
inline constexpr std::int64_t tensor_overhead = 32;

// Hyperparameters and what is derived from them, rounded to the compute type.
struct alignas(64) Coefficients {
  unsigned char bytes[128];
};

// The answer to a question about all elements: a sum, and the first element with the smallest key.
struct Total {
  double sum = 0;
  double key = std::numeric_limits<double>::infinity();
  std::int64_t position = -1;  // in the order of the question; -1: there is none

  void add(const Total& after) {
    sum += after.sum;
    if (after.key < key) {
      key = after.key;
      position = after.position;
    }
  }
};

// `total`, `settle` and `update_chosen` are there for rules that ask about all elements before they update any: about
// the array, then settle() derives coefficients from the answer and the rule's scalar; or about the whole list, then
// update_chosen() takes the place of the update of the one element found.
struct Kernel {
  void (*prepare)(const void* options, std::int64_t time, Coefficients& out) noexcept;
  void (*update)(const Coefficients& coef, std::int64_t n, void* const* streams) noexcept;
  Total (*total)(const Coefficients& coef, std::int64_t n, void* const* streams) noexcept;
  void (*settle)(const Total& total, void* scalar, Coefficients& coef) noexcept;
  void (*update_chosen)(const Total& total, const Coefficients& coef, void* const* streams) noexcept;
};

struct PrologueKernel {
  void (*prepare)(const Prologue& prologue, Coefficients& out) noexcept;
  void (*gradient)(const Coefficients& coef, std::int64_t n, void* p, const void* g, void* out) noexcept;
};

// The squares of a block of at most `block` gradients, summed in double in a fixed order, after unscale and clip_value;
// with `poison`, 0 where all of them are finite before clip_value, NaN where one is not.
struct NormKernel {
  double (*sum_of_squares)(const Coefficients& coef, std::int64_t n, const void* g, double& poison) noexcept;
};

// What an element asks of the divider; its rate is a limit that is measured like the memory's.
enum class Division : std::uint8_t { one, root_and_one, root_and_two };
inline constexpr int division_count = 3;

struct Kernels {
  Kernel (*update[rule_count][dtype_count])(const void* options);
  PrologueKernel (*prologue[dtype_count])(const Prologue& prologue);
  NormKernel norm[dtype_count];
  double (*divide_and_root[division_count][dtype_count])(std::int64_t n) noexcept;
};

}  // namespace fusedstep
