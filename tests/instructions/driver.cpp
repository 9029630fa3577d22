// Calls kernels and functions for callgrind to count, one call between two markers. Prints their names in order.
//
// The marker is getppid(), at which callgrind writes its counts so far.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <fusedstep/fusedstep.hpp>

namespace fs = fusedstep;

namespace {

// An array whose alignment does not change from run to run.
template <class T>
class Array {
 public:
  Array(std::int64_t n, T value) : data_(new (std::align_val_t{64}) T[static_cast<std::size_t>(n)]), n_(n) {
    for (std::int64_t i = 0; i < n; ++i) data_.get()[i] = value;
  }
  fs::span<T> span() const { return {data_.get(), n_}; }

 private:
  struct Free {
    void operator()(T* data) const { operator delete[](data, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
  std::int64_t n_;
};

// Calls twice, because the first call also does work that is done only once.
template <class F>
void count(const std::string& name, const F& f) {
  f();
  std::printf("%s\n", name.c_str());
  getppid();
  f();
  getppid();
}

template <class T, class Rule>
void count_kernel(const std::string& name, const Rule& rule, std::int64_t n) {
  const Array<T> p(n, T(1)), g(n, T(0.5));
  const fs::Optimizer like({rule}, {{"p", p.span()}});
  std::vector<Array<T>> memory;
  std::vector<fs::AnySpan> states;
  for (const std::string& state : fs::AnyRule(rule).states()) {
    memory.emplace_back(n, T(0.25));  // enough for any type of element
    states.push_back(like.state(0, state));
    states.back().data = memory.back().span().data();
  }
  count(name, [&] { fs::step(rule, 1, p.span(), g.span(), states); });
}

// Each rule with its defaults, and options that choose another kernel.
template <class T>
void count_kernels(const std::string& type) {
  constexpr std::int64_t n = 10'000;
  fs::for_each_rule(
      [&]<class Rule>() { count_kernel<T>(std::string(fs::AnyRule(Rule{}).name()) + ", " + type, Rule{}, n); });
  count_kernel<T>("rmsprop centred with momentum, " + type, fs::RMSprop{.centered = true, .momentum = 0.9}, n);
  count_kernel<T>("rmsprop with weight decay, " + type, fs::RMSprop{.weight_decay = 0.01}, n);
  count_kernel<T>("rprop irprop-, " + type, fs::Rprop{.variant = fs::RpropVariant::irprop_minus}, n);
  const Array<T> g(n, T(0.5));
  const std::vector<fs::AnySpan> gradients{g.span()};
  count("norm, " + type, [&] { fs::norm(gradients); });
}

void count_optimizer(const std::string& name, std::size_t tensors) {
  std::vector<Array<float>> params, grads;
  std::vector<fs::Optimizer::Parameter> parameters;
  std::vector<fs::AnySpan> gradients;
  for (std::size_t i = 0; i < tensors; ++i) {
    params.emplace_back(16, 1.0f);
    grads.emplace_back(16, 0.5f);
    parameters.push_back({std::to_string(i), params.back().span()});
    gradients.emplace_back(grads.back().span());
  }
  fs::Optimizer optimizer({fs::RMSprop{}}, parameters);
  count(name, [&] { optimizer.step(gradients); });
}

}  // namespace

// The only argument is the instruction set.
int main(int, char** arguments) {
  fs::force_isa(arguments[1]);
  fs::set_num_threads(1);
  count_kernels<float>("float32");
  count_kernels<double>("float64");
  count_kernel<float>("C++ step() of 16", fs::RMSprop{}, 16);
  count_optimizer("C++ Optimizer of 1 x 16", 1);
  count_optimizer("C++ Optimizer of 100 x 16", 100);
}
