// Adagrad: Duchi, Hazan & Singer 2011, JMLR 12:2121.
//
//   s <- s + g^2            p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)
#pragma once

#include "prologue.hpp"

namespace fusedstep {

/// s <- s + g^2;  p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps).                Duchi, Hazan & Singer 2011
struct Adagrad {
  double lr = 1e-2;              ///< step size, >= 0
  double eps = 1e-10;            ///< added to the root, or under it, >= 0
  bool eps_inside_sqrt = false;  ///< sqrt(s + eps) instead of sqrt(s) + eps
  double lr_decay = 0.0;         ///< decay of the step size with the updates of a parameter, >= 0
  FUSEDSTEP_DECAY_OPTIONS
  double initial_accumulator_value = 0.0;  ///< where an Optimizer starts s, >= 0

  /// The formula and the defaults of another framework, by the name of its dialect: "torch", "keras", ... Where the
  /// framework has no default, `lr` is NaN and must be set. std::invalid_argument for any other name.
  static Adagrad like(std::string_view dialect);
};

template <>
struct Schema<Adagrad> {
  using Rule = Adagrad;
  static constexpr const char* name = "adagrad";
  static constexpr schema::Field fields[] = {FUSEDSTEP_FIELD(lr, schema::nonnegative).per_element(),
                                             FUSEDSTEP_FIELD(eps, schema::nonnegative),
                                             FUSEDSTEP_FIELD(eps_inside_sqrt),
                                             FUSEDSTEP_FIELD(lr_decay, schema::nonnegative),
                                             FUSEDSTEP_DECAY_FIELDS,
                                             FUSEDSTEP_START(initial_accumulator_value)};
  static constexpr schema::State states[] = {{.name = "square_sum", .starts_at = "initial_accumulator_value"}};
  static constexpr const char* step_used_with = "lr_decay";

  static std::string bad_start(const Adagrad& o) {
    return schema::zero_over_zero(o.eps, o.initial_accumulator_value, "initial_accumulator_value");
  }

  static constexpr schema::Dialect<Adagrad> dialects[] = {
      {"default",
       "Duchi, Hazan & Singer 2011",
       "lr eps eps_inside_sqrt lr_decay initial_accumulator_value weight_decay decoupled_weight_decay maximize",
       {}},
      {"torch", "PyTorch, torch.optim.Adagrad", "lr eps lr_decay initial_accumulator_value weight_decay maximize", {}},
      {"keras",
       "Keras 3, keras.optimizers.Adagrad",
       "lr eps initial_accumulator_value weight_decay",
       {.lr = 0.001,
        .eps = 1e-7,
        .eps_inside_sqrt = true,
        .decoupled_weight_decay = true,
        .initial_accumulator_value = 0.1}},
      {"optax",
       "optax.adagrad",
       "lr eps initial_accumulator_value",
       {.lr = schema::required, .eps = 1e-7, .eps_inside_sqrt = true, .initial_accumulator_value = 0.1}},
      {"tf1",
       "TensorFlow 1, tf.train.AdagradOptimizer",
       "lr initial_accumulator_value",
       {.lr = schema::required, .eps = 0.0, .initial_accumulator_value = 0.1}},
      {"lasagne", "lasagne.updates.adagrad", "lr eps", {.lr = 1.0, .eps = 1e-6, .eps_inside_sqrt = true}},
      {"chainer",
       "chainer.optimizers.AdaGrad, with the hook WeightDecay",
       "lr eps weight_decay",
       {.lr = 0.001, .eps = 1e-8}},
      {"caffe", "Caffe, AdaGradSolver", "lr eps weight_decay", {.lr = schema::required, .eps = 1e-8}},
      {"mlx", "mlx.optimizers.Adagrad", "lr eps", {.lr = schema::required, .eps = 1e-8}},
      {"deepspeed", "deepspeed.ops.adagrad.DeepSpeedCPUAdagrad", "lr eps weight_decay", {}}};
};

inline Adagrad Adagrad::like(std::string_view dialect) { return schema::like<Adagrad>(dialect); }

}  // namespace fusedstep

#ifdef FUSEDSTEP_KERNELS  // the maths, which only kernels.cpp sees

namespace fusedstep {
namespace {

template <bool eps_inside_sqrt>
struct AdagradRule {
  static constexpr bool divides = true;

  template <class T>
  using States = Types<T>;

  template <class T>
  struct Constants {
    T clr, eps;

    Constants(const Adagrad& o, std::int64_t t)
        : clr(rounded<T>(o.lr / (1.0 + static_cast<double>(t - 1) * o.lr_decay))), eps(rounded<T>(o.eps)) {}
  };

  template <class T>
  static Values<T, T> step(T p, T g, T s, const Constants<T>& c) {
    s = s + g * g;
    const T d = eps_inside_sqrt ? sqrt(s + c.eps) : sqrt(s) + c.eps;
    p = p - c.clr * g / d;
    return {p, s};
  }
};

template <class F>
auto compose(const Adagrad& o, F f) {
  return choose(o.eps_inside_sqrt, [&](auto inside) { return f(AdagradRule<inside>{}); });
}

}  // namespace
}  // namespace fusedstep

#endif
