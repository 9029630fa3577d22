#include "rows.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "cache.hpp"
#include "dispatch.hpp"
#include "loops/layout.hpp"
#include "loops/storage.hpp"
#include "overlap.hpp"
#include "parallel.hpp"
#include "platform.hpp"

namespace fusedstep {
namespace {

// A row of this many elements repays a kernel call of its own, where it lies; shorter ones are gathered, many at a time.
constexpr std::int64_t long_row = 16;
constexpr std::int64_t most_gathered = 128;

// How many rows before its turn a long row is fetched. Short ones are gathered: the loads do not wait for each other anyway.
constexpr std::int64_t rows_ahead = 8;

// Sums that stay in the second-level cache with what is added to them.
constexpr std::int64_t few_sums = 256 * 1024;  // bytes
constexpr std::int64_t few_values = 256 * 1024;  // elements

// Elements that are converted at a time: with their copies they fit in what others take for a block.
constexpr std::int64_t most_converted = block / 2;
constexpr std::int64_t most_fetched = 16 * cache_line;  // of a row; the processor fetches the rest of a long run itself

void fetch(const void* data, std::int64_t bytes) { prefetch<3>(data, std::min(bytes, most_fetched)); }

// f(T()) for the type in which an index is stored.
template <class F>
auto with_index_type(Type type, F f) {
  switch (type) {
    case Type::int32:
      return f(std::int32_t());
    case Type::uint32:
      return f(std::uint32_t());
    case Type::uint64:
      return f(std::uint64_t());
    default:
      return f(std::int64_t());
  }
}

template <class T>
T at(const Array& index, std::int64_t k) {
  return *reinterpret_cast<const T*>(index.data + k * index.strides[0]);
}

// f(E()) for the type in which values of floating point are stored.
template <class F>
void with_float_type(Type type, F f) {
  if (type == Type::float32) f(float());
  if (type == Type::float64) f(double());
  if (type == Type::bfloat16) f(bfloat16());
  if (type == Type::float16) f(float16());
}

// Whether the elements of each row are one run.
bool rows_are_dense(const Array& array) {
  std::int64_t dense = array.item_size();
  for (std::size_t axis = array.shape.size(); axis-- > 1; dense *= array.shape[axis]) {
    if (array.shape[axis] != 1 && array.strides[axis] != dense) return false;
  }
  return true;
}

void gather_row(const Array& array, std::int64_t row, std::int64_t begin, std::int64_t n, char* dense) {
  gather(array.shape.subspan(1), array.strides + 1, array.data + row * array.strides[0], array.item_size(), begin, n, dense);
}

// One digit of a radix sort: from `from`, in stable order, to `to`. `end` gets the end of each digit's entries.
template <class Entry>
void sort_by_digit(const Entry* from, std::int64_t n, int shift, int bits, Entry* to, std::uint32_t* end) {
  const std::uint32_t mask = (std::uint32_t{1} << bits) - 1;
  std::fill_n(end, mask + 1, 0);
  for (std::int64_t i = 0; i < n; ++i) ++end[from[i].row >> shift & mask];
  std::uint32_t begin = 0;
  for (std::uint32_t digit = 0; digit <= mask; ++digit) begin += std::exchange(end[digit], begin);
  for (std::int64_t i = 0; i < n; ++i) to[end[from[i].row >> shift & mask]++] = from[i];
}

int width(std::int64_t n) { return static_cast<int>(std::bit_width(static_cast<std::uint64_t>(n))); }

constexpr int most_bits = 11;  // of a digit: its counters stay in the first-level cache

// Of single elements: so many bits of a range of rows, and of the entries that a range should have at least.
constexpr int bits_of_range = 15;
constexpr int bits_of_few = 6;

struct Digits {
  int passes;
  int bits;

