// RMSprop: Hinton, Neural Networks for Machine Learning, lecture 6e. Centred form: Graves 2013, arXiv:1308.0850.
//
//   v <- alpha v + (1 - alpha) g^2            p <- p - lr g / (sqrt(v) + eps)
//
// Centred, the variance v - m^2 takes the place of v, with m the average gradient. It is kept itself: e = g - m,
// s <- alpha (s + (1 - alpha) e^2), m <- m + (1 - alpha) e. As the difference of two averages it would cancel.
#pragma once

#include "prologue.hpp"

namespace fusedstep {

/// Where lr enters RMSprop's momentum, with d the root.
enum class MomentumForm : std::uint8_t {
  torch,  ///< b <- mu b + g / d;  p <- p - lr b
  tf,     ///< b <- mu b + lr g / d;  p <- p - b
};

/// v <- alpha v + (1 - alpha) g^2;  p <- p - lr g / (sqrt(v) + eps).        Hinton, lecture 6e; centred: Graves 2013
struct RMSprop {
  double lr = 1e-2;                                  ///< step size, >= 0
  double alpha = 0.9;                                ///< decay of the average, in [0, 1]
  double eps = 1e-8;                                 ///< added to the root, or under it, >= 0
  bool eps_inside_sqrt = false;                      ///< sqrt(v + eps) instead of sqrt(v) + eps
  bool centered = false;                             ///< the variance instead of v, with m the average gradient
  double momentum = 0.0;                             ///< mu, in [0, 1]
  bool nesterov = false;                             ///< the step looks ahead; needs momentum > 0
  MomentumForm momentum_form = MomentumForm::torch;  ///< where lr enters the momentum
  bool bias_correction = false;                      ///< averages divided by 1 - alpha^t; needs alpha < 1
  FUSEDSTEP_DECAY_OPTIONS
  double initial_square_avg = 0.0;  ///< where an Optimizer starts v, >= 0

  /// The formula and the defaults of another framework, by the name of its dialect: "torch", "keras", ... Where the
  /// framework has no default, `lr` is NaN and must be set. std::invalid_argument for any other name.
  static RMSprop like(std::string_view dialect);
};

template <>
struct Schema<RMSprop> {
  using Rule = RMSprop;
  static constexpr const char* name = "rmsprop";
  static constexpr const char* momentum_forms[] = {"torch", "tf"};
  static constexpr schema::Field fields[] = {FUSEDSTEP_FIELD(lr, schema::nonnegative).per_element(),
                                             FUSEDSTEP_FIELD(alpha, schema::unit),
                                             FUSEDSTEP_FIELD(eps, schema::nonnegative),
                                             FUSEDSTEP_FIELD(eps_inside_sqrt),
                                             FUSEDSTEP_FIELD(centered),
                                             FUSEDSTEP_FIELD(momentum, schema::unit),
                                             FUSEDSTEP_FIELD(nesterov),
                                             FUSEDSTEP_FIELD(momentum_form, momentum_forms),
                                             FUSEDSTEP_FIELD(bias_correction),
                                             FUSEDSTEP_DECAY_FIELDS,
                                             FUSEDSTEP_START(initial_square_avg)};
  static constexpr schema::State states[] = {
      {.name = "square_avg", .starts_at = "initial_square_avg", .renamed_with = "centered", .renamed = "variance"},
      {.name = "grad_avg", .used_with = "centered"},
      {.name = "momentum_buffer", .used_with = "momentum"}};
  static constexpr const char* step_used_with = "bias_correction";

  static std::string conflict(const RMSprop& o) {
    if (o.nesterov && o.momentum == 0) return "nesterov: expected momentum > 0, got momentum 0";
    if (o.bias_correction && o.alpha == 1) return "bias_correction: expected alpha < 1, got alpha 1";
    if (o.bias_correction && o.centered && o.initial_square_avg != 0) {
      return "initial_square_avg: expected 0 with centered and bias_correction, which forget it in the first step, got " +
             schema::text(o.initial_square_avg);
    }
    return {};
  }

  static std::string bad_start(const RMSprop& o) {
    return schema::zero_over_zero(o.eps, o.initial_square_avg, "initial_square_avg");
  }

  // The state then holds something else: the variance, or, with both, corrected averages.
  static std::string change(const RMSprop& before, const RMSprop& after) {
    const char* changed = before.centered != after.centered                                   ? "centered"
                          : after.centered && before.bias_correction != after.bias_correction ? "bias_correction"
                                                                                              : nullptr;
    if (changed == nullptr) return {};
    return std::string(changed) + ": expected no change after the start; make a new optimizer";
  }

