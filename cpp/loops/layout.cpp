#include "layout.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

namespace fusedstep {
namespace {

// A row of this length is worth a kernel call. Shorter rows are gathered into a tile.
constexpr std::int64_t long_line = 32;

// Sorts a few dimensions and keeps the order of equal ones. std::stable_sort would allocate memory.
template <class T, class Less>
void sort_few(std::vector<T>& few, Less less) {
  for (auto next = few.begin(); next != few.end(); ++next) {
    std::rotate(std::upper_bound(few.begin(), next, *next, less), next, next + 1);
  }
}

std::int64_t tiles(std::int64_t extent, std::int64_t tile) { return (extent + tile - 1) / tile; }

// The common case. It is found without allocating memory.
bool all_c_contiguous(std::span<const std::int64_t> shape, std::span<const StridedView> views,
                      std::span<const std::int64_t> item_sizes) {
  for (std::size_t s = 0; s < views.size(); ++s) {
    if (views[s].strides == nullptr) continue;
    std::int64_t dense = item_sizes[s];
    for (std::size_t axis = shape.size(); axis-- > 0; dense *= shape[axis]) {
      if (shape[axis] != 1 && views[s].strides[axis] != dense) return false;
    }
  }
  return true;
}

// Copies to a dense run, or from one.
template <class Bytes, bool to_dense>
void copy_run_of(std::int64_t n, char* strided, std::int64_t stride, char* dense) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(Bytes));
  for (std::int64_t i = 0; i < n; ++i) {
    std::memcpy(to_dense ? dense + i * size : strided + i * stride, to_dense ? strided + i * stride : dense + i * size,
                sizeof(Bytes));
  }
}

template <bool to_dense>
void copy_run(std::int64_t n, char* strided, std::int64_t stride, std::int64_t item_size, char* dense) {
  if (stride == item_size) {
    std::memcpy(to_dense ? dense : strided, to_dense ? strided : dense, static_cast<std::size_t>(n * item_size));
  } else if (item_size == 8) {
    copy_run_of<double, to_dense>(n, strided, stride, dense);
  } else if (item_size == 4) {
    copy_run_of<float, to_dense>(n, strided, stride, dense);
  } else if (item_size == 2) {
    copy_run_of<std::uint16_t, to_dense>(n, strided, stride, dense);
  } else {
    copy_run_of<std::int8_t, to_dense>(n, strided, stride, dense);
  }
}

template <bool to_dense>
void copy(std::span<const std::int64_t> shape, const std::int64_t* strides, char* data, std::int64_t item_size,
          std::int64_t begin, std::int64_t n, char* dense) {
  std::int64_t at[max_dimensions];
  for (std::size_t axis = shape.size(); axis-- > 0; begin /= shape[axis]) {
    at[axis] = begin % shape[axis];
    data += at[axis] * strides[axis];
  }
  const std::size_t last = shape.size() - 1;  // an array without axes has one element
  while (n > 0) {
    const std::int64_t run = shape.empty() ? 1 : std::min(n, shape[last] - at[last]);
    copy_run<to_dense>(run, data, shape.empty() ? 0 : strides[last], item_size, dense);
    n -= run;
    dense += run * item_size;
    if (n == 0) return;
    // Goes to the first element of the next row.
    data -= at[last] * strides[last];
    at[last] = 0;
    for (std::size_t axis = last; axis-- > 0;) {
      if (++at[axis] < shape[axis]) {
        data += strides[axis];
        break;
      }
      data -= (shape[axis] - 1) * strides[axis];
      at[axis] = 0;
    }
  }
}

}  // namespace

