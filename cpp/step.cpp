#include "step.hpp"

#include <algorithm>
#include <stdexcept>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace fusedstep {
namespace {

Work make_work(RuleId rule, const void* options, std::int64_t time, DType dtype, const StepOptions& step,
               double clip_coef) {
  const Description& about = description(rule);
  const Kernels& table = kernels();
  const auto d = static_cast<std::size_t>(dtype);
  Work work;
  work.item_size[0] = work.item_size[1] = item_size(dtype);
  for (std::size_t s = 0; s < max_states; ++s) {
    const bool used = s < about.states.size() && about.uses(options, static_cast<int>(s));
    const bool streamed = used && about.states[s].storage != Storage::scalar;
    work.item_size[2 + s] = streamed ? stored_size(about.states[s].storage, dtype) : 0;
  }
  work.kernel = table.update[static_cast<std::size_t>(rule)][d](options);
  work.kernel.prepare(options, time, work.coefficients);

  Prologue prologue = about.prologue(options);
  prologue.unscale = 1.0 / step.grad_scale;
  if (step.clip_value != 0) prologue.clip_value = step.clip_value;
  prologue.clip_coef = clip_coef;
  const bool idle = prologue.unscale == 1.0 && step.clip_value == 0 && clip_coef == 1.0 && prologue.weight_decay == 0 &&
                    !prologue.maximize;
  work.prologue = idle ? PrologueKernel{} : table.prologue[d](prologue);
  if (!idle) work.prologue.prepare(prologue, work.prologue_coefficients);
  work.zero_gradient = step.zero_grads;
  return work;
}

void check_state(const State& state, const Array& array, const Array& parameter) {
  if (state.storage != Storage::scalar) {
    check_shape(array, parameter);
    check_distinct_elements(array);
  } else if (!array.shape.empty()) {
    throw std::invalid_argument(array.label.text() + ": shape " + shape_text(array.shape) +
                                " differs from shape (); it is one number, an array of no dimensions");
  }
}

// How the streams of an update run, for arrange().
struct Views {
  StridedView view[max_streams] = {};
  std::int64_t item_size[max_streams] = {};

  Views(const Description& about, const Array& parameter, const Array& gradient, std::span<const Array> states) {
    set(0, parameter);
    set(1, gradient);
    for (std::size_t s = 0; s < about.states.size(); ++s) {
      if (states[s].data != nullptr && about.states[s].storage != Storage::scalar) set(2 + s, states[s]);
    }
  }

 private:
  void set(std::size_t stream, const Array& array) {
    view[stream] = {array.data, array.strides};
    item_size[stream] = array.item_size;
  }
};

}  // namespace

Plan::Plan(RuleId rule, bool named_groups)
    : rule_(rule), description_(description(rule)), named_groups_(named_groups) {}

void Plan::add(std::string name, int group, DType dtype, const Array& parameter, std::span<const Array> states) {
  Member& member = members_.emplace_back();
  member.name = std::move(name);
  member.group = group;
  member.dtype = dtype;
  const auto own = [&](const Array& array, const char* role) {
    Array mine = array;
    const auto& shape = strides_.emplace_back(array.shape.begin(), array.shape.end());
    const auto& strides = strides_.emplace_back(array.strides, array.strides + array.shape.size());
    mine.shape = shape;
    mine.strides = strides.data();
    mine.label = {role, &member.name, named_groups_ ? group : -1};
    return mine;
  };
  member.parameter = own(parameter, "");
  check_distinct_elements(member.parameter);
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (states[s].data == nullptr) continue;
    member.states[s] = own(states[s], description_.states[s].name);
    check_state(description_.states[s], member.states[s], member.parameter);
  }
  elements_ += parameter.size();
  member.gradient = own(parameter, "gradient");
  member.gradient.data = nullptr;
  kinds_.push_back(static_cast<std::uint16_t>(group * dtype_count + static_cast<int>(dtype)));
}

void Plan::bind() {
  std::vector<Array> written;
  for (const Member& member : members_) {
    written.push_back(member.parameter);
    for (const Array& state : member.states) {
      if (state.data != nullptr) written.push_back(state);
    }
  }
  written_ = std::make_unique<WrittenMemory>(std::move(written));
  const std::size_t n = members_.size();
  tensors_.resize(n);
  times_.assign(n, 0);
  present_.assign(n, false);
  work_index_.assign(n, 0);
  layouts_.resize(n);
  memory_orders_.resize(n);
  first_block_.assign(n + 1, 0);
}

