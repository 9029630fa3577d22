// One update, prepared: which kernel, with which constants, over which streams.
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

// std::invalid_argument if an option of the step is out of its range.
void check(const StepOptions& options);

// How the streams of an update are stored. `states` are all of the rule's, then the low halves of a master parameter; those
// without data are not used.
Storage storage_of(const RuleSchema& rule, const Options& options, const Array& parameter, const Array& gradient,
                   std::span<const Array> states, Rounding rounding);

// What options ask for at update number `step` of parameters that are stored alike, or of one whose elements have their own.
Work make_work(RuleId rule, const Options& options, std::int64_t step, const Storage& storage,
               const StepOptions& step_options, double clip_coef, OwnOptions* own = nullptr);

// The type of a state's elements, where those of floating point are of type `floats`; and those that it may have.
Type type_of_state(const schema::State& state, Type parameter, Type floats);
TypeSet types_of_state(const schema::State& state, Type parameter);

// What a master parameter keeps beside its bfloat16.
inline constexpr schema::State low_halves{.name = "param_low"};

// That a parameter can be stored as its group says.
void check_storage(const Array& parameter, const GroupStorage& storage);

// That a parameter can have them.
Array checked_low_halves(const Array& low, const Array& parameter);

// That a state has the shape it should have and can be written.
void check_state(schema::Storage storage, const Array& array, const Array& parameter);

// Arranges the streams of an update: true if each is one dense run. `first` is the index of the first element in the whole
// parameter, of which this may be a piece; null: the update takes no noise.
bool arrange(const RuleSchema& rule, const Array& parameter, const Array& gradient, std::span<const Array> states,
             std::optional<std::int64_t> first, Tensor& tensor, Layout& layout);

// One update of one parameter, checked like those of an optimizer when it is made. The shapes and strides that it was made
// from are not needed any more to run it.
class SingleUpdate {
 public:
  // `index`: the gradient is one of these rows; without data: of all. Rounds stochastically with a key, to nearest without.
  SingleUpdate(RuleId rule, const Options& options, std::int64_t step, const Array& parameter, const Array& gradient,
               std::span<const Array> states, const Array& index = {}, std::optional<std::uint64_t> key = {});
  SingleUpdate(const SingleUpdate&) = delete;
  SingleUpdate& operator=(const SingleUpdate&) = delete;

  // std::out_of_range for a row that is not there.
  void run();

 private:
  void update_all(const Work& work, int threads) const;

  Tensor tensor_;
  Layout layout_;
  Work work_;
  std::optional<RowGradient> rows_;
  // For a reduction, and for rows.
  struct Whole {
    Array arrays[max_arrays];
    std::vector<std::vector<std::int64_t>> geometry;
  };
  std::optional<Whole> whole_;
};

}  // namespace fusedstep