  explicit Digits(int of) : passes((of + most_bits - 1) / most_bits), bits(passes == 0 ? 0 : (of + passes - 1) / passes) {}
};

// By the lowest digits; where an even number of passes leaves it, the result is in `entries`, otherwise in `other`.
template <class Entry>
void sort_by_digits(Entry* entries, Entry* other, std::int64_t n, Digits digits) {
  std::uint32_t end[1 << most_bits];
  for (int pass = 0; pass < digits.passes; ++pass, std::swap(entries, other)) {
    sort_by_digit(entries, n, pass * digits.bits, digits.bits, other, end);
  }
}

}  // namespace

void check_index_type(const Array& index) {
  constexpr TypeSet index_types{Type::int32, Type::int64, Type::uint32, Type::uint64};
  if (!index_types.has(index.type)) refuse_type(index, index_types);
}

void refuse_rows(const Label& label, const RuleSchema& schema) {
  refuse(label.text() + ": expected a dense gradient, got rows; " + schema.name +
         " needs one for every element, because it also remembers a gradient of 0");
}

void RowGradient::bind(const Array& index, const Array& values, const Array& parameter) {
  constexpr std::int64_t most = std::int64_t{1} << 32;
  check_has_rows(parameter);
  const bool all = !is_given(index);
  if (all) {
    check_shape(values, parameter);
  } else {
    check_index_type(index);
    if (index.shape.size() != 1) {
      refuse(index.label.text() + ": expected one dimension, got shape " + shape_text(index.shape));
    }
  }
  std::vector<std::int64_t> expected(parameter.shape.begin(), parameter.shape.end());
  if (!all) expected[0] = index.shape[0];
  if (!std::ranges::equal(values.shape, expected)) {
    refuse(values.label.text() + ": expected shape " + shape_text(expected) +
           ", one row of the parameter for each entry of the index, got " + shape_text(values.shape));
  }
  if (parameter.shape[0] > most || expected[0] >= most) {
    refuse(parameter.label.text() + ": expected at most 2^32 rows, and fewer entries of the index, got " +
           std::to_string(parameter.shape[0]) + " and " + std::to_string(expected[0]) + "; pass a dense gradient");
  }
  rows_ = parameter.shape[0];
  row_size_ = rows_ == 0 ? 0 : parameter.size() / rows_;
  geometry_.assign(expected.begin(), expected.end());
  geometry_.insert(geometry_.end(), values.strides, values.strides + values.shape.size());
  geometry_.push_back(all ? 0 : index.strides[0]);
  const std::int64_t* const at = geometry_.data();
  values_ = values;
  values_.shape = {at, expected.size()};
  values_.strides = at + expected.size();
  index_ = index;
  index_.shape = {at, all ? 0u : 1u};
  index_.strides = at + 2 * expected.size();
  dense_values_ = rows_are_dense(values_);
  compute_ = compute_type(parameter.type);
  sums_.array.data = nullptr;
}

// entries[k] = {row, of(k)}. The index is read once, so that what is used was checked.
template <class E, class F>
void RowGradient::read(E* entries, F of) const {
  const std::int64_t n = index_.shape[0];
  const bool beyond = with_index_type(index_.type, [&]<class T>(T) {
    const auto rows = static_cast<std::uint64_t>(rows_);
    bool found = false;
    for (std::int64_t k = 0; k < n; ++k) {
      const auto row = static_cast<std::uint64_t>(at<T>(index_, k));  // a negative one is beyond all rows
      found |= row >= rows;
      entries[k] = {static_cast<std::uint32_t>(row), of(k)};
    }
    return found;
  });
  if (beyond) refuse_row();
}

void RowGradient::refuse_row() const {
  with_index_type(index_.type, [&]<class T>(T) {
    for (std::int64_t k = 0; k < index_.shape[0]; ++k) {
      const T row = at<T>(index_, k);
      if (static_cast<std::uint64_t>(row) < static_cast<std::uint64_t>(rows_)) continue;
      throw std::out_of_range(index_.label.text() + ": expected 0 <= index < " + std::to_string(rows_) +
                              ", the number of rows, got " + std::to_string(row) + " at place " + std::to_string(k) +
                              "; nothing was changed");
    }
  });
  throw std::out_of_range(index_.label.text() + ": was changed by another thread while it was read; nothing was changed");
}

// Few entries by all digits from the lowest up. Many are first parted by their highest bits into buckets that fit the cache
// and that threads share, which are then sorted by the rest.
void RowGradient::sort(int threads) {
  constexpr int few = 14;  // bits of a count
  constexpr int bits_in_bucket = 12;
  sums_.array.data = nullptr;
  const std::int64_t n = values_.shape[0];
  const int bits = width(std::max<std::int64_t>(rows_ - 1, 0));
  const int bits_of_n = width(n);
  if (const int high = std::clamp(bits_of_n - bits_of_few, 0, std::min(bits, most_bits));
      row_size_ == 1 && !all_rows() && bits - high <= bits_of_range) {
    with_float_type(values_.type, [&]<class E>(E) {
      if (compute_ == Type::float64) sum_by_ranges<double, E>(high, bits - high, threads);
      if (compute_ == Type::float32) sum_by_ranges<float, E>(high, bits - high, threads);
    });
    return;
  }
  Entry* from = buffers_[0].of(n);
  Entry* to = buffers_[1].of(n);
  first_.of(n + 1);
  distinct_.of(n);
  if (all_rows()) {
    for (std::int64_t k = 0; k < n; ++k) from[k] = {static_cast<std::uint32_t>(k), static_cast<std::uint32_t>(k)};
    entries_ = from;
    find_groups();
    return;
  }
  read(from, [](std::int64_t k) { return static_cast<std::uint32_t>(k); });
  if (bits_of_n <= few) {
    const Digits digits(bits);
    sort_by_digits(from, to, n, digits);
    entries_ = digits.passes % 2 == 0 ? from : to;
  } else {
    const int high = std::min({bits_of_n - bits_in_bucket, bits, most_bits});
    const Digits digits(bits - high);
    std::uint32_t end[1 << most_bits];
    sort_by_digit(from, n, bits - high, high, to, end);
    const auto bucket = [&](std::int64_t begin, std::int64_t last) {
      for (std::int64_t k = begin; k < last; ++k) {
        const std::int64_t at = k == 0 ? 0 : end[k - 1];
        sort_by_digits(to + at, from + at, end[k] - at, digits);
      }
    };
    parallel_for(std::int64_t{1} << high, threads, body(bucket));
    entries_ = digits.passes % 2 == 0 ? to : from;
  }
  find_groups();
  sum_in_input_order(threads);
}

// The sums of single elements, and their rows in ascending order. Entries are parted by their highest bits into ranges of
// rows; in each of them a bit for each row that is there takes the place of a sort. What threads found is then moved together.
template <class T, class E>
void RowGradient::sum_by_ranges(int high, int low, int threads) {
  struct Element {
    std::uint32_t row;
    T value;
  };
  constexpr std::int64_t size = sizeof(Element) / sizeof(Entry);
  const std::int64_t n = values_.shape[0];
  auto* const from = reinterpret_cast<Element*>(buffers_[0].of(n * size));
  auto* const to = reinterpret_cast<Element*>(buffers_[1].of(n * size));
  read(from, [&](std::int64_t k) {
    return static_cast<T>(widened(*reinterpret_cast<const E*>(values_.data + k * values_.strides[0])));
  });
  std::uint32_t end[1 << most_bits];
  sort_by_digit(from, n, low, high, to, end);
  const auto first = [&](std::int64_t range) { return range == 0 ? 0 : std::int64_t{end[range - 1]}; };
  std::uint32_t* const distinct = distinct_.of(n);
  groups_ = n;
  make(sums_, values_, compute_);
  T* const sums = reinterpret_cast<T*>(sums_.array.data);
  std::int64_t found[1 << most_bits] = {};
  const auto sum = [&](std::int64_t begin, std::int64_t last) {
    const DefaultFloatingPoint guard;
    std::uint64_t there[(1 << bits_of_range) / 64] = {};
    std::uint16_t place[1 << bits_of_range];
    std::int64_t group = first(begin);
    for (std::int64_t range = begin; range < last; ++range) {
      const std::int64_t start = group;
      const std::uint32_t base = static_cast<std::uint32_t>(range << low);
      for (std::int64_t e = first(range); e < end[range]; ++e) {
        const std::uint32_t row = to[e].row - base;
        there[row / 64] |= std::uint64_t{1} << row % 64;
      }
      for (std::uint32_t word = 0; word < ((1u << low) + 63) / 64; ++word) {
        for (std::uint64_t bits = std::exchange(there[word], 0); bits != 0; bits &= bits - 1) {
          const std::uint32_t row = word * 64 + static_cast<std::uint32_t>(std::countr_zero(bits));
          place[row] = static_cast<std::uint16_t>(group - start);
          distinct[group] = base + row;
          sums[group++] = 0;
        }
      }
      for (std::int64_t e = first(range); e < end[range]; ++e) sums[start + place[to[e].row - base]] += to[e].value;
    }
    found[begin] = group - first(begin);
  };
  parallel_for(std::int64_t{1} << high, threads, body(sum));
  groups_ = 0;
  for (std::int64_t range = 0; range < std::int64_t{1} << high; groups_ += found[range++]) {
    if (first(range) == groups_) continue;
    std::copy_n(distinct + first(range), found[range], distinct + groups_);
    std::copy_n(sums + first(range), found[range], sums + groups_);
  }
  make(sums_, values_, compute_);
}

void RowGradient::find_groups() {
  const std::int64_t n = values_.shape[0];
  std::uint32_t* const first = first_.data();
  std::int64_t group = 0;
  for (std::int64_t k = 0; k < n; ++k) {
    first[group] = static_cast<std::uint32_t>(k);
    distinct_.data()[group] = entries_[k].row;
    group += k == 0 || entries_[k].row != entries_[k - 1].row;
  }
  first[group] = static_cast<std::uint32_t>(n);
  groups_ = group;
}

template <class T, class E>
void RowGradient::sum_elements(std::int64_t group, std::int64_t n, T* sums) const {
  const std::uint32_t* const first = first_.data() + group;
  for (std::int64_t k = 0; k < n; ++k) {
    T sum = 0;
    for (std::int64_t e = first[k]; e < first[k + 1]; ++e)
      sum += static_cast<T>(widened(*reinterpret_cast<const E*>(value(e))));
    sums[k] = sum;
  }
}

// f(k, n, run) for columns [column, column + columns) of values number `place`: n of them, from the k-th on, as a run of the
// compute type. It is where they lie, if they are one; `widen` is null where the types are the same.
template <class F>
void RowGradient::each_run(std::int64_t place, std::int64_t column, std::int64_t columns, Widen widen, F f) const {
  const char* const row = values_.data + place * values_.strides[0];
  if (dense_values_ && widen == nullptr) {
    f(0, columns, row + column * values_.item_size());
  } else {
    each_copied_run(place, column, columns, widen, f);
  }
}

template <class F>
FUSEDSTEP_NOINLINE void RowGradient::each_copied_run(std::int64_t place, std::int64_t column, std::int64_t columns,
                                                     Widen widen, F f) const {
  const std::int64_t item = values_.item_size();
  const char* const row = values_.data + place * values_.strides[0];
  alignas(cache_line) char gathered[most_converted * sizeof(double)];
  alignas(cache_line) char wide[most_converted * sizeof(double)];
  for (std::int64_t k = 0; k < columns; k += most_converted) {
    const std::int64_t n = std::min(most_converted, columns - k);
    const char* run = row + (column + k) * item;
    if (!dense_values_) gather_row(values_, place, column + k, n, gathered);
    if (!dense_values_) run = gathered;
    if (widen != nullptr) widen(n, run, wide);
    f(k, n, widen != nullptr ? wide : run);
  }
}

// Columns [column, column + columns) of the sums of n groups.
void RowGradient::sum_piece(std::int64_t group, std::int64_t n, std::int64_t column, std::int64_t columns,
                            char* sums) const {
  const std::int64_t item = size_of(compute_);
  const std::int64_t bytes = columns * item;
  const Widen widen =
      kernels().conversions.widen[static_cast<std::size_t>(compute_)][static_cast<std::size_t>(values_.type)];
  if (all_rows()) {  // nothing to add, not even 0, which would turn -0 into 0
    for (std::int64_t k = 0; k < n; ++k, sums += bytes) {
      each_run(group + k, column, columns, widen, [&](std::int64_t from, std::int64_t count, const char* run) {
        std::memcpy(sums + from * item, run, static_cast<std::size_t>(count * item));
      });
    }
    return;
  }
  if (row_size_ == 1) {
    with_float_type(values_.type, [&]<class E>(E) {
      if (compute_ == Type::float64) sum_elements<double, E>(group, n, reinterpret_cast<double*>(sums));
      if (compute_ == Type::float32) sum_elements<float, E>(group, n, reinterpret_cast<float*>(sums));
    });
    return;
  }
  const std::int64_t stored_bytes = columns * values_.item_size();
  const std::int64_t offset = column * values_.item_size();
  const auto add = kernels().add[static_cast<std::size_t>(compute_)];
  const std::int64_t end = first_.data()[groups_];
  std::memset(sums, 0, static_cast<std::size_t>(n * bytes));
  for (std::int64_t k = 0; k < n; ++k, sums += bytes) {
    for (std::int64_t e = first_.data()[group + k]; e < first_.data()[group + k + 1]; ++e) {
      if (dense_values_ && e + rows_ahead < end) fetch(value(e + rows_ahead) + offset, stored_bytes);
      each_run(entries_[e].place, column, columns, widen,
               [&](std::int64_t from, std::int64_t count, const char* run) { add(count, run, sums + from * item); });
    }
  }
}

// Adds the values up as they lie in memory, if all sums stay in the cache: a step of 2,048 word vectors of 64 takes 0.8 of the
// time. Threads share the sums of a larger batch instead.
void RowGradient::sum_in_input_order(int threads) {
  const std::int64_t n = values_.shape[0];
  const std::int64_t bytes = row_size_ * size_of(compute_);
  if (row_size_ == 1 || groups_ * bytes > few_sums || (threads > 1 && n * row_size_ > few_values)) return;
  make(sums_, values_, compute_);
  std::uint32_t* const group_of = group_of_.of(n);
  for (std::int64_t group = 0; group < groups_; ++group) {
    for (std::uint32_t e = first_.data()[group]; e < first_.data()[group + 1]; ++e) {
      group_of[entries_[e].place] = static_cast<std::uint32_t>(group);
    }
  }
  const DefaultFloatingPoint guard;
  const auto type = static_cast<std::size_t>(compute_);
  const auto add = kernels().add[type];
  const Widen widen = kernels().conversions.widen[type][static_cast<std::size_t>(values_.type)];
  std::memset(sums_.array.data, 0, static_cast<std::size_t>(groups_ * bytes));
  for (std::int64_t place = 0; place < n; ++place) {
    char* const sums = sums_.array.data + group_of[place] * bytes;
    if (dense_values_ && place + rows_ahead < n) {
      fetch(values_.data + (place + rows_ahead) * values_.strides[0], row_size_ * values_.item_size());
    }
    each_run(place, 0, row_size_, widen, [&](std::int64_t from, std::int64_t count, const char* run) {
      add(count, run, sums + from * size_of(compute_));
    });
  }
}

// f(group, n, column, columns) for pieces of groups [first, last) of at most so many elements: some rows, or some columns of
// one.
template <class F>
void RowGradient::each_piece(std::int64_t first, std::int64_t last, std::int64_t most_rows, std::int64_t most, F f) const {
  const std::int64_t columns = std::min(row_size_, most);
  const std::int64_t rows = std::min(most_rows, most / columns);
  for (std::int64_t group = first; group < last; group += rows) {
    for (std::int64_t column = 0; column < row_size_; column += columns) {
      f(group, std::min(rows, last - group), column, std::min(columns, row_size_ - column));
    }
  }
}

// f(first, last) for parts of the groups, in threads.
template <class F>
void RowGradient::in_threads(int threads, F f) const {
  if (row_size_ == 0) return;
  const std::int64_t in_unit = std::max<std::int64_t>(block / row_size_, 1);
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    const DefaultFloatingPoint guard;
    f(begin * in_unit, std::min(end * in_unit, groups_));
  };
  parallel_for((groups_ + in_unit - 1) / in_unit, threads, body(run));
}

