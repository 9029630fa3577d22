// fusedstep for C++: fused in-place Rprop, Adagrad and RMSprop updates, the same kernels and the same bits as in Python.
//
//   std::vector<float> w(n), g(n), v(n);
//   fusedstep::RMSprop rule{.lr = 1e-3, .alpha = 0.9};
//   fusedstep::step(rule, fusedstep::span{w}, fusedstep::span{g}, fusedstep::span{v});
//
// Arrays are borrowed, never copied. Bad input is a std::invalid_argument, thrown before anything is written, with the
// name of the array, what was found and what to do. Any number of threads may step disjoint arrays at once.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <ranges>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "rules.hpp"

#if defined(FUSEDSTEP_SHARED)
#define FUSEDSTEP_API __attribute__((visibility("default")))
#else
#define FUSEDSTEP_API
#endif

namespace fusedstep {

inline constexpr std::size_t max_span_dimensions = 8;

enum class Type : std::uint8_t { float32, float64, int8 };

template <class T>
concept Element = std::same_as<std::remove_const_t<T>, float> || std::same_as<std::remove_const_t<T>, double> ||
                  std::same_as<std::remove_const_t<T>, std::int8_t>;

template <Element T>
inline constexpr Type type_of = std::same_as<std::remove_const_t<T>, float>    ? Type::float32
                                : std::same_as<std::remove_const_t<T>, double> ? Type::float64
                                                                               : Type::int8;

/// An array of any shape and strides (in elements) in somebody else's memory.
template <Element T>
class span {
 public:
  using element_type = T;

  /// `n` elements in a row.
  span(T* data, std::int64_t n) : data_(data), dimensions_(1), shape_{n}, strides_{1} {}

  /// All of a contiguous range: a vector, an array, a std::span.
  template <class Range>
    requires std::ranges::contiguous_range<Range> && std::ranges::sized_range<Range>
  explicit span(Range& range) : span(std::ranges::data(range), static_cast<std::int64_t>(std::ranges::size(range))) {}

  /// A shape with strides, in elements; negative ones run backwards. std::invalid_argument for more than
  /// max_span_dimensions, or for strides that do not match.
  span(T* data, std::span<const std::int64_t> shape, std::span<const std::int64_t> strides)
      : data_(data), dimensions_(shape.size()) {
    if (shape.size() != strides.size() || shape.size() > max_span_dimensions) {
      throw std::invalid_argument("span: expected a stride for each of at most 8 dimensions, got " +
                                  std::to_string(shape.size()) + " dimensions and " + std::to_string(strides.size()) +
                                  " strides");
    }
    for (std::size_t k = 0; k < dimensions_; ++k) {
      shape_[k] = shape[k];
      strides_[k] = strides[k];
    }
  }
  span(T* data, std::initializer_list<std::int64_t> shape, std::initializer_list<std::int64_t> strides)
      : span(data, std::span(shape.begin(), shape.size()), std::span(strides.begin(), strides.size())) {}

  T* data() const { return data_; }
  std::span<const std::int64_t> shape() const { return {shape_.data(), dimensions_}; }
  std::span<const std::int64_t> strides() const { return {strides_.data(), dimensions_}; }

  /// Elements [begin, begin + n) along the first dimension: what one of the caller's own threads is to step.
  span part(std::int64_t begin, std::int64_t n) const {
    span rest = *this;
    rest.data_ += begin * strides_[0];
    rest.shape_[0] = n;
    return rest;
  }

 private:
  T* data_;
  std::size_t dimensions_;
  std::array<std::int64_t, max_span_dimensions> shape_{};
  std::array<std::int64_t, max_span_dimensions> strides_{};
};

template <class Range>
span(Range&) -> span<std::remove_reference_t<std::ranges::range_reference_t<Range>>>;

/// A span of any element type: what lists of arrays are made of.
struct AnySpan {
  void* data = nullptr;  // null: none
  Type type = Type::float32;
  bool read_only = false;
  std::size_t dimensions = 0;
  std::array<std::int64_t, max_span_dimensions> shape{};
  std::array<std::int64_t, max_span_dimensions> strides{};  // in bytes

  AnySpan() = default;

