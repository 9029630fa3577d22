// The norm's inner loop: squares summed in double, in lanes of fixed number, so that every instruction set adds the
// same numbers in the same order.
#pragma once

#include "../rules/prologue.hpp"
#include "contiguous.hpp"
#include "kernel.hpp"

namespace fusedstep {
namespace {

template <class T>
[[gnu::noinline]] double sum_of_squares_loop(const PrologueCoef<T> c, std::int64_t n, const T* __restrict g,
                                             double& poison) noexcept {
  double sum[lanes] = {};
  double bad[lanes] = {};
  const auto add = [&](std::int64_t i, std::int64_t lane) {
    const double x = static_cast<double>(clipped(g[i], c));
    const double raw = static_cast<double>(g[i] * c.unscale);
    sum[lane] += x * x;
    bad[lane] += raw - raw;
  };
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) add(i + lane, lane);
  }
  for (std::int64_t lane = 0; i + lane < n; ++lane) add(i + lane, lane);
  poison = sum_of_lanes(bad);
  return sum_of_lanes(sum);
}

template <class T>
double sum_of_squares(const Coefficients& coef, std::int64_t n, const void* g, double& poison) noexcept {
  return sum_of_squares_loop<T>(as<PrologueCoef<T>>(coef), n, static_cast<const T*>(g), poison);
}

}  // namespace
}  // namespace fusedstep