void Plan::accept(std::size_t i, const Array& gradient, bool written) {
  Member& member = members_[i];
  check_shape(gradient, member.parameter);
  if (written) check_distinct_elements(gradient);
  written_->check_disjoint_from(gradient);

  const std::span<const std::int64_t> shape = member.parameter.shape;
  const Views views(description_, member.parameter, gradient, member.states);
  Tensor tensor;
  tensor.size = member.parameter.size();
  auto layout = std::make_unique<Layout>();
  const bool flat = tensor.size == 0 || arrange(shape, views.view, views.item_size, tensor.stream, *layout);

  auto order = memory_order(gradient);

  // From here on nothing throws: the member is as before or wholly new.
  if (!flat) tensor.layout = layout.get();
  tensors_[i] = tensor;
  layouts_[i] = flat ? nullptr : std::move(layout);
  memory_orders_[i] = std::move(order);
  member.gradient.data = gradient.data;
  std::copy_n(gradient.strides, shape.size(), const_cast<std::int64_t*>(member.gradient.strides));
  present_[i] = true;
  blocks_known_ = false;
}

void Plan::check_states(int group, const Options& options) const {
  for (const Member& member : members_) {
    if (member.group != group) continue;
    for (std::size_t s = 0; s < description_.states.size(); ++s) {
      if (!description_.uses(options.bytes, static_cast<int>(s)) || member.states[s].data != nullptr) continue;
      throw std::invalid_argument("parameter '" + member.name + "' has no " + description_.states[s].name +
                                  ", which these hyperparameters need; make the optimizer with them from the start");
    }
  }
}

void Plan::check_gradients_disjoint() const {
  std::vector<Array> gradients;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (!present_[i]) continue;
    gradients.push_back(members_[i].gradient);
  }
  WrittenMemory{std::move(gradients)};
}

std::size_t Plan::member_at(const std::vector<std::int64_t>& first, std::int64_t unit) const {
  return static_cast<std::size_t>(std::upper_bound(first.begin(), first.end(), unit) - first.begin()) - 1;
}

void Plan::measure(const StepOptions& options, Outcome& outcome) const {
  std::vector<NormOperand> gradients;
  std::vector<std::size_t> members;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!present_[i]) continue;
    gradients.push_back({members_[i].gradient.data, tensors_[i].size, members_[i].dtype, memory_orders_[i].get()});
    members.push_back(i);
  }
  const Norm measured = norm(gradients, options);
  outcome.grad_norm = measured.norm;
  for (const std::size_t k : measured.nonfinite) outcome.nonfinite.push_back(members[k]);
}

// What is to be done to the members of one group and type, at one time where the rule asks for it.
std::int32_t Plan::work_for(std::size_t kind, std::int64_t time, std::span<const Options> groups,
                            const StepOptions& options, double clip_coef) {
  for (std::size_t k = works_.size(); k-- > 0;) {
    if (works_[k].kind == kind && works_[k].time == time) return static_cast<std::int32_t>(k);
  }
  const auto dtype = static_cast<DType>(kind % dtype_count);
  works_.push_back({kind, time, make_work(rule_, groups[kind / dtype_count].bytes, time, dtype, options, clip_coef)});
  return static_cast<std::int32_t>(works_.size() - 1);
}

void Plan::prepare(std::span<const Options> groups, const StepOptions& options, double clip_coef) {
  works_.clear();
  std::vector<char> timed(groups.size());
  for (std::size_t k = 0; k < groups.size(); ++k) timed[k] = description_.uses_time(groups[k].bytes);
  present_elements_ = 0;
  std::int32_t found = -1;  // most members need what the one before needed
  std::size_t last_kind = 0;
  std::int64_t last_time = 0;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!present_[i]) continue;
    present_elements_ += tensors_[i].size + tensor_overhead;
    const std::size_t kind = kinds_[i];
    const std::int64_t time = timed[kind / dtype_count] ? times_[i] + 1 : 0;
    if (found < 0 || kind != last_kind || time != last_time) {
      found = work_for(kind, time, groups, options, clip_coef);
      last_kind = kind;
      last_time = time;
    }
    work_index_[i] = found;
  }
  if (blocks_known_) return;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    first_block_[i + 1] = first_block_[i] + tensors_[i].blocks();
  }
  blocks_known_ = true;
}

