// Adadelta: Zeiler 2012, arXiv:1212.5701.
//
//   s <- rho s + (1 - rho) g^2      d <- sqrt(a + eps) / sqrt(s + eps) g      a <- rho a + (1 - rho) d^2      p <- p - lr d
#pragma once

#include "prologue.hpp"

namespace fusedstep {

/// s <- rho s + (1 - rho) g^2;  d <- sqrt(a + eps) / sqrt(s + eps) g;  a <- rho a + (1 - rho) d^2;  p <- p - lr d.
///                                                                                        Zeiler 2012, arXiv:1212.5701
struct Adadelta {
  double lr = 1.0;    ///< factor of the step, >= 0; 1 in the paper
  double rho = 0.9;   ///< decay of both averages, in [0, 1]
  double eps = 1e-6;  ///< added under both roots, >= 0
  FUSEDSTEP_DECAY_OPTIONS

  /// The formula and the defaults of another framework, by the name of its dialect: "torch", "keras", ... Where the
  /// framework has no default, `lr` is NaN and must be set. std::invalid_argument for any other name.
  static Adadelta like(std::string_view dialect);
};

template <>
struct Schema<Adadelta> {
  using Rule = Adadelta;
  static constexpr const char* name = "adadelta";
  static constexpr schema::Field fields[] = {FUSEDSTEP_FIELD(lr, schema::nonnegative).per_element(),
                                             FUSEDSTEP_FIELD(rho, schema::unit), FUSEDSTEP_FIELD(eps, schema::nonnegative),
                                             FUSEDSTEP_DECAY_FIELDS};
  static constexpr schema::State states[] = {{.name = "square_avg"}, {.name = "acc_delta"}};

  static constexpr schema::Dialect<Adadelta> dialects[] = {
      {"default", "Zeiler 2012, arXiv:1212.5701", "lr rho eps weight_decay decoupled_weight_decay maximize", {}},
      {"torch", "PyTorch, torch.optim.Adadelta", "lr rho eps weight_decay maximize", {}},
      {"keras",
       "Keras 3, keras.optimizers.Adadelta",
       "lr rho eps weight_decay",
       {.lr = 0.001, .rho = 0.95, .eps = 1e-7, .decoupled_weight_decay = true}},
      {"optax", "optax.adadelta", "lr rho eps weight_decay", {.lr = schema::required}}};
};

inline Adadelta Adadelta::like(std::string_view dialect) { return schema::like<Adadelta>(dialect); }

}  // namespace fusedstep

#ifdef FUSEDSTEP_KERNELS  // the maths, which only kernels.cpp sees

namespace fusedstep {
namespace {

struct AdadeltaRule {
  static constexpr bool divides = true;

  template <class T>
  using States = Types<T, T>;

  template <class T>
  struct Constants {
    T lr, rho, one_minus_rho, eps;

    Constants(const Adadelta& o, std::int64_t)
        : lr(rounded<T>(o.lr)), rho(rounded<T>(o.rho)), one_minus_rho(rounded<T>(1.0 - o.rho)), eps(rounded<T>(o.eps)) {}
  };

  template <class T>
  static Values<T, T, T> step(T p, T g, T s, T a, const Constants<T>& c) {
    s = c.rho * s + c.one_minus_rho * g * g;
    const T d = sqrt(a + c.eps) / sqrt(s + c.eps) * g;
    a = c.rho * a + c.one_minus_rho * d * d;
    p = p - c.lr * d;
    return {p, s, a};
  }
};

template <class F>
auto compose(const Adadelta&, F f) {
  return f(AdadeltaRule{});
}

}  // namespace
}  // namespace fusedstep

#endif
