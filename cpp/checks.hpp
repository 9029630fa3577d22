// Checks of each array before the first byte is written. Errors are std::invalid_argument; they name the array, what was
// expected, what was found and what to do.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "include/fusedstep/types.hpp"

namespace fusedstep {

// The name of an array in messages: "grad", or "gradient of parameter 'layers.0.w' (group 1)".
struct Label {
  const char* role;
  const std::string* parameter = nullptr;
  int group = -1;

  std::string text() const;
};

// A borrowed array with any strides, in bytes. Null data means that there is no array.
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

// The types that an array may have.
class TypeSet {
 public:
  constexpr TypeSet(std::initializer_list<Type> types) {
    for (const Type type : types) bits_ |= bit(type);
  }
  constexpr TypeSet(Type type) : bits_(bit(type)) {}  // NOLINT: implicit on purpose
  constexpr bool has(Type type) const { return (bits_ & bit(type)) != 0; }
  std::string text() const;  // "float32 or bfloat16"

 private:
  static constexpr unsigned bit(Type type) { return 1u << static_cast<int>(type); }
  unsigned bits_ = 0;
};

inline constexpr TypeSet parameter_types{Type::float32, Type::float64, Type::bfloat16, Type::float16};

// The types whose values the compute type holds exactly.
constexpr TypeSet gradient_types(Type parameter) {
  return parameter == Type::float64 ? parameter_types : TypeSet{Type::float32, Type::bfloat16, Type::float16};
}

[[noreturn]] void refuse_type(const Array& array, TypeSet expected);

// Refuses an array with a size or an offset beyond 64 bits. It comes before all other checks, which calculate with them.
void check_reach(const Array& array);
void check_shape(const Array& array, const Array& parameter);

// Refuses an array without dimensions.
void check_has_rows(const Array& parameter);

}  // namespace fusedstep
