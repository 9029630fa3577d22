// The norm's inner loop: squares summed in double, in lanes of fixed number, so that every instruction set adds the
// same numbers in the same order.
#pragma once

#include "../rules/prologue.hpp"
#include "contiguous.hpp"
#include "kernel.hpp"

namespace fusedstep {
namespace {

inline constexpr std::int64_t norm_lanes = 16;

template <class T>
[[gnu::noinline]] double sum_of_squares_loop(const PrologueCoef<T> c, std::int64_t n, const T* __restrict g,
                                             double& poison) noexcept {
  double sum[norm_lanes] = {};
  double bad[norm_lanes] = {};
  const auto add = [&](std::int64_t i, std::int64_t lane) {
    const double x = static_cast<double>(clipped(g[i], c));
    const double raw = static_cast<double>(g[i] * c.unscale);
    sum[lane] += x * x;
    bad[lane] += raw - raw;
  };
  std::int64_t i = 0;
  for (; i + norm_lanes <= n; i += norm_lanes) {
    for (std::int64_t lane = 0; lane < norm_lanes; ++lane) add(i + lane, lane);
  }
  for (std::int64_t lane = 0; i + lane < n; ++lane) add(i + lane, lane);
  for (std::int64_t half = norm_lanes / 2; half > 0; half /= 2) {
    for (std::int64_t lane = 0; lane < half; ++lane) {
      sum[lane] += sum[lane + half];
      bad[lane] += bad[lane + half];
    }
  }
  poison = bad[0];
  return sum[0];
}

template <class T>
double sum_of_squares(const Coefficients& coef, std::int64_t n, const void* g, double& poison) noexcept {
  return sum_of_squares_loop<T>(as<PrologueCoef<T>>(coef), n, static_cast<const T*>(g), poison);
}

}  // namespace
}  // namespace fusedstep
