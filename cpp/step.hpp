// A whole training step over a list of parameters: unscale, check, norm, clip, decay, update, zero; one reading pass
// over the gradients if a norm or a check is asked for, one update pass.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "border.hpp"
#include "description.hpp"
#include "norm.hpp"
#include "question.hpp"
#include "sweep/tensors.hpp"

namespace fusedstep {

// What a step did.
struct Outcome {
  std::optional<double> grad_norm;      // where a norm or a check was asked for
  std::vector<std::size_t> nonfinite;   // the parameters whose gradient has an inf or a NaN, where that was asked for
  bool skipped = false;                 // nothing was changed
};

// The parameters of one optimizer with their states, checked and bound once. Memory is borrowed: what the arrays point
// at must stay where it is.
class Plan {
 public:
  struct Member {
    std::string name;
    int group;
    DType dtype;
    Array parameter;
    Array gradient;            // as last accepted
    Array states[max_states];  // data null: the rule does without
  };

  Plan(RuleId rule, bool named_groups);

  void add(std::string name, int group, DType dtype, const Array& parameter, std::span<const Array> states);

  // After the last add(): checks that nothing written shares memory with anything else written.
  void bind();

  // The gradient of member i for the next step: accept() where it is not the array of last time, in the same place and
  // shape. None: the member is left out.
  void accept(std::size_t i, const Array& gradient, bool written);
  void keep(std::size_t i) { present_[i] = true; }
  bool present(std::size_t i) const { return present_[i]; }
  void leave_out(std::size_t i) { present_[i] = false; }

  // std::invalid_argument if a member of the group lacks a state that these options need.
  void check_states(int group, const Options& options) const;

  // Checks that gradients which are to be written share no memory with each other.
  void check_gradients_disjoint() const;

  // One set of options a group. Throws before anything is written; with Nonfinite::raise the report alone says so.
  Outcome step(std::span<const Options> groups, const StepOptions& options);

  RuleId rule() const { return rule_; }
  std::size_t size() const { return members_.size(); }
  std::int64_t elements() const { return elements_; }  // of all parameters
  const Member& member(std::size_t i) const { return members_[i]; }
  std::int64_t& time(std::size_t i) { return times_[i]; }  // updates of this member so far

 private:
  void measure(const StepOptions& options, Outcome& outcome) const;
  void prepare(std::span<const Options> groups, const StepOptions& options, double clip_coef);
  std::int32_t work_for(std::size_t kind, std::int64_t time, std::span<const Options> groups,
                        const StepOptions& options, double clip_coef);
  void update_all();
  void ask_and_update_all();
  std::size_t member_at(const std::vector<std::int64_t>& first, std::int64_t unit) const;

  std::int64_t elements_ = 0;
  RuleId rule_;
  const Description& description_;
  bool named_groups_;
  std::deque<Member> members_;  // stable addresses: labels point at the names
  std::unique_ptr<WrittenMemory> written_;

  // By member, apart from the rest: what a step walks through.
  std::vector<Tensor> tensors_;
  std::vector<std::int64_t> times_;
  std::vector<std::uint16_t> kinds_;  // group and type in one number
  std::vector<char> present_;
  std::vector<std::int32_t> work_index_;
  std::vector<std::unique_ptr<Layout>> layouts_;
  std::vector<std::unique_ptr<MemoryOrder>> memory_orders_;  // of the gradients; null: dense
  std::vector<std::int64_t> first_block_;  // and one more: the number of blocks
  bool blocks_known_ = false;
  std::deque<std::vector<std::int64_t>> strides_;

  struct WorkOf {
    std::size_t kind;
    std::int64_t time;
    Work work;
  };
  std::vector<WorkOf> works_;
  std::int64_t present_elements_ = 0;
};

// One update of one parameter, checked like those of a plan when it is made; `time` counts updates from 1. The shapes
// and strides that it was made from are not needed any more to run it.
class SingleUpdate {
 public:
  SingleUpdate(RuleId rule, const Options& options, std::int64_t time, DType dtype, const Array& parameter,
               const Array& gradient, std::span<const Array> states);
  SingleUpdate(const SingleUpdate&) = delete;
  SingleUpdate& operator=(const SingleUpdate&) = delete;
  void run() const;

 private:
  void update_all() const;

  Tensor tensor_;
  Layout layout_;
  mutable Work work_;  // a rule that asks about all elements settles its coefficients by the answer
  Array arrays_[max_streams];
  std::vector<std::vector<std::int64_t>> geometry_;
};

}  // namespace fusedstep
