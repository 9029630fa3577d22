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
#include <variant>
#include <vector>

#include "rules.hpp"
#include "types.hpp"

namespace fusedstep {

/// The most dimensions that an array may have.
inline constexpr std::size_t max_span_dimensions = 8;

/// The element types of arrays, in the order of Type.
using Elements = TypeList<float, double, std::int8_t, bfloat16, float16, std::uint16_t, std::int32_t, std::int64_t,
                          std::uint32_t, std::uint64_t>;
static_assert(Elements::size == type_count);

/// One of them.
template <class T>
concept Element = (index_in<std::remove_const_t<T>>(Elements{}) < Elements::size);

/// The Type of an element.
template <Element T>
inline constexpr Type type_of = static_cast<Type>(index_in<std::remove_const_t<T>>(Elements{}));

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
      refuse("span: expected a stride for each of at most 8 dimensions, got " + std::to_string(shape.size()) +
             " dimensions and " + std::to_string(strides.size()) + " strides");
    }
    for (std::size_t k = 0; k < dimensions_; ++k) {
      shape_[k] = shape[k];
      strides_[k] = strides[k];
    }
  }

  /// The same, in braces: span(data, {rows, columns}, {columns, 1}).
  span(T* data, std::initializer_list<std::int64_t> shape, std::initializer_list<std::int64_t> strides)
      : span(data, std::span(shape.begin(), shape.size()), std::span(strides.begin(), strides.size())) {}

  /// The first element.
  T* data() const { return data_; }

  /// The extent of each dimension.
  std::span<const std::int64_t> shape() const { return {shape_.data(), dimensions_}; }

  /// The distance of neighbours in each dimension, in elements.
  std::span<const std::int64_t> strides() const { return {strides_.data(), dimensions_}; }

  /// Elements [begin, begin + n) along the first dimension, for example the share of one of your threads.
  /// std::invalid_argument if they are out of range.
  span part(std::int64_t begin, std::int64_t n) const {
    const std::int64_t size = dimensions_ == 0 ? 0 : shape_[0];
    if (dimensions_ == 0 || begin < 0 || n < 0 || begin > size || n > size - begin) {
      refuse("span: expected a part of " + std::to_string(size) + " elements, got " + std::to_string(n) + " elements from " +
             std::to_string(begin));
    }
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

/// A span whose element type is known at run time. Lists of arrays consist of these.
struct AnySpan {
  void* data = nullptr;                                     ///< the first element; null: no array
  Type type = Type::float32;                                ///< of the elements
  bool read_only = false;                                   ///< refused where it would be written
  std::size_t dimensions = 0;                               ///< how many of the extents and strides count
  std::array<std::int64_t, max_span_dimensions> shape{};    ///< extents, >= 0
  std::array<std::int64_t, max_span_dimensions> strides{};  ///< in bytes, any sign

  /// No array. As a gradient, it leaves its parameter out of a step.
  AnySpan() = default;

  /// The same array, whose element type is known at run time.
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

/// The gradient of some rows of a parameter: row index[k] has values[k], which are added where a row is there twice, in this
/// order. The other rows are not updated.
struct Rows {
  AnySpan index;   ///< one dimension, of int32, int64, uint32 or uint64
  AnySpan values;  ///< the parameter's shape, except that the first extent is that of the index
};

/// A gradient of a parameter; an AnySpan without data: there is none.
using Gradient = std::variant<AnySpan, Rows>;

/// Any rule with its options. Options are checked when the rule is used.
class FUSEDSTEP_API AnyRule {
 public:
  /// Takes any of the rules.
  template <IsRule Rule>
  AnyRule(const Rule& options)  // NOLINT: an implicit conversion is meant
      : AnyRule(index_in<Rule>(Rules{}), &options, sizeof options) {}

  /// A rule by name ("rmsprop", "adagrad", ...), with its defaults, or with the formula and the defaults of another
  /// framework ("torch", "keras", ...). std::invalid_argument, which lists the names, for any other.
  static AnyRule named(std::string_view rule, std::string_view dialect = {});

  /// The rule's name.
  std::string name() const;

  /// The states that the rule uses with these options, in the order in which step() takes them: "square_avg", ...
  std::vector<std::string> states() const;

 private:
  friend struct RuleAccess;
  AnyRule(int id, const void* options, std::size_t size);

  std::uint8_t id_;
  alignas(8) std::array<unsigned char, 160> bytes_{};
};

/// What an update of numbers of 16 bits needs besides the arrays.
struct Narrow {
  std::optional<std::uint64_t> key{};  ///< for stochastic rounding, see noise_key(); without: to nearest
  AnySpan param_low{};  ///< the low halves of a bfloat16 parameter, uint16: together they are a float, updated as one
};

/// The key that an Optimizer uses at update number `step` of the parameter `name`.
FUSEDSTEP_API std::uint64_t noise_key(std::uint64_t seed, std::int64_t step, std::string_view name);

/// Updates one parameter in place from its gradient, with the states that the rule uses, in its order (AnyRule::states),
/// each of the parameter's shape and in any layout. The parameter has float, double, bfloat16 or float16 elements; those of
/// 16 bits are updated in float. The gradient has any of these types that the computation holds exactly; a state of
/// floating point has the type of the computation or bfloat16. `step` counts the updates of this parameter from 1: bias correction,
/// lr_decay and dual averaging use it. The caller sets where the states start. std::invalid_argument for a wrong shape or
/// type, a read-only, misaligned or overlapping array, a missing or superfluous state, and an option out of range; nothing
/// was written.
FUSEDSTEP_API void step(const AnyRule& rule, std::int64_t step, const AnySpan& parameter, const AnySpan& gradient,
                        std::span<const AnySpan> states, const Narrow& narrow = {});

/// The same from a gradient of some rows. std::out_of_range for a row that the parameter does not have; nothing was written.
FUSEDSTEP_API void step(const AnyRule& rule, std::int64_t step, const AnySpan& parameter, const Rows& gradient,
                        std::span<const AnySpan> states, const Narrow& narrow = {});

/// The same, with a span for each state; the first update.
template <class Rule, Element T, Element G, Element... S>
void step(const Rule& rule, const span<T>& parameter, const span<G>& gradient, const span<S>&... states) {
  const std::array<AnySpan, sizeof...(S)> list{AnySpan(states)...};
  step(AnyRule(rule), 1, parameter, gradient, list);
}

/// The same, for update number `number`.
template <class Rule, Element T, Element G, Element... S>
void step(const Rule& rule, std::int64_t number, const span<T>& parameter, const span<G>& gradient,
          const span<S>&... states) {
  const std::array<AnySpan, sizeof...(S)> list{AnySpan(states)...};
  step(AnyRule(rule), number, parameter, gradient, list);
}

/// sqrt(sum of squares) of all gradients together, summed in double with the same bits for any number of threads. inf
/// or NaN where one of them has such an element. std::invalid_argument for an array of int8.
FUSEDSTEP_API double norm(std::span<const AnySpan> gradients);

/// What a step does about an inf or a NaN in a gradient.
enum class Nonfinite : std::uint8_t {
  propagate,  ///< nothing
  skip,       ///< changes no byte, and says so in its report
  raise,      ///< changes no byte, and throws
};

/// The options of a whole step; 0 turns an option off.
struct StepOptions {
  double grad_scale = 1.0;  ///< what the loss was multiplied by, > 0
  double clip_norm = 0.0;   ///< largest norm of all gradients together; inf: only report it
  double clip_value = 0.0;  ///< largest magnitude of an element
  bool zero_grads = false;  ///< set the gradients to 0 in the same pass
  Nonfinite nonfinite = Nonfinite::propagate;
  std::optional<double> loss{};  ///< the loss at these gradients: Rprop's irprop+ needs it
  double clip_norm_each = 0.0;   ///< largest norm of each gradient; not together with clip_norm

  bool operator==(const StepOptions&) const = default;
};

/// What a step did.
struct StepReport {
  std::int64_t step = 0;                 ///< steps taken so far, this one included
  std::optional<double> grad_norm{};     ///< of all, after unscaling and clip_value, where asked for
  std::vector<std::size_t> nonfinite{};  ///< parameters with an inf or a NaN in their gradient, where asked for
  bool skipped = false;                  ///< nothing was changed
};

/// How the parameters and states of a group are stored.
struct GroupStorage {
  std::optional<Type> state_type{};  ///< of its states of floating point: Type::bfloat16, or that of the computation
  Rounding rounding = Rounding::stochastic;  ///< of what has 16 bits
  bool master = false;  ///< bfloat16 parameters keep low halves, the state param_low: the two together are a float
};

/// Many parameters with their states, checked and bound once. One call updates all of them.
class FUSEDSTEP_API Optimizer {
 public:
  /// An array to update, in the caller's memory.
  struct Parameter {
    std::string name;       ///< as messages name it
    AnySpan array;          ///< of float, double, bfloat16 or float16
    std::size_t group = 0;  ///< the index of its hyperparameters
  };

  /// A rule for each group, the same one with hyperparameters of their own. States are made here and start where these
  /// say (initial_square_avg, initial_accumulator_value; Rprop's step_size at lr), the others at 0.
  /// `storage` is for the first groups; the others are stored as is usual. `seed` is that of stochastic rounding.
  /// std::invalid_argument for anything that a step would refuse, and for parameters that share memory.
  Optimizer(std::vector<AnyRule> groups, const std::vector<Parameter>& parameters,
            std::span<const GroupStorage> storage = {}, std::uint64_t seed = 0);
  ~Optimizer();

  /// Moves the states, too. Their arrays that were handed out stay where they are.
  Optimizer(Optimizer&&) noexcept;
  Optimizer& operator=(Optimizer&&) noexcept;

  /// Takes one gradient per parameter, in the same order; an AnySpan without data leaves its parameter out. Throws
  /// std::invalid_argument before anything is written, std::domain_error for Nonfinite::raise.
  StepReport step(std::span<const AnySpan> gradients, const StepOptions& options = {});

  /// The same, where gradients may be those of some rows. std::out_of_range for a row that is not there; nothing was written.
  StepReport step(std::span<const Gradient> gradients, const StepOptions& options = {});

  /// Changes the hyperparameters of a group, from the next step on; its states stay. std::invalid_argument for another
  /// rule, a value out of range, or one that needs a state which was not made.
  void set_rule(std::size_t group, const AnyRule& rule);

  /// Sets the low halves of a parameter to 0, as is needed after its array was written. std::invalid_argument for a parameter
  /// that is no master.
  void sync_master(std::size_t parameter);

  /// The live array of a state, in the parameter's shape; without data if the rule has no state of that name.
  AnySpan state(std::size_t parameter, std::string_view name) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The instruction set in use.
FUSEDSTEP_API std::string isa();

/// The instruction sets of this machine, the best one last.
FUSEDSTEP_API std::vector<std::string> available_isas();

/// Uses another instruction set, or the best one for an empty name. std::invalid_argument if it is not available.
FUSEDSTEP_API void force_isa(std::string_view name);

/// How many threads a large step may use, including the calling one: the number from set_num_threads(), else the environment
/// variable FUSEDSTEP_NUM_THREADS, else the smallest of these: the processors that this process may run on, the quota of
/// its control group, rounded up, and the first number of OMP_NUM_THREADS. Read at the first step, and again after a fork.
FUSEDSTEP_API int num_threads();

/// Sets this number of threads; 1 keeps all work on the calling thread. std::invalid_argument below 1 or above 256.
FUSEDSTEP_API void set_num_threads(int n);

/// Runs `run(0)` to `run(ranges - 1)`, in any order, on any threads, and returns when all are done. Must not call `run`
/// later. If it throws or leaves ranges out, the library runs the rest itself and drops the exception, so a step is whole.
using Executor = std::function<void(std::int64_t ranges, const std::function<void(std::int64_t)>& run)>;

/// Runs the library's work by the caller's executor instead of its own threads; an empty one brings those back. Not while
/// a step is under way.
FUSEDSTEP_API void set_executor(Executor executor);

}  // namespace fusedstep