void RowGradient::make(Dense& dense, const Array& like, Type type) const {
  dense.shape[0] = groups_ * row_size_;
  dense.strides[0] = size_of(type);
  dense.array = like;
  dense.array.type = type;
  dense.array.data = reinterpret_cast<char*>(dense.memory.of(dense.shape[0] + 1));
  dense.array.shape = dense.shape;
  dense.array.strides = dense.strides;
}

void RowGradient::sum(int threads) {
  if (sums_.array.data != nullptr) return;
  make(sums_, values_, compute_);
  in_threads(threads, [&](std::int64_t first, std::int64_t last) {
    each_piece(
        first, last, block, block, [&](std::int64_t group, std::int64_t n, std::int64_t column, std::int64_t columns) {
          sum_piece(group, n, column, columns, sums_.array.data + (group * row_size_ + column) * sums_.array.item_size());
        });
  });
}

const Array& RowGradient::rows_of(const Array& array, Dense& dense) const {
  make(dense, array, array.type);
  for (std::int64_t group = 0; row_size_ > 0 && group < groups_; ++group) {
    gather_row(array, row(group), 0, row_size_, dense.array.data + group * row_size_ * array.item_size());
  }
  return dense.array;
}

void RowGradient::read(const Array** streams) {
  streams[0] = &rows_of(*streams[0], read_[0]);
  if (streams[low_stream]->data != nullptr) streams[low_stream] = &rows_of(*streams[low_stream], read_[1]);
  streams[gradient_stream] = &sums_.array;
}

