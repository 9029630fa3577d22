// Gradients of some rows of a parameter: row index[k] has gradient values[k], and where a row is there more than once, its
// gradients are summed in input order, from +0, in the compute type. The index is sorted by a radix sort, or for
// many single elements by a bit for each row: how much work that is does not depend on which rows there are.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "checks.hpp"
#include "loops/tensors.hpp"
#include "schema.hpp"

namespace fusedstep {

// Whether there is an index: an empty one may have no data, but it has a shape.
inline bool is_given(const Array& index) { return index.data != nullptr || !index.shape.empty(); }

// int32, int64, uint32 or uint64.
void check_index_type(const Array& index);

// Refuses rows for a rule that takes none.
[[noreturn]] void refuse_rows(const Label& label, const RuleSchema& schema);

// Memory that is not initialised, and grows.
template <class T>
class Buffer {
 public:
  T* of(std::int64_t n) {
    if (n > size_) {
      data_ = std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(n));
      size_ = n;
    }
    return data_.get();
  }
  T* data() const { return data_.get(); }

 private:
  std::unique_ptr<T[]> data_;
  std::int64_t size_ = 0;
};

class RowGradient {
 public:
  // Checks all but what the index holds; one that is not given stands for all rows, of which the values are the dense
  // gradient. What the arrays point at must stay where it is until the update is done; shapes and strides are copied.
  void bind(const Array& index, const Array& values, const Array& parameter);

  // Reads the index. std::out_of_range, with the place and the value, for a row that the parameter does not have.
  void sort(int threads);

  // Sums the gradients of each row into an array of all distinct rows, in ascending order: for what has to see them before
  // any row is updated. Otherwise the update sums them on the fly.
  void sum(int threads);

  // Puts sums, and the rows of a parameter and its low halves in their order, in the place of these streams.
  void read(const Array** streams);

  // Updates each distinct row once. `streams` are the parameter and its states; null: not used.
  void update(const Array* const* streams, const Work& work, std::uint64_t key, int threads) const;

  const Array& index() const { return index_; }
  const Array& values() const { return values_; }
  const Array& sums() const { return sums_.array; }
  std::int64_t elements() const { return values_.size(); }

 private:
  // A place in the index, and the row that it names.
  struct Entry {
    std::uint32_t row;
    std::uint32_t place;
  };
  // An array of all distinct rows, as one run.
  struct Dense {
    Buffer<double> memory;
    std::int64_t shape[1] = {};
    std::int64_t strides[1] = {};
    Array array;  // without data: not made
  };
  class Update;

  bool all_rows() const { return !is_given(index_); }

  template <class E, class F>
  void read(E* entries, F of) const;
  [[noreturn]] void refuse_row() const;
  void find_groups();
  template <class T, class E>
  void sum_by_ranges(int high, int low, int threads);
  std::int64_t row(std::int64_t group) const { return distinct_.data()[group]; }
  const char* value(std::int64_t entry) const { return values_.data + entries_[entry].place * values_.strides[0]; }
  void make(Dense& dense, const Array& like, Type type) const;
  const Array& rows_of(const Array& array, Dense& dense) const;

  template <class T, class E>
  void sum_elements(std::int64_t group, std::int64_t n, T* sums) const;
  using Widen = void (*)(std::int64_t n, const void* from, void* to) noexcept;
  template <class F>
  void each_run(std::int64_t place, std::int64_t column, std::int64_t columns, Widen widen, F f) const;
  template <class F>
  void each_copied_run(std::int64_t place, std::int64_t column, std::int64_t columns, Widen widen, F f) const;
  void sum_in_input_order(int threads);
  void sum_piece(std::int64_t group, std::int64_t n, std::int64_t column, std::int64_t columns, char* sums) const;
  template <class F>
  void each_piece(std::int64_t first, std::int64_t last, std::int64_t most_rows, std::int64_t most, F f) const;
  template <class F>
  void in_threads(int threads, F f) const;

  Array index_;
  Array values_;
  std::vector<std::int64_t> geometry_;
  std::int64_t rows_ = 0;
  std::int64_t row_size_ = 0;
  bool dense_values_ = false;  // each of them one run
  Type compute_ = Type::float32;  // of the sums

  Buffer<Entry> buffers_[2];
  const Entry* entries_ = nullptr;  // by row, those of one row in input order
  Buffer<std::uint32_t> first_;     // entry of each group, which is a distinct row; and one more: how many entries
  Buffer<std::uint32_t> distinct_;  // row of each group
  Buffer<std::uint32_t> group_of_;  // of each place in the index
  std::int64_t groups_ = 0;
  Dense sums_;
  Dense read_[2];
};

}  // namespace fusedstep
