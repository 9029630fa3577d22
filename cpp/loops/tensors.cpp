#include "tensors.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../cache.hpp"
#include "../dispatch.hpp"
#include "../platform.hpp"
#include "noise.hpp"
#include "transpose.hpp"

namespace fusedstep {
namespace {

// Dense copies of a tile, of one stream or of all. The latter are an odd number of cache lines apart: at equal offsets in a
// page, the processor takes a load for dependent on the last store to another buffer.
struct Scratch {
  static constexpr std::size_t apart = block * sizeof(double) + cache_line;
  alignas(cache_line) char bytes[low_stream * apart + block * sizeof(std::uint16_t)];  // low halves come last

  char* stream(const Layout& layout, int s) {
    return layout.one_transposed ? bytes : bytes + static_cast<std::size_t>(s) * apart;
  }
};

void advance(const Work& work, void** streams, void* const* from, std::int64_t elements) {
  for (int s = 0; s < max_streams; ++s) streams[s] = static_cast<char*>(from[s]) + elements * work.storage.item_size[s];
}

void zero_dense(const Work& work, std::int64_t n, void* const* streams) {
  if (!work.zero_gradient) return;
  std::memset(streams[gradient_stream], 0, static_cast<std::size_t>(n * work.storage.item_size[gradient_stream]));
}

// Counts the elements of the parameter before the first cache line border.
std::int64_t before_border(const Work& work, const void* parameter) {
  const auto past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(parameter) % cache_line);
  return past == 0 ? 0 : (cache_line - past) / work.storage.item_size[0];
}

// Updates in converted copies. A separate function, because these need as much of the stack as everything else.
FUSEDSTEP_NOINLINE void update_by_conversion(const Work& work, std::int64_t n, void* const* streams, std::uint64_t key,
                                             const Indices& indices) {
  constexpr std::int64_t apart = block * std::int64_t{sizeof(double)} + cache_line;
  alignas(cache_line) char wide[low_stream * apart];
  std::uint32_t noise[2][block];
  const Wide memory{wide, apart, {noise[0], noise[1]}};
  for (std::int64_t i = 0; i < n; i += block)
    update_converted(work, i, std::min(block, n - i), streams, key, indices, memory);
}

// Updates a dense run in every stream.
void update_dense(const Work& work, std::int64_t n, void* const* streams, std::uint64_t key,
                  const Indices& indices = consecutive) {
  if (work.is_plain) {
    work.kernel.update(work.prepared, n, streams);
  } else {
    update_by_conversion(work, n, streams, key, indices);
  }
}

// Updates a run in every stream by one kernel call. In a long run, the few elements up to a cache line border come first:
// NumPy's large arrays start 16 bytes after one, and each wide vector would touch two lines (Rprop in cache: 1.1 times
// slower). A short run is not worth the second call.
void update_run(const Tensor& tensor, const Work& work, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t long_run = 4 * block;
  void* streams[max_streams];
  advance(work, streams, tensor.stream, begin);
  if (end - begin >= long_run && work.is_plain) {
    const std::int64_t head = before_border(work, streams[0]);
    if (head > 0) {
      work.kernel.update(work.prepared, head, streams);
      begin += head;
      advance(work, streams, tensor.stream, begin);
    }
  }
  update_dense(work, end - begin, streams, tensor.key);
}

// Sets each gradient to 0 while it is in the first-level cache.
void update_run_by_blocks(const Tensor& tensor, const Work& work, std::int64_t begin, std::int64_t end) {
  void* streams[max_streams];
  for (std::int64_t i = begin; i < end; i += block) {
    const std::int64_t n = std::min(block, end - i);
    advance(work, streams, tensor.stream, i);
    update_dense(work, n, streams, tensor.key);
    zero_dense(work, n, streams);
  }
}

struct Tile {
  std::int64_t rows;
  std::int64_t columns;
};

template <class T, class F>
void along(std::int64_t n, char* at, std::int64_t step, T* dense, std::int64_t k, std::int64_t k_step, F f) {
  for (std::int64_t i = 0; i < n; ++i) f(*reinterpret_cast<T*>(at + i * step), dense, k + i * k_step);
}

// Visits the elements of a stream in a tile, `across` bytes between columns and `down` between rows, each with its place in
// the dense copy. It follows the shorter stride, so that cache lines are used up one by one.
template <class T, class F>
void each(Tile tile, char* at, std::int64_t across, std::int64_t down, T* dense, F f) {
  if (tile.rows > 1 && std::abs(down) < std::abs(across)) {
    for (std::int64_t c = 0; c < tile.columns; ++c) along(tile.rows, at + c * across, down, dense, c, tile.columns, f);
  } else {
    for (std::int64_t r = 0; r < tile.rows; ++r) along(tile.columns, at + r * down, across, dense, r * tile.columns, 1, f);
  }
}

template <class F>
void each(std::int64_t item_size, Tile tile, char* at, std::int64_t across, std::int64_t down, void* dense, F f) {
  if (item_size == 1) each(tile, at, across, down, static_cast<std::int8_t*>(dense), f);
  if (item_size == 2) each(tile, at, across, down, static_cast<std::uint16_t*>(dense), f);
  if (item_size == 4) each(tile, at, across, down, static_cast<float*>(dense), f);
  if (item_size == 8) each(tile, at, across, down, static_cast<double*>(dense), f);
}

constexpr auto load = [](auto& strided, auto* dense, std::int64_t k) { dense[k] = strided; };
constexpr auto store = [](auto& strided, auto* dense, std::int64_t k) { strided = dense[k]; };
constexpr auto zero = [](auto& strided, auto*, std::int64_t) { strided = 0; };  // `dense` may be null

// One stream of a tile, with its dense copy. The rows of the copy are `step` bytes apart.
struct Copied {
  std::int64_t item_size;
  Tile tile;
  char* at;
  std::int64_t across;
  std::int64_t down;
  char* dense;
  std::int64_t step;