// The update of some groups, by one thread.
class RowGradient::Update {
 public:
  Update(const RowGradient& gradient, const Array* const* streams, const Work& work, std::uint64_t key)
      : gradient_(gradient),
        prepared_(work.prepared),
        work_(work),
        key_(key),
        scalars_(work.per_row ? streams[first_state] : nullptr) {
    in_place_ = gradient.row_size_ >= long_row;
    for (std::size_t s = 0; s < max_arrays; ++s) {
      if (!work.storage.uses(static_cast<int>(s)) || s == gradient_stream) continue;
      stream_[s] = {streams[s], rows_are_dense(*streams[s]), work.storage.item_size[s]};
      in_place_ &= stream_[s].dense;
    }
  }

  void operator()(std::int64_t first, std::int64_t last) {
    const auto piece = [&](std::int64_t group, std::int64_t n, std::int64_t column, std::int64_t columns) {
      if (in_place_) {
        update_in_place(group, column, columns);
      } else {
        update_gathered(group, n, column, columns);
      }
    };
    const std::int64_t most = work_.storage.is_narrow ? most_converted : block;
    if (scalars_ == nullptr) {
      gradient_.each_piece(first, last, in_place_ ? 1 : most_gathered, most, piece);
      return;
    }
    for (std::int64_t group = first; group < last; ++group) {
      work_.prepared = prepared_;
      settle(group);
      gradient_.each_piece(group, group + 1, 1, most, piece);
    }
  }

