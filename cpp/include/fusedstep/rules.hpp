// The rules and their hyperparameters, as plain values in double: what a caller sets.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

namespace fusedstep {

enum class MomentumForm : std::uint8_t { torch, tf };

enum class RpropVariant : std::uint8_t {
  rprop_minus,
  rprop_plus,
  irprop_minus,
  irprop_move,
  irprop_plus,
  grprop_slr,
  grprop_sag,
};

/// v <- alpha v + (1 - alpha) g^2;  p <- p - lr g / (sqrt(v) + eps).        Hinton, lecture 6e; centred: Graves 2013
struct RMSprop {
  double lr = 1e-2;
  double alpha = 0.9;
  double eps = 1e-8;
  bool eps_inside_sqrt = false;
  bool centered = false;
  double momentum = 0.0;
  bool nesterov = false;
  MomentumForm momentum_form = MomentumForm::torch;
  bool bias_correction = false;
  double weight_decay = 0.0;
  bool decoupled_weight_decay = false;
  bool maximize = false;
};

/// s <- s + g^2;  p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps).                Duchi, Hazan & Singer 2011
struct Adagrad {
  double lr = 1e-2;
  double eps = 1e-10;
  bool eps_inside_sqrt = false;
  double lr_decay = 0.0;
  double weight_decay = 0.0;
  bool decoupled_weight_decay = false;
  bool maximize = false;
};

/// s <- s + g^2;  a <- lr / sqrt(s);  q <- p - a g;  p <- sign(q) max(|q| - a l1, 0) / (1 + l2 a).
///                                                                               FOBOS: Duchi & Singer 2009, JMLR 10:2899
struct ProximalAdagrad {
  double lr = 1e-2;
  double l1 = 0.0;
  double l2 = 0.0;
  double weight_decay = 0.0;
  bool decoupled_weight_decay = false;
  bool maximize = false;
};

/// G <- G + g;  s <- s + g^2;  p <- -sign(G) lr max(|G| - l1 t, 0) / (l2 t lr + sqrt(s)).      Duchi, Hazan & Singer 2011
struct AdagradDA {
  double lr = 1e-2;
  double l1 = 0.0;
  double l2 = 0.0;
  double weight_decay = 0.0;
  bool decoupled_weight_decay = false;
  bool maximize = false;
};

/// s <- s + ||g||^2, one scalar an array;  p <- p - lr g / (sqrt(s) + eps).                    Ward, Wu & Bottou 2019
struct AdagradNorm {
  double lr = 1e-2;
  double eps = 1e-10;
  double weight_decay = 0.0;
  bool decoupled_weight_decay = false;
  bool maximize = false;
};

/// D <- clip(D eta+ or D eta-, lo, hi);  p <- p - sign(g) D.        Riedmiller & Braun 1993; Igel & Husken 2000, 2003
struct Rprop {
  double lr = 1e-2;
  double etas[2] = {0.5, 1.2};
  double step_sizes[2] = {1e-6, 50.0};
  RpropVariant variant = RpropVariant::rprop_minus;
  bool loss_increased = false;
  double weight_decay = 0.0;
  bool decoupled_weight_decay = false;
  bool maximize = false;
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

enum class Nonfinite : std::uint8_t { propagate, skip, raise };

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
