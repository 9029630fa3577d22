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

// forget: a flip is not remembered, so that the next step neither grows nor shrinks D.
template <OnFlip on_flip, bool forget>
struct RpropRule {
  static constexpr bool uses[] = {true, true};

  template <class T>
  using States = types<T, std::int8_t>;

  template <class T>
  struct Coef {
    T eta_minus, eta_plus, lo, hi;

    Coef(const Rprop& o, std::int64_t)
        : eta_minus(rounded<T>(o.etas[0])),
          eta_plus(rounded<T>(o.etas[1])),
          lo(rounded_limit<T>(o.step_sizes[0])),
          hi(rounded_limit<T>(o.step_sizes[1])) {}
  };

  // Signs are multiplied, never gradients: a product of two small gradients underflows to 0 and D would stop growing.
  template <class T>
  static void step(T& p, T g, T& D, std::int8_t& ps, const Coef<T>& c) {
    const T sg = g > T(0) ? T(1) : g < T(0) ? T(-1) : g;
    const T agreement = sg * static_cast<T>(ps);
    const bool flip = agreement < T(0);
    const T Dn = clamp(D * (agreement > T(0) ? c.eta_plus : flip ? c.eta_minus : T(1)), c.lo, c.hi);

    // The last move was -ps D, and ps = -sg on a flip: taking it back is p + ps D = p - sg D.
    const T moved = p - sg * (on_flip == OnFlip::undo && flip ? D : Dn);
    p = on_flip == OnFlip::stay && flip ? p : moved;
    D = Dn;
    const auto sign = static_cast<std::int8_t>((g > T(0)) - (g < T(0)));
    ps = forget && flip ? std::int8_t(0) : sign;
  }
};

template <class F>
auto compose(const Rprop& o, F f) {
  switch (o.variant) {
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
