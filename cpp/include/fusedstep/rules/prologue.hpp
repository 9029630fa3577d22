// What happens to a gradient, and by decoupled decay to its parameter, before any rule sees them: the same for every rule.
//
//   g <- g unscale      g <- clip(g, -clip_value, clip_value)      g <- g coef      g <- -g      g <- g + wd p
//   p <- p (1 - lr wd)                                                      decoupled: Loshchilov & Hutter 2019
#pragma once

#include "schema.hpp"

/// The options that every rule has.
#define FUSEDSTEP_DECAY_OPTIONS                                                            \
  double weight_decay = 0.0;           /**< wd, >= 0: g + wd p instead of g */             \
  bool decoupled_weight_decay = false; /**< p <- (1 - lr wd) p before the rule, instead */ \
  bool maximize = false;               /**< ascend instead of descend */

#define FUSEDSTEP_DECAY_FIELDS                                                                              \
  FUSEDSTEP_FIELD(weight_decay, ::fusedstep::schema::nonnegative), FUSEDSTEP_FIELD(decoupled_weight_decay), \
      FUSEDSTEP_FIELD(maximize)

#ifdef FUSEDSTEP_KERNELS  // the maths, which only kernels.cpp sees

#include "maths.hpp"

namespace fusedstep {
namespace {

template <class T>
struct PrologueConstants {
  T unscale, clip_value, coef, weight_decay, decay;
  Option<T> coupled;

  template <class Prologue>
  PrologueConstants(const Prologue& o, double lr)
      : unscale(rounded<T>(o.unscale)),
        clip_value(rounded<T>(o.clip_value)),
        coef(o.maximize ? -rounded<T>(o.clip_coef) : rounded<T>(o.clip_coef)),  // g coef, then -g: the sign is exact
        weight_decay(rounded<T>(o.weight_decay)),
        decay(o.decoupled_weight_decay ? rounded<T>(1.0 - lr * o.weight_decay) : T(1)),
        coupled(o.weight_decay != 0 && !o.decoupled_weight_decay) {}
};

template <class T>
inline T clipped(T g, const PrologueConstants<T>& c) {
  g = g * c.unscale;
  return g > c.clip_value ? c.clip_value : g < -c.clip_value ? -c.clip_value : g;
}

// One form for all options: to multiply by 1, to clip at infinity and to add -0 change no bit. Adding 0 p would (-0, inf,
// NaN).
template <class T>
inline void prologue(T& p, T& g, const PrologueConstants<T>& c) {
  g = clipped(g, c) * c.coef;
  g = g + c.coupled.select(c.weight_decay * p, T(-0.0));
  p = p * c.decay;
}

}  // namespace
}  // namespace fusedstep

#endif
