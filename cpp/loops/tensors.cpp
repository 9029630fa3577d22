#include "tensors.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace fusedstep {
namespace {

// Buffers for a block of each stream. An odd number of cache lines apart: at equal offsets in a page, a load seems to depend
// on the last store to another buffer.
struct Scratch {
  static constexpr std::size_t apart = block * sizeof(double) + 64;
  alignas(64) char bytes[max_streams * apart];

  void* stream(int s) { return bytes + static_cast<std::size_t>(s) * apart; }
};

void advance(const Work& work, void** streams, void* const* from, std::int64_t elements) {
  for (int s = 0; s < max_streams; ++s) streams[s] = static_cast<char*>(from[s]) + elements * work.item_size[s];
}

void zero_dense(const Work& work, std::int64_t n, void* const* streams) {
  if (!work.zero_gradient) return;
  std::memset(streams[gradient_stream], 0, static_cast<std::size_t>(n * work.item_size[gradient_stream]));
}

// Elements of the parameter before its first cache line border.
std::int64_t before_border(const Work& work, const void* parameter) {
  constexpr std::uintptr_t cache_line = 64;
  const std::uintptr_t past = reinterpret_cast<std::uintptr_t>(parameter) % cache_line;
  return past == 0 ? 0 : static_cast<std::int64_t>(cache_line - past) / work.item_size[0];
}

// A run in every stream: one kernel call. A long run begins with the few elements
// up to a cache line border: NumPy's large arrays all start 16 bytes past one, and wide vectors would each meet two lines
// (Rprop in cache: 1.1 times slower; a short run would not repay the second call).
void update_run(const Tensor& tensor, const Work& work, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t long_run = 4 * block;
  void* streams[max_streams];
  advance(work, streams, tensor.stream, begin);
  if (end - begin >= long_run) {
    const std::int64_t head = before_border(work, streams[0]);
    if (head > 0) {
      work.kernel.update(work.prepared, head, streams);
      begin += head;
      advance(work, streams, tensor.stream, begin);
    }
  }
  work.kernel.update(work.prepared, end - begin, streams);
}

// Each gradient is set to 0 while it is in the first-level cache.
void update_run_by_blocks(const Tensor& tensor, const Work& work, std::int64_t begin, std::int64_t end) {
  void* streams[max_streams];
  for (std::int64_t i = begin; i < end; i += block) {
    const std::int64_t n = std::min(block, end - i);
    advance(work, streams, tensor.stream, i);
    work.kernel.update(work.prepared, n, streams);
    zero_dense(work, n, streams);
  }
}

struct Tile {
  std::int64_t rows;
  std::int64_t columns;
};

template <class T, class F>
void along(std::int64_t n, char* at, std::int64_t step, T* dense, std::int64_t dense_step, F f) {
  for (std::int64_t i = 0; i < n; ++i) f(*reinterpret_cast<T*>(at + i * step), dense[i * dense_step]);
}

// The elements of a stream in a tile, `across` bytes between columns and `down` between rows, each with its place in the
// dense copy. Along the shorter stride, so that the stream's cache lines are used up one by one.
template <class T, class F>
void each(Tile tile, char* at, std::int64_t across, std::int64_t down, T* dense, F f) {
  if (tile.rows > 1 && std::abs(down) < std::abs(across)) {
    for (std::int64_t c = 0; c < tile.columns; ++c) along(tile.rows, at + c * across, down, dense + c, tile.columns, f);
  } else {
    for (std::int64_t r = 0; r < tile.rows; ++r) along(tile.columns, at + r * down, across, dense + r * tile.columns, 1, f);
  }
}

template <class F>
void each(std::int64_t item_size, Tile tile, char* at, std::int64_t across, std::int64_t down, void* dense, F f) {
  if (item_size == 1) each(tile, at, across, down, static_cast<std::int8_t*>(dense), f);
  if (item_size == 4) each(tile, at, across, down, static_cast<float*>(dense), f);
  if (item_size == 8) each(tile, at, across, down, static_cast<double*>(dense), f);
}

constexpr auto load = [](auto& strided, auto& dense) { dense = strided; };
constexpr auto store = [](auto& strided, auto& dense) { strided = dense; };
constexpr auto zero = [](auto& strided, auto&) { strided = 0; };

void update_tile(const Layout& layout, const Work& work, Tile tile, char* const* at, Scratch& scratch) {
  const Dimension& across = layout.dimensions[0];
  const Dimension& down = layout.dimensions[1];
  const auto walk = [&](int s, auto f) {
    each(work.item_size[s], tile, at[s], across.stride[s], down.stride[s], scratch.stream(s), f);
  };
  char* row[max_streams] = {};
  std::int64_t next_row[max_streams] = {};
  for (int s = 0; s < max_streams; ++s) {
    if (work.item_size[s] == 0) continue;
    row[s] = layout.copied[s] ? static_cast<char*>(scratch.stream(s)) : at[s];
    next_row[s] = layout.copied[s] ? tile.columns * work.item_size[s] : down.stride[s];
    if (layout.copied[s]) walk(s, load);
  }
  const Tile run = layout.all_copied ? Tile{1, tile.rows * tile.columns} : tile;
  for (std::int64_t r = 0; r < run.rows; ++r) {
    void* streams[max_streams];
    for (int s = 0; s < max_streams; ++s) streams[s] = row[s] + r * next_row[s];
    work.kernel.update(work.prepared, run.columns, streams);
    if (!layout.copied[gradient_stream]) zero_dense(work, run.columns, streams);
  }
  for (int s = 0; s < max_streams; ++s) {
    if (layout.copied[s] && work.item_size[s] != 0 && s != gradient_stream) walk(s, store);
  }
  if (work.zero_gradient && layout.copied[gradient_stream]) walk(gradient_stream, zero);
}

void update_strided(const Tensor& tensor, const Work& work, std::int64_t first, std::int64_t last) {
  const Layout& layout = *tensor.layout;
  const auto& dimensions = layout.dimensions;
  const std::int64_t across = (dimensions[0].extent + layout.columns - 1) / layout.columns;
  const std::int64_t down = (dimensions[1].extent + layout.rows - 1) / layout.rows;
  Scratch scratch;
  for (std::int64_t tile = first; tile < last; ++tile) {
    const std::int64_t c = tile % across * layout.columns;
    const std::int64_t r = tile / across % down * layout.rows;
    std::int64_t outer = tile / across / down;
    char* at[max_streams] = {};
    for (int s = 0; s < max_streams; ++s) {
      if (work.item_size[s] == 0) continue;
      at[s] = static_cast<char*>(tensor.stream[s]) + c * dimensions[0].stride[s] + r * dimensions[1].stride[s];
    }
    for (std::size_t d = 2; d < dimensions.size(); ++d) {
      const std::int64_t i = outer % dimensions[d].extent;
      outer /= dimensions[d].extent;
      for (int s = 0; s < max_streams; ++s) {
        if (work.item_size[s] != 0) at[s] += i * dimensions[d].stride[s];
      }
    }
    const Tile extent{std::min(layout.rows, dimensions[1].extent - r), std::min(layout.columns, dimensions[0].extent - c)};
    update_tile(layout, work, extent, at, scratch);
  }
}

}  // namespace

void update(const Tensor& tensor, const Work& work, std::int64_t first, std::int64_t last) {
  if (tensor.layout != nullptr) {
    update_strided(tensor, work, first, last);
    return;
  }
  if (!work.zero_gradient && tensor.size <= block) {  // one call for one of many small tensors
    work.kernel.update(work.prepared, tensor.size, tensor.stream);
    return;
  }
  const std::int64_t begin = first * block;
  const std::int64_t end = std::min(last * block, tensor.size);
  if (work.zero_gradient) {
    update_run_by_blocks(tensor, work, begin, end);
  } else {
    update_run(tensor, work, begin, end);
  }
}

}  // namespace fusedstep
