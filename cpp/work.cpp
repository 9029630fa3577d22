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

// 0 means no limit; inf asks for the norm but clips nothing.
void check_limit(double x, const char* name) {
  if (x != 0 && !(std::isinf(x) && x > 0)) check_positive(x, name);
}

}  // namespace

void check(const StepOptions& options) {
  check_positive(options.grad_scale, "grad_scale");
  check_limit(options.clip_norm, "clip_norm");
  check_limit(options.clip_norm_each, "clip_norm_each");
  if (options.clip_norm != 0 && options.clip_norm_each != 0) {
    refuse("clip_norm, clip_norm_each: expected at most one of them, got " + schema::text(options.clip_norm) + " and " +
           schema::text(options.clip_norm_each));
  }
  if (options.clip_value != 0) check_positive(options.clip_value, "clip_value");
}

Storage storage_of(const RuleSchema& rule, const Options& options, const Array& parameter, const Array& gradient,
                   std::span<const Array> states, Rounding rounding) {
  Storage storage;
  const auto set = [&](std::size_t stream, const Array& array) {
    storage.item_size[stream] = array.item_size();
    storage.type[stream] = array.type;
    storage.is_narrow |= storage.converts(static_cast<int>(stream));
  };
  set(0, parameter);
  set(gradient_stream, gradient);
  for (std::size_t s = 0; s < states.size(); ++s) {
    const bool streamed = s == low_half || (s < rule.states.size() && rule.uses(options, s) &&
                                            rule.states[s].storage != schema::Storage::scalar);
    if (streamed && states[s].data != nullptr) set(first_state + s, states[s]);
  }
  storage.rounding = rounding;
  if (storage.draws() > 0) storage.item_size[index_stream] = 1;
  return storage;
}

Work make_work(RuleId rule, const Options& options, std::int64_t step, const Storage& storage,
               const StepOptions& step_options, double clip_coef, OwnOptions* own) {
  const RuleSchema& schema = schema_of(rule);
  Work work;
  work.storage = storage;
  work.is_plain = !storage.is_narrow && own == nullptr;
  Prologue prologue = schema.prologue(options);
  prologue.unscale = 1.0 / step_options.grad_scale;
  if (step_options.clip_value != 0) prologue.clip_value = step_options.clip_value;
  prologue.clip_coef = clip_coef;
  work.kernel = kernels().update[rule][static_cast<std::size_t>(storage.compute())](options.bytes, !prologue.idle());
  work.kernel.prepare(options.bytes, prologue, step, work.prepared);
  work.zero_gradient = step_options.zero_grads;
  work.per_row = schema.is_per_row(options);
  work.own = own;
  work.scalar = nullptr;
  if (own != nullptr) {
    own->rule = rule;
    own->options = options;
    own->prologue = prologue;
    own->step = step;
    work.storage.item_size[index_stream] = 1;
  }
  return work;
}

Type type_of_state(const schema::State& state, Type parameter, Type floats) {
  if (state.storage == schema::Storage::int8) return Type::int8;
  return state.storage == schema::Storage::scalar ? compute_type(parameter) : floats;
}

TypeSet types_of_state(const schema::State& state, Type parameter) {
  const Type compute = compute_type(parameter);
  const Type narrow = type_of_state(state, parameter, compute == Type::float32 ? Type::bfloat16 : compute);
  return {type_of_state(state, parameter, compute), narrow};
}

void check_storage(const Array& parameter, const GroupStorage& storage) {
  const std::string of = parameter.label.text() + " of dtype " + name_of(parameter.type);
  if (storage.master && parameter.type != Type::bfloat16) {
    refuse("master: expected a parameter of dtype bfloat16, which has low halves, got " + of);
  }
  if (!storage.state_type) return;
  const char* const found = name_of(*storage.state_type);
  if (*storage.state_type != Type::bfloat16) {
    refuse("state_dtype: expected none or bfloat16 for " + of + ", got " + found);
  }
  if (parameter.type == Type::float64) refuse("state_dtype: expected none for " + of + ", got " + found);
}

Array checked_low_halves(const Array& low, const Array& parameter) {
  if (parameter.type == Type::bfloat16) return low;
  refuse(std::string(low_halves.name) + ": expected a parameter of dtype bfloat16, which has low halves, got one of dtype " +
         name_of(parameter.type));
}

void check_state(schema::Storage storage, const Array& array, const Array& parameter) {
  if (storage == schema::Storage::row) {
    check_has_rows(parameter);
    if (array.shape.size() != 1 || array.shape[0] != parameter.shape[0]) {
      refuse(array.label.text() + ": expected shape " + shape_text(parameter.shape.first(1)) +
             ", one number for each row, got " + shape_text(array.shape));
    }
    check_distinct_elements(array);
  } else if (storage != schema::Storage::scalar) {
    check_shape(array, parameter);
    check_distinct_elements(array);
  } else if (!array.shape.empty()) {
    refuse(array.label.text() + ": expected shape (), one number in a 0-d array, got " + shape_text(array.shape));
  }
}

