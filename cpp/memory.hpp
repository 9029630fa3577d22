// Memory for states: aligned to cache lines, zero, on huge pages where large.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "include/fusedstep/types.hpp"

namespace fusedstep {

inline constexpr std::size_t cache_line = 64;

struct Unmap {
  std::size_t bytes;
  void operator()(std::byte* memory) const;
};
using Memory = std::unique_ptr<std::byte, Unmap>;

// Pages that nobody has touched, so that they come to lie near the threads that first write them. std::bad_alloc if
// there are none.
Memory allocate(std::size_t bytes);

// Where arrays lie in one piece of memory.
struct Placement {
  std::vector<std::size_t> offsets;
  std::size_t bytes = 0;
};

// Each array on cache lines of its own. Large ones start at page offsets that differ: a load right after a store at the
// same offset of another page waits for it.
Placement place(std::span<const std::size_t> sizes);

// Sets all n elements of a floating-point type to a value, rounded to nearest: each thread those that it will update.
void fill(void* elements, Type type, std::int64_t n, double value);

}  // namespace fusedstep
