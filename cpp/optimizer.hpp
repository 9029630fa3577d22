// The one optimizer, on which the C++ API, the C interface and Python stand: parameters with their states, groups, and the
// whole step: unscale, check, norm, clip, decay, update, zero. One reading pass over the gradients if a norm or a check
// needs it, one update pass.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checks.hpp"
#include "memory.hpp"
#include "norm.hpp"
#include "overlap.hpp"
#include "reduction.hpp"
#include "rows.hpp"
#include "work.hpp"

namespace fusedstep {

// Memory of parameters and gradients is borrowed: what the arrays point at must stay where it is. Shapes and strides are
// copied.
class OptimizerCore {
 public:
  struct NewParameter {
    std::string name;
    std::size_t group;
    Array array;
    // Somebody else's, by the rule's order, and the low halves of a master parameter; else they are made here.
    std::optional<std::array<Array, state_arrays>> states;
    std::vector<OwnOptions::Values> own = {};  // options of each element
  };

  // Options of each element, for each parameter of a group; empty: there are none.
  using Own = std::vector<std::vector<OwnOptions::Values>>;

  // The memory of a state that was made here lives as long as this.
  using Owner = std::shared_ptr<const std::byte>;

  explicit OptimizerCore(RuleId rule);

  // Adds groups, each stored as said or as is usual, and parameters in these or earlier ones. Throws before anything has
  // changed.
  void add(std::span<const Options> groups, std::span<const NewParameter> parameters,
           std::span<const GroupStorage> storage = {});

  // New options for a group, from the next step on. Throws if a member of the group lacks a state that they need.
  void set_options(std::size_t group, const Options& options, Own own = {});

  // The same where states are restored, too: then any option may change.
  void restore_options(std::size_t group, const Options& options, Own own = {});

  // Throws what restore_options() would.
  void check_options(std::size_t group, const Options& options, const Own& own) const;

  // Makes the parameters pieces of larger ones, of which other processes have the rest: each a run of elements, in C order,
  // of an array of `whole` elements, from `first` on, a multiple of `block`. From now on these processes step together, with
  // the same options, and what a step asks of all elements it asks of all of theirs. Throws for rules that can't be shared.
  struct Piece {
    std::int64_t first;
    std::int64_t whole;
  };
  void share(std::span<const Piece> pieces, Gather gather);
  bool is_shared() const { return static_cast<bool>(gather_); }

  // The gradient of parameter i for the next step: accept() unless it is the array of the last time, in the same place and
  // shape; that one keep() takes once more. leave_out(): there is none. `written`: it may be set to 0.
  void accept(std::size_t i, const Array& gradient, bool written);
  void keep(std::size_t i) {
    if (present_[i]) return;
    present_[i] = true;
    gradients_are_disjoint_ = false;
    plan_ = nullptr;
  }
  void leave_out(std::size_t i) {
    if (!present_[i]) return;
    present_[i] = false;
    plan_ = nullptr;
  }

  // The gradient of parameter i, with all that was accepted last except that its memory starts at `data`. False, and nothing
  // has changed, if it is one of rows, or shares memory with what is written: then accept() takes it, or says so.
  bool move(std::size_t i, char* data);

  // The same, of some of its rows, or of all where no index is given; what it holds is checked in the step.
  void accept_rows(std::size_t i, const Array& index, const Array& values, bool written);

  // Throws if gradients, which are to be written, share memory with each other.
  void check_gradients_disjoint();

  // Throws before anything is written; std::domain_error for Nonfinite::raise, std::out_of_range for a row that is not
  // there.
  StepReport step(const StepOptions& options);

  RuleId rule() const { return rule_; }
  const RuleSchema& schema() const { return schema_; }
  std::size_t size() const { return members_.size(); }
  std::size_t groups() const { return groups_.size(); }
  const Options& options(std::size_t group) const { return groups_[group]; }
  std::int64_t elements() const { return elements_; }  // of all parameters
  const std::string& name(std::size_t i) const { return members_[i].name; }
  std::size_t group(std::size_t i) const { return members_[i].group; }
  const Array& parameter(std::size_t i) const { return members_[i].parameter; }
  const Array& gradient(std::size_t i) const { return members_[i].gradient; }
  bool is_present(std::size_t i) const { return present_[i] != 0; }  // whether there is one
  const Array& state(std::size_t i, std::size_t s) const { return members_[i].states[s]; }
  const char* state_name(std::size_t i, std::size_t s) const { return state_name(members_[i], s); }
  const Owner& owner(std::size_t i) const { return members_[i].owner; }

