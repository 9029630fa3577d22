// The kernels as the rest of the library sees them: plain functions over dense streams, in one table per instruction set.
#pragma once

#include <cstdint>
#include <limits>

#include "../include/fusedstep/rules.hpp"
#include "limits.hpp"

namespace fusedstep {

// A rule's place in this list is its id. The limits come last.
template <class... A, class... B>
constexpr TypeList<A..., B...> joined(TypeList<A...>, TypeList<B...>) {
  return {};
}
using AllRules = decltype(joined(Rules{}, Limits{}));

using RuleId = std::uint8_t;

template <class Rule>
inline constexpr RuleId id_of = index_in<Rule>(AllRules{});

// The size of the largest struct of options.
template <class... R>
consteval std::size_t largest(TypeList<R...>) {
  std::size_t size = 0;
  ((size = sizeof(R) > size ? sizeof(R) : size), ...);
  return size;
}

// The options of any rule, by value.
struct alignas(8) Options {
  unsigned char bytes[largest(AllRules{})];

  template <class T>
  T& at(const schema::Field& field) {
    return *reinterpret_cast<T*>(bytes + field.offset);
  }
  template <class T>
  const T& at(const schema::Field& field) const {
    return *reinterpret_cast<const T*>(bytes + field.offset);
  }

  // Whether a field is not 0, false or the first choice.
  bool is_on(const schema::Field& field) const;
};

// Rules compute in the first two types of Type: float for parameters of up to 32 bits, double for float64.
inline constexpr int compute_types = 2;

constexpr Type compute_type(Type parameter) { return parameter == Type::float64 ? Type::float64 : Type::float32; }

// The streams of an update, in this order: parameter, gradient, the states of the rule, the low halves of a master
// parameter, and the index of the first element in the C order of the whole parameter. A stream that is not used is null.
// The index advances like a pointer to bytes.
inline constexpr int max_states = 3;
inline constexpr int gradient_stream = 1;
inline constexpr int first_state = 2;
inline constexpr int low_stream = first_state + max_states;
inline constexpr int low_half = max_states;  // its place after the states
inline constexpr int state_arrays = max_states + 1;
inline constexpr int index_stream = low_stream + 1;
inline constexpr int max_arrays = index_stream;
inline constexpr int max_streams = index_stream + 1;

// An index as a stream. The offset keeps it from being null.
inline constexpr std::uintptr_t index_zero = std::uintptr_t{1} << 62;
inline char* index_as_stream(std::int64_t index) {
  return reinterpret_cast<char*>(index_zero + static_cast<std::uintptr_t>(index));
}
inline std::uint64_t index_of(void* const* streams) {
  return reinterpret_cast<std::uintptr_t>(streams[index_stream]) - index_zero;
}

// Arrays are cut into blocks. A block fits in the first-level cache with all its streams.
inline constexpr std::int64_t block = 1024;

// The fixed cost of a tensor, in elements.
inline constexpr std::int64_t tensor_overhead = 32;

// What every rule does to a gradient first. Decoupled decay also changes the parameter.
struct Prologue {
  double unscale = 1.0;
  double clip_value = std::numeric_limits<double>::infinity();
  double clip_coef = 1.0;
  double weight_decay = 0.0;
  bool decoupled_weight_decay = false;
  bool maximize = false;

  // Whether it does nothing.
  bool idle() const {
    return unscale == 1.0 && clip_value == std::numeric_limits<double>::infinity() && clip_coef == 1.0 &&
           weight_decay == 0 && !maximize;
  }
};

// The constants of a rule and its prologue, rounded to the compute type.
struct alignas(64) Prepared {
  unsigned char bytes[192];
};

// The result of a reduction: a sum, and the first element with the smallest key.
struct Reduced {
  double sum = 0;
  double key = std::numeric_limits<double>::infinity();
  std::int64_t position = -1;  // the element's place in the order of the reduction; -1: none

  void add(const Reduced& after) {
    sum += after.sum;
    if (after.key < key) {
      key = after.key;
      position = after.position;
    }
  }
};

// How the streams of an update are stored.
struct Storage {
  std::int64_t item_size[max_streams] = {};  // 0: not used
  Type type[max_arrays] = {};
  Rounding rounding = Rounding::stochastic;
  bool is_narrow = false;  // some stream is not of the compute type

  Type compute() const { return compute_type(type[0]); }
  bool uses(int stream) const { return item_size[stream] != 0; }
  bool is_master() const { return uses(low_stream); }

