// Adagrad-Norm: Ward, Wu & Bottou 2019, ICML. One step size for the whole array, or, as in FBGEMM, one for each row.
//
//   s <- s + ||g||^2      p <- p - lr g / (sqrt(s) + eps)                              the mean of g^2 instead, with `mean`
#pragma once

#include "prologue.hpp"

namespace fusedstep {

/// What has a step size of its own.
enum class Per : std::uint8_t { array, row };

/// s <- s + ||g||^2, one scalar per array or row;  p <- p - lr g / (sqrt(s) + eps).                   Ward, Wu & Bottou 2019
struct AdagradNorm {
  double lr = 1e-2;    ///< step size, >= 0
  double eps = 1e-10;  ///< added to the root, >= 0
  Per per = Per::array;  ///< one s for the array, or one for each row
  bool mean = false;     ///< the mean of the squares of a row instead of their sum
  FUSEDSTEP_DECAY_OPTIONS
  double initial_accumulator_value = 0.0;  ///< where an Optimizer starts s, >= 0: the paper's b_0^2
};

template <>
struct Schema<AdagradNorm> {
  using Rule = AdagradNorm;
  static constexpr const char* name = "adagrad_norm";
  static constexpr const char* pers[] = {"array", "row"};
  static constexpr schema::Field fields[] = {FUSEDSTEP_FIELD(lr, schema::nonnegative).per_element(),
                                             FUSEDSTEP_FIELD(eps, schema::nonnegative),
                                             FUSEDSTEP_FIELD(per, pers),
                                             FUSEDSTEP_FIELD(mean),
                                             FUSEDSTEP_DECAY_FIELDS,
                                             FUSEDSTEP_START(initial_accumulator_value)};
  static constexpr schema::State states[] = {{.name = "square_sum",
                                              .storage = schema::Storage::scalar,
                                              .starts_at = "initial_accumulator_value",
                                              .per_row_with = "per"}};

  static std::string conflict(const AdagradNorm& o) {
    if (o.mean && o.per == Per::array) return "mean: expected per 'row', got per 'array'";
    return {};
  }

  // The state then is another array, or holds something else.
  static std::string change(const AdagradNorm& before, const AdagradNorm& after) {
    const char* changed = before.per != after.per ? "per" : before.mean != after.mean ? "mean" : nullptr;
    if (changed == nullptr) return {};
    return std::string(changed) + ": expected no change after the start; make a new optimizer";
  }

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

  template <class T>
  using States = Types<>;

  template <class T>
  struct Constants {
    T lr, eps, d;
    bool mean;

    Constants(const AdagradNorm& o, std::int64_t) : lr(rounded<T>(o.lr)), eps(rounded<T>(o.eps)), d(0), mean(o.mean) {}
  };

  template <class T>
  static Term term(T, T g, const Constants<T>&) {
    return {static_cast<double>(g) * static_cast<double>(g)};
  }

  // The new s, and the divisor of all n elements.
  template <class T>
  static T settle(double norm_squared, std::int64_t n, T s, Constants<T>& c) {
    if (c.mean) norm_squared = norm_squared / static_cast<double>(n);
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
