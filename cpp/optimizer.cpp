#include "optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "dispatch.hpp"
#include "loops/noise.hpp"
#include "parallel.hpp"

namespace fusedstep {
namespace {

void set_to_zero(char* data, std::span<const std::int64_t> shape, const std::int64_t* strides, std::int64_t item_size) {
  if (shape.empty()) {
    std::memset(data, 0, static_cast<std::size_t>(item_size));
    return;
  }
  if (shape.size() == 1 && strides[0] == item_size) {
    std::memset(data, 0, static_cast<std::size_t>(shape[0] * item_size));
    return;
  }
  for (std::int64_t i = 0; i < shape[0]; ++i) {
    set_to_zero(data + i * strides[0], shape.subspan(1), strides + 1, item_size);
  }
}

// The factor that clips a gradient of this norm. A limit of 0 or inf does not clip.
double clip_coef(double limit, double norm) {
  return limit == 0 || std::isinf(limit) ? 1.0 : limit / (norm < limit ? limit : norm);
}

// Calls f(element) for each element that `chosen`, which goes through them in C order, says.
template <class F>
void each_chosen(char* data, std::span<const std::int64_t> shape, const std::int64_t* strides, const bool*& chosen,
                 const F& f) {
  if (shape.empty()) {
    if (*chosen++) f(data);
    return;
  }
  for (std::int64_t i = 0; i < shape[0]; ++i) each_chosen(data + i * strides[0], shape.subspan(1), strides + 1, chosen, f);
}

template <class F>
void each_chosen(const Array& array, const bool* chosen, const F& f) {
  each_chosen(array.data, array.shape, array.strides, chosen, f);
}

}  // namespace

void set_to_zero(const Array& array) { set_to_zero(array.data, array.shape, array.strides, array.item_size()); }

OptimizerCore::Frozen::Frozen(const OptimizerCore& core, std::span<const bool* const> frozen) {
  for (std::size_t i = 0; i < frozen.size(); ++i) {
    if (frozen[i] == nullptr) continue;
    const Member& member = core.members_[i];
    const auto keep = [&](const Array& array) {
      if (array.data == nullptr || !std::ranges::equal(array.shape, member.parameter.shape)) return;
      kept_.push_back({&array, frozen[i], bytes_.size()});
      const auto size = static_cast<std::ptrdiff_t>(array.item_size());
      each_chosen(array, frozen[i], [&](const char* element) { bytes_.insert(bytes_.end(), element, element + size); });
    };
    keep(member.parameter);
    for (const Array& state : member.states) keep(state);
  }
  for (std::size_t i = 0; i < frozen.size(); ++i) {
    if (frozen[i] == nullptr) continue;
    const Member& member = core.members_[i];
    for (const Array* array : {&member.parameter, &member.states[low_half]}) {
      if (array->data == nullptr) continue;
      each_chosen(*array, frozen[i],
                  [&](char* element) { std::memset(element, 0, static_cast<std::size_t>(array->item_size())); });
    }
  }
}

OptimizerCore::Frozen::~Frozen() {
  for (const Kept& kept : kept_) {
    const auto size = static_cast<std::size_t>(kept.array->item_size());
    const char* from = bytes_.data() + kept.first;
    each_chosen(*kept.array, kept.frozen, [&](char* element) {
      std::memcpy(element, from, size);
      from += size;
    });
  }
}

OptimizerCore::OptimizerCore(RuleId rule) : rule_(rule), schema_(schema_of(rule)) {}

void OptimizerCore::add(std::span<const Options> groups, std::span<const NewParameter> parameters,
                        std::span<const GroupStorage> storage) {
  const DefaultFloatingPoint guard;
  const std::size_t groups_before = groups_.size();
  const std::size_t members_before = members_.size();
  const std::size_t geometry_before = geometry_.size();
  const std::int64_t elements_before = elements_;
  try {
    for (const Options& options : groups) {
      check(schema_, options);
      const std::size_t k = groups_.size() - groups_before;
      storage_.push_back(k < storage.size() ? storage[k] : GroupStorage{});
      groups_.push_back(options);
    }
    for (const NewParameter& parameter : parameters) {
      if (parameter.group >= groups_.size()) {
        refuse("parameter '" + parameter.name + "': expected a group below " + std::to_string(groups_.size()) + ", got " +
               std::to_string(parameter.group));
      }
      add_member(parameter);
    }
    label_groups();
    for (std::size_t i = members_before; i < members_.size(); ++i) {
      const Options& options = groups_[members_[i].group];
      check_own(members_[i], options, parameters[i - members_before].own);
      set_own(i, parameters[i - members_before].own);
    }
    make_states(members_before, parameters);
    for (std::size_t k = groups_before; k < groups_.size(); ++k) {
      check_states(k, groups_[k]);
      check_rounding(k, groups_[k]);
      if (const std::string wrong = schema_.bad_start(groups_[k]); !wrong.empty()) refuse(wrong);
    }
    std::vector<Array> arrays;
    for (const Member& member : members_) {
      arrays.push_back(member.parameter);
      for (const Array& state : member.states) {
        if (state.data != nullptr) arrays.push_back(state);
      }
    }
    auto written = std::make_unique<WrittenMemory>(std::move(arrays));
    const std::size_t n = members_.size();
    tensors_.reserve(n);
    counts_.reserve(n);
    kinds_.reserve(n);
    present_.reserve(n);
    part_of_.reserve(n);
    first_block_.reserve(n + 1);
    written_ = std::move(written);
  } catch (...) {
    groups_.resize(groups_before);
    storage_.resize(groups_before);
    while (members_.size() > members_before) members_.pop_back();
    while (geometry_.size() > geometry_before) geometry_.pop_back();
    elements_ = elements_before;
    label_groups();
    throw;
  }
  for (std::size_t i = members_before; i < members_.size(); ++i) {
    kinds_.push_back(kind(members_[i], members_[i].parameter.type));
  }
  tensors_.resize(members_.size());
  counts_.resize(members_.size());
  present_.resize(members_.size());
  part_of_.resize(members_.size());
  first_block_.resize(members_.size() + 1);
  blocks_known_ = false;
  plan_ = nullptr;
}

OptimizerCore::Member& OptimizerCore::add_member(const NewParameter& parameter) {
  Member& member = members_.emplace_back();
  member.name = parameter.name;
  member.group = parameter.group;
  member.parameter = own(parameter.array, "", member);
  check_distinct_elements(member.parameter);  // first: with a stride of 0, a small array may claim a huge size
  member.gradient = own(parameter.array, "gradient", member);
  member.gradient.data = nullptr;
  member.piece = {0, member.parameter.size()};
  member.name_hash = hash_of(member.name);
  check_storage(member.parameter, storage_[member.group]);
  elements_ += member.parameter.size();
  if (!parameter.states) return member;
  for (std::size_t s = 0; s < state_arrays; ++s) {
    if ((*parameter.states)[s].data == nullptr) continue;
    const bool low = s == low_half;
    member.states[s] = own((*parameter.states)[s], low ? low_halves.name : schema_.states[s].name, member);
    check_state(low ? low_halves.storage : schema_.storage(groups_[member.group], s), member.states[s], member.parameter);
  }
  return member;
}

Type OptimizerCore::type_of_state(const Member& member, std::size_t s) const {
  if (s == low_half) return Type::uint16;
  const Type floats = storage_[member.group].state_type.value_or(compute_type(member.parameter.type));
  return fusedstep::type_of_state(schema_.states[s], member.parameter.type, floats);
}

bool OptimizerCore::may_need_noise(const Member& member) const {
  const GroupStorage& storage = storage_[member.group];
  if (storage.rounding == Rounding::nearest) return false;
  const bool wide = member.parameter.type == Type::float32 || member.parameter.type == Type::float64;
  return storage.state_type.has_value() || !(wide || storage.master);
}

std::size_t OptimizerCore::kind(const Member& member, Type gradient) {
  const auto parameter = static_cast<std::size_t>(member.parameter.type);
  return (member.group * type_count + parameter) * type_count + static_cast<std::size_t>(gradient);
}

std::size_t OptimizerCore::group_of(std::size_t kind) { return kind / (type_count * type_count); }

void OptimizerCore::sync_master(std::size_t i) {
  if (members_[i].states[low_half].data != nullptr) set_to_zero(members_[i].states[low_half]);
}

Array OptimizerCore::own(const Array& array, const char* role, const Member& member) {
  Array mine = array;
  const auto& shape = geometry_.emplace_back(array.shape.begin(), array.shape.end());
  mine.strides = geometry_.emplace_back(array.strides, array.strides + array.shape.size()).data();
  mine.shape = shape;
  mine.label = {role, &member.name, groups_.size() > 1 ? static_cast<int>(member.group) : -1};
  return mine;
}

// Messages name the group if there is more than one.
void OptimizerCore::label_groups() {
  for (Member& member : members_) {
    const int group = groups_.size() > 1 ? static_cast<int>(member.group) : -1;
    member.parameter.label.group = member.gradient.label.group = group;
    for (Array& state : member.states) state.label.group = group;
  }
}

// Allocates the states of new members in one piece of memory, each in the layout of its parameter. The threads that will
// update a page touch it first: in the first step if the state starts at 0, and otherwise when it is filled here.
void OptimizerCore::make_states(std::size_t first_member, std::span<const NewParameter> parameters) {
  struct Made {
    Member* member;
    std::size_t state;
  };
  std::vector<Made> made;
  std::vector<std::size_t> sizes;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].states) continue;
    Member& member = members_[first_member + i];
    for (std::size_t s = 0; s < state_arrays; ++s) {
      const bool used = s == low_half ? storage_[member.group].master
                                      : s < schema_.states.size() && schema_.uses(groups_[member.group], s);
      if (!used) continue;
      Array& array = member.states[s];
      array.label = {state_name(member, s), &member.name, member.parameter.label.group};
      array.type = type_of_state(member, s);
      const schema::Storage storage = s == low_half ? low_halves.storage : schema_.storage(groups_[member.group], s);
      if (storage == schema::Storage::row) check_has_rows(member.parameter);
      if (storage != schema::Storage::scalar) {
        array.shape = member.parameter.shape.first(storage == schema::Storage::row ? 1 : member.parameter.shape.size());
        array.strides =
            geometry_.emplace_back(dense_strides(array.shape, member.parameter.strides, array.item_size())).data();
      }
      made.push_back({&member, s});
      sizes.push_back(static_cast<std::size_t>(array.size() * array.item_size()));
    }
  }
  if (made.empty()) return;
  const Placement placement = place(sizes);
  Memory memory = allocate(placement.bytes);
  std::byte* const begin = memory.get();
  const Unmap unmap = memory.get_deleter();
  const Owner owner(memory.release(), unmap);
  for (std::size_t k = 0; k < made.size(); ++k) {
    Member& member = *made[k].member;
    Array& array = member.states[made[k].state];
    array.data = reinterpret_cast<char*>(begin + placement.offsets[k]);
    member.owner = owner;
    const char* const start = made[k].state == low_half ? nullptr : schema_.states[made[k].state].starts_at;
    if (start != nullptr)
      fill(array.data, array.type, array.size(), groups_[member.group].at<double>(*schema_.field(start)));
    for (std::size_t axis = 0; axis < array.shape.size(); ++axis) {
      if (array.strides[axis] < 0) array.data -= (array.shape[axis] - 1) * array.strides[axis];
    }
  }
}

