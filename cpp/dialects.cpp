#include "dialects.hpp"

#include <limits>
#include <span>
#include <stdexcept>
#include <string>

namespace fusedstep {
namespace {

template <class Rule>
struct Row {
  const char* name;
  const char* source;
  const char* takes;
  Rule options;
};

constexpr double required = std::numeric_limits<double>::quiet_NaN();
constexpr MomentumForm tf = MomentumForm::tf;

constexpr Row<RMSprop> rmsprop_rows[] = {
    {"default", "Hinton, lecture 6e",
     "lr alpha eps eps_inside_sqrt centered momentum nesterov momentum_form bias_correction initial_square_avg "
     "weight_decay decoupled_weight_decay maximize",
     {}},
    {"torch", "PyTorch, torch.optim.RMSprop", "lr alpha eps centered momentum weight_decay maximize", {.alpha = 0.99}},
    {"keras", "Keras 3, keras.optimizers.RMSprop", "lr alpha eps centered momentum weight_decay",
     {.lr = 0.001, .eps = 1e-7, .eps_inside_sqrt = true, .momentum_form = tf, .decoupled_weight_decay = true}},
    {"tf1", "TensorFlow 1, tf.train.RMSPropOptimizer", "lr alpha eps centered momentum",
     {.lr = required, .eps = 1e-10, .eps_inside_sqrt = true, .momentum_form = tf, .initial_square_avg = 1.0}},
    {"optax", "optax.rmsprop", "lr alpha eps centered momentum nesterov bias_correction initial_square_avg",
     {.lr = required, .eps_inside_sqrt = true, .momentum_form = tf}},
    {"chainer", "chainer.optimizers.RMSprop, with the hook WeightDecay", "lr alpha eps weight_decay", {.alpha = 0.99}},
    {"lasagne", "lasagne.updates.rmsprop", "lr alpha eps", {.lr = 1.0, .eps = 1e-6, .eps_inside_sqrt = true}},
    {"caffe", "Caffe, RMSPropSolver", "lr alpha eps weight_decay", {.lr = required, .alpha = 0.99}},
    {"mlx", "mlx.optimizers.RMSprop", "lr alpha eps", {.lr = required, .alpha = 0.99}},
    {"timm", "timm.optim.RMSpropTF", "lr alpha eps centered momentum weight_decay decoupled_weight_decay",
     {.eps = 1e-10, .eps_inside_sqrt = true, .momentum_form = tf, .initial_square_avg = 1.0}},
    {"graves", "Graves 2013, arXiv:1308.0850", "lr alpha eps momentum",
     {.lr = 1e-4, .alpha = 0.95, .eps = 1e-4, .eps_inside_sqrt = true, .centered = true, .momentum = 0.9,
      .momentum_form = tf}},
};

constexpr Row<Adagrad> adagrad_rows[] = {
    {"default", "Duchi, Hazan & Singer 2011",
     "lr eps eps_inside_sqrt lr_decay initial_accumulator_value weight_decay decoupled_weight_decay maximize", {}},
    {"torch", "PyTorch, torch.optim.Adagrad", "lr eps lr_decay initial_accumulator_value weight_decay maximize", {}},
    {"keras", "Keras 3, keras.optimizers.Adagrad", "lr eps initial_accumulator_value weight_decay",
     {.lr = 0.001, .eps = 1e-7, .eps_inside_sqrt = true, .decoupled_weight_decay = true,
      .initial_accumulator_value = 0.1}},
    {"optax", "optax.adagrad", "lr eps initial_accumulator_value",
     {.lr = required, .eps = 1e-7, .eps_inside_sqrt = true, .initial_accumulator_value = 0.1}},
    {"tf1", "TensorFlow 1, tf.train.AdagradOptimizer", "lr initial_accumulator_value",
     {.lr = required, .eps = 0.0, .initial_accumulator_value = 0.1}},
    {"lasagne", "lasagne.updates.adagrad", "lr eps", {.lr = 1.0, .eps = 1e-6, .eps_inside_sqrt = true}},
    {"chainer", "chainer.optimizers.AdaGrad, with the hook WeightDecay", "lr eps weight_decay",
     {.lr = 0.001, .eps = 1e-8}},
    {"caffe", "Caffe, AdaGradSolver", "lr eps", {.lr = required, .eps = 1e-8}},
    {"mlx", "mlx.optimizers.Adagrad", "lr eps", {.lr = required, .eps = 1e-8}},
    {"deepspeed", "deepspeed.ops.adagrad.DeepSpeedCPUAdagrad", "lr eps weight_decay", {}},
};

constexpr Row<Rprop> rprop_rows[] = {
    {"default", "Riedmiller & Braun 1993",
     "lr etas step_sizes variant weight_decay decoupled_weight_decay maximize", {}},
    {"torch", "PyTorch, torch.optim.Rprop", "lr etas step_sizes maximize", {.variant = RpropVariant::irprop_minus}},
    {"shark", "Shark, IRpropPlus", "lr etas step_sizes",
     {.step_sizes = {0.0, 1e100}, .variant = RpropVariant::irprop_plus}},
    {"encog", "Encog, ResilientPropagation", "lr step_sizes", {.lr = 0.1, .variant = RpropVariant::rprop_plus}},
    {"opencv", "OpenCV, cv::ml::ANN_MLP", "lr etas step_sizes",
     {.lr = 0.1, .step_sizes = {std::numeric_limits<float>::epsilon(), 50.0}, .variant = RpropVariant::irprop_move}},
    {"neuralnet", "R, neuralnet::neuralnet", "lr etas step_sizes",
     {.lr = 0.1, .step_sizes = {1e-10, 0.1}, .variant = RpropVariant::rprop_plus}},
};

template <class Rule>
std::vector<Dialect> all(std::span<const Row<Rule>> rows) {
  std::vector<Dialect> dialects;
  for (const Row<Rule>& row : rows) dialects.push_back({row.name, row.source, row.takes, &row.options});
  return dialects;
}

template <class Rule>
Rule find(std::span<const Row<Rule>> rows, const char* rule, std::string_view name) {
  std::string names;
  for (const Row<Rule>& row : rows) {
    if (row.name == name) return row.options;
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  throw std::invalid_argument(std::string(rule) + " has no dialect '" + std::string(name) + "'; it has " + names);
}

}  // namespace

std::vector<Dialect> dialects(RuleId rule) {
  switch (rule) {
    case RuleId::rmsprop:
      return all<RMSprop>(rmsprop_rows);
    case RuleId::adagrad:
      return all<Adagrad>(adagrad_rows);
    case RuleId::rprop:
      return all<Rprop>(rprop_rows);
    default:
      return {};
  }
}

RMSprop RMSprop::like(std::string_view dialect) { return find<RMSprop>(rmsprop_rows, "RMSprop", dialect); }
Adagrad Adagrad::like(std::string_view dialect) { return find<Adagrad>(adagrad_rows, "Adagrad", dialect); }
Rprop Rprop::like(std::string_view dialect) { return find<Rprop>(rprop_rows, "Rprop", dialect); }

}  // namespace fusedstep
