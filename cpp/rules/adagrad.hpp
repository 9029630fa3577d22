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
  static constexpr bool uses[1] = {true};
  static constexpr bool divides = true;

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

// FOBOS: Duchi & Singer 2009, JMLR 10:2899. A step, then the closest point under an L1 and an L2 penalty.
//
//   s <- s + g^2      a <- lr / sqrt(s)      q <- p - a g      p <- sign(q) max(|q| - a l1, 0) / (1 + l2 a)
struct ProximalAdagradRule {
  static constexpr bool uses[1] = {true};
  static constexpr bool divides = true;

  template <class T>
  using States = types<T>;

  template <class T>
  struct Coef {
    T lr, l1, l2;

    Coef(const ProximalAdagrad& o, std::int64_t) : lr(rounded<T>(o.lr)), l1(rounded<T>(o.l1)), l2(rounded<T>(o.l2)) {}
  };

  template <class T>
  static void step(T& p, T g, T& s, const Coef<T>& c) {
    s = s + g * g;
    const T a = c.lr / sqrt(s);
    const T q = p - a * g;
    const T moved = sign(q) * positive_part(magnitude(q) - a * c.l1) / (T(1) + c.l2 * a);
    p = s == T(0) ? p : moved;  // no gradient yet
  }
};

template <class F>
auto compose(const ProximalAdagrad&, F f) {
  return f(ProximalAdagradRule{});
}

// Dual averaging, with the sum of all gradients G in place of where p has come to.
//
//   G <- G + g      s <- s + g^2      p <- -sign(G) lr max(|G| - l1 t, 0) / (l2 t lr + sqrt(s))
struct AdagradDARule {
  static constexpr bool uses[2] = {true, true};
  static constexpr bool divides = true;

  template <class T>
  using States = types<T, T>;

  template <class T>
  struct Coef {
    T lr, l1_t, l2_t_lr;

    Coef(const AdagradDA& o, std::int64_t t)
        : lr(rounded<T>(o.lr)),
          l1_t(rounded<T>(o.l1 * static_cast<double>(t))),
          l2_t_lr(rounded<T>(o.l2 * static_cast<double>(t) * o.lr)) {}
  };

  template <class T>
  static void step(T& p, T g, T& G, T& s, const Coef<T>& c) {
    G = G + g;
    s = s + g * g;
    const T moved = -sign(G) * c.lr * positive_part(magnitude(G) - c.l1_t) / (c.l2_t_lr + sqrt(s));
    p = s == T(0) ? p : moved;
  }
};

template <class F>
auto compose(const AdagradDA&, F f) {
  return f(AdagradDARule{});
}

// Ward, Wu & Bottou 2019: one step size for the whole array.
//
//   s <- s + ||g||^2      p <- p - lr g / (sqrt(s) + eps)
struct AdagradNormRule {
  static constexpr bool divides = true;

  template <class T>
  using States = types<>;

  template <class T>
  struct Coef {
    T lr, eps, d;

    Coef(const AdagradNorm& o, std::int64_t) : lr(rounded<T>(o.lr)), eps(rounded<T>(o.eps)), d(0) {}
  };

  template <class T>
  static Term term(T, T g, const Coef<T>&) {
    return {static_cast<double>(g) * static_cast<double>(g)};
  }

  template <class T>
  static void settle(double norm_squared, T& s, Coef<T>& c) {
    s = s + rounded<T>(norm_squared);
    c.d = sqrt(s) + c.eps;
  }

  template <class T>
  static void step(T& p, T g, const Coef<T>& c) {
    p = p - c.lr * g / c.d;
  }
};

template <class F>
auto compose(const AdagradNorm&, F f) {
  return f(AdagradNormRule{});
}

}  // namespace
}  // namespace fusedstep
