// What is checked of each array before the first byte is written. Errors are std::invalid_argument, with the name of the
// array, what was expected, what was found and what to do.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "include/fusedstep/types.hpp"

namespace fusedstep {

// Whose array it is, for messages: "grad", or "gradient of parameter 'layers.0.w' (group 1)".
struct Label {
  const char* role;
  const std::string* parameter = nullptr;
  int group = -1;

  std::string text() const;
};

// An array as it comes in: borrowed, with any strides (in bytes). Null data: there is no array.
struct Array {
  Label label;
  char* data = nullptr;
  Type type = Type::float32;
  std::span<const std::int64_t> shape;
  const std::int64_t* strides = nullptr;

  std::int64_t size() const;
  std::int64_t item_size() const { return size_of(type); }
};

std::string shape_text(std::span<const std::int64_t> shape);

[[noreturn]] void refuse_type(const Array& array, const std::string& expected);

// float32 or float64.
void check_parameter_type(const Array& array);

// That no size or offset of the array leaves 64 bits: before any other check, all of which calculate with them.
void check_reach(const Array& array);
void check_shape(const Array& array, const Array& parameter);

}  // namespace fusedstep
