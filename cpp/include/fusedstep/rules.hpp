// The rules and their hyperparameters, as plain values in double: what a caller sets. What takes them checks them: a
// value that is not finite or out of its range is a std::invalid_argument with the name, the value and the range.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>

#if defined(FUSEDSTEP_SHARED)
#define FUSEDSTEP_API __attribute__((visibility("default")))
#else
#define FUSEDSTEP_API
#endif

namespace fusedstep {

/// Where lr enters RMSprop's momentum, with d the root.
enum class MomentumForm : std::uint8_t {
  torch,  ///< b <- mu b + g / d;  p <- p - lr b
  tf,     ///< b <- mu b + lr g / d;  p <- p - b
};

/// What Rprop does where the sign of a gradient flipped. Riedmiller & Braun 1993; Igel & Husken 2000, 2003
enum class RpropVariant : std::uint8_t {
  rprop_minus,   ///< moves on by the smaller step
  rprop_plus,    ///< takes the last move back, and forgets the sign
  irprop_minus,  ///< stays, and forgets the sign: the paper's figure, and PyTorch
  irprop_move,   ///< moves on, and forgets the sign: Igel's own code, and OpenCV
  irprop_plus,   ///< takes the last move back if the loss rose, else stays; forgets the sign
  grprop_slr,    ///< moves on; the element of the smallest step makes the whole a direction of descent (R's neuralnet)
  grprop_sag,    ///< moves on; the element of the smallest gradient does
};

/// v <- alpha v + (1 - alpha) g^2;  p <- p - lr g / (sqrt(v) + eps).        Hinton, lecture 6e; centred: Graves 2013
struct RMSprop {
  double lr = 1e-2;                                  ///< step size, >= 0
  double alpha = 0.9;                                ///< decay of the average, in [0, 1]
  double eps = 1e-8;                                 ///< added to the root, or under it, >= 0
  bool eps_inside_sqrt = false;                      ///< sqrt(v + eps) in place of sqrt(v) + eps
  bool centered = false;                             ///< v - m^2 in place of v, m the average gradient; clamped at 0
  double momentum = 0.0;                             ///< mu, in [0, 1]
  bool nesterov = false;                             ///< the step looks ahead; needs momentum > 0
  MomentumForm momentum_form = MomentumForm::torch;  ///< where lr enters the momentum
  bool bias_correction = false;                      ///< averages divided by 1 - alpha^t; needs alpha < 1
  double weight_decay = 0.0;                         ///< wd, >= 0: g + wd p in place of g
  bool decoupled_weight_decay = false;               ///< p <- (1 - lr wd) p before the rule instead
  bool maximize = false;                             ///< ascend
  double initial_square_avg = 0.0;                   ///< where an Optimizer starts v, >= 0

  /// The formula and the defaults of another framework, by name: those that Python's fusedstep.dialects() lists. `lr` is
  /// NaN, which no step takes, where the framework has no default. std::invalid_argument for any other name.
  FUSEDSTEP_API static RMSprop like(std::string_view dialect);
};

/// s <- s + g^2;  p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps).                Duchi, Hazan & Singer 2011
struct Adagrad {
  double lr = 1e-2;                        ///< step size, >= 0
  double eps = 1e-10;                      ///< added to the root, or under it, >= 0
  bool eps_inside_sqrt = false;            ///< sqrt(s + eps) in place of sqrt(s) + eps
  double lr_decay = 0.0;                   ///< decay of the step size with the updates of a parameter, >= 0
  double weight_decay = 0.0;               ///< wd, >= 0: g + wd p in place of g
  bool decoupled_weight_decay = false;     ///< p <- (1 - lr wd) p before the rule instead
  bool maximize = false;                   ///< ascend
  double initial_accumulator_value = 0.0;  ///< where an Optimizer starts s, >= 0

