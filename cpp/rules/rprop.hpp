// Rprop: Riedmiller & Braun 1993; the variants: Igel & Husken 2000, 2003.
//
//   D <- clip(D eta+ or D eta-, lo, hi)  as the sign of g stayed or flipped            p <- p - sign(g) D
#pragma once

#include "../include/fusedstep/rules.hpp"
#include "math.hpp"

namespace fusedstep {
namespace {

// What a variant does where the sign of the gradient flipped: it moves all the same, takes the last move back, or stays.
enum class OnFlip { move, undo, stay };

template <class T>
struct RpropCoef {
  T eta_minus, eta_plus, lo, hi;

  RpropCoef(const Rprop& o, std::int64_t)
      : eta_minus(rounded<T>(o.etas[0])),
        eta_plus(rounded<T>(o.etas[1])),
        lo(rounded_limit<T>(o.step_sizes[0])),
        hi(rounded_limit<T>(o.step_sizes[1])) {}
};

// forget: a flip is not remembered, so that the next step neither grows nor shrinks D.
// as_bytes: signs are compared as bytes (1.2 times as fast where masks are of bits) and not in a product. At half of
// AVX-512's width GCC 12 vectorises only the product.
template <OnFlip on_flip, bool forget, bool as_bytes = masks_of_bits>
struct RpropRule {
  static constexpr bool uses[2] = {true, true};
  static constexpr bool divides = false;
  using AtHalfWidth = RpropRule<on_flip, forget, false>;

  template <class T>
  using States = types<T, std::int8_t>;

  template <class T>
  using Coef = RpropCoef<T>;

  // Whether the sign of the gradient stayed, or flipped; neither where one of the two is 0 or NaN. Of a number that a
  // caller put into ps the sign counts. ps is whole, so g ps is 0 where one of them is 0 alone; the product of two
  // gradients could underflow to 0, and D would stop growing.
  template <class T>
  static bool stayed(T g, std::int8_t ps) {
    if constexpr (as_bytes) {
      const std::int8_t sg = stored_sign(g);
      return (sg != 0) & (ps != 0) & ((sg ^ ps) >= 0);
    } else {
      return g * static_cast<T>(ps) > T(0);
    }
  }

  template <class T>
  static bool flipped(T g, std::int8_t ps) {
    if constexpr (as_bytes) {
      const std::int8_t sg = stored_sign(g);
      return (sg != 0) & (ps != 0) & ((sg ^ ps) < 0);
    } else {
      return g * static_cast<T>(ps) < T(0);
    }
  }

  template <class T>
  static T resized(T D, T g, std::int8_t ps, const Coef<T>& c) {
    T Dn = stayed(g, ps) ? D * c.eta_plus : D;
    Dn = flipped(g, ps) ? D * c.eta_minus : Dn;
    return clamp(Dn, c.lo, c.hi);
  }

  // The last move was -sign(ps) D, and sign(ps) = -sign(g) on a flip: to undo it is p - sign(g) D.
  template <class T>
  static void step(T& p, T g, T& D, std::int8_t& ps, const Coef<T>& c) {
    const bool flip = flipped(g, ps);
    const T Dn = resized(D, g, ps, c);
    const T move = sign(g) * (on_flip == OnFlip::undo && flip ? D : Dn);
    const std::int8_t sg = stored_sign(g);
    p = on_flip == OnFlip::stay && flip ? p : p - move;
    ps = forget && flip ? std::int8_t{0} : sg;
    D = Dn;
  }
};

// GRprop: Anastasiadis, Magoulas & Vrahatis 2005, Neurocomputing 64:253, in the two forms of R's neuralnet. As Rprop,
// but one element of all takes the step that makes the whole a direction of descent:
//
//   D_k <- clip(-(sum over i != k of D_i g_i + delta) / g_k, lo, hi),     k: smallest D (slr) or smallest |g| (sag)
enum class Smallest { learning_rate, gradient };

template <Smallest smallest>
struct GRpropRule : RpropRule<OnFlip::move, false> {
  using Rprop_ = RpropRule<OnFlip::move, false>;
  static constexpr bool chooses_one = true;
  static constexpr double delta = 1e-6;

  template <class T>
  using Coef = Rprop_::Coef<T>;

  template <class T>
  static Term term(T, T g, T D, std::int8_t ps, const Coef<T>& c) {
    const T Dn = Rprop_::resized(D, g, ps, c);
    const double key = static_cast<double>(smallest == Smallest::gradient ? magnitude(g) : Dn);
    return {static_cast<double>(Dn) * static_cast<double>(g), g == T(0) ? std::numeric_limits<double>::infinity() : key};
  }

  // The step of the chosen element, in place of its step by Rprop; `sum` is that over all elements.
  template <class T>
  static void step_chosen(double sum, T& p, T g, T& D, std::int8_t& ps, const Coef<T>& c) {
    const double rest = sum - term(p, g, D, ps, c).summand;
    D = clamp(rounded<T>(-(rest + delta) / static_cast<double>(g)), c.lo, c.hi);
    p = p - sign(g) * D;
    ps = stored_sign(g);
  }
};

template <class F>
auto compose(const Rprop& o, F f) {
  switch (o.variant) {
    case RpropVariant::grprop_slr:
      return f(GRpropRule<Smallest::learning_rate>{});
    case RpropVariant::grprop_sag:
      return f(GRpropRule<Smallest::gradient>{});
    case RpropVariant::rprop_plus:
      return f(RpropRule<OnFlip::undo, true>{});
    case RpropVariant::irprop_minus:
      return f(RpropRule<OnFlip::stay, true>{});
    case RpropVariant::irprop_move:
      return f(RpropRule<OnFlip::move, true>{});
    case RpropVariant::irprop_plus:
      return o.loss_increased ? f(RpropRule<OnFlip::undo, true>{}) : f(RpropRule<OnFlip::stay, true>{});
    case RpropVariant::rprop_minus:
      break;
  }
  return f(RpropRule<OnFlip::move, false>{});
}

}  // namespace
}  // namespace fusedstep
