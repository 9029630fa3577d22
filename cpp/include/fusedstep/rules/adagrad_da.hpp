// Adagrad with dual averaging: Duchi, Hazan & Singer 2011, JMLR 12:2121. The sum of all gradients G takes the place of the
// parameter's own history.
//
//   G <- G + g      s <- s + g^2      p <- -sign(G) lr max(|G| - l1 t, 0) / (l2 t lr + sqrt(s))
#pragma once

#include "prologue.hpp"

namespace fusedstep {

/// G <- G + g;  s <- s + g^2;  p <- -sign(G) lr max(|G| - l1 t, 0) / (l2 t lr + sqrt(s)).      Duchi, Hazan & Singer 2011
struct AdagradDA {
  double lr = 1e-2;  ///< step size, >= 0
  double l1 = 0.0;   ///< L1 penalty, >= 0
  double l2 = 0.0;   ///< L2 penalty, >= 0
  FUSEDSTEP_DECAY_OPTIONS
  double initial_accumulator_value = 0.1;  ///< where an Optimizer starts s, >= 0; 0.1 as in TensorFlow
};

template <>
struct Schema<AdagradDA> {
  using Rule = AdagradDA;
  static constexpr const char* name = "adagrad_da";
  static constexpr schema::Field fields[] = {
      FUSEDSTEP_FIELD(lr, schema::nonnegative).per_element(), FUSEDSTEP_FIELD(l1, schema::nonnegative),
      FUSEDSTEP_FIELD(l2, schema::nonnegative), FUSEDSTEP_DECAY_FIELDS, FUSEDSTEP_START(initial_accumulator_value)};
  static constexpr schema::State states[] = {{.name = "grad_sum"},
                                             {.name = "square_sum", .starts_at = "initial_accumulator_value"}};
  static constexpr const char* step_used_with = schema::always;

  static std::string conflict(const AdagradDA& o) {
    if (o.weight_decay == 0 || !o.decoupled_weight_decay) return {};
    return "decoupled_weight_decay: expected False with weight_decay, because this rule does not go on from the "
           "parameter, which the decay would shrink";
  }
};

}  // namespace fusedstep

#ifdef FUSEDSTEP_KERNELS  // the maths, which only kernels.cpp sees

namespace fusedstep {
namespace {

struct AdagradDARule {
  static constexpr bool divides = true;

  template <class T>
  using States = Types<T, T>;

  template <class T>
  struct Constants {
    T lr, l1_t, l2_t_lr;

    Constants(const AdagradDA& o, std::int64_t t)
        : lr(rounded<T>(o.lr)),
          l1_t(rounded<T>(o.l1 * static_cast<double>(t))),
          l2_t_lr(rounded<T>(o.l2 * static_cast<double>(t) * o.lr)) {}
  };

  template <class T>
  static Values<T, T, T> step(T p, T g, T G, T s, const Constants<T>& c) {
    G = G + g;
    s = s + g * g;
    const T moved = -sign(G) * c.lr * positive_part(magnitude(G) - c.l1_t) / (c.l2_t_lr + sqrt(s));
    p = s == T(0) ? p : moved;  // no gradient yet
    return {p, G, s};
  }
};

template <class F>
auto compose(const AdagradDA&, F f) {
  return f(AdagradDARule{});
}

}  // namespace
}  // namespace fusedstep

#endif
