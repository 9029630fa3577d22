// Adagrad: Duchi, Hazan & Singer 2011, JMLR 12:2121.
//
//   s <- s + g^2            p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)
#pragma once

#include "../include/fusedstep/rules.hpp"
#include "math.hpp"

namespace fusedstep {
namespace {

template <bool eps_inside_sqrt>
struct AdagradRule {
  static constexpr bool uses[] = {true};

  template <class T>
  using States = types<T>;

  template <class T>
  struct Coef {
    T clr, eps;

    Coef(const Adagrad& o, std::int64_t t)
        : clr(rounded<T>(o.lr / (1.0 + static_cast<double>(t - 1) * o.lr_decay))), eps(rounded<T>(o.eps)) {}
  };

  template <class T>
  static void step(T& p, T g, T& s, const Coef<T>& c) {
    s = s + g * g;
    const T d = eps_inside_sqrt ? sqrt(s + c.eps) : sqrt(s) + c.eps;
    p = p - c.clr * g / d;
  }
};

template <class F>
auto compose(const Adagrad& o, F f) {
  return choose(o.eps_inside_sqrt, [&](auto inside) { return f(AdagradRule<inside>{}); });
}

}  // namespace
}  // namespace fusedstep
