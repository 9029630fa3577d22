// A prepared update: the kernel, its constants and its streams.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "checks.hpp"
#include "loops/tensors.hpp"
#include "rows.hpp"
#include "schema.hpp"

namespace fusedstep {

// Throws std::invalid_argument if an option of the step is out of its range.
void check(const StepOptions& options);

// How the streams of an update are stored. `states` are those of the rule, then the low halves of a master parameter; null
// data means that one is not used.
Storage storage_of(const RuleSchema& rule, const Options& options, const Array& parameter, const Array& gradient,
                   std::span<const Array> states, Rounding rounding);

// Prepares update number `step` of parameters that are stored alike. With `own`, of one parameter whose elements have
// options of their own.
Work make_work(RuleId rule, const Options& options, std::int64_t step, const Storage& storage,
               const StepOptions& step_options, double clip_coef, OwnOptions* own = nullptr);

// The type of a state's elements, if floating-point states have the type `floats`; and the types that it may have.
Type type_of_state(const schema::State& state, Type parameter, Type floats);
TypeSet types_of_state(const schema::State& state, Type parameter);

// The state that holds the low halves of a bfloat16 master parameter.
inline constexpr schema::State low_halves{.name = "param_low"};

// Refuses storage options that don't fit the parameter's type.
void check_storage(const Array& parameter, const GroupStorage& storage);

// Refuses low halves of a parameter that can't have them.
Array checked_low_halves(const Array& low, const Array& parameter);

// Refuses a state of a wrong shape or one that can't be written.
void check_state(schema::Storage storage, const Array& array, const Array& parameter);

// Arranges the streams of an update. Returns true if each is one dense run. `first` is the index of the first element in the
// whole parameter, of which this may be a piece; without it, the update takes no noise.
bool arrange(const RuleSchema& rule, const Array& parameter, const Array& gradient, std::span<const Array> states,
             std::optional<std::int64_t> first, Tensor& tensor, Layout& layout);

// One update of one parameter. The constructor checks everything, like that of an optimizer. The shapes and strides that it
// was given need not live until run().
class SingleUpdate {
 public:
  // With an index, the gradient is one of these rows. With a key, results are rounded stochastically; without, to nearest.
  SingleUpdate(RuleId rule, const Options& options, std::int64_t step, const Array& parameter, const Array& gradient,
               std::span<const Array> states, const Array& index = {}, std::optional<std::uint64_t> key = {});
  SingleUpdate(const SingleUpdate&) = delete;
  SingleUpdate& operator=(const SingleUpdate&) = delete;

  // Throws std::out_of_range for a row that does not exist.
  void run();

 private:
  void update_all(const Work& work, int threads) const;

  Tensor tensor_;
  Layout layout_;
  Work work_;
  std::optional<RowGradient> rows_;
  // For reductions and for gradients of rows.
  struct Whole {
    Array arrays[max_arrays];
    std::vector<std::vector<std::int64_t>> geometry;
  };
  std::optional<Whole> whole_;
};

}  // namespace fusedstep
