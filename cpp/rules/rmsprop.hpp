// RMSprop: Hinton, Neural Networks for Machine Learning, lecture 6e. Centred form: Graves 2013, arXiv:1308.0850.
//
//   v <- alpha v + (1 - alpha) g^2            p <- p - lr g / (sqrt(v) + eps)
#pragma once

#include "../include/fusedstep/rules.hpp"
#include "math.hpp"

namespace fusedstep {
namespace {

enum class Momentum { none, torch, tf, torch_nesterov, tf_nesterov };

template <bool centered, bool eps_inside_sqrt, bool bias_correction, Momentum momentum>
struct RMSpropRule {
  static constexpr bool uses[3] = {true, centered, momentum != Momentum::none};
  static constexpr bool divides = true;

  template <class T>
  using States = types<T, T, T>;

  template <class T>
  struct Coef {
    T lr, alpha, one_minus_alpha, eps, mu, bc;

    Coef(const RMSprop& o, std::int64_t t)
        : lr(rounded<T>(o.lr)),
          alpha(rounded<T>(o.alpha)),
          one_minus_alpha(rounded<T>(1.0 - o.alpha)),
          eps(rounded<T>(o.eps)),
          mu(rounded<T>(o.momentum)),
          bc(bias_correction ? rounded<T>(1.0 - __builtin_pow(o.alpha, static_cast<double>(t))) : T(1)) {}
  };

  template <class T>
  static void step(T& p, T g, T& v, T& m, T& b, const Coef<T>& c) {
    v = c.alpha * v + c.one_minus_alpha * g * g;
    if constexpr (centered) m = c.alpha * m + c.one_minus_alpha * g;

    T r = v;
    if constexpr (bias_correction) r = r / c.bc;
    if constexpr (centered) {
      const T mean = bias_correction ? m / c.bc : m;
      r = positive_part(r - mean * mean);
    }
    const T d = eps_inside_sqrt ? sqrt(r + c.eps) : sqrt(r) + c.eps;

    if constexpr (momentum == Momentum::none) {
      p = p - c.lr * g / d;
    } else if constexpr (momentum == Momentum::torch || momentum == Momentum::torch_nesterov) {
      const T u = g / d;
      b = c.mu * b + u;
      p = p - c.lr * (momentum == Momentum::torch_nesterov ? c.mu * b + u : b);
    } else {
      const T u = c.lr * g / d;
      b = c.mu * b + u;
      p = p - (momentum == Momentum::tf_nesterov ? c.mu * b + u : b);
    }
  }
};

// f(the rule that these options ask for)
template <class F>
auto compose(const RMSprop& o, F f) {
  return choose(o.centered, [&](auto centered) {
    return choose(o.eps_inside_sqrt, [&](auto inside) {
      return choose(o.bias_correction, [&](auto bias) {
        const auto with = [&]<Momentum momentum>() { return f(RMSpropRule<centered, inside, bias, momentum>{}); };
        if (o.momentum == 0) return with.template operator()<Momentum::none>();
        if (o.momentum_form == MomentumForm::torch) {
          return o.nesterov ? with.template operator()<Momentum::torch_nesterov>()
                            : with.template operator()<Momentum::torch>();
        }
        return o.nesterov ? with.template operator()<Momentum::tf_nesterov>() : with.template operator()<Momentum::tf>();
      });
    });
  });
}

}  // namespace
}  // namespace fusedstep
