// The order in which the elements of a tensor are walked, when its streams are not all dense in one order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernel.hpp"

namespace fusedstep {

inline constexpr std::size_t max_dimensions = 64;  // NumPy's

struct Dimension {
  std::int64_t extent;
  std::int64_t stride[max_streams];  // in bytes
};

// One stream of a tensor, or the index of its elements, as its owner describes it: any strides, in bytes. A stream that is not used has no strides,
// no data and item size 0.
struct StridedView {
  char* data;
  const std::int64_t* strides;
};

// Tiles over the two innermost dimensions. A stream that is dense along the innermost one is worked on where it lies, row
// by row of the tile; others by way of a dense copy of the tile, or, where all are apart and the rule can, where they lie.
struct Layout {
  std::vector<Dimension> dimensions;  // innermost first, at least two
  std::int64_t columns;               // of a tile
  std::int64_t rows;
  bool copied[max_arrays];
  bool transposed[max_arrays];  // copied, of 4 or 8 bytes, and dense along the second dimension
  bool one_transposed;           // and nothing else is copied
  bool one_run;                  // the rows of a tile follow each other in every stream, or in its copy
  bool apart;                    // no stream is dense, but all run along the innermost dimension
  std::int64_t blocks;
};

// Drops dimensions of extent 1, turns those that run backwards in the first stream, sorts by the first stream's strides
// and merges what is dense together. `data` are the first elements in the new order. True if the walk is flat: one
// dense run in every stream.
bool arrange(std::span<const std::int64_t> shape, std::span<const StridedView> views,
             std::span<const std::int64_t> item_sizes, void** data, Layout& layout);

// Strides in bytes of a dense array in the layout of another: its order of axes, and their directions.
std::vector<std::int64_t> dense_strides(std::span<const std::int64_t> shape, const std::int64_t* strides,
                                        std::int64_t item_size);

// Copies elements [begin, begin + n) of an array, counted with the last axis fastest, to a dense run.
void gather(std::span<const std::int64_t> shape, const std::int64_t* strides, const char* data, std::int64_t item_size,
            std::int64_t begin, std::int64_t n, char* dense);

// The other way.
void scatter(std::span<const std::int64_t> shape, const std::int64_t* strides, char* data, std::int64_t item_size,
             std::int64_t begin, std::int64_t n, const char* dense);

}  // namespace fusedstep
