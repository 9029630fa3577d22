// What is checked of arrays before the first byte is written. Errors are std::invalid_argument, with the name of the
// array, what was found, what was expected and what to do.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace fusedstep {

// Whose array it is, for messages: "grad", or "gradient of parameter 'layers.0.w' (group 1)".
struct Label {
  const char* role;
  const std::string* parameter = nullptr;
  int group = -1;

  std::string text() const;
};

// An array as it comes in: borrowed, with any strides (in bytes).
struct Array {
  Label label;
  char* data = nullptr;
  std::span<const std::int64_t> shape;
  const std::int64_t* strides = nullptr;
  std::int64_t item_size = 0;

  std::int64_t size() const;
};

std::string shape_text(std::span<const std::int64_t> shape);

// Whether any element of one array shares a byte with any element of the other: exact, also for interleaved slices.
bool share_memory(const Array& a, const Array& b);

// Whether two different elements of the array share a byte (a zero stride, a sliding window).
bool shares_memory_with_itself(const Array& array);

// That no size or offset of the array leaves 64 bits: before any other check, all of which calculate with them.
void check_reach(const Array& array);
void check_shape(const Array& array, const Array& parameter);
void check_distinct_elements(const Array& written);
void check_disjoint(const Array& a, const Array& b);

// Many written arrays, no two of which may share memory, and which further arrays must keep clear of.
class WrittenMemory {
 public:
  // std::invalid_argument if two of the arrays share memory. What the arrays point at must outlive this object.
  explicit WrittenMemory(std::vector<Array> arrays);
  void check_disjoint_from(const Array& array) const;

 private:
  struct Extent {
    std::uintptr_t begin;
    std::uintptr_t end;
    std::uintptr_t furthest;  // the largest end so far, in order of begin
    std::size_t array;
  };

  std::vector<Array> arrays_;
  std::vector<Extent> extents_;
};

}  // namespace fusedstep