  bool needs_loss() const;

  // What a checkpoint sets back: steps of the whole, updates of each parameter, the last loss.
  std::int64_t& steps() { return steps_; }
  std::int64_t& count(std::size_t i) { return counts_[i]; }
  std::optional<double>& last_loss() { return last_loss_; }

  // Of the noise of stochastic rounding.
  std::uint64_t& seed() { return seed_; }

  // The low halves of parameter i, if it has any, become 0: they belong to no number that was written into it.
  void sync_master(std::size_t i);

 private:
  struct Member {
    std::string name;
    std::size_t group;
    Array parameter;
    Array gradient;  // as last accepted
    Array states[state_arrays];
    std::uint64_t name_hash;
    Piece piece;
    Owner owner;
    std::unique_ptr<Layout> layout;
    std::unique_ptr<StridedOrder> gradient_order;  // null: one dense run
    std::unique_ptr<RowGradient> rows;
    std::unique_ptr<OwnOptions> own;  // null: all elements have the group's options
    bool by_rows = false;  // the gradient accepted last is `rows`
  };

  struct Part {
    std::size_t kind;
    std::int64_t step;
    Work work;
  };

  Member& add_member(const NewParameter& parameter);
  Array own(const Array& array, const char* role, const Member& member);
  void make_states(std::size_t first_member, std::span<const NewParameter> parameters);
  Type type_of_state(const Member& member, std::size_t s) const;
  const char* state_name(const Member& member, std::size_t s) const {
    return s == low_half ? low_halves.name : schema_.state_name(groups_[member.group], s);
  }
  bool may_need_noise(const Member& member) const;
  std::unique_ptr<Layout> arranged(const Member& member, const Array& gradient, Tensor& tensor) const;
  void check_own(const Member& member, const Options& options, std::span<const OwnOptions::Values> own) const;
  void check_own(std::size_t group, const Options& options, const Own& own) const;
  bool uses(const Options& options, const OwnOptions::Values& own) const;
  bool has_own(std::size_t group, const Options& options, const Own& own) const;
  void set_own(std::size_t i, std::vector<OwnOptions::Values> own);
  void set_own(std::size_t group, Own own);
  static std::size_t kind(const Member& member, Type gradient);
  static std::size_t group_of(std::size_t kind);
  void label_groups();
  void check_states(std::size_t group, const Options& options) const;
  void check_rounding(std::size_t group, const Options& options) const;
  void check_rounding(const Member& member, const Options& options) const;
  template <class F>
  void each_of_rows(F f);
  struct Measured {
    std::vector<double> clip_coefs;  // of each gradient there is, or one of all
    bool a_square_overflows;
  };
  Measured measure(const StepOptions& options, StepReport& report) const;
  void prepare(const StepOptions& options, std::span<const double> clip_coefs);
  std::int32_t part_for(std::size_t i, std::int64_t step, const StepOptions& options, double clip_coef);
  void update_all(int threads);
  void update_dense(int threads);
  StepReport count_step(const StepOptions& options, StepReport report);
  void reduce_and_update_all(int threads);

  RuleId rule_;
  const RuleSchema& schema_;
  std::vector<Options> groups_;
  std::vector<GroupStorage> storage_;  // of each group
  std::deque<Member> members_;  // stable addresses: labels point at the names
  std::deque<std::vector<std::int64_t>> geometry_;
  std::unique_ptr<WrittenMemory> written_;
  Gather gather_;
  std::int64_t elements_ = 0;
  std::int64_t steps_ = 0;
  std::optional<double> last_loss_;
  std::uint64_t seed_ = 0;
  bool gradients_are_disjoint_ = false;  // those accepted last, as far as present

  // By member, apart from the rest: what a step walks through.
  std::vector<Tensor> tensors_;
  std::vector<std::int64_t> counts_;
  std::vector<std::size_t> kinds_;  // group and types of parameter and gradient in one number
  std::size_t by_rows_ = 0;  // members whose last gradient was one of rows
  std::vector<char> present_;
  std::vector<std::int32_t> part_of_;
  std::vector<std::int64_t> first_block_;  // and one more: the number of blocks
  bool blocks_known_ = false;

  // Where the last step was plain, and the next one needs no other work: the kernels that it was made with.
  const Kernels* plan_ = nullptr;
  std::vector<Part> parts_;
  std::int64_t present_elements_ = 0;
};

}  // namespace fusedstep
