#include "transpose.hpp"

#include <cstring>
#include <type_traits>

namespace fusedstep {
namespace {

// The elements are copied as unsigned integers, which keeps every bit of a NaN.
template <class Bits>
void copy(std::int64_t rows, std::int64_t columns, const char* from, std::int64_t from_step, char* to,
          std::int64_t to_step) {
  constexpr std::int64_t size = sizeof(Bits);
  for (std::int64_t c = 0; c < columns; ++c) {
    for (std::int64_t r = 0; r < rows; ++r) std::memcpy(to + r * to_step + c * size, from + c * from_step + r * size, size);
  }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FUSEDSTEP_SHUFFLES
#endif
#endif

#ifdef FUSEDSTEP_SHUFFLES
// Vectors of 128 bits, which every x86-64 and AArch64 has. Wider ones are not faster here, because the copy waits for loads
// and stores.
using Four = std::uint32_t __attribute__((vector_size(16)));
using Two = std::uint64_t __attribute__((vector_size(16)));

template <class Vector>
Vector load_vector(const char* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class Vector>
void store_vector(char* to, Vector vector) {
  std::memcpy(to, &vector, sizeof vector);
}

inline void square(const char* from, std::int64_t from_step, char* to, std::int64_t to_step, Four) {
  const Four a = load_vector<Four>(from);
  const Four b = load_vector<Four>(from + from_step);
  const Four c = load_vector<Four>(from + 2 * from_step);
  const Four d = load_vector<Four>(from + 3 * from_step);
  const Two ab_low = reinterpret_cast<Two>(__builtin_shufflevector(a, b, 0, 4, 1, 5));
  const Two ab_high = reinterpret_cast<Two>(__builtin_shufflevector(a, b, 2, 6, 3, 7));
  const Two cd_low = reinterpret_cast<Two>(__builtin_shufflevector(c, d, 0, 4, 1, 5));
  const Two cd_high = reinterpret_cast<Two>(__builtin_shufflevector(c, d, 2, 6, 3, 7));
  store_vector(to, __builtin_shufflevector(ab_low, cd_low, 0, 2));
  store_vector(to + to_step, __builtin_shufflevector(ab_low, cd_low, 1, 3));
  store_vector(to + 2 * to_step, __builtin_shufflevector(ab_high, cd_high, 0, 2));
  store_vector(to + 3 * to_step, __builtin_shufflevector(ab_high, cd_high, 1, 3));
}

inline void square(const char* from, std::int64_t from_step, char* to, std::int64_t to_step, Two) {
  const Two a = load_vector<Two>(from);
  const Two b = load_vector<Two>(from + from_step);
  store_vector(to, __builtin_shufflevector(a, b, 0, 2));
  store_vector(to + to_step, __builtin_shufflevector(a, b, 1, 3));
}

// Goes down four columns at a time, so that only four lines of `from` are in use. If columns are a power of 2 apart, more
// would not fit in the cache.
template <class Vector>
void by_squares(std::int64_t rows, std::int64_t columns, const char* from, std::int64_t from_step, char* to,
                std::int64_t to_step) {
  constexpr std::int64_t side = sizeof(Vector) / sizeof(Vector{}[0]);
  constexpr std::int64_t item = sizeof(Vector{}[0]);
  using Bits = std::remove_reference_t<decltype(Vector{}[0])>;
  const std::int64_t whole_rows = rows / side * side;
  const std::int64_t whole_columns = columns / 4 * 4;
  for (std::int64_t c = 0; c < whole_columns; c += 4) {
    for (std::int64_t r = 0; r < whole_rows; r += side) {
      for (std::int64_t k = 0; k < 4; k += side) {
        square(from + (c + k) * from_step + r * item, from_step, to + r * to_step + (c + k) * item, to_step, Vector{});
      }
    }
  }
  copy<Bits>(rows - whole_rows, whole_columns, from + whole_rows * item, from_step, to + whole_rows * to_step, to_step);
  copy<Bits>(rows, columns - whole_columns, from + whole_columns * from_step, from_step, to + whole_columns * item, to_step);
}
#endif

}  // namespace

void transpose(std::int64_t item_size, std::int64_t rows, std::int64_t columns, const char* from, std::int64_t from_step,
               char* to, std::int64_t to_step) {
#ifdef FUSEDSTEP_SHUFFLES
  if (item_size == 4) by_squares<Four>(rows, columns, from, from_step, to, to_step);
  if (item_size == 8) by_squares<Two>(rows, columns, from, from_step, to, to_step);
#else
  if (item_size == 4) copy<std::uint32_t>(rows, columns, from, from_step, to, to_step);
  if (item_size == 8) copy<std::uint64_t>(rows, columns, from, from_step, to, to_step);
#endif
}

}  // namespace fusedstep
