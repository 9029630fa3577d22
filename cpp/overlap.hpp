// Which arrays share memory: exact, also for interleaved slices.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checks.hpp"

namespace fusedstep {

// Whether any element of one array shares a byte with any element of the other: exact, also for interleaved slices.
bool share_memory(const Array& a, const Array& b);

// Whether two different elements of the array share a byte (a zero stride, a sliding window).
bool shares_memory_with_itself(const Array& array);

void check_distinct_elements(const Array& written);
void check_disjoint(const Array& a, const Array& b);

// No two of at most eight written arrays, and none that is read with one of those.
void check_disjoint(std::span<const Array* const> written, std::span<const Array* const> read);

// Many written arrays, no two of which may share memory, and which further arrays must keep clear of.
class WrittenMemory {
 public:
  // std::invalid_argument if two of the arrays share memory. What the arrays point at must outlive this object.
  explicit WrittenMemory(std::vector<Array> arrays);
  void check_disjoint_from(const Array& array) const;
  bool is_disjoint_from(const Array& array) const;

 private:
  // f(written array) for each whose extent meets that of another array, until it returns true; whether it did.
  template <class F>
  bool any_near(const Array& array, F f) const;

  struct Extent {
    std::uintptr_t begin;
    std::uintptr_t end;
    std::uintptr_t furthest;  // the largest end so far, in order of begin
    std::size_t array;
  };

  std::vector<Array> arrays_;
  std::vector<Extent> extents_;
  mutable std::size_t after_ = 0;  // the first that begins after the array looked at last: many lie beside each other
};

}  // namespace fusedstep
