// Rprop: Riedmiller & Braun 1993; the variants: Igel & Husken 2000, 2003.
//
//   D <- clip(D eta+ or D eta-, lo, hi)  as the sign of g stayed or flipped            p <- p - sign(g) D
#pragma once

#include "prologue.hpp"

namespace fusedstep {

/// What Rprop does where the sign of a gradient flipped. Riedmiller & Braun 1993; Igel & Husken 2000, 2003
enum class RpropVariant : std::uint8_t {
  rprop_minus,   ///< moves on by the smaller step
  rprop_plus,    ///< takes the last move back, and forgets the sign
  irprop_minus,  ///< stays, and forgets the sign: the paper's figure, and PyTorch
  irprop_move,   ///< moves on, and forgets the sign: Igel's own code, and OpenCV
  irprop_plus,   ///< takes the last move back if the loss rose, else stays; forgets the sign
  grprop_slr,    ///< moves on; the element of the smallest step makes the whole a direction of descent (R's neuralnet)
  grprop_sag,    ///< moves on; the element of the smallest gradient does
};

/// D <- clip(D eta+ or D eta-, lo, hi);  p <- p - sign(g) D.        Riedmiller & Braun 1993; Igel & Husken 2000, 2003
struct Rprop {
  double lr = 1e-2;  ///< where an Optimizer starts the step sizes, >= 0; 0: no lower limit
  double etas[2] = {0.5, 1.2};  ///< eta- in (0, 1), eta+ > 1
  double step_sizes[2] = {1e-6, 50.0};  ///< lo and hi, 0 <= lo <= hi
  RpropVariant variant = RpropVariant::rprop_minus;  ///< what happens where the sign flipped
  bool loss_increased = false;  ///< irprop+: the loss rose; an Optimizer sees that for itself
  FUSEDSTEP_DECAY_OPTIONS

  /// The formula and the defaults of another framework, by the name of its dialect: "torch", "shark", ...
  /// std::invalid_argument for any other name.
  static Rprop like(std::string_view dialect);
};

template <>
struct Schema<Rprop> {
  using Rule = Rprop;
  static constexpr const char* name = "rprop";
  static constexpr const char* variants[] = {"rprop-",  "rprop+",     "irprop-",   "irprop-move",
                                             "irprop+", "grprop-slr", "grprop-sag"};
  static constexpr schema::Field fields[] = {
      FUSEDSTEP_FIELD(lr, schema::nonnegative).per_element(),
      FUSEDSTEP_FIELD(etas, schema::shrinking, schema::growing),
      FUSEDSTEP_FIELD(step_sizes, schema::nonnegative, schema::nonnegative).per_element(),
      FUSEDSTEP_FIELD(variant, variants),
      FUSEDSTEP_FIELD(loss_increased).as(schema::Purpose::loss),
      FUSEDSTEP_DECAY_FIELDS};
  static constexpr schema::State states[] = {{.name = "step_size", .starts_at = "lr"},
                                             {.name = "prev_sign", .storage = schema::Storage::int8}};

  static std::string conflict(const Rprop& o) {
    if (o.step_sizes[0] <= o.step_sizes[1]) return {};
    return "step_sizes: expected (smallest, largest), got (" + schema::text(o.step_sizes[0]) + ", " +
           schema::text(o.step_sizes[1]) + ")";
  }

  static constexpr bool signs_only = true;
  static constexpr bool dense_only = true;

  static bool needs_loss(const Rprop& o) { return o.variant == RpropVariant::irprop_plus; }

  static constexpr schema::Dialect<Rprop> dialects[] = {
      {"default", "Riedmiller & Braun 1993", "lr etas step_sizes variant weight_decay decoupled_weight_decay maximize", {}},
      {"torch", "PyTorch, torch.optim.Rprop", "lr etas step_sizes maximize", {.variant = RpropVariant::irprop_minus}},
      {"shark",
       "Shark, IRpropPlus",
       "lr etas step_sizes",
       {.step_sizes = {0.0, 1e100}, .variant = RpropVariant::irprop_plus}},
      {"encog", "Encog, ResilientPropagation", "lr step_sizes", {.lr = 0.1, .variant = RpropVariant::rprop_plus}},
      {"opencv",
       "OpenCV, cv::ml::ANN_MLP",
       "lr etas step_sizes",
       {.lr = 0.1, .step_sizes = {std::numeric_limits<float>::epsilon(), 50.0}, .variant = RpropVariant::irprop_move}},
      {"neuralnet",
       "R, neuralnet::neuralnet",
       "lr etas step_sizes",
       {.lr = 0.1, .step_sizes = {1e-10, 0.1}, .variant = RpropVariant::rprop_plus}}};
};

inline Rprop Rprop::like(std::string_view dialect) { return schema::like<Rprop>(dialect); }

}  // namespace fusedstep

#ifdef FUSEDSTEP_KERNELS  // the maths, which only kernels.cpp sees