  template <Element T>
  AnySpan(const span<T>& array)  // NOLINT: an implicit conversion is meant
      : data(const_cast<std::remove_const_t<T>*>(array.data())),
        type(type_of<T>),
        read_only(std::is_const_v<T>),
        dimensions(array.shape().size()) {
    for (std::size_t k = 0; k < dimensions; ++k) {
      shape[k] = array.shape()[k];
      strides[k] = array.strides()[k] * static_cast<std::int64_t>(sizeof(T));
    }
  }
};

/// Any rule with its hyperparameters.
class FUSEDSTEP_API AnyRule {
 public:
  AnyRule(const RMSprop& options);          // NOLINT: implicit conversions are meant
  AnyRule(const Adagrad& options);          // NOLINT
  AnyRule(const Rprop& options);            // NOLINT
  AnyRule(const ProximalAdagrad& options);  // NOLINT
  AnyRule(const AdagradDA& options);        // NOLINT
  AnyRule(const AdagradNorm& options);      // NOLINT

  /// The rule's states with these hyperparameters, in the order in which step() takes them: "square_avg", ...
  std::vector<std::string> states() const;

  int id() const { return id_; }
  const void* options() const { return bytes_.data(); }

 private:
  template <class Rule>
  AnyRule(int id, const Rule& options);

  int id_;
  alignas(8) std::array<unsigned char, 160> bytes_{};
};

/// One update of one parameter: its gradient, then the states that the rule uses, in its order (AnyRule::states).
/// `time` counts the updates of this parameter from 1; bias correction, lr_decay and dual averaging ask for it.
FUSEDSTEP_API void step(const AnyRule& rule, std::int64_t time, const AnySpan& parameter, const AnySpan& gradient,
                        std::span<const AnySpan> states);

template <class Rule, Element T, Element G, Element... S>
void step(const Rule& rule, const span<T>& parameter, const span<G>& gradient, const span<S>&... states) {
  const std::array<AnySpan, sizeof...(S)> list{AnySpan(states)...};
  step(AnyRule(rule), 1, parameter, gradient, list);
}

template <class Rule, Element T, Element G, Element... S>
void step(const Rule& rule, std::int64_t time, const span<T>& parameter, const span<G>& gradient,
          const span<S>&... states) {
  const std::array<AnySpan, sizeof...(S)> list{AnySpan(states)...};
  step(AnyRule(rule), time, parameter, gradient, list);
}

/// The norm of all gradients together, with the same bits for any number of threads.
FUSEDSTEP_API double norm(std::span<const AnySpan> gradients);

struct StepReport {
  std::int64_t step = 0;                ///< steps taken so far, this one included
  std::optional<double> grad_norm{};    ///< where clip_norm or nonfinite asked for it
  std::vector<std::size_t> nonfinite{};  ///< parameters with an inf or a NaN in their gradient, where asked for
  bool skipped = false;                 ///< nothing was changed
};

/// Many parameters with their states, checked and bound once; a step of all of them is one call.
class FUSEDSTEP_API Optimizer {
 public:
  struct Parameter {
    std::string name;
    AnySpan array;
    std::size_t group = 0;
  };

  /// States are made here, zero or as their rule starts (Rprop's step_size at lr). A rule for each group.
  Optimizer(std::vector<AnyRule> groups, const std::vector<Parameter>& parameters);
  ~Optimizer();
  Optimizer(Optimizer&&) noexcept;
  Optimizer& operator=(Optimizer&&) noexcept;

  /// One gradient a parameter, in their order; an AnySpan without data leaves its parameter out. Throws
  /// std::invalid_argument before anything is written, std::domain_error for Nonfinite::raise.
  StepReport step(std::span<const AnySpan> gradients, const StepOptions& options = {});

  /// New hyperparameters for a group.
  void set_rule(std::size_t group, const AnyRule& rule);

  /// The live array of a state, in the parameter's shape; without data where the rule has none of that name.
  AnySpan state(std::size_t parameter, std::string_view name) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The instruction set in use; those that this machine has; another one by name, or the best for an empty one.
FUSEDSTEP_API std::string isa();
FUSEDSTEP_API std::vector<std::string> available_isas();
FUSEDSTEP_API void force_isa(std::string_view name);

/// The threads that a large step may use, the calling one included; 1 leaves all work to the caller's thread.
FUSEDSTEP_API int num_threads();
FUSEDSTEP_API void set_num_threads(int n);

/// Runs `run(0)` to `run(ranges - 1)`, in any order, on any threads, and returns when all are done.
using Executor = std::function<void(std::int64_t ranges, const std::function<void(std::int64_t)>& run)>;

/// Lets an executor of the caller's run our ranges in place of our own threads; an empty one brings those back. Not
/// while a step is under way.
FUSEDSTEP_API void set_executor(Executor executor);

}  // namespace fusedstep
