// Streams that are not stored in the compute type. A block is widened before an update and rounded after it, and stays in
// the first-level cache meanwhile. In a single loop for any types, GCC mostly packs and unpacks (1.7 to 2.5 times as long on
// AVX2); narrow.hpp has loops for the types that are used most.
#pragma once

#include "kernel.hpp"
#include "noise.hpp"
#include "storage.hpp"

namespace fusedstep {
namespace {

template <class E, class T>
void widen(std::int64_t n, const void* from, void* to) noexcept {
  const auto* const stored = static_cast<const E*>(from);
  auto* const wide = static_cast<T*>(to);
  for (std::int64_t i = 0; i < n; ++i) wide[i] = static_cast<T>(widened(stored[i]));
}

template <class E>
void round_to_nearest(std::int64_t n, const float* from, void* to) noexcept {
  auto* const stored = static_cast<E*>(to);
  for (std::int64_t i = 0; i < n; ++i) stored[i] = to_nearest(Tag<E>{}, from[i]);
}

template <class E>
void round_stochastically(std::int64_t n, const float* from, void* to, const std::uint32_t* noise, bool upper) noexcept {
  auto* const stored = static_cast<E*>(to);
  const int shift = upper ? 16 : 0;
  for (std::int64_t i = 0; i < n; ++i) stored[i] = stochastic(Tag<E>{}, from[i], noise[i] >> shift & 0xFFFFu);
}

inline void join(std::int64_t n, const bfloat16* high, const std::uint16_t* low, float* to) noexcept {
  for (std::int64_t i = 0; i < n; ++i) to[i] = joined(high[i], low[i]);
}

inline void split(std::int64_t n, const float* from, bfloat16* high, std::uint16_t* low) noexcept {
  for (std::int64_t i = 0; i < n; ++i) {
    high[i] = high_bits(from[i]);
    low[i] = low_bits(from[i]);
  }
}

inline void draw(std::int64_t n, std::uint64_t key, std::uint64_t index, std::int64_t step, std::uint32_t* to) noexcept {
  while (n > 0) {
    Noise noise(key, index);
    const std::int64_t most = (Noise::good_for(index) + step - 1) / step;
    const std::int64_t count = n < most ? n : most;
    for (std::int64_t i = 0; i < count; ++i) to[i] = noise.next(static_cast<std::uint32_t>(step));
    to += count;
    index += static_cast<std::uint64_t>(count * step);
    n -= count;
  }
}

constexpr Conversions conversions() {
  Conversions made{};
  constexpr auto at = [](Type type) { return static_cast<std::size_t>(type); };
  made.widen[at(Type::float32)][at(Type::bfloat16)] = widen<bfloat16, float>;
  made.widen[at(Type::float32)][at(Type::float16)] = widen<float16, float>;
  made.widen[at(Type::float64)][at(Type::bfloat16)] = widen<bfloat16, double>;
  made.widen[at(Type::float64)][at(Type::float16)] = widen<float16, double>;
  made.widen[at(Type::float64)][at(Type::float32)] = widen<float, double>;
  made.to_nearest[at(Type::bfloat16)] = round_to_nearest<bfloat16>;
  made.to_nearest[at(Type::float16)] = round_to_nearest<float16>;
  made.stochastic[at(Type::bfloat16)] = round_stochastically<bfloat16>;
  made.stochastic[at(Type::float16)] = round_stochastically<float16>;
  made.join = join;
  made.split = split;
  made.noise = draw;
  return made;
}

}  // namespace
}  // namespace fusedstep
