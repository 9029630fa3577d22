// The order in which a tensor is walked when its streams are not all dense in one order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernel.hpp"

namespace fusedstep {

inline constexpr std::size_t max_dimensions = 64;  // as in NumPy

struct Dimension {
  std::int64_t extent;
  std::int64_t stride[max_streams];  // in bytes
};

// One stream of a tensor, or the index of its elements, with any strides in bytes. A stream that is not used has no strides,
// no data and item size 0.
struct StridedView {
  char* data;
  const std::int64_t* strides;
};

// Tiles over the two innermost dimensions. A stream that is dense along the innermost one is updated in place, row by row of
// the tile. Other streams are updated in a dense copy of the tile. If all are strided and the rule supports it, all are
// updated in place.
struct Layout {
  std::vector<Dimension> dimensions;  // innermost first, at least two
  std::int64_t columns;               // of a tile
  std::int64_t rows;
  bool copied[max_arrays];
  bool transposed[max_arrays];  // copied, has 4 or 8 bytes per element, and is dense along the second dimension
  bool one_transposed;           // and no other stream is copied
  bool one_run;                  // the rows of a tile are one run in every stream or its copy
  bool apart;                    // no stream is dense, but in all the innermost dimension has the shortest steps
  std::int64_t blocks;
};

// Drops dimensions of extent 1, reverses those that run backwards in the first stream, sorts by the first stream's strides
// and merges what is dense together. Sets `data` to the first elements in the new order. Returns true if every stream is one
// dense run.
bool arrange(std::span<const std::int64_t> shape, std::span<const StridedView> views,
             std::span<const std::int64_t> item_sizes, void** data, Layout& layout);

// Returns the strides in bytes of a dense array that has the order of axes, and their directions, of another.
std::vector<std::int64_t> dense_strides(std::span<const std::int64_t> shape, const std::int64_t* strides,
                                        std::int64_t item_size);

// Copies elements [begin, begin + n) of an array, in C order, to a dense run.
void gather(std::span<const std::int64_t> shape, const std::int64_t* strides, const char* data, std::int64_t item_size,
            std::int64_t begin, std::int64_t n, char* dense);

// Copies them back.
void scatter(std::span<const std::int64_t> shape, const std::int64_t* strides, char* data, std::int64_t item_size,
             std::int64_t begin, std::int64_t n, const char* dense);

}  // namespace fusedstep
