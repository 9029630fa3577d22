// Reductions over dense streams: those of rules, and the norm. Sums are in double and in a fixed number of lanes, so that
// every instruction set adds the same numbers in the same order.
#pragma once

#include "update.hpp"

namespace fusedstep {
namespace {

inline constexpr std::int64_t lanes = 16;

// Adds the lanes in pairs.
inline double sum_of_lanes(double* lane) {
  for (std::int64_t half = lanes / 2; half > 0; half /= 2) {
    for (std::int64_t k = 0; k < half; ++k) lane[k] += lane[k + half];
  }
  return lane[0];
}

// Calls add(i, lane) for each element.
template <class F>
inline void by_lanes(std::int64_t n, F add) {
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) add(i + lane, lane);
  }
  for (std::int64_t lane = 0; i + lane < n; ++lane) add(i + lane, lane);
}

template <class T>
FUSEDSTEP_NOINLINE void add_loop(std::int64_t n, const T* __restrict gradients, T* __restrict sums) noexcept {
  for (std::int64_t i = 0; i < n; ++i) sums[i] = sums[i] + load(gradients, i);
}

template <class Rule, class T, template <class> class Before, class... S>
FUSEDSTEP_NOINLINE Reduced reduce_loop(const Loop<Rule, T, Before> c, std::int64_t n, const T* __restrict p,
                                       const T* __restrict g, const S* __restrict... s) noexcept {
  const auto term = [&](std::int64_t i) {
    T parameter = load(p, i);
    T gradient = load(g, i);
    prologue(parameter, gradient, c.before);
    return Rule::template term<T>(parameter, gradient, load(s, i)..., c.rule);
  };
  double sum[lanes] = {};
  by_lanes(n, [&](std::int64_t i, std::int64_t lane) { sum[lane] += term(i).summand; });
  Reduced reduced{.sum = sum_of_lanes(sum)};
  if constexpr (requires { Rule::chooses_one; }) {
    for (std::int64_t i = 0; i < n; ++i) {
      const double key = term(i).key;
      if (key < reduced.key) {
        reduced.key = key;
        reduced.position = i;
      }
    }
  }
  return reduced;
}

template <class T>
FUSEDSTEP_NOINLINE double sum_of_squares_loop(const PrologueConstants<T> c, std::int64_t n, const T* __restrict g,
                                              double& poison) noexcept {
  double sum[lanes] = {};
  double bad[lanes] = {};
  by_lanes(n, [&](std::int64_t i, std::int64_t lane) {
    const double x = static_cast<double>(clipped(g[i], c));
    const double raw = static_cast<double>(g[i] * c.unscale);
    sum[lane] += x * x;
    bad[lane] += raw - raw;
  });
  poison = sum_of_lanes(bad);
  return sum_of_lanes(sum);
}

template <class T>
FUSEDSTEP_NOINLINE double scaled_sum_of_squares_loop(const PrologueConstants<T> c, double scale, std::int64_t n,
                                                     const T* __restrict g) noexcept {
  double sum[lanes] = {};
  by_lanes(n, [&](std::int64_t i, std::int64_t lane) {
    const double x = static_cast<double>(clipped(g[i], c)) * scale;
    sum[lane] += x * x;
  });
  return sum_of_lanes(sum);
}

// The same functions with their types erased.

template <class Rule, class T, template <class> class Before>
struct ErasedReduction {
  using Constants = Loop<Rule, T, Before>;

  static Reduced reduce(const Prepared& prepared, std::int64_t n, void* const* streams) noexcept {
    return Erased<Rule, T, Before>::with_types(streams, [&](auto, const T* p, const T* g, const auto*... s) {
      return reduce_loop(as<Constants>(prepared), n, p, g, s...);
    });
  }

  static void settle(double sum, std::int64_t n, void* scalar, Prepared& prepared) noexcept {
    Constants c = as<Constants>(prepared);
    T& s = *static_cast<T*>(scalar);
    s = Rule::template settle<T>(sum, n, s, c.rule);
    new (prepared.bytes) Constants(c);
  }

  static void update_chosen(double sum, const Prepared& prepared, void* const* streams) noexcept {
    const Constants& c = as<Constants>(prepared);
    Erased<Rule, T, Before>::with_types(
        streams, [&]<std::size_t... k>(std::index_sequence<k...>, T* p, const T* g, auto*... s) {
          T parameter = load(p, 0);
          T gradient = load(g, 0);
          prologue(parameter, gradient, c.before);
          const auto updated = Rule::template step_chosen<T>(sum, parameter, gradient, load(s, 0)..., c.rule);
          store(p, 0, get<0>(updated));
          (store(s, 0, get<1 + k>(updated)), ...);
        });
  }
};

template <class T>
void add(std::int64_t n, const void* gradients, void* sums) noexcept {
  add_loop(n, static_cast<const T*>(gradients), static_cast<T*>(sums));
}

template <class T>
constexpr NormKernel norm_kernel() {
  return {[](const Prologue& prologue, Prepared& out) noexcept { new (out.bytes) PrologueConstants<T>(prologue, 0.0); },
          [](const Prepared& prepared, std::int64_t n, const void* g, double& poison) noexcept {
            return sum_of_squares_loop<T>(as<PrologueConstants<T>>(prepared), n, static_cast<const T*>(g), poison);
          },
          [](const Prepared& prepared, double scale, std::int64_t n, const void* g) noexcept {
            return scaled_sum_of_squares_loop<T>(as<PrologueConstants<T>>(prepared), scale, n, static_cast<const T*>(g));
          }};
}

}  // namespace
}  // namespace fusedstep