// Refuses an option that becomes 0 or inf when it is rounded to the compute type of a parameter in the group.
void OptimizerCore::check_rounding(std::size_t group, const Options& options) const {
  for (const Member& member : members_) {
    if (member.group != group || compute_type(member.parameter.type) != Type::float32) continue;
    check_rounding(member, options);
    return;
  }
}

void OptimizerCore::check_rounding(const Member& member, const Options& options) const {
  const DefaultFloatingPoint guard;
  for (const schema::Field& field : schema_.fields) {
    if (field.kind != schema::Kind::real || field.purpose == schema::Purpose::loss) continue;
    const double value = options.at<double>(field);
    const auto rounded = static_cast<float>(value);
    const bool vanishes = value > 0 && rounded == 0 && std::string_view(field.name) == "eps";
    if (!std::isinf(rounded) && !vanishes) continue;
    refuse(std::string(field.name) + ": expected a number that does not round to " + (rounded == 0 ? "0" : "inf") +
           " in float32, the type that parameter '" + member.name + "' is updated in, got " + schema::text(value));
  }
}

// Checks the options of each element like those of a group.
void OptimizerCore::check_own(const Member& member, const Options& options, std::span<const OwnOptions::Values> own) const {
  if (own.empty()) return;
  const std::string what = std::string(own[0].name) + " of " + member.parameter.label.text();
  if (chooses_one(options) && std::ranges::any_of(own, [&](const auto& values) { return uses(options, values); })) {
    refuse(what + ": expected a number for hyperparameters that choose one element of all arrays, got an array");
  }
  // A range is an interval: for one option, the least and the largest number are enough.
  std::vector<std::int64_t> suspects;
  const std::vector<double>& numbers = own[0].numbers;
  if (own.size() > 1 || numbers.empty()) {
    suspects.resize(numbers.size());
    std::iota(suspects.begin(), suspects.end(), std::int64_t{0});
  } else {
    const auto [least, most] = std::ranges::minmax_element(numbers);
    const auto nan = std::ranges::find_if(numbers, [](double x) { return std::isnan(x); });
    for (const auto at : {nan == numbers.end() ? least : nan, least, most}) suspects.push_back(at - numbers.begin());
  }
  Options element = options;
  for (const std::int64_t i : suspects) {
    for (const OwnOptions::Values& values : own) {
      std::memcpy(element.bytes + values.offset, &values.numbers[static_cast<std::size_t>(i)], sizeof(double));
    }
    try {
      check(schema_, element);
      if (compute_type(member.parameter.type) == Type::float32) check_rounding(member, element);
    } catch (const std::invalid_argument& error) {
      std::vector<std::int64_t> index(member.parameter.shape.begin(), member.parameter.shape.end());
      std::int64_t rest = i;
      for (std::size_t axis = index.size(); axis-- > 0; rest /= member.parameter.shape[axis])
        index[axis] = rest % index[axis];
      refuse(std::string(error.what()) + "; at " + shape_text(index) + " of " + member.parameter.label.text());
    }
  }
}

