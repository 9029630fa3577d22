// Memory for states. It is aligned to cache lines, set to zero, and on huge pages if it is large.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "include/fusedstep/types.hpp"

namespace fusedstep {

struct Unmap {
  std::size_t bytes;
  void operator()(std::byte* memory) const;
};
using Memory = std::unique_ptr<std::byte, Unmap>;

// Returns pages that nobody has touched yet: they are placed near the threads that write them first. Throws std::bad_alloc
// if there are none.
Memory allocate(std::size_t bytes);

// The places of arrays in one piece of memory.
struct Placement {
  std::vector<std::size_t> offsets;
  std::size_t bytes = 0;
};

// Places each array on cache lines of its own. Large arrays start at different offsets in their pages, because a load that
// follows a store to the same offset of another page waits for it.
Placement place(std::span<const std::size_t> sizes);

// Sets all n elements of a floating-point type to a value, rounded to nearest. Each thread sets the elements that it will
// update.
void fill(void* elements, Type type, std::int64_t n, double value);

}  // namespace fusedstep
