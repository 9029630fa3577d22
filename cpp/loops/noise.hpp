// The noise of stochastic rounding. It depends only on a key and on the element's index in the C order of its parameter, so
// it is the same for any layout, number of threads and instruction set.
#pragma once

#include <cstdint>
#include <string_view>

namespace fusedstep {
namespace {

// The finaliser of splitmix64 (Steele, Lea & Flood 2014).
constexpr std::uint64_t mix64(std::uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

// FNV-1a (Fowler, Noll & Vo).
constexpr std::uint64_t hash_of(std::string_view name) {
  std::uint64_t h = 0xCBF29CE484222325u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return h;
}

// The key of update number `step` of the parameter whose name has this hash.
constexpr std::uint64_t key_of(std::uint64_t seed, std::int64_t step, std::uint64_t name) {
  return mix64(mix64(mix64(seed) ^ static_cast<std::uint64_t>(step)) ^ name);
}

// The noise of consecutive elements. A call draws 32 bits: the lower half for one value, the upper half for another.
class Noise {
 public:
  static constexpr std::uint32_t increment = 0x9E3779B9u;

  // How many elements one object serves, from this index on, before the upper half of the index changes.
  static constexpr std::int64_t good_for(std::uint64_t index) {
    return (std::int64_t{1} << 32) - static_cast<std::int64_t>(index & 0xFFFFFFFFu);
  }

  constexpr Noise(std::uint64_t key, std::uint64_t index) {
    const std::uint64_t k = mix64(key ^ index >> 32);
    counter_ = static_cast<std::uint32_t>(index) * increment + static_cast<std::uint32_t>(k);
    middle_ = static_cast<std::uint32_t>(k >> 32);
  }

  // Returns the noise of the element and moves on to the one that is `step` after it. The hash is Wellons' lowbias32.
  constexpr std::uint32_t next(std::uint32_t step = 1) {
    std::uint32_t x = counter_;
    counter_ += step * increment;
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= middle_;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    return x ^ x >> 16;
  }

 private:
  std::uint32_t counter_;
  std::uint32_t middle_;
};

// The key for the second and third state of an element.
constexpr std::uint64_t second_key(std::uint64_t key) { return mix64(key); }

}  // namespace
}  // namespace fusedstep
