#include "tensors.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace fusedstep {
namespace {

// Buffers for a block of each stream, and of the gradient as the rule sees it. An odd number of cache lines apart: at
// equal offsets in a page, a load seems to depend on the last store to another buffer.
struct Scratch {
  static constexpr std::size_t apart = block * sizeof(double) + 64;
  alignas(64) char bytes[(max_streams + 1) * apart];

  void* stream(int s) { return bytes + static_cast<std::size_t>(s) * apart; }
  void* gradient() { return stream(max_streams); }
};

constexpr int gradient_stream = 1;

// The block with all its streams dense.
void update_dense(const Work& work, std::int64_t n, void* const* streams, Scratch& scratch) {
  if (work.prologue.gradient == nullptr) {
    work.kernel.update(work.coefficients, n, streams);
    return;
  }
  void* seen[max_streams];
  std::copy_n(streams, max_streams, seen);
  seen[gradient_stream] = scratch.gradient();
  work.prologue.gradient(work.prologue_coefficients, n, streams[0], streams[gradient_stream], scratch.gradient());
  work.kernel.update(work.coefficients, n, seen);
}

void advance(const Work& work, void** streams, void* const* from, std::int64_t elements) {
  for (int s = 0; s < max_streams; ++s) streams[s] = static_cast<char*>(from[s]) + elements * work.item_size[s];
}

void zero_dense(const Work& work, std::int64_t n, void* const* streams) {
  if (!work.zero_gradient) return;
  std::memset(streams[gradient_stream], 0, static_cast<std::size_t>(n * work.item_size[gradient_stream]));
}

// A run in every stream: one kernel call where the rule is all there is to do.
void update_run(const Tensor& tensor, const Work& work, std::int64_t begin, std::int64_t end) {
  void* streams[max_streams];
  advance(work, streams, tensor.stream, begin);
  work.kernel.update(work.coefficients, end - begin, streams);
}

void update_run_by_blocks(const Tensor& tensor, const Work& work, std::int64_t begin, std::int64_t end) {
  Scratch scratch;
  void* streams[max_streams];
  for (std::int64_t i = begin; i < end; i += block) {
    const std::int64_t n = std::min(block, end - i);
    advance(work, streams, tensor.stream, i);
    update_dense(work, n, streams, scratch);
    zero_dense(work, n, streams);
  }
}

// One tile of one stream: `across` between columns, `down` between rows, in bytes.
struct Tile {
  std::int64_t rows;
  std::int64_t columns;
};

template <class T, class F>
void each(Tile tile, char* at, std::int64_t across, std::int64_t down, T* dense, F f) {
  // Along the stream's shorter stride, so that its cache lines are used up one by one.
  if (std::abs(down) < std::abs(across)) {
    for (std::int64_t c = 0; c < tile.columns; ++c) {
      for (std::int64_t r = 0; r < tile.rows; ++r) {
        f(*reinterpret_cast<T*>(at + r * down + c * across), dense[r * tile.columns + c]);
      }
    }
  } else {
    for (std::int64_t r = 0; r < tile.rows; ++r) {
      for (std::int64_t c = 0; c < tile.columns; ++c) {
        f(*reinterpret_cast<T*>(at + r * down + c * across), dense[r * tile.columns + c]);
      }
    }
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
  void* streams[max_streams] = {};
  const auto walk = [&](int s, auto f) {
    each(work.item_size[s], tile, at[s], across.stride[s], down.stride[s], scratch.stream(s), f);
  };
  for (int s = 0; s < max_streams; ++s) {
    if (work.item_size[s] == 0) continue;
    streams[s] = scratch.stream(s);
    walk(s, load);
  }
  update_dense(work, tile.rows * tile.columns, streams, scratch);
  for (int s = 0; s < max_streams; ++s) {
    if (work.item_size[s] != 0 && s != gradient_stream) walk(s, store);
  }
  if (work.zero_gradient) walk(gradient_stream, zero);
}

void update_row(const Work& work, std::int64_t n, char* const* at, Scratch& scratch) {
  void* streams[max_streams];
  std::copy_n(at, max_streams, streams);
  update_dense(work, n, streams, scratch);
  zero_dense(work, n, streams);
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
    if (layout.in_place) {
      update_row(work, extent.columns, at, scratch);
    } else {
      update_tile(layout, work, extent, at, scratch);
    }
  }
}

}  // namespace

void update(const Tensor& tensor, const Work& work, std::int64_t first, std::int64_t last) {
  if (tensor.layout != nullptr) {
    update_strided(tensor, work, first, last);
    return;
  }
  const std::int64_t begin = first * block;
  const std::int64_t end = std::min(last * block, tensor.size);
  if (work.prologue.gradient == nullptr && !work.zero_gradient) {
    update_run(tensor, work, begin, end);
  } else {
    update_run_by_blocks(tensor, work, begin, end);
  }
}

}  // namespace fusedstep