void OptimizerCore::check_own(std::size_t group, const Options& options, const Own& own) const {
  if (own.empty()) return;
  std::size_t k = 0;
  for (const Member& member : members_) {
    if (member.group == group) check_own(member, options, own[k++]);
  }
}

bool OptimizerCore::chooses_one(const Options& options) const {
  return kernels().update[rule_][0](options.bytes, false).update_chosen != nullptr;
}

// Whether a step looks at these options. An option that says where a state starts is only looked at by decoupled decay, and
// where it is 0: what starts at 0 may have to stay there.
bool OptimizerCore::uses(const Options& options, const OwnOptions::Values& own) const {
  const Prologue prologue = schema_.prologue(options);
  return (prologue.decoupled_weight_decay && prologue.weight_decay != 0) ||
         (std::ranges::find(own.numbers, 0.0) != own.numbers.end() && !chooses_one(options)) ||
         std::ranges::none_of(schema_.states, [&](const schema::State& state) {
           return state.starts_at != nullptr && std::string_view(state.starts_at) == own.name;
         });
}

// Whether the elements have these options already.
bool OptimizerCore::has_own(std::size_t group, const Options& options, const Own& own) const {
  std::size_t k = 0;
  for (const Member& member : members_) {
    if (member.group != group) continue;
    std::span<const OwnOptions::Values> now;
    if (member.own != nullptr) now = member.own->values;
    for (const OwnOptions::Values& values : own.empty() ? std::span<const OwnOptions::Values>() : own[k++]) {
      if (!uses(options, values)) continue;
      if (now.empty() || now[0] != values) return false;
      now = now.subspan(1);
    }
    if (!now.empty()) return false;
  }
  return true;
}