void Plan::update_all() {
  const auto run = [this](std::int64_t begin, std::int64_t end) {
    const DefaultFloatingPoint guard;
    for (std::size_t i = member_at(first_block_, begin); i < tensors_.size() && first_block_[i] < end; ++i) {
      if (!present_[i]) continue;
      const std::int64_t first = std::max(begin - first_block_[i], std::int64_t{0});
      const std::int64_t last = std::min(end, first_block_[i + 1]) - first_block_[i];
      if (first < last) update(tensors_[i], works_[static_cast<std::size_t>(work_index_[i])].work, first, last);
    }
  };
  parallel_for(first_block_.back(), threads_for(present_elements_), body(run));
}

SingleUpdate::SingleUpdate(RuleId rule, const Options& options, std::int64_t time, DType dtype, const Array& parameter,
                           const Array& gradient, std::span<const Array> states) {
  const Description& about = description(rule);
  check_distinct_elements(parameter);
  check_shape(gradient, parameter);
  check_disjoint(gradient, parameter);
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (states[s].data == nullptr) continue;
    check_state(about.states[s], states[s], parameter);
    check_disjoint(states[s], parameter);
    check_disjoint(gradient, states[s]);
    for (std::size_t other = 0; other < s; ++other) {
      if (states[other].data != nullptr) check_disjoint(states[s], states[other]);
    }
  }
  tensor_.size = parameter.size();
  if (tensor_.size != 0) {
    const Views views(about, parameter, gradient, states);
    if (!arrange(parameter.shape, views.view, views.item_size, tensor_.stream, layout_)) tensor_.layout = &layout_;
  }
  const DefaultFloatingPoint guard;
  work_ = make_work(rule, options.bytes, time, dtype, {}, 1.0);
  if (work_.kernel.total == nullptr) return;
  arrays_[0] = parameter;
  arrays_[1] = gradient;
  std::copy(states.begin(), states.end(), arrays_ + 2);
  geometry_.reserve(2 * max_streams);
  for (Array& array : arrays_) {
    if (array.data == nullptr) continue;
    array.strides = geometry_.emplace_back(array.strides, array.strides + array.shape.size()).data();
    array.shape = geometry_.emplace_back(array.shape.begin(), array.shape.end());
  }
}

void SingleUpdate::update_all() const {
  const auto part = [this](std::int64_t begin, std::int64_t end) { update(tensor_, work_, begin, end); };
  parallel_for(tensor_.blocks(), threads_for(tensor_.size), body(part));
}

void SingleUpdate::run() const {
  const DefaultFloatingPoint guard;
  if (work_.kernel.total == nullptr) {
    update_all();
    return;
  }
  Operand operand{{}, &work_};
  for (std::size_t s = 0; s < max_streams; ++s) operand.stream[s] = &arrays_[s];
  const Question question({&operand, 1});
  update_all();
  question.update_chosen();
}

void Plan::ask_and_update_all() {
  // Coefficients settled by an array's answer are that array's own.
  std::vector<WorkOf> works;
  std::vector<Operand> operands;
  works.reserve(members_.size());
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (!present_[i]) continue;
    works.push_back(works_[static_cast<std::size_t>(work_index_[i])]);
    work_index_[i] = static_cast<std::int32_t>(works.size() - 1);
    const Member& member = members_[i];
    Operand& operand = operands.emplace_back(Operand{{&member.parameter, &member.gradient}, &works.back().work});
    for (std::size_t s = 0; s < max_states; ++s) operand.stream[2 + s] = &member.states[s];
  }
  works_ = std::move(works);
  const Question question(operands);
  update_all();
  question.update_chosen();
}

Outcome Plan::step(std::span<const Options> groups, const StepOptions& options) {
  const DefaultFloatingPoint guard;
  Outcome report;
  double clip_coef = 1.0;
  if (options.clip_norm != 0 || options.nonfinite != Nonfinite::propagate) {
    measure(options, report);
    if (!report.nonfinite.empty() && options.nonfinite != Nonfinite::propagate) {
      report.skipped = true;
      return report;
    }
    const double norm = *report.grad_norm;
    if (options.clip_norm != 0) clip_coef = options.clip_norm / (norm < options.clip_norm ? options.clip_norm : norm);
  }
  prepare(groups, options, clip_coef);
  bool asks = false;
  for (const WorkOf& entry : works_) asks |= entry.work.kernel.total != nullptr;
  if (asks) {
    ask_and_update_all();
  } else {
    update_all();
  }
  for (std::size_t i = 0; i < times_.size(); ++i) times_[i] += present_[i];
  return report;
}

}  // namespace fusedstep
