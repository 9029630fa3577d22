// What is done to a gradient, and by decoupled decay to its parameter, before any rule sees them.
//
//   g <- g unscale      g <- clip(g, -clip_value, clip_value)      g <- g coef      g <- -g      g <- g + wd p
//   p <- p (1 - lr wd)                                                      decoupled: Loshchilov & Hutter 2019
#pragma once

#include "../include/fusedstep/rules.hpp"
#include "math.hpp"

namespace fusedstep {
namespace {

template <class T>
struct PrologueCoef {
  T unscale, clip_value, coef, weight_decay, decay;

  explicit PrologueCoef(const Prologue& o)
      : unscale(rounded<T>(o.unscale)),
        clip_value(rounded<T>(o.clip_value)),
        coef(o.maximize ? -rounded<T>(o.clip_coef) : rounded<T>(o.clip_coef)),  // g coef, then -g: the sign is exact
        weight_decay(rounded<T>(o.weight_decay)),
        decay(rounded<T>(1.0 - o.lr * o.weight_decay)) {}
};

// Multiplying by 1 and clipping at infinity change no bit, so these options need no variants of their own.
template <class T>
inline T clipped(T g, const PrologueCoef<T>& c) {
  g = g * c.unscale;
  return g > c.clip_value ? c.clip_value : g < -c.clip_value ? -c.clip_value : g;
}

// Adding 0 p does change bits (-0, inf, NaN), so coupled decay is a variant; decoupled decay, which writes p, another.
enum class Decay { none, coupled, decoupled };

template <Decay decay, class T>
inline T prologue(T g, T& p, const PrologueCoef<T>& c) {
  g = clipped(g, c) * c.coef;
  if constexpr (decay == Decay::coupled) g = g + c.weight_decay * p;
  if constexpr (decay == Decay::decoupled) p = p * c.decay;
  return g;
}

}  // namespace
}  // namespace fusedstep
