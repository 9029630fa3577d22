// Fits a linear map to points, with centred RMSprop, momentum, weight decay on the weights only, and gradients clipped by
// their norm. It prints its results as bits, which tests/test_embedding.py compares with the same run in Python. It only
// uses + - * on values in a fixed order, so there is one right result.
#include <bit>
#include <cstdint>
#include <cstdio>
#include <type_traits>
#include <vector>

#include <fusedstep/fusedstep.hpp>

#include "lcg.hpp"

namespace {

constexpr int points = 32;
constexpr int outputs = 3;
constexpr int steps = 150;
constexpr double clip_norm = 0.25;

template <class T>
void print(const char* name, const std::vector<T>& values) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  std::printf("%s", name);
  for (const T value : values) {
    std::printf(" %0*llx", static_cast<int>(2 * sizeof(T)), static_cast<unsigned long long>(std::bit_cast<Bits>(value)));
  }
  std::printf("\n");
}

template <class T>
bool train(const char* type) {
  Lcg random(2024);
  std::vector<T> x(points), y(points), w(2 * outputs), b(outputs), w_grad(2 * outputs), b_grad(outputs);
  for (auto* values : {&x, &y, &w}) {
    for (T& value : *values) value = random.next<T>();
  }
  const fusedstep::RMSprop weights{.lr = 0.005, .alpha = 0.95, .centered = true, .momentum = 0.8, .weight_decay = 1e-4};
  fusedstep::RMSprop biases = weights;
  biases.weight_decay = 0;
  fusedstep::Optimizer optimizer({weights, biases},
                                 {{"w", fusedstep::span(w.data(), {outputs, 2}, {2, 1}), 0}, {"b", fusedstep::span{b}, 1}});
  const std::vector<fusedstep::AnySpan> gradients{fusedstep::span(w_grad.data(), {outputs, 2}, {2, 1}),
                                                  fusedstep::span{b_grad}};
  std::vector<double> norms;
  int clipped = 0;
  for (int step = 0; step < steps; ++step) {
    for (std::size_t i = 0; i < points; ++i) {
      for (std::size_t k = 0; k < outputs; ++k) {
        const T target = static_cast<T>(k) * x[i] - y[i] + T(0.5);
        const T error = w[2 * k] * x[i] + w[2 * k + 1] * y[i] + b[k] - target;
        w_grad[2 * k] += error * x[i];
        w_grad[2 * k + 1] += error * y[i];
        b_grad[k] += error;
      }
    }
    const auto report = optimizer.step(gradients, {.grad_scale = points, .clip_norm = clip_norm, .zero_grads = true});
    norms.push_back(*report.grad_norm);
    clipped += *report.grad_norm > clip_norm;
  }
  std::printf("%s: %d of %d steps clipped\n", type, clipped, steps);
  print("w", w);
  print("b", b);
  print("norms", norms);
  const T* buffer = static_cast<const T*>(optimizer.state(0, "momentum_buffer").data);
  print("momentum", std::vector<T>(buffer, buffer + w.size()));
  return norms.back() < norms.front() / 10 && clipped > 0 && clipped < steps;
}

}  // namespace

int main() {
  const bool learnt = train<float>("float32");
  return train<double>("float64") && learnt ? 0 : 1;
}