 private:
  // The sum of numbers that come one by one, as of a tree of neighbours in pairs.
  class PairwiseSum {
   public:
    void add(double x) {
      for (std::int64_t n = count_++; n % 2 != 0; n /= 2) x = part_[--parts_] + x;
      part_[parts_++] = x;
    }

    double value() const {
      if (parts_ == 0) return 0;
      double sum = part_[parts_ - 1];
      for (int k = parts_ - 1; k-- > 0;) sum = part_[k] + sum;
      return sum;
    }

   private:
    double part_[64];  // of halving sizes
    int parts_ = 0;
    std::int64_t count_ = 0;
  };

  // An array row by row.
  struct Stream {
    const Array* array = nullptr;  // null: not used
    bool dense = false;
    std::int64_t item = 0;

    char* row(std::int64_t row, std::int64_t column = 0) const {
      return array->data + row * array->strides[0] + column * item;
    }
  };

  // The sums of a piece.
  char* sums(std::int64_t group, std::int64_t n, std::int64_t column, std::int64_t columns) {
    const Array& all = gradient_.sums();
    if (all.data != nullptr) return all.data + (group * gradient_.row_size_ + column) * all.item_size();
    gradient_.sum_piece(group, n, column, columns, scratch_.stream(gradient_stream));
    return scratch_.stream(gradient_stream);
  }