void OptimizerCore::set_own(std::size_t i, std::vector<OwnOptions::Values> own) {
  Member& member = members_[i];
  std::erase_if(own, [&](const OwnOptions::Values& values) { return !uses(groups_[member.group], values); });
  const bool had = member.own != nullptr;
  if (own.empty()) {
    member.own = nullptr;
  } else {
    if (!had) member.own = std::make_unique<OwnOptions>();
    member.own->values = std::move(own);
  }
  // The walk over the last gradient must now count elements, or need no longer.
  if (had == (member.own != nullptr) || member.gradient.data == nullptr || member.by_rows) return;
  member.layout = arranged(member, member.gradient, tensors_[i]);
  blocks_known_ = false;
}

void OptimizerCore::set_own(std::size_t group, Own own) {
  plan_ = nullptr;
  std::size_t k = 0;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (members_[i].group != group) continue;
    set_own(i, own.empty() ? std::vector<OwnOptions::Values>() : std::move(own[k++]));
  }
}

void OptimizerCore::set_options(std::size_t group, const Options& options, Own own) {
  check(schema_, options);
  const bool same_own = has_own(group, options, own);
  if (same_own && std::memcmp(&options, &groups_[group], sizeof options) == 0) return;
  bool same_states = true;
  for (std::size_t s = 0; s < schema_.states.size(); ++s) {
    same_states &= schema_.uses(options, s) == schema_.uses(groups_[group], s);
  }
  if (!same_states) check_states(group, options);
  check_rounding(group, options);
  check_own(group, options, own);
  if (const std::string wrong = schema_.change(groups_[group], options); !wrong.empty()) refuse(wrong);
  groups_[group] = options;
  if (!same_own || !own.empty()) set_own(group, std::move(own));
  if (!same_states || schema_.uses_step(options) || plan_ != &kernels()) {
    plan_ = nullptr;
    return;
  }
  const DefaultFloatingPoint guard;
  for (Part& part : parts_) {
    if (group_of(part.kind) != group) continue;
    part.work = make_work(rule_, options, 0, part.work.storage, {}, 1.0);
    if (part.work.kernel.reduce != nullptr) plan_ = nullptr;
  }
}