namespace fusedstep {
namespace {

// What a variant does where the sign of the gradient flipped: it still moves, takes the last move back, or stays.
enum class OnFlip { move, undo, stay };

template <class T>
struct RpropConstants {
  T eta_minus, eta_plus, lo, hi;

  RpropConstants(const Rprop& o, std::int64_t)
      : eta_minus(rounded<T>(o.etas[0])),
        eta_plus(rounded<T>(o.etas[1])),
        lo(stays(o) ? T(0) : rounded_limit<T>(o.step_sizes[0])),
        hi(rounded_limit<T>(o.step_sizes[1])) {}

  // Whether what started at 0 stays 0. GRprop's chosen element takes a step whatever it started at.
  static bool stays(const Rprop& o) {
    return o.lr == 0 && o.variant != RpropVariant::grprop_slr && o.variant != RpropVariant::grprop_sag;
  }
};

// forget: a flip is not remembered, so that the next step neither grows nor shrinks D.
// as_bytes: signs are compared as bytes (1.2 times as fast where masks are of bits), and not as words in a product. At half
// of AVX-512's width GCC 12 vectorises only the product.
template <OnFlip on_flip, bool forget, bool as_bytes = masks_of_bits>
struct RpropRule {
  static constexpr bool divides = false;
  using InWords = RpropRule<on_flip, forget, false>;
  using Sign = std::conditional_t<as_bytes, std::int8_t, std::int32_t>;  // a stored sign as the rule sees it

  template <class T>
  using States = Types<T, std::int8_t>;

  template <class T>
  using Constants = RpropConstants<T>;

  // Whether both gradients have a sign: neither is 0 or NaN. If a caller put another number into ps, its sign counts. ps is
  // whole, so g ps is 0 only where one of them is 0. The product of two gradients could underflow to 0, and D would stop
  // growing.
  template <class T>
  static bool comparable(T g, Sign ps) {
    if constexpr (as_bytes) {
      return has_sign(g) & (ps != 0);
    } else {
      return has_sign(g * static_cast<T>(ps));
    }
  }

  // Whether both have a sign, and the signs differ.
  template <class T>
  static bool flipped(T g, Sign ps) {
    if constexpr (as_bytes) {
      const bool both = comparable(g, ps);
      const bool differ = static_cast<Sign>(static_cast<Sign>(sign_bits(g)) ^ ps) < 0;
      return both & differ;
    } else {
      return g * static_cast<T>(ps) < T(0);
    }
  }

  template <class T>
  static T resized(T D, T g, Sign ps, const Constants<T>& c) {
    const T eta = flipped(g, ps) ? c.eta_minus : c.eta_plus;
    return clamp(comparable(g, ps) ? D * eta : D, c.lo, c.hi);
  }

  // The last move was -sign(ps) D, and sign(ps) = -sign(g) on a flip: to undo it is p - sign(g) D.
  template <class T>
  static Values<T, T, Sign> step(T p, T g, T D, Sign ps, const Constants<T>& c) {
    const bool flip = flipped(g, ps);
    const T Dn = resized(D, g, ps, c);
    const T moved = minus_product(p, sign(g), on_flip == OnFlip::undo && flip ? D : Dn);
    const Sign sg = stored_sign<Sign>(g);
    p = on_flip == OnFlip::stay && flip ? p : moved;
    ps = forget && flip ? Sign{0} : sg;
    return {p, Dn, ps};
  }
};

// GRprop: Anastasiadis, Magoulas & Vrahatis 2005, Neurocomputing 64:253, in the two forms of R's neuralnet. As Rprop,
// but one element of all takes the step that makes the whole a direction of descent:
//
//   D_k <- clip(-(sum over i != k of D_i g_i + delta) / g_k, lo, hi),     k: smallest D (slr) or smallest |g| (sag)
enum class Smallest { learning_rate, gradient };

template <Smallest smallest>
struct GRpropRule : RpropRule<OnFlip::move, false> {
  using Elsewhere = RpropRule<OnFlip::move, false>;  // the rule of all elements that are not chosen
  using Sign = Elsewhere::Sign;
  static constexpr bool chooses_one = true;
  static constexpr double delta = 1e-6;

  template <class T>
  using Constants = Elsewhere::Constants<T>;

  template <class T>
  static Term term(T, T g, T D, Sign ps, const Constants<T>& c) {
    const T Dn = Elsewhere::resized(D, g, ps, c);
    const double key = static_cast<double>(smallest == Smallest::gradient ? magnitude(g) : Dn);
    return {static_cast<double>(Dn) * static_cast<double>(g), g == T(0) ? std::numeric_limits<double>::infinity() : key};
  }

  // The step of the chosen element, instead of its step by Rprop; `sum` is that over all elements.
  template <class T>
  static Values<T, T, Sign> step_chosen(double sum, T p, T g, T D, Sign ps, const Constants<T>& c) {
    const double rest = sum - term(p, g, D, ps, c).summand;
    D = clamp(rounded<T>(-(rest + delta) / static_cast<double>(g)), c.lo, c.hi);
    p = p - sign(g) * D;
    return {p, D, stored_sign<Sign>(g)};
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

#endif
