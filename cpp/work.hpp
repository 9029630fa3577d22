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

// What options ask for at update number `step` of parameters of one type.
Work make_work(RuleId rule, const Options& options, std::int64_t step, Type type, const StepOptions& step_options,
               double clip_coef);

// The type of a state's elements.
Type type_of_state(const schema::State& state, Type parameter);

// That a state has the shape it should have and can be written.
void check_state(const schema::State& state, const Array& array, const Array& parameter);

// Arranges the streams of an update: true if each is one dense run. `states` are all of the rule's; those without data
// are not used.
bool arrange(const RuleSchema& rule, const Array& parameter, const Array& gradient, std::span<const Array> states,
             Tensor& tensor, Layout& layout);

// One update of one parameter, checked like those of an optimizer when it is made. The shapes and strides that it was made
// from are not needed any more to run it.
class SingleUpdate {
 public:
  // `index`: the gradient is one of these rows; without data: of all.
  SingleUpdate(RuleId rule, const Options& options, std::int64_t step, const Array& parameter, const Array& gradient,
               std::span<const Array> states, const Array& index = {});
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
  Array arrays_[max_streams];  // for a reduction, and for rows
  std::vector<std::vector<std::int64_t>> geometry_;
};

}  // namespace fusedstep
