#include "work.hpp"

#include <algorithm>
#include <cmath>

#include "dispatch.hpp"
#include "overlap.hpp"
#include "parallel.hpp"
#include "reduction.hpp"

namespace fusedstep {
namespace {

void check_positive(double x, const char* name) {
  if (std::isfinite(x) && x > 0) return;
  refuse(std::string(name) + ": expected a finite number with " + name + " > 0, got " + schema::text(x));
}

}  // namespace

void check(const StepOptions& options) {
  check_positive(options.grad_scale, "grad_scale");
  if (options.clip_norm != 0 && !(std::isinf(options.clip_norm) && options.clip_norm > 0)) {
    check_positive(options.clip_norm, "clip_norm");
  }
  if (options.clip_value != 0) check_positive(options.clip_value, "clip_value");
}

Work make_work(RuleId rule, const Options& options, std::int64_t step, Type type, const StepOptions& step_options,
               double clip_coef) {
  const RuleSchema& schema = schema_of(rule);
  Work work;
  work.item_size[0] = work.item_size[gradient_stream] = size_of(type);
  for (std::size_t s = 0; s < max_states; ++s) {
    const bool streamed = s < schema.states.size() && schema.uses(options, s) &&
                          schema.states[s].storage != schema::Storage::scalar;
    work.item_size[first_state + s] = streamed ? size_of(type_of_state(schema.states[s], type)) : 0;
  }
  Prologue prologue = schema.prologue(options);
  prologue.unscale = 1.0 / step_options.grad_scale;
  if (step_options.clip_value != 0) prologue.clip_value = step_options.clip_value;
  prologue.clip_coef = clip_coef;
  work.kernel = kernels().update[rule][static_cast<std::size_t>(type)](options.bytes, !prologue.idle());
  work.kernel.prepare(options.bytes, prologue, step, work.prepared);
  work.zero_gradient = step_options.zero_grads;
  return work;
}

Type type_of_state(const schema::State& state, Type parameter) {
  return state.storage == schema::Storage::int8 ? Type::int8 : parameter;
}

void check_state(const schema::State& state, const Array& array, const Array& parameter) {
  if (state.storage != schema::Storage::scalar) {
    check_shape(array, parameter);
    check_distinct_elements(array);
  } else if (!array.shape.empty()) {
    refuse(array.label.text() + ": shape " + shape_text(array.shape) +
           " differs from shape (); it is one number, a 0-d array");
  }
}

bool arrange(const RuleSchema& rule, const Array& parameter, const Array& gradient, std::span<const Array> states,
             Tensor& tensor, Layout& layout) {
  StridedView view[max_streams] = {};
  std::int64_t item_size[max_streams] = {};
  const auto set = [&](std::size_t stream, const Array& array) {
    view[stream] = {array.data, array.strides};
    item_size[stream] = array.item_size();
  };
  set(0, parameter);
  set(gradient_stream, gradient);
  for (std::size_t s = 0; s < rule.states.size(); ++s) {
    if (states[s].data != nullptr && rule.states[s].storage != schema::Storage::scalar) set(first_state + s, states[s]);
  }
  tensor.size = parameter.size();
  return tensor.size == 0 || arrange(parameter.shape, view, item_size, tensor.stream, layout);
}

SingleUpdate::SingleUpdate(RuleId rule, const Options& options, std::int64_t step, const Array& parameter,
                           const Array& gradient, std::span<const Array> states, const Array& index) {
  const RuleSchema& schema = schema_of(rule);
  check_distinct_elements(parameter);
  if (index.data != nullptr) {
    if (!schema.takes_rows) refuse(index.label.text() + ": " + schema.name + " takes no rows");
    rows_.emplace().bind(index, gradient, parameter);
    check_disjoint(index, parameter);
  } else {
    check_shape(gradient, parameter);
  }
  check_disjoint(gradient, parameter);
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (states[s].data == nullptr) continue;
    check_state(schema.states[s], states[s], parameter);
    check_disjoint(states[s], parameter);
    check_disjoint(gradient, states[s]);
    if (rows_) check_disjoint(index, states[s]);
    for (std::size_t other = 0; other < s; ++other) {
      if (states[other].data != nullptr) check_disjoint(states[s], states[other]);
    }
  }
  if (!rows_ && !arrange(schema, parameter, gradient, states, tensor_, layout_)) tensor_.layout = &layout_;
  const DefaultFloatingPoint guard;
  work_ = make_work(rule, options, step, parameter.type, {}, 1.0);
  if (work_.kernel.reduce == nullptr && !rows_) return;
  arrays_[0] = parameter;
  arrays_[gradient_stream] = gradient;
  std::copy(states.begin(), states.end(), arrays_ + first_state);
  geometry_.reserve(2 * max_streams);
  for (Array& array : arrays_) {
    if (array.data == nullptr) continue;
    array.strides = geometry_.emplace_back(array.strides, array.strides + array.shape.size()).data();
    array.shape = geometry_.emplace_back(array.shape.begin(), array.shape.end());
  }
}

void SingleUpdate::update_all(const Work& work, int threads) const {
  if (rows_) {
    const Array* streams[max_streams];
    for (std::size_t s = 0; s < max_streams; ++s) streams[s] = &arrays_[s];
    rows_->update(streams, work, threads);
    return;
  }
  const auto part = [&](std::int64_t begin, std::int64_t end) { update(tensor_, work, begin, end); };
  parallel_for(tensor_.blocks(), threads, body(part));
}

void SingleUpdate::run() {
  const DefaultFloatingPoint guard;
  const int threads = threads_for(rows_ ? rows_->elements() : tensor_.size);
  if (rows_) rows_->sort(threads);
  if (work_.kernel.reduce == nullptr) {
    update_all(work_, threads);
    return;
  }
  Work work = work_;  // the reduction completes its constants
  Operand operand{{}, &work, tensor_.size};
  for (std::size_t s = 0; s < max_streams; ++s) operand.stream[s] = &arrays_[s];
  if (rows_) {
    rows_->sum(threads);
    operand.stream[0] = &rows_->rows_of(arrays_[0]);
    operand.stream[gradient_stream] = &rows_->sums();
    operand.whole = rows_->sums().size();
  }
  Reduction reduction({&operand, 1});
  reduction.settle();
  update_all(work, threads);
  reduction.update_chosen();
}

}  // namespace fusedstep
