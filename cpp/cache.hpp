// Lines of the processor's caches.
#pragma once

#include <cstdint>

namespace fusedstep {

inline constexpr std::int64_t cache_line = 64;

// Asks for the line of an address, in the first-level cache (3) or the second (2). The asm is an effect: without one GCC 12
// drops the calls of a function that only prefetches, and of all that only call it.
template <int level>
inline void prefetch(const void* data) {
  __builtin_prefetch(data, 0, level);
  asm volatile("");
}

// Asks for all lines of a run of bytes.
template <int level>
inline void prefetch(const void* data, std::int64_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  for (std::uintptr_t line = begin & ~std::uintptr_t{cache_line - 1}; line < begin + static_cast<std::uintptr_t>(bytes);
       line += cache_line) {
    prefetch<level>(reinterpret_cast<const void*>(line));
  }
}

}  // namespace fusedstep