  template <class F>
  void each_element(F f) const {
    each(item_size, tile, at, across, down, dense, f);
  }

  // The same tile for a transposition, with its rows in the order of memory.
  Copied forwards() const {
    Copied same = *this;
    if (down > 0) return same;
    same.at += (tile.rows - 1) * down;
    same.dense += (tile.rows - 1) * step;
    same.step = -step;
    return same;
  }
  void load_transposed() const {
    const Copied c = forwards();
    transpose(item_size, tile.rows, tile.columns, c.at, across, c.dense, c.step);
  }
  void store_transposed() const {
    const Copied c = forwards();
    transpose(item_size, tile.columns, tile.rows, c.dense, c.step, c.at, across);
  }
};

// The processor can't predict where the next tile begins. So row `r` of a tile fetches its share of the next one (transposed
// gradient in memory: 1.4 times faster). Of a run it asks for the beginning, and the processor fetches the rest itself.
void prefetch_share(const Layout& layout, const Work& work, Tile tile, char* const* next, std::int64_t r) {
  constexpr std::int64_t most_fetched = 8 * cache_line;
  for (int s = 0; s < max_arrays; ++s) {
    const std::int64_t item = work.storage.item_size[s];
    if (item == 0) continue;
    const std::int64_t across = layout.dimensions[0].stride[s];
    const std::int64_t down = layout.dimensions[1].stride[s];
    if (!layout.transposed[s]) {
      prefetch<2>(next[s] + r * down, std::min(tile.columns * item, most_fetched));
      continue;
    }
    const char* const first = down > 0 ? next[s] : next[s] + (tile.rows - 1) * down;
    for (std::int64_t c = tile.columns * r / tile.rows; c < tile.columns * (r + 1) / tile.rows; ++c) {
      prefetch<2>(first + c * across, tile.rows * item);
    }
  }
}

// Updates all streams in place.
void update_apart(const Layout& layout, const Work& work, Tile tile, char* const* at) {
  const Dimension& across = layout.dimensions[0];
  const Dimension& down = layout.dimensions[1];
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    void* streams[max_streams];
    for (int s = 0; s < max_streams; ++s) streams[s] = at[s] == nullptr ? nullptr : at[s] + r * down.stride[s];
    work.kernel.update_apart(work.prepared, tile.columns, streams, across.stride);
  }
  if (!work.zero_gradient) return;
  Copied{work.storage.item_size[gradient_stream],
         tile,
         at[gradient_stream],
         across.stride[gradient_stream],
         down.stride[gradient_stream],
         nullptr,
         0}
      .each_element(zero);
}

