// What public headers share: visibility, and the element types of arrays.
#pragma once

#include <cstdint>
#include <string>

#if defined(FUSEDSTEP_SHARED) && defined(_WIN32)
#define FUSEDSTEP_API __declspec(dllexport)
#elif defined(FUSEDSTEP_SHARED)
#define FUSEDSTEP_API __attribute__((visibility("default")))
#else
#define FUSEDSTEP_API
#endif

namespace fusedstep {

/// Throws std::invalid_argument. Headers call this, so that they compile without exceptions, too.
[[noreturn]] FUSEDSTEP_API void refuse(const std::string& why);

/// The element type of an array. int8 is the type of Rprop's prev_sign, uint16 that of the low halves of a master parameter,
/// the other integers are those of an index of rows. The C interface has the same numbers.
enum class Type : std::uint8_t { float32, float64, int8, bfloat16, float16, uint16, int32, int64, uint32, uint64 };
inline constexpr int type_count = 10;

/// The size of an element in bytes.
constexpr std::int64_t size_of(Type type) {
  constexpr std::int64_t sizes[] = {4, 8, 1, 2, 2, 2, 4, 8, 4, 8};
  return sizes[static_cast<int>(type)];
}

/// NumPy's name of the type.
constexpr const char* name_of(Type type) {
  constexpr const char* names[] = {"float32", "float64", "int8",  "bfloat16", "float16",
                                   "uint16",  "int32",   "int64", "uint32",   "uint64"};
  return names[static_cast<int>(type)];
}

/// The bits of a bfloat16: the upper half of those of a float.
struct bfloat16 {
  std::uint16_t bits;
};

/// The bits of a float16 of IEEE 754.
struct float16 {
  std::uint16_t bits;
};

/// How a number is rounded to one of 16 bits.
enum class Rounding : std::uint8_t {
  nearest,     ///< to the nearest, ties to even
  stochastic,  ///< up or down, with a probability such that the mean is the number itself
};

}  // namespace fusedstep
