// The vocabulary of the rules' maths: what plain operators do not say. Only kernels.cpp sees it.
//
// The maths of rules/ and the loops stand in an unnamed namespace on purpose: kernels.cpp is compiled once per instruction
// set, and a symbol that the linker could merge across those objects would bring, say, AVX-512 code into the baseline.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

// Clang defines only the first two; CMakeLists.txt looks at the flags themselves.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(__ASSOCIATIVE_MATH__) || \
    defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "fusedstep is exact to the bit, NaN and infinities included: compile it without -ffast-math and its kin"
#endif

namespace fusedstep {
namespace {

inline float sqrt(float x) { return __builtin_sqrtf(x); }
inline double sqrt(double x) { return __builtin_sqrt(x); }
inline float copysign(float x, float y) { return __builtin_copysignf(x, y); }
inline double copysign(double x, double y) { return __builtin_copysign(x, y); }

// AVX-512 compares into masks of one bit an element, so that what is known of bytes selects among numbers at little cost.
// Elsewhere a mask is as wide as what was compared, and would have to be widened.
#if defined(__AVX512BW__)
inline constexpr bool masks_of_bits = true;
#else
inline constexpr bool masks_of_bits = false;
#endif

// Compare and select, in this order: NaN passes through. min and max instructions have NaN rules of their own.
template <class T>
inline T clamp(T x, T lo, T hi) {
  x = x < lo ? lo : x;
  return x > hi ? hi : x;
}

template <class T>
inline T positive_part(T x) {
  return x < T(0) ? T(0) : x;
}

// x < 0 or x > 0: one comparison. NaN is neither.
template <class T>
inline bool has_sign(T x) {
  return __builtin_islessgreater(x, T(0));
}

template <class T>
using Bits = std::conditional_t<sizeof(T) == sizeof(std::int32_t), std::int32_t, std::int64_t>;

// An option that is constant in a loop: all bits or none. Of a bool GCC makes two loops, or none that it vectorises.
template <class T>
class Option {
 public:
  explicit Option(bool on) : mask_(on ? Bits<T>{-1} : Bits<T>{0}) {}

  T select(T if_on, T if_off) const {
    return __builtin_bit_cast(T,
                              (__builtin_bit_cast(Bits<T>, if_on) & mask_) | (__builtin_bit_cast(Bits<T>, if_off) & ~mask_));
  }

 private:
  Bits<T> mask_;
};

// -1, 0 or 1; NaN and the sign of a zero pass through.
template <class T>
inline T sign(T x) {
  return has_sign(x) ? copysign(T(1), x) : x;
}

// The sign bit, spread over all bits: -1 or 0.
template <class T>
inline Bits<T> sign_bits(T x) {
  return __builtin_bit_cast(Bits<T>, x) >> (8 * sizeof(T) - 1);
}

// The sign as a whole number: -1, 0 or 1; 0 for NaN.
template <class Sign, class T>
inline Sign stored_sign(T x) {
  if constexpr (sizeof(Sign) == 1) {
    return has_sign(x) ? static_cast<Sign>(static_cast<Sign>(sign_bits(x)) | 1) : Sign{0};
  } else {
    return static_cast<Sign>(has_sign(x) ? copysign(T(1), x) : T(0));
  }
}

// p - s D, where s is a sign: s D is exact, so one instruction that rounds once has the same bits.
#if defined(__AVX512F__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
inline float minus_product(float p, float s, float D) { return __builtin_fmaf(-s, D, p); }
inline double minus_product(double p, double s, double D) { return __builtin_fma(-s, D, p); }
#else
template <class T>
inline T minus_product(T p, T s, T D) {
  return p - s * D;
}
#endif

template <class T>
inline T magnitude(T x) {
  return x < T(0) ? -x : x;
}

// The new values of the parameter and of each state, in the rule's order. A list of values initialises it.
template <class V, class... W>
struct Values {
  V first;
  Values<W...> rest;
};

template <class V>
struct Values<V> {
  V first;
};

template <std::size_t k, class V, class... W>
inline auto get(const Values<V, W...>& values) {
  if constexpr (k == 0) {
    return values.first;
  } else {
    return get<k - 1>(values.rest);
  }
}

// What an element adds to a reduction over all elements: a summand; and a key, where the rule looks for the element with
// the smallest.
struct Term {
  double summand;
  double key = 0;
};

// A hyperparameter, rounded once to the compute type. A limit beyond the type's range is its largest finite value.
template <class T>
inline T rounded(double x) {
  return static_cast<T>(x);
}

template <class T>
inline T rounded_limit(double x) {
  const double largest = static_cast<double>(std::numeric_limits<T>::max());
  return static_cast<T>(x > largest ? largest : x);
}

// x^n by repeated squaring, from the lowest bit: libm's pow differs between machines.
inline double power(double x, std::int64_t n) {
  double result = 1.0;
  for (; n > 0; n >>= 1) {
    if (n & 1) result *= x;
    x *= x;
  }
  return result;
}

// f(true_type) or f(false_type): an option that a rule is composed from at compile time.
template <class F>
inline auto choose(bool option, F f) {
  return option ? f(std::true_type{}) : f(std::false_type{});
}

// The types of a rule's states, in its order.
template <class... S>
struct Types {};

}  // namespace
}  // namespace fusedstep
