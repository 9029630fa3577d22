// How streams are stored: loads that widen to the compute type and stores that round. All of it is integer arithmetic, which
// the compiler vectorises on every instruction set.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../include/fusedstep/types.hpp"

namespace fusedstep {
namespace {

inline constexpr std::uint32_t sign_bit = 0x80000000u;
inline constexpr std::uint32_t quiet_nan = 0x7FC00000u;
inline constexpr std::uint32_t exponent_bits = 0x7F800000u;
inline constexpr std::int32_t infinity_bits = 0x7F800000;

inline std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }
inline float float_of(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

// The bits, of which all NaN have the same.
inline std::uint32_t word_of(float x) { return x != x ? quiet_nan : bits_of(x); }

template <class T>
inline T widened(T stored) {
  return stored;
}

inline float widened(bfloat16 stored) { return float_of(static_cast<std::uint32_t>(stored.bits) << 16); }

// Moves the exponent to its place in a float and corrects it by a multiplication, which also makes subnormal numbers normal.
// Exact.
inline float widened(float16 stored) {
  const std::uint32_t bits = stored.bits;
  const std::uint32_t moved = (bits & 0x7FFFu) << 13;
  const std::uint32_t finite = bits_of(float_of(moved) * 0x1p112f);
  const std::uint32_t magnitude = (bits & 0x7C00u) == 0x7C00u ? moved | 0x7F800000u : finite;
  return float_of(magnitude | (bits & 0x8000u) << 16);
}

template <class To>
using Tag = std::type_identity<To>;

// A bfloat16 is the upper half of a word that was rounded.
inline bfloat16 upper_half(std::uint32_t word) { return {static_cast<std::uint16_t>(word >> 16)}; }

// To nearest, ties to even. Beyond the largest finite number, to infinity.
inline std::uint32_t nearest_word(float x) {
  const std::uint32_t b = word_of(x);
  return b + 0x7FFFu + (b >> 16 & 1u);
}

// Rounds up if the dropped fraction plus `u`, 16 random bits, carries. A finite number stays finite.
inline std::uint32_t stochastic_word(float x, std::uint32_t u) {
  const std::uint32_t b = word_of(x);
  const std::uint32_t up = b + u;
  return (up & exponent_bits) == exponent_bits ? b : up;
}

inline bfloat16 to_nearest(Tag<bfloat16>, float x) { return upper_half(nearest_word(x)); }
inline bfloat16 stochastic(Tag<bfloat16>, float x, std::uint32_t u) { return upper_half(stochastic_word(x, u)); }

// For a subnormal result, adding 1/2 rounds the number and leaves the result in the last bits of the sum.
inline float16 to_nearest(Tag<float16>, float x) {
  const std::uint32_t b = bits_of(x);
  const auto m = static_cast<std::int32_t>(b & ~sign_bit);
  const std::int32_t normal = (m - (112 << 23) + 0xFFF + (m >> 13 & 1)) >> 13;
  const auto subnormal = static_cast<std::int32_t>(bits_of(float_of(static_cast<std::uint32_t>(m)) + 0.5f) - bits_of(0.5f));
  std::int32_t r = m < (113 << 23) ? subnormal : normal;
  r = r > 0x7C00 ? 0x7C00 : r;  // beyond: infinity
  r = m > infinity_bits ? 0x7E00 : r;
  return {static_cast<std::uint16_t>(static_cast<std::uint32_t>(r) | (b & sign_bit) >> 16)};
}

// A unit in the last place is 2^13 of a float's, or 2^-24 for a subnormal result. In that case the number is scaled so that
// 2^-24 becomes 2^16.
inline float16 stochastic(Tag<float16>, float x, std::uint32_t u) {
  const std::uint32_t b = bits_of(x);
  const auto m = static_cast<std::int32_t>(b & ~sign_bit);
  const std::int32_t normal = (m - (112 << 23) + static_cast<std::int32_t>(u >> 3)) >> 13;
  const float magnitude = float_of(static_cast<std::uint32_t>(m));
  const float scaled = magnitude < 0x1p-14f ? magnitude * 0x1p40f : 0.0f;
  const std::int32_t subnormal = (static_cast<std::int32_t>(scaled) + static_cast<std::int32_t>(u)) >> 16;
  std::int32_t r = m < (113 << 23) ? subnormal : normal;
  r = r > 0x7BFF ? 0x7BFF : r;
  r = m == infinity_bits ? 0x7C00 : r;
  r = m > infinity_bits ? 0x7E00 : r;
  return {static_cast<std::uint16_t>(static_cast<std::uint32_t>(r) | (b & sign_bit) >> 16)};
}

// A master parameter is a float in two halves. The high half is the bfloat16 nearest to it, ties away from 0. So the two
// halves determine all 32 bits. Here the high half stands in the upper half of a word, and the low one in the lower.
inline constexpr std::uint32_t half_unit = 0x8000u;
inline float joined(std::uint32_t high, std::uint32_t low) { return float_of((high - (low << 1 & 0x10000u)) | low); }

inline float joined(bfloat16 high, std::uint16_t low) { return joined(std::uint32_t{high.bits} << 16, std::uint32_t{low}); }
inline bfloat16 high_bits(float x) { return upper_half(word_of(x) + half_unit); }
inline std::uint16_t low_bits(float x) { return static_cast<std::uint16_t>(word_of(x)); }

}  // namespace
}  // namespace fusedstep
