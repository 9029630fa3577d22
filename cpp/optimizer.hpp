// The one optimizer, on which the C++ API, the C interface and Python stand: parameters, their states, groups, and the whole
// step (unscale, check, norm, clip, decay, update, zero). If a norm or a check needs it, one pass reads the gradients; one
// pass updates.
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

void set_to_zero(const Array& array);

// The memory of parameters and gradients is borrowed, so it must stay where it is. Shapes and strides are copied.
class OptimizerCore {
 public:
  struct NewParameter {
    std::string name;
    std::size_t group;
    Array array;
    // The caller's states, in the rule's order, and the low halves of a master parameter. Without them, states are allocated
    // here.
    std::optional<std::array<Array, state_arrays>> states;
    std::vector<OwnOptions::Values> own = {};  // options of its elements
  };

  // Options of each element, for each parameter of a group; empty if there are none.
  using Own = std::vector<std::vector<OwnOptions::Values>>;

  // Keeps the memory of allocated states alive.
  using Owner = std::shared_ptr<const std::byte>;

  explicit OptimizerCore(RuleId rule);

  // Adds groups, with their storage or the default one, and parameters in these or earlier groups. Throws before anything
  // has changed.
  void add(std::span<const Options> groups, std::span<const NewParameter> parameters,
           std::span<const GroupStorage> storage = {});

  // Sets the options of a group, from the next step on. Throws if a member of the group lacks a state that they need.
  void set_options(std::size_t group, const Options& options, Own own = {});

  // Like set_options(), while states are being restored: then any option may change.
  void restore_options(std::size_t group, const Options& options, Own own = {});

  // Throws what restore_options() would.
  void check_options(std::size_t group, const Options& options, const Own& own) const;

  // Makes each parameter a piece of a larger array, of which other processes hold the rest. A piece is a run of elements in
  // C order: it begins at element `first`, a multiple of `block`, of an array of `whole` elements. From now on all processes
  // step together with the same options, and norms and reductions cover all of their elements. Throws for rules that can't
  // be shared.
  struct Piece {
    std::int64_t first;
    std::int64_t whole;
  };
  void share(std::span<const Piece> pieces, Gather gather);
  bool is_shared() const { return static_cast<bool>(gather_); }

  // The gradient of parameter i for the next step. keep() takes the last array once more, if it is in the same place and has
  // the same shape; accept() takes another one; leave_out() takes none. `written`: the step may set it to 0.
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

  // Takes the last gradient of parameter i again, but with its memory at `data`. Returns false, and changes nothing, if it
  // is a gradient of rows or shares memory with what is written; then call accept(), which takes it or throws.
  bool move(std::size_t i, char* data);

  // Takes a gradient of some rows, or of all rows if there is no index. The step checks the index's values.
  void accept_rows(std::size_t i, const Array& index, const Array& values, bool written);

  // Throws if gradients that will be written share memory with each other.
  void check_gradients_disjoint();

  // Keeps frozen elements out of the way of a step while it lives: they are 0 in the parameter, so that they add nothing to
  // decay or to a sum of all. Afterwards they and their states have their bits of before. `frozen` says for each parameter
  // which elements, in C order; null for none. Throws before anything is written.
  class Frozen {
   public:
    Frozen(const OptimizerCore& core, std::span<const bool* const> frozen);
    ~Frozen();
    Frozen(const Frozen&) = delete;
    Frozen& operator=(const Frozen&) = delete;

   private:
    struct Kept {
      const Array* array;
      const bool* frozen;
      std::size_t first;  // of its bytes
    };
    std::vector<Kept> kept_;
    std::vector<char> bytes_;
  };

  // Throws before anything is written: std::domain_error for Nonfinite::raise, std::out_of_range for a row that does not
  // exist, std::invalid_argument for the rest.
  StepReport step(const StepOptions& options);

  RuleId rule() const { return rule_; }
  const RuleSchema& schema() const { return schema_; }
  std::size_t size() const { return members_.size(); }
  std::size_t groups() const { return groups_.size(); }
  const Options& options(std::size_t group) const { return groups_[group]; }
  std::int64_t elements() const { return elements_; }  // in all parameters
  const std::string& name(std::size_t i) const { return members_[i].name; }
  std::size_t group(std::size_t i) const { return members_[i].group; }
  const Array& parameter(std::size_t i) const { return members_[i].parameter; }
  const Array& gradient(std::size_t i) const { return members_[i].gradient; }
  bool is_present(std::size_t i) const { return present_[i] != 0; }  // whether it has a gradient
  const Array& state(std::size_t i, std::size_t s) const { return members_[i].states[s]; }
  const char* state_name(std::size_t i, std::size_t s) const { return state_name(members_[i], s); }
  const Owner& owner(std::size_t i) const { return members_[i].owner; }

  bool needs_loss() const;

  // Counters that a checkpoint restores: steps of the optimizer, updates of each parameter, the last loss.
  std::int64_t& steps() { return steps_; }
  std::int64_t& count(std::size_t i) { return counts_[i]; }
  std::optional<double>& last_loss() { return last_loss_; }

  // The seed of the noise in stochastic rounding.
  std::uint64_t& seed() { return seed_; }

  // Sets the low halves of parameter i to 0, if it has any: they don't belong to values that were written into it since.
  void sync_master(std::size_t i);

 private:
  struct Member {
    std::string name;
    std::size_t group;
    Array parameter;
    Array gradient;  // the one accepted last
    Array states[state_arrays];
    std::uint64_t name_hash;
    Piece piece;
    Owner owner;
    std::unique_ptr<Layout> layout;
    std::unique_ptr<StridedOrder> gradient_order;  // null: the gradient is one dense run
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
  bool chooses_one(const Options& options) const;
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
    std::vector<double> clip_coefs;  // one for each gradient, or one for all
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
  std::vector<GroupStorage> storage_;  // one per group
  std::deque<Member> members_;  // a deque, because labels point to the names
  std::deque<std::vector<std::int64_t>> geometry_;
  std::unique_ptr<WrittenMemory> written_;
  Gather gather_;
  std::int64_t elements_ = 0;
  std::int64_t steps_ = 0;
  std::optional<double> last_loss_;
  std::uint64_t seed_ = 0;
  bool gradients_are_disjoint_ = false;  // those of the next step

  // One entry per member. They are apart from the members because each step walks through them.
  std::vector<Tensor> tensors_;
  std::vector<std::int64_t> counts_;
  std::vector<std::size_t> kinds_;  // the group and the types of parameter and gradient, in one number
  std::size_t by_rows_ = 0;  // how many members have a gradient of rows
  std::vector<char> present_;
  std::vector<std::int32_t> part_of_;
  std::vector<std::int64_t> first_block_;  // the last entry is the number of blocks
  bool blocks_known_ = false;

  // The kernels of the last step, if it had no options and the next one can repeat its work; null otherwise.
  const Kernels* plan_ = nullptr;
  std::vector<Part> parts_;
  std::int64_t present_elements_ = 0;
};

}  // namespace fusedstep
