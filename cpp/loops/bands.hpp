// The elements of an array in its logical C order, whatever its layout.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace fusedstep {

// How an array lies whose elements, in their logical C order, are not one dense run. Axes that lie together are one.
struct StridedOrder {
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
};

// Reads elements [begin, end) of an array, in ascending order. Columns that are dense (a Fortran array has them) are turned
// into rows in bands of many rows: element by element each cache line would be fetched once for each row.
class InCOrder {
 public:
  InCOrder(const StridedOrder& order, const char* data, std::int64_t item_size, std::int64_t begin, std::int64_t end);

  // Elements [begin, begin + n), where they are already dense or copied to `dense`.
  const char* read(std::int64_t begin, std::int64_t n, char* dense);

 private:
  void load_band(std::int64_t row);

  const StridedOrder& order_;
  const char* data_;
  std::int64_t item_;
  std::int64_t end_;

  // One band: null where there are none.
  std::unique_ptr<char[]> band_;
  std::int64_t rows_ = 0;      // at most
  std::int64_t columns_ = 0;   // of the array
  std::int64_t row_bytes_ = 0;
  std::int64_t first_row_ = 0;
  std::int64_t end_row_ = 0;
};

}  // namespace fusedstep
