// A network of one hidden layer learns which points lie within a circle: centred RMSprop with momentum, weight decay on
// the weights alone, gradients clipped by their norm. It prints all that it ends with as bits; tests/test_embedding.py
// does the same in Python and compares. Only + - * / on values in a fixed order, so that there is one right answer.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

#include <fusedstep/fusedstep.hpp>

#include "lcg.hpp"

namespace {

constexpr int points = 96;
constexpr int hidden = 8;
constexpr int steps = 150;

template <class T>
struct Network {
  std::vector<T> hidden_w = std::vector<T>(2 * hidden);  // [hidden][2]
  std::vector<T> hidden_b = std::vector<T>(hidden);
  std::vector<T> out_w = std::vector<T>(hidden);
  std::vector<T> out_b = std::vector<T>(1);
};

template <class T>
struct Point {
  T x, y, target;
};

template <class T>
std::vector<Point<T>> make_points(Lcg& random) {
  std::vector<Point<T>> data(points);
  for (Point<T>& p : data) {
    p.x = random.next<T>();
    p.y = random.next<T>();
    p.target = p.x * p.x + p.y * p.y < T(0.5) ? T(1) : T(-1);
  }
  return data;
}

// Adds the gradient of one point's (output - target)^2 / 2 and returns the output. The hidden units are x / (1 + |x|).
template <class T>
T add_gradient(const Network<T>& net, const Point<T>& p, Network<T>& gradient) {
  T unit[hidden];
  T slope[hidden];
  T output = net.out_b[0];
  for (int k = 0; k < hidden; ++k) {
    const T z = net.hidden_w[static_cast<std::size_t>(2 * k)] * p.x +
                net.hidden_w[static_cast<std::size_t>(2 * k + 1)] * p.y + net.hidden_b[static_cast<std::size_t>(k)];
    const T scale = T(1) / (T(1) + std::fabs(z));
    unit[k] = z * scale;
    slope[k] = scale * scale;
    output = output + net.out_w[static_cast<std::size_t>(k)] * unit[k];
  }
  const T error = output - p.target;
  for (int k = 0; k < hidden; ++k) {
    const auto i = static_cast<std::size_t>(k);
    const T back = error * net.out_w[i] * slope[k];
    gradient.hidden_w[2 * i] += back * p.x;
    gradient.hidden_w[2 * i + 1] += back * p.y;
    gradient.hidden_b[i] += back;
    gradient.out_w[i] += error * unit[k];
  }
  gradient.out_b[0] += error;
  return output;
}

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
  const std::vector<Point<T>> data = make_points<T>(random);
  Network<T> net;
  for (auto* values : {&net.hidden_w, &net.hidden_b, &net.out_w}) {
    for (T& value : *values) value = random.next<T>();
  }

  const fusedstep::RMSprop weights{
      .lr = 0.005, .alpha = 0.95, .centered = true, .momentum = 0.8, .weight_decay = 1e-4};
  fusedstep::RMSprop biases = weights;
  biases.weight_decay = 0;
  fusedstep::Optimizer optimizer(
      {weights, biases},
      {{"hidden.w", fusedstep::span(net.hidden_w.data(), {hidden, 2}, {2, 1}), 0},
       {"out.w", fusedstep::span{net.out_w}, 0},
       {"hidden.b", fusedstep::span{net.hidden_b}, 1},
       {"out.b", fusedstep::span{net.out_b}, 1}});

  Network<T> gradient;
  const std::vector<fusedstep::AnySpan> gradients{
      fusedstep::span(gradient.hidden_w.data(), {hidden, 2}, {2, 1}), fusedstep::span{gradient.out_w},
      fusedstep::span{gradient.hidden_b}, fusedstep::span{gradient.out_b}};
  std::vector<double> norms;
  int clipped = 0;
  int right = 0;
  for (int step = 0; step < steps; ++step) {
    right = 0;
    for (const Point<T>& p : data) right += (add_gradient(net, p, gradient) > 0) == (p.target > 0);
    // The sum of the points' gradients is what a scaled loss gives: unscaled, clipped, and zeroed for the next step.
    const auto report =
        optimizer.step(gradients, {.grad_scale = points, .clip_norm = 0.1, .zero_grads = true});
    norms.push_back(*report.grad_norm);
    clipped += *report.grad_norm > 0.1;
  }
  std::printf("%s: %d of %d points right, %d of %d steps clipped\n", type, right, points, clipped, steps);
  print("hidden.w", net.hidden_w);
  print("hidden.b", net.hidden_b);
  print("out.w", net.out_w);
  print("out.b", net.out_b);
  print("norms", norms);
  const fusedstep::AnySpan state = optimizer.state(1, "momentum_buffer");
  const T* buffer = static_cast<const T*>(state.data);
  print("momentum", std::vector<T>(buffer, buffer + hidden));
  return right > points * 9 / 10 && clipped > 0 && clipped < steps;
}

}  // namespace

int main() {
  const bool learnt = train<float>("float32");
  return train<double>("float64") && learnt ? 0 : 1;
}