// `next` points to the next tile; null if there is none.
void update_tile(const Layout& layout, const Work& work, Tile tile, char* const* at, char* const* next, std::uint64_t key,
                 Scratch& scratch) {
  const Dimension& across = layout.dimensions[0];
  const Dimension& down = layout.dimensions[1];
  const std::int64_t padding = layout.one_transposed && !layout.one_run ? cache_line : 0;
  const auto stream = [&](int s) {
    const std::int64_t item = work.storage.item_size[s];
    return Copied{
        item, tile, at[s], across.stride[s], down.stride[s], scratch.stream(layout, s), tile.columns * item + padding};
  };
  char* row[max_streams] = {};
  std::int64_t next_row[max_streams] = {};
  for (int s = 0; s < max_arrays; ++s) {
    if (!work.storage.uses(s)) continue;
    if (!layout.copied[s]) {
      row[s] = at[s];
      next_row[s] = down.stride[s];
      continue;
    }
    const Copied copy = stream(s);
    row[s] = copy.dense;
    next_row[s] = copy.step;
    if (layout.transposed[s]) {
      copy.load_transposed();
    } else {
      copy.each_element(load);
    }
  }
  row[index_stream] = at[index_stream];
  next_row[index_stream] = down.stride[index_stream];
  const Indices indices{tile.columns, across.stride[index_stream], down.stride[index_stream]};
  const bool ahead = layout.one_transposed && next != nullptr && tile.rows >= 16;
  const Tile run = layout.one_run ? Tile{1, tile.rows * tile.columns} : tile;
  for (std::int64_t r = 0; r < run.rows; ++r) {
    void* streams[max_streams];
    for (int s = 0; s < max_streams; ++s) streams[s] = row[s] + r * next_row[s];
    update_dense(work, run.columns, streams, key, indices);
    if (!layout.copied[gradient_stream]) zero_dense(work, run.columns, streams);
    for (std::int64_t k = 0; ahead && k < tile.rows / run.rows; ++k) prefetch_share(layout, work, tile, next, r + k);
  }
  for (int s = 0; s < max_arrays; ++s) {
    if (!layout.copied[s] || !work.storage.uses(s) || s == gradient_stream) continue;
    if (layout.transposed[s]) {
      stream(s).store_transposed();
    } else {
      stream(s).each_element(store);
    }
  }
  if (work.zero_gradient && layout.copied[gradient_stream]) stream(gradient_stream).each_element(zero);
}

// The places and sizes of tiles.
class Tiles {
 public:
  explicit Tiles(const Tensor& tensor, const Work& work) : tensor_(tensor), work_(work), layout_(*tensor.layout) {}

  Tile place(std::int64_t tile, char** at) const {
    const auto& dimensions = layout_.dimensions;
    const std::int64_t across = (dimensions[0].extent + layout_.columns - 1) / layout_.columns;
    const std::int64_t down = (dimensions[1].extent + layout_.rows - 1) / layout_.rows;
    const std::int64_t c = tile % across * layout_.columns;
    const std::int64_t r = tile / across % down * layout_.rows;
    std::int64_t outer = tile / across / down;
    for (int s = 0; s < max_streams; ++s) {
      if (!work_.storage.uses(s)) continue;
      at[s] = static_cast<char*>(tensor_.stream[s]) + c * dimensions[0].stride[s] + r * dimensions[1].stride[s];
    }
    for (std::size_t d = 2; d < dimensions.size(); ++d) {
      const std::int64_t i = outer % dimensions[d].extent;
      outer /= dimensions[d].extent;
      for (int s = 0; s < max_streams; ++s) {
        if (work_.storage.uses(s)) at[s] += i * dimensions[d].stride[s];
      }
    }
    return {std::min(layout_.rows, dimensions[1].extent - r), std::min(layout_.columns, dimensions[0].extent - c)};
  }

 private:
  const Tensor& tensor_;
  const Work& work_;
  const Layout& layout_;
};

void update_strided(const Tensor& tensor, const Work& work, std::int64_t first, std::int64_t last) {
  const Layout& layout = *tensor.layout;
  const Tiles tiles(tensor, work);
  char* at[max_streams] = {};
  char* next[max_streams] = {};
  Scratch scratch;
  Tile tile = tiles.place(first, at);
  for (std::int64_t i = first; i < last; ++i) {
    const bool more = i + 1 < last;
    const Tile next_tile = more ? tiles.place(i + 1, next) : Tile{};
    if (layout.apart && work.is_plain && work.kernel.update_apart != nullptr) {
      update_apart(layout, work, tile, at);
    } else {
      update_tile(layout, work, tile, at, more ? next : nullptr, tensor.key, scratch);
    }
    std::swap(at, next);
    tile = next_tile;
  }
}

// Updates elements [begin, begin + n), whose streams have the compute type.
void update_by_own_constants(const Work& work, std::int64_t begin, std::int64_t n, void* const* wide, std::uint64_t index,
                             const Indices& indices) {
  const Storage& storage = work.storage;
  for (std::int64_t i = 0; i < n;) {
    void* streams[max_streams] = {};
    for (int s = 0; s < low_stream; ++s) {
      const std::int64_t size = storage.converts(s) ? size_of(storage.compute()) : storage.item_size[s];
      streams[s] = static_cast<char*>(wide[s]) + i * size;
    }
    const std::int64_t count = indices.in_a_row(begin + i, n - i);
    update_each(work, count, streams, static_cast<std::int64_t>(index + indices(begin + i)));
    i += count;
  }
}