  /// The formula and the defaults of another framework, by name: those that Python's fusedstep.dialects() lists. `lr` is
  /// NaN, which no step takes, where the framework has no default. std::invalid_argument for any other name.
  FUSEDSTEP_API static Adagrad like(std::string_view dialect);
};

/// s <- s + g^2;  a <- lr / sqrt(s);  q <- p - a g;  p <- sign(q) max(|q| - a l1, 0) / (1 + l2 a).
///                                                                               FOBOS: Duchi & Singer 2009, JMLR 10:2899
struct ProximalAdagrad {
  double lr = 1e-2;                        ///< step size, >= 0
  double l1 = 0.0;                         ///< L1 penalty, >= 0
  double l2 = 0.0;                         ///< L2 penalty, >= 0
  double weight_decay = 0.0;               ///< wd, >= 0: g + wd p in place of g
  bool decoupled_weight_decay = false;     ///< p <- (1 - lr wd) p before the rule instead
  bool maximize = false;                   ///< ascend
  double initial_accumulator_value = 0.1;  ///< where an Optimizer starts s, >= 0; 0.1 as in TensorFlow
};

/// G <- G + g;  s <- s + g^2;  p <- -sign(G) lr max(|G| - l1 t, 0) / (l2 t lr + sqrt(s)).      Duchi, Hazan & Singer 2011
struct AdagradDA {
  double lr = 1e-2;                        ///< step size, >= 0
  double l1 = 0.0;                         ///< L1 penalty, >= 0
  double l2 = 0.0;                         ///< L2 penalty, >= 0
  double weight_decay = 0.0;               ///< wd, >= 0: g + wd p in place of g
  bool decoupled_weight_decay = false;     ///< p <- (1 - lr wd) p before the rule instead
  bool maximize = false;                   ///< ascend
  double initial_accumulator_value = 0.1;  ///< where an Optimizer starts s, >= 0; 0.1 as in TensorFlow
};

/// s <- s + ||g||^2, one scalar an array;  p <- p - lr g / (sqrt(s) + eps).                    Ward, Wu & Bottou 2019
struct AdagradNorm {
  double lr = 1e-2;                        ///< step size, >= 0
  double eps = 1e-10;                      ///< added to the root, >= 0
  double weight_decay = 0.0;               ///< wd, >= 0: g + wd p in place of g
  bool decoupled_weight_decay = false;     ///< p <- (1 - lr wd) p before the rule instead
  bool maximize = false;                   ///< ascend
  double initial_accumulator_value = 0.0;  ///< where an Optimizer starts s, >= 0: the paper's b_0^2
};

/// D <- clip(D eta+ or D eta-, lo, hi);  p <- p - sign(g) D.        Riedmiller & Braun 1993; Igel & Husken 2000, 2003
struct Rprop {
  double lr = 1e-2;                                  ///< where an Optimizer starts the step sizes, >= 0
  double etas[2] = {0.5, 1.2};                       ///< eta- in (0, 1), eta+ > 1
  double step_sizes[2] = {1e-6, 50.0};               ///< lo and hi, 0 <= lo <= hi
  RpropVariant variant = RpropVariant::rprop_minus;  ///< what happens where the sign flipped
  bool loss_increased = false;                       ///< irprop+: the loss rose; an Optimizer sees that for itself
  double weight_decay = 0.0;                         ///< wd, >= 0: g + wd p in place of g
  bool decoupled_weight_decay = false;               ///< p <- (1 - lr wd) p before the rule instead
  bool maximize = false;                             ///< ascend

  /// The formula and the defaults of another framework, by name: those that Python's fusedstep.dialects() lists. `lr` is
  /// NaN, which no step takes, where the framework has no default. std::invalid_argument for any other name.
  FUSEDSTEP_API static Rprop like(std::string_view dialect);
};

enum class TrafficStates : std::uint8_t { none, one, two, three };

/// No rule, but the limit to measure rules against: their loads and stores, and one add a store.
struct Traffic {
  TrafficStates states = TrafficStates::one;
  double lr = 0.0;
  double weight_decay = 0.0;
  bool decoupled_weight_decay = false;
  bool maximize = false;
};

/// The same for the loads and stores of Rprop.
struct SignTraffic {
  double lr = 0.0;
  double weight_decay = 0.0;
  bool decoupled_weight_decay = false;
  bool maximize = false;
};

/// What a step does about an inf or a NaN in a gradient.
enum class Nonfinite : std::uint8_t {
  propagate,  ///< nothing
  skip,       ///< changes no byte, and says so in its report
  raise,      ///< changes no byte, and throws
};

/// What a whole step does beside the update; 0 where something is not asked for.
struct StepOptions {
  double grad_scale = 1.0;  ///< what the loss was multiplied by, > 0
  double clip_norm = 0.0;   ///< largest norm of all gradients together
  double clip_value = 0.0;  ///< largest magnitude of an element
  bool zero_grads = false;  ///< whether to set the gradients to 0 in the same pass
  Nonfinite nonfinite = Nonfinite::propagate;
  std::optional<double> loss{};  ///< the loss at these gradients: Rprop's irprop+ asks for it
};

// What is done to a gradient, and by decoupled decay to its parameter, before any rule: the same for every rule.
struct Prologue {
  double unscale = 1.0;
  double clip_value = std::numeric_limits<double>::infinity();
  double clip_coef = 1.0;
  double lr = 0.0;
  double weight_decay = 0.0;
  bool decoupled_weight_decay = false;
  bool maximize = false;
};

}  // namespace fusedstep