void OptimizerCore::restore_options(std::size_t group, const Options& options, Own own) {
  check_options(group, options, own);
  groups_[group] = options;
  set_own(group, std::move(own));
}

void OptimizerCore::check_options(std::size_t group, const Options& options, const Own& own) const {
  check(schema_, options);
  check_states(group, options);
  check_rounding(group, options);
  check_own(group, options, own);
}

void OptimizerCore::check_states(std::size_t group, const Options& options) const {
  for (const Member& member : members_) {
    if (member.group != group) continue;
    std::vector<const char*> lacking;
    for (std::size_t s = 0; s < schema_.states.size(); ++s) {
      if (schema_.uses(options, s) && member.states[s].data == nullptr) lacking.push_back(schema_.state_name(options, s));
    }
    if (lacking.empty()) continue;
    refuse("parameter '" + member.name + "' has no " + listed(lacking) +
           ", which these hyperparameters need; make the optimizer with them from the start");
  }
}

void OptimizerCore::share(std::span<const Piece> pieces, Gather gather) {
  gather_ = std::move(gather);
  plan_ = nullptr;
  for (std::size_t i = 0; i < members_.size(); ++i) members_[i].piece = pieces[i];
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (schema_.is_per_row(groups_[members_[i].group])) {
      refuse("per: expected 'array' over several processes, got 'row'; pieces of an array are no rows");
    }
    part_for(i, 1, {}, 1.0);
  }
  parts_.clear();
}

void OptimizerCore::accept(std::size_t i, const Array& gradient, bool written) {
  Member& member = members_[i];
  if (schema_.is_per_row(groups_[member.group])) {
    accept_rows(i, {}, gradient, written);
    return;
  }
  check_shape(gradient, member.parameter);
  if (written) check_distinct_elements(gradient);
  written_->check_disjoint_from(gradient);

  Tensor tensor;
  auto layout = arranged(member, gradient, tensor);
  auto order = c_order(gradient);

  // From here on nothing throws: the member changes completely or not at all.
  tensors_[i] = tensor;
  by_rows_ -= std::exchange(member.by_rows, false);
  member.layout = std::move(layout);
  member.gradient_order = std::move(order);
  member.gradient.data = gradient.data;
  member.gradient.type = gradient.type;
  kinds_[i] = kind(member, gradient.type);
  std::copy_n(gradient.strides, gradient.shape.size(), const_cast<std::int64_t*>(member.gradient.strides));
  present_[i] = true;
  blocks_known_ = false;
  gradients_are_disjoint_ = false;
  plan_ = nullptr;
}

bool OptimizerCore::move(std::size_t i, char* data) {
  Member& member = members_[i];
  if (member.by_rows) return false;
  Array moved = member.gradient;
  moved.data = data;
  if (!written_->is_disjoint_from(moved)) return false;
  char*& stream = reinterpret_cast<char*&>(tensors_[i].stream[gradient_stream]);
  if (stream != nullptr) stream += data - member.gradient.data;  // null for an empty array
  member.gradient.data = data;
  gradients_are_disjoint_ = false;
  keep(i);
  return true;
}

