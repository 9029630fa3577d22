// A training loop in C++: a line is fitted to points, and one call updates all parameters in place.
#include <cmath>
#include <cstdio>
#include <vector>

#include <fusedstep/fusedstep.hpp>

int main() {
  std::vector<double> slope{0.0}, offset{0.0};
  std::vector<double> slope_grad{0.0}, offset_grad{0.0};

  // Arrays are borrowed: they stay where they are, and belong to you.
  fusedstep::RMSprop rule{.lr = 0.1, .alpha = 0.9};
  fusedstep::Optimizer optimizer({rule}, {{"slope", fusedstep::span{slope}}, {"offset", fusedstep::span{offset}}});
  const std::vector<fusedstep::AnySpan> grads{fusedstep::span{slope_grad}, fusedstep::span{offset_grad}};

  fusedstep::StepReport report;
  for (int epoch = 0; epoch < 300; ++epoch) {
    for (int i = -50; i <= 50; ++i) {
      const double x = i / 50.0;
      const double error = slope[0] * x + offset[0] - (3.0 * x - 2.0);
      slope_grad[0] += error * x;
      offset_grad[0] += error;
    }
    rule.lr = 0.1 * std::pow(0.98, epoch);  // hyperparameters may change between steps
    optimizer.set_rule(0, rule);
    // The gradients are sums over 101 points: divided, clipped by their norm, and set to 0 for the next epoch.
    report = optimizer.step(grads, {.grad_scale = 101.0, .clip_norm = 1.0, .zero_grads = true});
  }
  std::printf("slope %.4f, offset %.4f after %lld steps\n", slope[0], offset[0], static_cast<long long>(report.step));

  // Without an optimizer: one update of one array, whose state is yours as well.
  std::vector<double> square_avg{0.0};
  const std::vector<double> grad{1.0};
  fusedstep::step(rule, fusedstep::span{slope}, fusedstep::span{grad}, fusedstep::span{square_avg});

  // A bad argument throws before anything is written.
  try {
    fusedstep::step(rule, fusedstep::span{slope}, fusedstep::span{slope}, fusedstep::span{square_avg});
  } catch (const std::invalid_argument& error) {
    std::printf("refused: %s\n", error.what());
  }
}