  // Completes the constants of a row by its scalar, which it updates.
  void settle(std::int64_t group) {
    PairwiseSum total;
    const auto piece = [&](std::int64_t, std::int64_t, std::int64_t column, std::int64_t columns) {
      void* streams[max_streams] = {};
      for (const std::size_t s : {std::size_t{0}, std::size_t{low_stream}}) {
        if (stream_[s].array == nullptr) continue;
        gather_row(*stream_[s].array, gradient_.row(group), column, columns, scratch_.stream(s));
        streams[s] = scratch_.stream(s);
      }
      streams[gradient_stream] = sums(group, 1, column, columns);
      total.add(
          work_.kernel.reduce(work_.prepared, columns, Converted(work_, columns, streams, scratch_.wide()).streams()).sum);
    };
    gradient_.each_piece(group, group + 1, 1, block, piece);
    char* const scalar = scalars_->data + gradient_.row(group) * scalars_->strides[0];
    work_.kernel.settle(total.value(), gradient_.row_size_, scalar, work_.prepared);
    work_.scalar = scalar;
  }

  void update_in_place(std::int64_t group, std::int64_t column, std::int64_t columns) {
    const bool fetches = column == 0 && group + rows_ahead < gradient_.groups_;
    void* streams[max_streams] = {};
    for (std::size_t s = 0; s < max_arrays; ++s) {
      const Stream& stream = stream_[s];
      if (stream.array == nullptr) continue;
      streams[s] = stream.row(gradient_.row(group), column);
      if (fetches) fetch(stream.row(gradient_.row(group + rows_ahead)), gradient_.row_size_ * stream.item);
    }
    streams[gradient_stream] = sums(group, 1, column, columns);
    const std::int64_t index = gradient_.row(group) * gradient_.row_size_ + column;
    update(columns, streams, columns, &index);
  }