// Returns the walk over a gradient of this layout, its parameter and its states. Null means that all are one dense run.
std::unique_ptr<Layout> OptimizerCore::arranged(const Member& member, const Array& gradient, Tensor& tensor) const {
  auto layout = std::make_unique<Layout>();
  const bool counts = may_need_noise(member) || member.own != nullptr;
  const auto first = counts ? std::optional(member.piece.first) : std::nullopt;
  if (arrange(schema_, member.parameter, gradient, member.states, first, tensor, *layout)) layout = nullptr;
  tensor.layout = layout.get();
  return layout;
}

void OptimizerCore::accept_rows(std::size_t i, const Array& index, const Array& values, bool written) {
  Member& member = members_[i];
  const bool dense = !is_given(index);
  if (!dense && !schema_.takes_rows) {
    refuse_rows(member.gradient.label, schema_);
  }
  if (gather_) refuse(member.gradient.label.text() + ": expected a dense gradient, got rows, which processes can't share");
  if (written) check_distinct_elements(values);
  if (!dense) written_->check_disjoint_from(index);
  written_->check_disjoint_from(values);
  if (member.rows == nullptr) member.rows = std::make_unique<RowGradient>();
  member.rows->bind(index, values, member.parameter);

  by_rows_ += !std::exchange(member.by_rows, true);
  member.gradient.type = compute_type(member.parameter.type);  // the type of the sums of rows
  kinds_[i] = kind(member, member.gradient.type);
  member.layout = nullptr;
  tensors_[i] = {};
  present_[i] = true;
  blocks_known_ = false;
  gradients_are_disjoint_ = false;
  plan_ = nullptr;
}

void OptimizerCore::check_gradients_disjoint() {
  if (gradients_are_disjoint_) return;
  std::vector<Array> gradients;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (present_[i]) gradients.push_back(members_[i].by_rows ? members_[i].rows->values() : members_[i].gradient);
  }
  const WrittenMemory written(std::move(gradients));
  each_of_rows([&](std::size_t, const RowGradient& rows) {
    if (is_given(rows.index())) written.check_disjoint_from(rows.index());
  });
  gradients_are_disjoint_ = true;
}

// Calls f(i, rows) for each parameter whose gradient is rows.
template <class F>
void OptimizerCore::each_of_rows(F f) {
  if (by_rows_ == 0) return;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (present_[i] && members_[i].by_rows) f(i, *members_[i].rows);
  }
}

bool OptimizerCore::needs_loss() const {
  return std::any_of(groups_.begin(), groups_.end(), [this](const Options& options) { return schema_.needs_loss(options); });
}

// Measures the norm, the coefficients that clip, and the parameters whose gradient contains an inf or a NaN. If the rule
// squares the gradient, a square that overflows its type counts as well: a sum of squares would stay inf forever.
OptimizerCore::Measured OptimizerCore::measure(const StepOptions& options, StepReport& report) const {
  std::vector<NormOperand> gradients;
  std::vector<std::size_t> members;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!present_[i]) continue;
    const Member& member = members_[i];
    const Array& gradient = member.by_rows ? member.rows->sums() : member.gradient;
    gradients.push_back({gradient.data, gradient.size(), gradient.type, compute_type(member.parameter.type),
                         member.by_rows ? nullptr : member.gradient_order.get(),
                         member.by_rows ? gradient.size() : member.piece.whole});
    members.push_back(i);
  }
  const Norm measured = norm(gradients, options, gather_);
  report.grad_norm = measured.norm;
  std::vector<double> clip_coefs{clip_coef(options.clip_norm, measured.norm)};
  if (options.clip_norm_each != 0) {
    clip_coefs.clear();
    for (const NormOperand& gradient : gradients) {
      clip_coefs.push_back(clip_coef(options.clip_norm_each, norm({&gradient, 1}, options, gather_).norm));
    }
  }
  std::size_t next = 0;
  for (std::size_t k = 0; k < gradients.size(); ++k) {
    const bool nonfinite = next < measured.nonfinite.size() && measured.nonfinite[next] == k;
    next += nonfinite;
    const bool overflows = options.nonfinite != Nonfinite::propagate && schema_.squares_gradient &&
                           a_square_overflows(gradients[k], measured.largest[k], options,
                                              clip_coefs.size() > 1 ? clip_coefs[k] : clip_coefs[0], gather_);
    if (nonfinite || overflows) report.nonfinite.push_back(members[k]);
  }
  return {std::move(clip_coefs), report.nonfinite.size() > measured.nonfinite.size()};
}