// Draws the noise of elements [begin, begin + n) of a run: that of all even ones first if `step` is 2.
void draw_noise(const Work& work, std::int64_t begin, std::int64_t n, void* const* run, std::uint64_t key,
                const Indices& indices, std::int64_t step, const Wide& memory) {
  for (int k = 0; k < work.storage.draws(); ++k) {
    const std::uint64_t own_key = k == 0 ? key : second_key(key);
    for (std::int64_t i = 0, count = 0; i < n; i += count) {
      const std::uint64_t index = index_of(run) + indices(begin + i);
      count = indices.in_a_row(begin + i, n - i);
      for (std::int64_t j = 0; j < std::min(count, step); ++j) {
        std::uint32_t* const to = memory.noise[k] + (i + j) % step * (n / step) + (i + j) / step;
        kernels().conversions.noise((count - j + step - 1) / step, own_key, index + static_cast<std::uint64_t>(j), step, to);
      }
    }
  }
}

// The loop over streams as they are stored, if the rule has one.
NarrowUpdate narrow_update(const Work& work) {
  const Storage& storage = work.storage;
  if (work.own != nullptr) return {};
  for (int s = 0; s < low_stream; ++s) {
    const Type type = storage.type[s];
    if (storage.uses(s) && type != Type::float32 && type != Type::bfloat16 && type != Type::int8) return {};
    if (storage.uses(s) && s > first_state && type != Type::int8 && type != storage.type[first_state]) return {};
  }
  const auto narrow = [&](int stream) { return storage.type[stream] == Type::bfloat16; };
  if (!storage.is_master()) return work.kernel.update_narrow[narrow(0)][narrow(gradient_stream)][narrow(first_state)];
  return narrow(gradient_stream) && narrow(first_state) ? work.kernel.update_master : NarrowUpdate{};
}

}  // namespace

void update_converted(const Work& work, std::int64_t begin, std::int64_t n, void* const* run, std::uint64_t key,
                      const Indices& indices, const Wide& memory) {
  void* streams[max_streams];
  advance(work, streams, run, begin);
  const NarrowUpdate narrow = narrow_update(work);
  const std::int64_t whole = narrow.loop == nullptr ? 0 : n / narrow.at_a_time * narrow.at_a_time;
  if (whole > 0) {
    draw_noise(work, begin, whole, run, key, indices, narrow.noise_step, memory);
    narrow.loop(work.prepared, whole, streams, work.storage.draws() > 0 ? memory.noise : nullptr);
    if (whole == n) return;
    begin += whole;
    n -= whole;
    advance(work, streams, run, begin);
  }
  draw_noise(work, begin, n, run, key, indices, 1, memory);
  const Converted converted(work, n, streams, memory);
  if (work.own == nullptr) {
    work.kernel.update(work.prepared, n, converted.streams());
  } else {
    update_by_own_constants(work, begin, n, converted.streams(), index_of(run), indices);
  }
  converted.store();
}

Converted::Converted(const Work& work, std::int64_t n, void* const* streams, const Wide& memory)
    : work_(work), n_(n), stored_(streams), memory_(memory) {
  const Storage& storage = work.storage;
  const Conversions& conversions = kernels().conversions;
  const auto compute = static_cast<std::size_t>(storage.compute());
  std::copy_n(streams, max_streams, wide_);
  for (int s = 0; s < low_stream; ++s) {
    if (!storage.converts(s)) continue;
    wide_[s] = memory.bytes + s * memory.apart;
    if (s == 0 && storage.is_master()) {
      conversions.join(n, static_cast<const bfloat16*>(streams[0]), static_cast<const std::uint16_t*>(streams[low_stream]),
                       static_cast<float*>(wide_[0]));
    } else {
      conversions.widen[compute][static_cast<std::size_t>(storage.type[s])](n, streams[s], wide_[s]);
    }
  }
}

void Converted::store() const {
  const Storage& storage = work_.storage;
  const Conversions& conversions = kernels().conversions;
  int half = 0;  // which half of the noise; the parameter takes the first
  for (int s = 0; s < low_stream; ++s) {
    if (s == gradient_stream || !storage.uses(s) || storage.type[s] == Type::int8) continue;
    const auto* const wide = static_cast<const float*>(wide_[s]);
    const auto type = static_cast<std::size_t>(storage.type[s]);
    if (s == 0 && storage.is_master()) {
      conversions.split(n_, wide, static_cast<bfloat16*>(stored_[0]), static_cast<std::uint16_t*>(stored_[low_stream]));
    } else if (storage.rounds(s) && storage.rounding == Rounding::nearest) {
      conversions.to_nearest[type](n_, wide, stored_[s]);
    } else if (storage.rounds(s)) {
      conversions.stochastic[type](n_, wide, stored_[s], memory_.noise[half / 2], half % 2 == 1);
    }
    ++half;
  }
}

void update(const Tensor& tensor, const Work& work, std::int64_t first, std::int64_t last) {
  if (tensor.layout != nullptr) {
    update_strided(tensor, work, first, last);
    return;
  }
  if (!work.zero_gradient && tensor.size <= block) {  // the usual case for many small tensors
    update_dense(work, tensor.size, tensor.stream, tensor.key);
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
