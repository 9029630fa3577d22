// Random numbers that any language can reproduce: the upper 24 bits of a 64-bit linear congruential generator.
#pragma once

#include <cstdint>

class Lcg {
 public:
  explicit Lcg(std::uint64_t seed) : state_(seed) {}

  /// A multiple of 2^-23 in [-1, 1): exact in float and in double.
  template <class T>
  T next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<T>(static_cast<std::int64_t>(state_ >> 40) - (1 << 23)) / static_cast<T>(1 << 23);
  }

 private:
  std::uint64_t state_;
};