// Adds the work for members of this kind, at this step count if the rule uses one.
std::int32_t OptimizerCore::part_for(std::size_t i, std::int64_t step, const StepOptions& options, double clip_coef) {
  const Member& member = members_[i];
  const Options& rule_options = groups_[member.group];
  const Storage storage = storage_of(schema_, rule_options, member.parameter, member.gradient, member.states,
                                     storage_[member.group].rounding);
  parts_.push_back({kinds_[i], step, make_work(rule_, rule_options, step, storage, options, clip_coef, member.own.get())});
  if (gather_ && parts_.back().work.kernel.update_chosen != nullptr) {
    refuse(std::string(schema_.name) + ": expected hyperparameters that several processes can share, got some that choose " +
           "one element of all arrays in each step; use others, or one process");
  }
  return static_cast<std::int32_t>(parts_.size() - 1);
}

void OptimizerCore::prepare(const StepOptions& options, std::span<const double> clip_coefs) {
  parts_.clear();
  present_elements_ = 0;
  std::vector<char> uses_step(groups_.size());
  for (std::size_t k = 0; k < groups_.size(); ++k) uses_step[k] = schema_.uses_step(groups_[k]);
  std::map<std::pair<std::size_t, std::int64_t>, std::int32_t> parts;
  std::int32_t part = -1;  // most members need the part of the one before
  std::size_t last_kind = 0;
  std::int64_t last_step = 0;
  std::size_t next = 0;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!present_[i]) continue;
    present_elements_ += (members_[i].by_rows ? members_[i].rows->elements() : tensors_[i].size) + tensor_overhead;
    const std::size_t kind = kinds_[i];
    const std::int64_t step = uses_step[group_of(kind)] ? counts_[i] + 1 : 0;
    if (clip_coefs.size() > 1 || members_[i].own != nullptr) {
      part_of_[i] = part_for(i, step, options, clip_coefs[clip_coefs.size() > 1 ? next++ : 0]);
    } else {
      if (part < 0 || kind != last_kind || step != last_step) {
        const auto [found, is_new] = parts.try_emplace({kind, step}, 0);
        if (is_new) found->second = part_for(i, step, options, clip_coefs[0]);
        part = found->second;
        last_kind = kind;
        last_step = step;
      }
      part_of_[i] = part;
    }
    if (parts_[static_cast<std::size_t>(part_of_[i])].work.storage.uses(index_stream)) {
      tensors_[i].key = key_of(seed_, counts_[i] + 1, members_[i].name_hash);
    }
  }
  if (blocks_known_) return;
  for (std::size_t i = 0; i < members_.size(); ++i) first_block_[i + 1] = first_block_[i] + tensors_[i].blocks();
  blocks_known_ = true;
}

void OptimizerCore::update_all(int threads) {
  update_dense(threads);
  each_of_rows([&](std::size_t i, const RowGradient& rows) {
    const Member& member = members_[i];
    const Array* streams[max_arrays] = {&member.parameter};
    for (std::size_t s = 0; s < state_arrays; ++s) streams[first_state + s] = &member.states[s];
    rows.update(streams, parts_[static_cast<std::size_t>(part_of_[i])].work, tensors_[i].key, threads);
  });
}

void OptimizerCore::update_dense(int threads) {
  const auto run = [this](std::int64_t begin, std::int64_t end) {
    const DefaultFloatingPoint guard;
    const auto after = std::upper_bound(first_block_.begin(), first_block_.end(), begin);
    for (auto i = static_cast<std::size_t>(after - first_block_.begin()) - 1; i < tensors_.size() && first_block_[i] < end;
         ++i) {
      if (!present_[i]) continue;
      const std::int64_t first = std::max(begin - first_block_[i], std::int64_t{0});
      const std::int64_t last = std::min(end, first_block_[i + 1]) - first_block_[i];
      if (first < last) update(tensors_[i], parts_[static_cast<std::size_t>(part_of_[i])].work, first, last);
    }
  };
  parallel_for(first_block_.back(), threads, body(run));
}