bool arrange(const RuleSchema& rule, const Array& parameter, const Array& gradient, std::span<const Array> states,
             std::optional<std::int64_t> first, Tensor& tensor, Layout& layout) {
  StridedView view[max_streams] = {};
  std::int64_t item_size[max_streams] = {};
  const auto set = [&](std::size_t stream, const Array& array) {
    view[stream] = {array.data, array.strides};
    item_size[stream] = array.item_size();
  };
  set(0, parameter);
  set(gradient_stream, gradient);
  for (std::size_t s = 0; s < states.size(); ++s) {
    const bool scalar = s < rule.states.size() && rule.states[s].storage == schema::Storage::scalar;
    if (states[s].data != nullptr && !scalar) set(first_state + s, states[s]);
  }
  std::int64_t in_c_order[max_dimensions];
  if (first) {
    std::int64_t stride = 1;
    for (std::size_t axis = parameter.shape.size(); axis-- > 0; stride *= parameter.shape[axis]) in_c_order[axis] = stride;
    view[index_stream] = {index_as_stream(*first), in_c_order};
    item_size[index_stream] = 1;
  }
  tensor.size = parameter.size();
  return tensor.size == 0 || arrange(parameter.shape, view, item_size, tensor.stream, layout);
}

SingleUpdate::SingleUpdate(RuleId rule, const Options& options, std::int64_t step, const Array& parameter,
                           const Array& gradient, std::span<const Array> states, const Array& index,
                           std::optional<std::uint64_t> key) {
  const RuleSchema& schema = schema_of(rule);
  check_distinct_elements(parameter);
  if (is_given(index) || schema.is_per_row(options)) {
    if (!schema.takes_rows) refuse_rows(index.label, schema);
    rows_.emplace().bind(index, gradient, parameter);
  } else {
    check_shape(gradient, parameter);
  }
  const Array* written[1 + state_arrays] = {&parameter};
  std::size_t arrays_written = 1;
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (states[s].data == nullptr) continue;
    check_state(s == low_half ? low_halves.storage : schema.storage(options, s), states[s], parameter);
    written[arrays_written++] = &states[s];
  }
  const Array* const read[] = {&gradient, &index};
  check_disjoint({written, arrays_written}, {read, is_given(index) ? 2u : 1u});
  const Rounding rounding = key ? Rounding::stochastic : Rounding::nearest;
  Array summed = gradient;
  if (rows_) summed.type = compute_type(parameter.type);
  const Storage storage = storage_of(schema, options, parameter, summed, states, rounding);
  const auto first = storage.draws() > 0 ? std::optional<std::int64_t>(0) : std::nullopt;
  if (!rows_ && !arrange(schema, parameter, gradient, states, first, tensor_, layout_)) tensor_.layout = &layout_;
  tensor_.key = key.value_or(0);
  const DefaultFloatingPoint guard;
  work_ = make_work(rule, options, step, storage, {}, 1.0);
  if (work_.kernel.reduce == nullptr && !rows_) return;
  auto& [arrays, geometry] = whole_.emplace();
  arrays[0] = parameter;
  arrays[gradient_stream] = gradient;
  std::copy(states.begin(), states.end(), arrays + first_state);
  geometry.reserve(2 * max_arrays);
  for (Array& array : arrays) {
    if (array.data == nullptr) continue;
    array.strides = geometry.emplace_back(array.strides, array.strides + array.shape.size()).data();
    array.shape = geometry.emplace_back(array.shape.begin(), array.shape.end());
  }
}

void SingleUpdate::update_all(const Work& work, int threads) const {
  if (rows_) {
    const Array* streams[max_arrays];
    for (std::size_t s = 0; s < max_arrays; ++s) streams[s] = &whole_->arrays[s];
    rows_->update(streams, work, tensor_.key, threads);
    return;
  }
  const auto part = [&](std::int64_t begin, std::int64_t end) { update(tensor_, work, begin, end); };
  parallel_for(tensor_.blocks(), threads, body(part));
}

void SingleUpdate::run() {
  const DefaultFloatingPoint guard;
  const int threads = threads_for(rows_ ? rows_->elements() : tensor_.size);
  if (rows_) rows_->sort(threads);
  if (work_.kernel.reduce == nullptr || work_.per_row) {
    update_all(work_, threads);
    return;
  }
  Work work = work_;  // a copy, because the reduction completes the constants
  Operand operand{{}, &work, tensor_.size, tensor_.key};
  for (std::size_t s = 0; s < max_arrays; ++s) operand.stream[s] = &whole_->arrays[s];
  if (rows_) {
    rows_->sum(threads);
    rows_->read(operand.stream);
    operand.whole = rows_->sums().size();
  }
  Reduction reduction({&operand, 1});
  reduction.settle();
  update_all(work, threads);
  reduction.update_chosen();
}

}  // namespace fusedstep