  void update_gathered(std::int64_t group, std::int64_t n, std::int64_t column, std::int64_t columns) {
    std::int64_t rows[most_gathered];
    for (std::int64_t k = 0; k < n; ++k) rows[k] = gradient_.row(group + k);
    void* streams[max_streams] = {};
    streams[gradient_stream] = sums(group, n, column, columns);
    for (std::size_t s = 0; s < max_arrays; ++s) {
      if (stream_[s].array == nullptr) continue;
      streams[s] = scratch_.stream(s);
      copy<true>(stream_[s], rows, n, column, columns, scratch_.stream(s));
    }
    std::int64_t indices[most_gathered];
    for (std::int64_t k = 0; k < n; ++k) indices[k] = rows[k] * gradient_.row_size_ + column;
    update(n * columns, streams, columns, indices);
    for (std::size_t s = 0; s < max_arrays; ++s) {
      if (stream_[s].array != nullptr) copy<false>(stream_[s], rows, n, column, columns, scratch_.stream(s));
    }
  }

  // Elements of some rows in a row, `columns` of each; `first` has the index of the first of each.
  void update(std::int64_t n, void** streams, std::int64_t columns, const std::int64_t* first) {
    if (work_.is_plain) {
      work_.kernel.update(work_.prepared, n, streams);
    } else {
      streams[index_stream] = index_as_stream(0);
      update_converted(work_, 0, n, streams, key_, {columns, 1, 0, first}, scratch_.wide());
    }
  }

  // A piece of rows to a dense run, or back.
  template <bool to_dense>
  static void copy(const Stream& stream, const std::int64_t* rows, std::int64_t n, std::int64_t column, std::int64_t columns,
                   char* dense) {
    const std::int64_t bytes = columns * stream.item;
    const auto move = [&](auto copied) {
      for (std::int64_t k = 0; k < n; ++k) {
        char* const row = stream.row(rows[k], column);
        std::memcpy(to_dense ? dense + k * copied : row, to_dense ? row : dense + k * copied,
                    static_cast<std::size_t>(copied));
      }
    };
    const Array& array = *stream.array;
    if (!stream.dense) {
      constexpr auto copy_row = [] {
        if constexpr (to_dense) return gather;
        if constexpr (!to_dense) return scatter;
      }();
      for (std::int64_t k = 0; k < n; ++k) {
        copy_row(array.shape.subspan(1), array.strides + 1, stream.row(rows[k]), stream.item, column, columns,
                 dense + k * bytes);
      }
    } else if (bytes == 2) {
      move(std::integral_constant<std::int64_t, 2>());
    } else if (bytes == 4) {
      move(std::integral_constant<std::int64_t, 4>());
    } else if (bytes == 8) {
      move(std::integral_constant<std::int64_t, 8>());
    } else {
      move(bytes);
    }
  }

  // A block of each stream, an odd number of cache lines apart. Streams that are converted have at most 4 bytes per element:
  // the second half takes what is made of them, and what `most_converted` leave of the first the noise.
  struct Scratch {
    static constexpr std::size_t half = block * sizeof(float) + cache_line;
    static constexpr std::size_t apart = half + block * sizeof(float);
    alignas(cache_line) char bytes[max_arrays * apart];

    char* stream(std::size_t s) { return bytes + s * apart; }
    Wide wide() { return {bytes + half, apart, {noise(0), noise(1)}}; }
    std::uint32_t* noise(std::size_t k) {
      return reinterpret_cast<std::uint32_t*>(stream(k) + half - most_converted * sizeof(std::uint32_t));
    }
  };

  const RowGradient& gradient_;
  const Prepared& prepared_;
  Work work_;  // with constants of a row, where that has its own scalar
  std::uint64_t key_;
  const Array* scalars_;  // one for each row; null: there are none
  Stream stream_[max_arrays];
  bool in_place_;
  Scratch scratch_;
};

void RowGradient::update(const Array* const* streams, const Work& work, std::uint64_t key, int threads) const {
  in_threads(threads, [&](std::int64_t first, std::int64_t last) { Update(*this, streams, work, key)(first, last); });
}

}  // namespace fusedstep
