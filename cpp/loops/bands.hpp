// The elements of an array of any layout, in its logical C order.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace fusedstep {

// The layout of an array whose elements, in C order, are not one dense run. Axes that are dense together are merged into
// one.
struct StridedOrder {
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
};

// Reads elements [begin, end) of an array in ascending order. Dense columns, as a Fortran array has them, are turned into
// rows in bands of many rows. Element by element, each cache line would be fetched once for every row.
class InCOrder {
 public:
  InCOrder(const StridedOrder& order, const char* data, std::int64_t item_size, std::int64_t begin, std::int64_t end);

  // Returns elements [begin, begin + n): in place if they are dense there, or copied to `dense`.
  const char* read(std::int64_t begin, std::int64_t n, char* dense);

 private:
  void load_band(std::int64_t row);

  const StridedOrder& order_;
  const char* data_;
  std::int64_t item_;
  std::int64_t end_;

  // The present band; null if bands are not used.
  std::unique_ptr<char[]> band_;
  std::int64_t rows_ = 0;      // at most, in a band
  std::int64_t columns_ = 0;   // of the array
  std::int64_t row_bytes_ = 0;
  std::int64_t first_row_ = 0;
  std::int64_t end_row_ = 0;
};

}  // namespace fusedstep