  // Whether the stream has another type than the rule computes in.
  bool converts(int stream) const {
    return uses(stream) && type[stream] != compute() && type[stream] != Type::int8 && type[stream] != Type::uint16;
  }
  bool rounds(int stream) const { return converts(stream) && stream != gradient_stream && !(stream == 0 && is_master()); }

  // How many draws of noise an element takes. Each has two halves: the parameter and the floating-point states take one half
  // each, in this order, even if they are not rounded.
  int draws() const {
    if (!is_narrow) return 0;
    int halves = 0;
    bool any = false;
    for (int s = 0; s < low_stream; ++s) {
      if (s == gradient_stream || !uses(s) || type[s] == Type::int8) continue;
      ++halves;
      any |= rounds(s);
    }
    return rounding == Rounding::stochastic && any ? (halves + 1) / 2 : 0;
  }
};

// A loop over streams of bfloat16 and float. It rounds with up to two draws of noise for each element, or to nearest if there
// are none. Null where conversions apart are faster.
struct NarrowUpdate {
  void (*loop)(const Prepared& prepared, std::int64_t n, void* const* streams, const std::uint32_t* const* noise) noexcept;
  std::int64_t at_a_time;   // n is a multiple of it
  std::int64_t noise_step;  // 2: the noise of all even elements comes before that of the odd ones
};

// The last three are null unless the rule needs a reduction over all elements before it updates any. For a reduction over an
// array or a row of n elements, settle() updates the rule's scalar by the sum and completes the constants. For one over the
// whole list of arrays, update_chosen() updates the one element that was found.
struct Kernel {
  // Computes the constants for update number `step` of a parameter.
  void (*prepare)(const void* options, const Prologue& prologue, std::int64_t step, Prepared& out) noexcept;
  void (*update)(const Prepared& prepared, std::int64_t n, void* const* streams) noexcept;
  // The same for elements that are so many bytes apart in each stream. Null for a rule whose loop would then not be
  // vectorised.
  void (*update_apart)(const Prepared& prepared, std::int64_t n, void* const* streams, const std::int64_t* strides) noexcept;
  // The same where parameter, gradient and states are float or, at [1], bfloat16; and where they all are bfloat16, with a
  // master parameter.
  NarrowUpdate update_narrow[2][2][2];
  NarrowUpdate update_master;
  Reduced (*reduce)(const Prepared& prepared, std::int64_t n, void* const* streams) noexcept;
  void (*settle)(double sum, std::int64_t n, void* scalar, Prepared& prepared) noexcept;
  void (*update_chosen)(double sum, const Prepared& prepared, void* const* streams) noexcept;
};

// Sums the squares of at most `block` gradients after unscale and clip_value, in double and in a fixed order. `poison` is 0
// if all are finite before clip_value, and otherwise NaN.
struct NormKernel {
  void (*prepare)(const Prologue& prologue, Prepared& out) noexcept;
  double (*sum_of_squares)(const Prepared& prepared, std::int64_t n, const void* g, double& poison) noexcept;
  // The same for gradients times `scale`, if their squares would leave the range of double.
  double (*scaled_sum_of_squares)(const Prepared& prepared, double scale, std::int64_t n, const void* g) noexcept;
};

// Conversions between the types that streams are stored in and the compute types.
struct Conversions {
  // To a compute type. Null if there is nothing to do or if it would round.
  void (*widen[compute_types][type_count])(std::int64_t n, const void* from, void* to) noexcept;
  // From float to bfloat16 or float16, to nearest, or stochastically with the lower or upper 16 bits of noise.
  void (*to_nearest[type_count])(std::int64_t n, const float* from, void* to) noexcept;
  void (*stochastic[type_count])(std::int64_t n, const float* from, void* to, const std::uint32_t* noise,
                                 bool upper) noexcept;
  // Joins and splits the halves of a master parameter.
  void (*join)(std::int64_t n, const bfloat16* high, const std::uint16_t* low, float* to) noexcept;
  void (*split)(std::int64_t n, const float* from, bfloat16* high, std::uint16_t* low) noexcept;
  // Draws the noise of n elements, `step` apart.
  void (*noise)(std::int64_t n, std::uint64_t key, std::uint64_t index, std::int64_t step, std::uint32_t* to) noexcept;
};

struct Kernels {
  // Returns the kernel with a prologue, or without one if it would do nothing.
  Kernel (*update[AllRules::size][compute_types])(const void* options, bool with_prologue);
  NormKernel norm[compute_types];
  Conversions conversions;
  // Adds n gradients to sums.
  void (*add[compute_types])(std::int64_t n, const void* gradients, void* sums) noexcept;
  double (*divide_and_root[division_count][compute_types])(std::int64_t n) noexcept;
};

}  // namespace fusedstep
