// Proximal Adagrad (FOBOS): Duchi & Singer 2009, JMLR 10:2899. A step of Adagrad, then the closest point under an L1 and
// an L2 penalty.
//
//   s <- s + g^2      a <- lr / sqrt(s)      q <- p - a g      p <- sign(q) max(|q| - a l1, 0) / (1 + l2 a)
#pragma once

#include "prologue.hpp"

namespace fusedstep {

/// s <- s + g^2;  a <- lr / sqrt(s);  q <- p - a g;  p <- sign(q) max(|q| - a l1, 0) / (1 + l2 a).
///                                                                               FOBOS: Duchi & Singer 2009, JMLR 10:2899
struct ProximalAdagrad {
  double lr = 1e-2;  ///< step size, >= 0
  double l1 = 0.0;   ///< L1 penalty, >= 0
  double l2 = 0.0;   ///< L2 penalty, >= 0
  FUSEDSTEP_DECAY_OPTIONS
  double initial_accumulator_value = 0.1;  ///< where an Optimizer starts s, >= 0; 0.1 as in TensorFlow
};

template <>
struct Schema<ProximalAdagrad> {
  using Rule = ProximalAdagrad;
  static constexpr const char* name = "proximal_adagrad";
  static constexpr schema::Field fields[] = {
      FUSEDSTEP_FIELD(lr, schema::nonnegative).per_element(), FUSEDSTEP_FIELD(l1, schema::nonnegative),
      FUSEDSTEP_FIELD(l2, schema::nonnegative), FUSEDSTEP_DECAY_FIELDS, FUSEDSTEP_START(initial_accumulator_value)};
  static constexpr schema::State states[] = {{.name = "square_sum", .starts_at = "initial_accumulator_value"}};
};

}  // namespace fusedstep

#ifdef FUSEDSTEP_KERNELS  // the maths, which only kernels.cpp sees

namespace fusedstep {
namespace {

struct ProximalAdagradRule {
  static constexpr bool divides = true;

  template <class T>
  using States = Types<T>;

  template <class T>
  struct Constants {
    T lr, l1, l2;

    Constants(const ProximalAdagrad& o, std::int64_t) : lr(rounded<T>(o.lr)), l1(rounded<T>(o.l1)), l2(rounded<T>(o.l2)) {}
  };

  template <class T>
  static Values<T, T> step(T p, T g, T s, const Constants<T>& c) {
    s = s + g * g;
    const T a = c.lr / sqrt(s);
    const T q = p - a * g;
    const T moved = sign(q) * positive_part(magnitude(q) - a * c.l1) / (T(1) + c.l2 * a);
    p = s == T(0) ? p : moved;  // no gradient yet
    return {p, s};
  }
};

template <class F>
auto compose(const ProximalAdagrad&, F f) {
  return f(ProximalAdagradRule{});
}

}  // namespace
}  // namespace fusedstep

#endif
