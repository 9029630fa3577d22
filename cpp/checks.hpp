// What is checked of each array before the first byte is written. Errors are std::invalid_argument, with the name of the
// array, what was expected, what was found and what to do.
#pragma once

#include <cstdint>
#include <initializer_list>
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

// Types that an array may have.
class TypeSet {
 public:
  constexpr TypeSet(std::initializer_list<Type> types) {
    for (const Type type : types) bits_ |= bit(type);
  }
  constexpr TypeSet(Type type) : bits_(bit(type)) {}  // NOLINT: an implicit conversion is meant
  constexpr bool has(Type type) const { return (bits_ & bit(type)) != 0; }
  std::string text() const;  // "float32 or bfloat16"

 private:
  static constexpr unsigned bit(Type type) { return 1u << static_cast<int>(type); }
  unsigned bits_ = 0;
};

inline constexpr TypeSet parameter_types{Type::float32, Type::float64, Type::bfloat16, Type::float16};

// Those that the computation holds exactly.
constexpr TypeSet gradient_types(Type parameter) {
  return parameter == Type::float64 ? parameter_types : TypeSet{Type::float32, Type::bfloat16, Type::float16};
}

[[noreturn]] void refuse_type(const Array& array, TypeSet expected);

// That no size or offset of the array leaves 64 bits: before any other check, all of which calculate with them.
void check_reach(const Array& array);
void check_shape(const Array& array, const Array& parameter);

// At least one dimension.
void check_has_rows(const Array& parameter);

}  // namespace fusedstep
