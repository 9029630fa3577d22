// Adagrad-Norm: Ward, Wu & Bottou 2019, ICML. One step size for the whole array.
//
//   s <- s + ||g||^2      p <- p - lr g / (sqrt(s) + eps)
#pragma once

#include "prologue.hpp"

namespace fusedstep {

/// s <- s + ||g||^2, one scalar per array;  p <- p - lr g / (sqrt(s) + eps).                   Ward, Wu & Bottou 2019
struct AdagradNorm {
  double lr = 1e-2;    ///< step size, >= 0
  double eps = 1e-10;  ///< added to the root, >= 0
  FUSEDSTEP_DECAY_OPTIONS
  double initial_accumulator_value = 0.0;  ///< where an Optimizer starts s, >= 0: the paper's b_0^2
};

template <>
struct Schema<AdagradNorm> {
  using Rule = AdagradNorm;
  static constexpr const char* name = "adagrad_norm";
  static constexpr schema::Field fields[] = {FUSEDSTEP_FIELD(lr, schema::nonnegative),
                                             FUSEDSTEP_FIELD(eps, schema::nonnegative), FUSEDSTEP_DECAY_FIELDS,
                                             FUSEDSTEP_START(initial_accumulator_value)};
  static constexpr schema::State states[] = {
      {.name = "square_sum", .storage = schema::Storage::scalar, .starts_at = "initial_accumulator_value"}};

  static std::string bad_start(const AdagradNorm& o) {
    return schema::zero_over_zero(o.eps, o.initial_accumulator_value, "initial_accumulator_value");
  }
};

}  // namespace fusedstep

#ifdef FUSEDSTEP_KERNELS  // the maths, which only kernels.cpp sees

namespace fusedstep {
namespace {

struct AdagradNormRule {
  static constexpr bool divides = true;
  static constexpr bool rare = true;

  template <class T>
  using States = Types<>;

  template <class T>
  struct Constants {
    T lr, eps, d;

    Constants(const AdagradNorm& o, std::int64_t) : lr(rounded<T>(o.lr)), eps(rounded<T>(o.eps)), d(0) {}
  };

  template <class T>
  static Term term(T, T g, const Constants<T>&) {
    return {static_cast<double>(g) * static_cast<double>(g)};
  }

  // The new s, and the divisor of all elements.
  template <class T>
  static T settle(double norm_squared, T s, Constants<T>& c) {
    s = s + rounded<T>(norm_squared);
    c.d = sqrt(s) + c.eps;
    return s;
  }

  template <class T>
  static Values<T> step(T p, T g, const Constants<T>& c) {
    p = p - c.lr * g / c.d;
    return {p};
  }
};

template <class F>
auto compose(const AdagradNorm&, F f) {
  return f(AdagradNormRule{});
}

}  // namespace
}  // namespace fusedstep

#endif
