#include "timing.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "../step.hpp"
#include "arrays.hpp"
#include "hyperparameters.hpp"
#include "rules_by_name.hpp"

namespace fusedstep::bind {
namespace {

// Something to be called many times over, with what it borrows.
class Repeated {
 public:
  Repeated(std::function<void()> call, py::object owners) : call_(std::move(call)), owners_(std::move(owners)) {}

  double seconds(std::int64_t calls) const {
    const py::gil_scoped_release release;
    const auto start = std::chrono::steady_clock::now();
    for (std::int64_t i = 0; i < calls; ++i) call_();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  std::function<void()> call_;
  py::object owners_;
};

Options options_from(const Description& rule, const py::dict& values) {
  Options options;
  rule.construct(options.bytes);
  for (const auto& [key, value] : values) {
    const auto name = key.cast<std::string>();
    const Field* field = rule.field(name.c_str());
    if (field == nullptr) throw py::type_error("'" + name + "' is no hyperparameter of " + rule.name);
    set_field(*field, value, options.bytes);
  }
  check(rule, options.bytes);
  return options;
}

template <class Rule>
AnyRule as(const Options& options) {
  Rule rule;
  std::memcpy(&rule, options.bytes, sizeof rule);
  return rule;
}

AnyRule public_rule(RuleId id, const Options& options) {
  switch (id) {
    case RuleId::rmsprop:
      return as<RMSprop>(options);
    case RuleId::adagrad:
      return as<Adagrad>(options);
    case RuleId::rprop:
      return as<Rprop>(options);
    case RuleId::proximal_adagrad:
      return as<ProximalAdagrad>(options);
    case RuleId::adagrad_da:
      return as<AdagradDA>(options);
    case RuleId::adagrad_norm:
      return as<AdagradNorm>(options);
    case RuleId::traffic:
    case RuleId::sign_traffic:
      break;
  }
  throw py::value_error("the limits are no rules of the C++ API");
}

AnySpan span_of(const Array& array, Element element) {
  AnySpan span;
  span.data = array.data;
  span.type = element == Element::int8 ? Type::int8 : element == Element::float32 ? Type::float32 : Type::float64;
  span.dimensions = array.shape.size();
  std::copy(array.shape.begin(), array.shape.end(), span.shape.begin());
  std::copy_n(array.strides, span.dimensions, span.strides.begin());
  return span;
}

// A parameter, its gradient and the states in use, borrowed from [param, grad, states ...].
struct Streams {
  Borrowed parameter{};
  Array gradient;
  Array states[max_states];
  std::vector<AnySpan> spans;

  Streams(const Description& rule, const Options& options, const py::list& arrays) {
    std::size_t next = 0;
    const auto take = [&](const char* name) {
      if (next == arrays.size()) throw py::value_error(std::string(name) + ": missing in the list of arrays");
      return py::handle(arrays[next++]);
    };
    parameter = borrow_parameter(take("param"), {"param"});
    gradient = borrow(take("grad"), {"grad"}, parameter.element, false);
    for (std::size_t s = 0; s < rule.states.size(); ++s) {
      if (!rule.uses(options.bytes, static_cast<int>(s))) continue;
      const char* name = rule.states[s].name;
      const Element element = rule.states[s].storage == Storage::int8 ? Element::int8 : parameter.element;
      states[s] = borrow(take(name), {name}, element, true);
      spans.push_back(span_of(states[s], element));
    }
  }
};

// The update alone, checked and prepared once: what the kernel costs, and, for a limit, what nothing can beat.
Repeated repeated_kernel(const std::string& name, const py::dict& values, const py::list& arrays) {
  const RuleId id = rule_by_name(name);
  const Description& rule = description(id);
  const Options options = options_from(rule, values);
  const Streams streams(rule, options, arrays);
  const auto update = std::make_shared<SingleUpdate>(id, options, 1, dtype_of(streams.parameter.element),
                                                     streams.parameter.array, streams.gradient,
                                                     std::span(streams.states, rule.states.size()));
  return {[update] { update->run(); }, arrays};
}

// fusedstep::step(), with its checks in each call.
Repeated repeated_step(const std::string& name, const py::dict& values, const py::list& arrays) {
  const RuleId id = rule_by_name(name);
  const Description& rule = description(id);
  const Options options = options_from(rule, values);
  const Streams streams(rule, options, arrays);
  return {[any = public_rule(id, options), p = span_of(streams.parameter.array, streams.parameter.element),
           g = span_of(streams.gradient, streams.parameter.element), states = streams.spans] {
            step(any, 1, p, g, states);
          },
          arrays};
}

// fusedstep::Optimizer::step() over a list of parameters.
Repeated repeated_optimizer(const std::string& name, const py::dict& values, const py::list& params,
                            const py::list& grads) {
  const RuleId id = rule_by_name(name);
  const Options options = options_from(description(id), values);
  std::vector<Optimizer::Parameter> parameters;
  std::vector<AnySpan> gradients;
  for (std::size_t i = 0; i < params.size(); ++i) {
    const Borrowed p = borrow_parameter(params[i], {"param"});
    parameters.push_back({std::to_string(i), span_of(p.array, p.element)});
    gradients.push_back(span_of(borrow(grads[i], {"grad"}, p.element, false), p.element));
  }
  const auto optimizer = std::make_shared<Optimizer>(std::vector{public_rule(id, options)}, parameters);
  return {[optimizer, gradients] { optimizer->step(gradients); }, py::make_tuple(params, grads)};
}

// The divider's rate on registers alone, over n elements, on as many threads as an update of `like` would use. What the
// loop does once a call, to add up its registers, costs a sixth of a call for 1,000 elements: hence more of them.
Repeated repeated_division(std::int64_t n, std::int64_t like, bool is_double, int roots, int divisions) {
  if (roots < 0 || roots > 1 || divisions < 1 || divisions > roots + 1) {
    throw py::value_error("expected one division, or a root with one or two");
  }
  const auto kind = static_cast<Division>(roots + divisions - 1);
  return {[n, like, is_double, kind] {
            const auto part = [&](std::int64_t begin, std::int64_t end) {
              kernels().divide_and_root[static_cast<int>(kind)][is_double ? 1 : 0](std::min(end * block, n) -
                                                                                  begin * block);
            };
            parallel_for((n + block - 1) / block, threads_for(like), body(part));
          },
          py::none()};
}

}  // namespace

void register_timing(py::module_& module) {
  py::class_<Repeated>(module, "Repeated").def("seconds", &Repeated::seconds, py::arg("calls"));
  module.def("repeated_kernel", &repeated_kernel, py::arg("rule"), py::arg("values"), py::arg("arrays"));
  module.def("repeated_step", &repeated_step, py::arg("rule"), py::arg("values"), py::arg("arrays"));
  module.def("repeated_optimizer", &repeated_optimizer, py::arg("rule"), py::arg("values"), py::arg("params"),
             py::arg("grads"));
  module.def("repeated_division", &repeated_division, py::arg("n"), py::arg("like"), py::arg("is_double"), py::arg("roots"),
             py::arg("divisions"));
}

}  // namespace fusedstep::bind
