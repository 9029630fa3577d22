#include "timing.hpp"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "../spans.hpp"
#include "../work.hpp"
#include "arrays.hpp"
#include "hyperparameters.hpp"

namespace fusedstep::bind {
namespace {

// A call to be repeated many times, with the arrays that it borrows.
class Repeated {
 public:
  Repeated(std::function<void()> call, py::object owners) : call_(std::move(call)), owners_(std::move(owners)) {}

  double seconds(std::int64_t calls) const {
    std::chrono::duration<double> taken{};
    without_gil([&] {
      const auto start = std::chrono::steady_clock::now();
      for (std::int64_t i = 0; i < calls; ++i) call_();
      taken = std::chrono::steady_clock::now() - start;
    });
    return taken.count();
  }

 private:
  std::function<void()> call_;
  py::object owners_;
};

// A rule with a parameter, its gradient and the states in use, borrowed from [param, grad, states ...].
struct Streams {
  RuleId rule;
  Options options;
  Array parameter;
  Array gradient;
  Array states[max_states];
  std::vector<AnySpan> spans;

  Streams(RuleId id, const py::dict& values, const py::list& arrays) : rule(id) {
    const RuleSchema& schema = schema_of(id);
    options = options_from(schema, values);
    check(schema, options);
    std::size_t next = 0;
    const auto take = [&](const char* name) {
      if (next == arrays.size()) throw py::value_error(std::string(name) + ": missing in the list of arrays");
      return py::handle(arrays[next++]);
    };
    parameter = borrow(take("param"), {"param"}, parameter_types, true);
    gradient = borrow(take("grad"), {"grad"}, gradient_types(parameter.type), false);
    for (std::size_t s = 0; s < schema.states.size(); ++s) {
      if (!schema.uses(options, s)) continue;
      const char* name = schema.states[s].name;
      states[s] = borrow(take(name), {name}, types_of_state(schema.states[s], parameter.type), true);
      spans.push_back(span_of(states[s]));
    }
  }
};

// Repeats only an update that was checked and prepared once: the cost of the kernel, or of a limit.
Repeated repeated_kernel(const std::string& name, const py::dict& values, const py::list& arrays) {
  const Streams streams(rule_or_limit_named(name), values, arrays);
  const auto update = std::make_shared<SingleUpdate>(streams.rule, streams.options, 1, streams.parameter, streams.gradient,
                                                     std::span(streams.states, schema_of(streams.rule).states.size()));
  return {[update] { update->run(); }, arrays};
}

// Repeats fusedstep::step(), with its checks in each call.
Repeated repeated_step(const std::string& name, const py::dict& values, const py::list& arrays) {
  const Streams streams(rule_named(name), values, arrays);
  return {[any = RuleAccess::make(streams.rule, streams.options), p = span_of(streams.parameter),
           g = span_of(streams.gradient), states = streams.spans] { step(any, 1, p, g, states); },
          arrays};
}

// Repeats fusedstep::Optimizer::step() over a list of parameters.
Repeated repeated_optimizer(const std::string& name, const py::dict& values, const py::list& params, const py::list& grads) {
  const RuleId id = rule_named(name);
  const AnyRule rule = RuleAccess::make(id, options_from(schema_of(id), values));
  std::vector<Optimizer::Parameter> parameters;
  std::vector<AnySpan> gradients;
  for (std::size_t i = 0; i < params.size(); ++i) {
    const Array p = borrow(params[i], {"param"}, parameter_types, true);
    parameters.push_back({std::to_string(i), span_of(p)});
    gradients.push_back(span_of(borrow(grads[i], {"grad"}, gradient_types(p.type), false)));
  }
  const auto optimizer = std::make_shared<Optimizer>(std::vector{rule}, parameters);
  return {[optimizer, gradients] { optimizer->step(gradients); }, py::make_tuple(params, grads)};
}

// Measures the divider's rate in registers, over n elements, on as many threads as an update of `like` elements would use.
// Take many elements: adding up the registers once per call costs a sixth of a call for 1,000.
Repeated repeated_division(std::int64_t n, std::int64_t like, bool is_double, int roots, int divisions) {
  if (roots < 0 || roots > 1 || divisions < 1 || divisions > roots + 1) {
    throw py::value_error("expected one division, or a root with one or two");
  }
  const auto kind = static_cast<Division>(roots + divisions - 1);
  return {[n, like, is_double, kind] {
            const auto part = [&](std::int64_t begin, std::int64_t end) {
              kernels().divide_and_root[static_cast<int>(kind)][is_double ? 1 : 0](std::min(end * block, n) - begin * block);
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