  static constexpr MomentumForm tf = MomentumForm::tf;
  static constexpr schema::Dialect<RMSprop> dialects[] = {
      {"default",
       "Hinton, lecture 6e",
       "lr alpha eps eps_inside_sqrt centered momentum nesterov momentum_form bias_correction initial_square_avg "
       "weight_decay decoupled_weight_decay maximize",
       {}},
      {"torch", "PyTorch, torch.optim.RMSprop", "lr alpha eps centered momentum weight_decay maximize", {.alpha = 0.99}},
      {"keras",
       "Keras 3, keras.optimizers.RMSprop",
       "lr alpha eps centered momentum weight_decay",
       {.lr = 0.001, .eps = 1e-7, .eps_inside_sqrt = true, .momentum_form = tf, .decoupled_weight_decay = true}},
      {"tf1",
       "TensorFlow 1, tf.train.RMSPropOptimizer",
       "lr alpha eps centered momentum",
       {.lr = schema::required, .eps = 1e-10, .eps_inside_sqrt = true, .momentum_form = tf, .initial_square_avg = 1.0}},
      {"optax",
       "optax.rmsprop",
       "lr alpha eps centered momentum nesterov bias_correction initial_square_avg",
       {.lr = schema::required, .eps_inside_sqrt = true, .momentum_form = tf}},
      {"chainer", "chainer.optimizers.RMSprop, with the hook WeightDecay", "lr alpha eps weight_decay", {.alpha = 0.99}},
      {"lasagne", "lasagne.updates.rmsprop", "lr alpha eps", {.lr = 1.0, .eps = 1e-6, .eps_inside_sqrt = true}},
      {"caffe", "Caffe, RMSPropSolver", "lr alpha eps weight_decay", {.lr = schema::required, .alpha = 0.99}},
      {"mlx", "mlx.optimizers.RMSprop", "lr alpha eps", {.lr = schema::required, .alpha = 0.99}},
      {"timm",
       "timm.optim.RMSpropTF",
       "lr alpha eps centered momentum weight_decay decoupled_weight_decay",
       {.eps = 1e-10, .eps_inside_sqrt = true, .momentum_form = tf, .initial_square_avg = 1.0}},
      {"graves",
       "Graves 2013, arXiv:1308.0850",
       "lr alpha eps momentum",
       {.lr = 1e-4,
        .alpha = 0.95,
        .eps = 1e-4,
        .eps_inside_sqrt = true,
        .centered = true,
        .momentum = 0.9,
        .momentum_form = tf}}};
};

inline RMSprop RMSprop::like(std::string_view dialect) { return schema::like<RMSprop>(dialect); }

}  // namespace fusedstep

#ifdef FUSEDSTEP_KERNELS  // the maths, which only kernels.cpp sees

namespace fusedstep {
namespace {

// What stands under the root: the average square, the same corrected for its start at 0, or the variance.
enum class Average { square, corrected_square, variance };

template <Average average, bool eps_inside_sqrt, bool momentum>
struct RMSpropRule {
  static constexpr bool centered = average == Average::variance;
  static constexpr bool uses[3] = {true, centered, momentum};
  static constexpr bool divides = true;

  template <class T>
  using States = Types<T, T, T>;

  template <class T>
  struct Constants {
    T lr, alpha, w, eps, mu, bc;
    T lr_in_buffer, lr_outside;  // one of them is 1, which changes no bit
    Option<T> nesterov;

    // Centred with bias correction, a weight that starts at 1 makes m and s the corrected averages themselves.
    Constants(const RMSprop& o, std::int64_t t) : nesterov(o.nesterov) {
      const double correction = o.bias_correction ? 1.0 - power(o.alpha, t) : 1.0;
      const double weight = centered ? (1.0 - o.alpha) / correction : 1.0 - o.alpha;
      lr = rounded<T>(o.lr);
      alpha = rounded<T>(centered && o.bias_correction ? 1.0 - weight : o.alpha);
      w = rounded<T>(weight);
      eps = rounded<T>(o.eps);
      mu = rounded<T>(o.momentum);
      bc = rounded<T>(correction);
      lr_in_buffer = o.momentum_form == MomentumForm::tf ? lr : T(1);
      lr_outside = o.momentum_form == MomentumForm::tf ? T(1) : lr;
    }
  };

  template <class T>
  static Values<T, T, T, T> step(T p, T g, T v, T m, T b, const Constants<T>& c) {
    if constexpr (centered) {
      const T e = g - m;
      v = c.alpha * (v + c.w * e * e);
      m = m + c.w * e;
    } else {
      v = c.alpha * v + c.w * g * g;
    }
    const T r = average == Average::corrected_square ? v / c.bc : v;
    const T d = eps_inside_sqrt ? sqrt(r + c.eps) : sqrt(r) + c.eps;
    if constexpr (momentum) {
      const T u = c.lr_in_buffer * g / d;
      b = c.mu * b + u;
      p = p - c.lr_outside * c.nesterov.select(c.mu * b + u, b);
    } else {
      p = p - c.lr * g / d;
    }
    return {p, v, m, b};
  }
};

// f(the rule that these options ask for)
template <class F>
auto compose(const RMSprop& o, F f) {
  return choose(o.eps_inside_sqrt, [&](auto inside) {
    return choose(o.momentum != 0, [&](auto momentum) {
      if (o.centered) return f(RMSpropRule<Average::variance, inside, momentum>{});
      if (o.bias_correction) return f(RMSpropRule<Average::corrected_square, inside, momentum>{});
      return f(RMSpropRule<Average::square, inside, momentum>{});
    });
  });
}

}  // namespace
}  // namespace fusedstep

#endif
