// Finds arrays that share memory. Exact, also for interleaved slices.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checks.hpp"

namespace fusedstep {

// Whether an element of one array shares a byte with an element of the other.
bool share_memory(const Array& a, const Array& b);

// Whether two different elements of the array share a byte, as with a stride of 0 or in a sliding window.
bool shares_memory_with_itself(const Array& array);

void check_distinct_elements(const Array& written);
void check_disjoint(const Array& a, const Array& b);

// Refuses at most eight written arrays of which two share memory, or one shares memory with an array that is read.
void check_disjoint(std::span<const Array* const> written, std::span<const Array* const> read);

// Many written arrays that must not share memory, with each other or with further arrays.
class WrittenMemory {
 public:
  // Throws std::invalid_argument if two of the arrays share memory. What the arrays point at must outlive this object.
  explicit WrittenMemory(std::vector<Array> arrays);
  void check_disjoint_from(const Array& array) const;
  bool is_disjoint_from(const Array& array) const;

 private:
  // Calls f(written array) for each one whose extent meets that of another array, until f returns true. Returns whether it
  // did.
  template <class F>
  bool any_near(const Array& array, F f) const;

  struct Extent {
    std::uintptr_t begin;
    std::uintptr_t end;
    std::uintptr_t furthest;  // the largest end of this and all earlier entries
    std::size_t array;
  };

  std::vector<Array> arrays_;
  std::vector<Extent> extents_;
  mutable std::size_t after_ = 0;  // where the last search ended: the next array often lies beside it
};

}  // namespace fusedstep