bool arrange(std::span<const std::int64_t> shape, std::span<const StridedView> views,
             std::span<const std::int64_t> item_sizes, void** data, Layout& layout) {
  const std::size_t streams = views.size();
  for (std::size_t s = 0; s < streams; ++s) data[s] = views[s].data;

  if (all_c_contiguous(shape, views, item_sizes)) return true;

  auto& dimensions = layout.dimensions;
  dimensions.clear();
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    if (shape[axis] == 1) continue;
    Dimension dimension{shape[axis], {}};
    for (std::size_t s = 0; s < streams; ++s) dimension.stride[s] = views[s].strides == nullptr ? 0 : views[s].strides[axis];
    if (dimension.stride[0] < 0) {
      for (std::size_t s = 0; s < streams; ++s) {
        data[s] = static_cast<char*>(data[s]) + (dimension.extent - 1) * dimension.stride[s];
        dimension.stride[s] = -dimension.stride[s];
      }
    }
    dimensions.push_back(dimension);
  }
  sort_few(dimensions, [](const Dimension& a, const Dimension& b) { return a.stride[0] < b.stride[0]; });

  std::size_t kept = 0;
  for (std::size_t i = 1; i < dimensions.size(); ++i) {
    Dimension& inner = dimensions[kept];
    const Dimension& outer = dimensions[i];
    bool together = true;
    for (std::size_t s = 0; s < streams; ++s) together &= outer.stride[s] == inner.extent * inner.stride[s];
    if (together) {
      inner.extent *= outer.extent;
    } else {
      dimensions[++kept] = outer;
    }
  }
  if (!dimensions.empty()) dimensions.resize(kept + 1);

  const auto dense = [&](std::size_t s) { return dimensions[0].stride[s] == item_sizes[s]; };
  bool all_dense = true;
  for (std::size_t s = 0; s < streams && !dimensions.empty(); ++s) all_dense &= dense(s);
  if (all_dense && dimensions.size() <= 1) return true;

  while (dimensions.size() < 2) dimensions.push_back({1, {}});
  const std::int64_t n0 = dimensions[0].extent;
  const std::int64_t n1 = dimensions[1].extent;
  int streams_copied = 0;
  layout.one_run = true;
  layout.one_transposed = false;
  layout.apart = n0 >= long_line;
  bool all_copied = true;
  for (std::size_t s = 0; s < max_arrays; ++s) {
    layout.copied[s] = layout.transposed[s] = false;
    if (item_sizes[s] == 0) continue;
    const std::int64_t across = std::abs(dimensions[0].stride[s]);
    const std::int64_t down = std::abs(dimensions[1].stride[s]);
    layout.copied[s] = n0 < long_line || !dense(s);
    layout.transposed[s] = layout.copied[s] && item_sizes[s] >= 4 && n1 > 1 && down == item_sizes[s] && across >= down;
    layout.one_transposed |= layout.transposed[s];
    layout.one_run &= layout.copied[s] || dimensions[1].stride[s] == n0 * item_sizes[s];
    layout.apart &= layout.copied[s] && (n1 == 1 || across <= down);
    all_copied &= layout.copied[s];
    streams_copied += layout.copied[s];
  }
  layout.one_transposed &= streams_copied == 1;
  if (streams_copied == 0 || layout.apart) {
    layout.columns = std::min(n0, block);
    layout.rows = 1;
  } else if (layout.one_transposed) {
    // Takes many rows, because each column of the tile begins and ends within a cache line, which is then fetched twice.
    constexpr std::int64_t row_bytes = 1024;
    constexpr std::int64_t tile_bytes = 32 * row_bytes;
    const std::int64_t item = *std::max_element(item_sizes.begin(), item_sizes.end());
    layout.columns = std::min(n0, row_bytes / item);
    layout.rows = std::min(n1, tile_bytes / (layout.columns * item) / 16 * 16);
  } else {
    // Takes so many rows that a stream along the other dimension still uses whole cache lines.
    layout.columns = std::min<std::int64_t>(n0, 64);
    layout.rows = std::min(n1, block / layout.columns);
    layout.columns = std::min(n0, block / layout.rows);
  }
  layout.one_run = all_copied || (layout.one_run && layout.columns == n0);
  layout.blocks = tiles(n0, layout.columns) * tiles(n1, layout.rows);
  for (std::size_t i = 2; i < dimensions.size(); ++i) layout.blocks *= dimensions[i].extent;
  return false;
}

std::vector<std::int64_t> dense_strides(std::span<const std::int64_t> shape, const std::int64_t* strides,
                                        std::int64_t item_size) {
  std::vector<std::size_t> axes(shape.size());
  std::iota(axes.begin(), axes.end(), std::size_t{0});
  sort_few(axes, [&](std::size_t a, std::size_t b) { return std::abs(strides[a]) > std::abs(strides[b]); });
  std::vector<std::int64_t> dense(shape.size());
  for (std::size_t k = axes.size(); k-- > 0; item_size *= shape[axes[k]]) {
    dense[axes[k]] = strides[axes[k]] < 0 ? -item_size : item_size;
  }
  return dense;
}

void gather(std::span<const std::int64_t> shape, const std::int64_t* strides, const char* data, std::int64_t item_size,
            std::int64_t begin, std::int64_t n, char* dense) {
  copy<true>(shape, strides, const_cast<char*>(data), item_size, begin, n, dense);
}

void scatter(std::span<const std::int64_t> shape, const std::int64_t* strides, char* data, std::int64_t item_size,
             std::int64_t begin, std::int64_t n, const char* dense) {
  copy<false>(shape, strides, data, item_size, begin, n, const_cast<char*>(dense));
}

}  // namespace fusedstep