void OptimizerCore::reduce_and_update_all(int threads) {
  // A reduction completes the constants of each array, so that no two arrays share a part.
  std::vector<Part> parts;
  std::vector<Operand> operands;
  parts.reserve(members_.size());
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (!present_[i]) continue;
    parts.push_back(parts_[static_cast<std::size_t>(part_of_[i])]);
    part_of_[i] = static_cast<std::int32_t>(parts.size() - 1);
    const Member& member = members_[i];
    Operand& operand = operands.emplace_back(Operand{
        {&member.parameter, &member.gradient}, &parts.back().work, member.piece.whole, tensors_[i].key, member.piece.first});
    for (std::size_t s = 0; s < state_arrays; ++s) operand.stream[first_state + s] = &member.states[s];
    if (!member.by_rows) continue;
    member.rows->sum(threads);
    member.rows->read(operand.stream);
    operand.whole = member.rows->sums().size();
  }
  parts_ = std::move(parts);
  Reduction reduction(operands, gather_);
  reduction.settle();
  update_all(threads);
  reduction.update_chosen();
}

StepReport OptimizerCore::count_step(const StepOptions& options, StepReport report) {
  for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += present_[i];
  if (options.loss) last_loss_ = options.loss;
  report.step = ++steps_;
  return report;
}

StepReport OptimizerCore::step(const StepOptions& options) {
  const DefaultFloatingPoint guard;
  const bool plain = options == StepOptions{};
  if (plain && plan_ == &kernels()) {
    update_all(threads_for(present_elements_));
    return count_step(options, {});
  }
  plan_ = nullptr;
  check(options);
  if (needs_loss()) {
    if (!options.loss) refuse("loss: needed by these hyperparameters; pass the loss at these gradients");
    const schema::Field& field = *schema_.field("loss_increased");
    for (Options& group : groups_) {  // when maximising, the loss has increased if the objective fell
      const bool maximize = schema_.prologue(group).maximize;
      group.at<bool>(field) = last_loss_ && (maximize ? *options.loss < *last_loss_ : *options.loss > *last_loss_);
    }
  }
  if (options.zero_grads) check_gradients_disjoint();
  const bool clips = options.clip_norm != 0 || options.clip_norm_each != 0;
  const bool measures = clips || options.nonfinite != Nonfinite::propagate;
  each_of_rows([&](std::size_t, RowGradient& rows) {
    rows.sort(threads_for(rows.elements()));
    if (measures) rows.sum(threads_for(rows.elements()));
  });

  StepReport report;
  report.step = steps_;
  std::vector<double> clip_coefs{1.0};
  if (measures) {
    Measured measured = measure(options, report);
    clip_coefs = std::move(measured.clip_coefs);
    if (!report.nonfinite.empty() && options.nonfinite == Nonfinite::raise) {
      std::string names;
      for (const std::size_t i : report.nonfinite) names += (names.empty() ? "'" : ", '") + name(i) + "'";
      const char* what = measured.a_square_overflows ? "inf, NaN or a square that overflows" : "inf or NaN";
      throw std::domain_error(std::string(what) + " in the gradient of " + names + "; nothing was changed");
    }
    if (!report.nonfinite.empty() && options.nonfinite == Nonfinite::skip) {
      report.skipped = true;
      for (std::size_t i = 0; options.zero_grads && i < members_.size(); ++i) {
        if (present_[i]) set_to_zero(members_[i].by_rows ? members_[i].rows->values() : members_[i].gradient);
      }
      return report;
    }
  }
  prepare(options, clip_coefs);
  const int threads = threads_for(present_elements_);  // may throw, so it comes before any write
  const bool reduces = std::any_of(parts_.begin(), parts_.end(), [](const Part& part) {
    return part.work.kernel.reduce != nullptr && !part.work.per_row;
  });
  if (reduces) {
    reduce_and_update_all(threads);
  } else {
    if (gather_) gather_({});  // waits until all processes are ready
    update_all(threads);
  }
  if (options.zero_grads) each_of_rows([](std::size_t, const RowGradient& rows) { set_to_zero(rows.values()); });
  const bool lasts = std::all_of(parts_.begin(), parts_.end(),
                                 [](const Part& part) { return part.step == 0 && part.work.storage.draws() == 0; });
  if (plain && lasts && !reduces && !gather_ && by_rows_ == 0) plan_ = &kernels();
  return count_step(options, std::move(report));
}

}  // namespace fusedstep
