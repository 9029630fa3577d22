// Updates over tensors of any layout.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernel.hpp"
#include "layout.hpp"

namespace fusedstep {

// Options of which each element of a parameter has its own value, and what else the constants are made from.
struct OwnOptions {
  struct Values {
    const char* name;             // of the option
    std::size_t offset;           // of the option, in its struct
    std::vector<double> numbers;  // one per element, in C order

    bool operator==(const Values&) const = default;
  };
  std::vector<Values> values;

  // The present step.
  RuleId rule = 0;
  Options options{};
  Prologue prologue;
  std::int64_t step = 0;
};

// The work on the tensors of one group that are stored alike.
struct Work {
  Storage storage;
  bool is_plain;  // all streams have the compute type and all elements the same constants
  Kernel kernel;  // for streams of the compute type
  Prepared prepared;
  bool zero_gradient;
  bool per_row;  // rows are reduced one by one
  OwnOptions* own;  // null: all elements have the prepared constants
  const void* scalar;  // the rule's scalar after a reduction, for elements with constants of their own
};

// Updates dense streams of the compute type, each element by its own constants. `first` is the index of the first element.
void update_each(const Work& work, std::int64_t n, void* const* streams, std::int64_t first);

struct Tensor {
  std::int64_t size = 0;
  void* stream[max_streams] = {};
  std::uint64_t key = 0;           // of the noise in this step
  const Layout* layout = nullptr;  // null: one dense run in every stream

  std::int64_t blocks() const { return layout != nullptr ? layout->blocks : (size + block - 1) / block; }
};

// The indices of elements: `columns` in a row, `across` apart. Rows are `down` apart, or begin at the indices in `first`.
struct Indices {
  std::int64_t columns;
  std::int64_t across;
  std::int64_t down;
  const std::int64_t* first = nullptr;

  // How many of the n elements from the i-th on have consecutive indices.
  std::int64_t in_a_row(std::int64_t i, std::int64_t n) const {
    if (across != 1) return 1;
    return first == nullptr && down == columns ? n : std::min(n, columns - i % columns);
  }
  std::uint64_t operator()(std::int64_t i) const {
    const std::int64_t row = i / columns;
    return static_cast<std::uint64_t>(i % columns * across + (first != nullptr ? first[row] : row * down));
  }
};
inline constexpr Indices consecutive{std::numeric_limits<std::int64_t>::max(), 1, 0};

// Memory for streams of the compute type, `apart` bytes from each other, and for noise.
struct Wide {
  char* bytes;
  std::int64_t apart;
  std::uint32_t* noise[2];
};

// Streams in the compute type: in place if they are stored in it, otherwise converted into other memory.
class Converted {
 public:
  Converted(const Work& work, std::int64_t n, void* const* streams, const Wide& memory);
  void* const* streams() const { return wide_; }

  // Rounds what was written, with the noise in the memory, and stores it.
  void store() const;

 private:
  const Work& work_;
  std::int64_t n_;
  void* const* stored_;
  Wide memory_;
  void* wide_[max_streams];
};

// Updates elements [begin, begin + n) of a dense run in every stream, in converted copies.
void update_converted(const Work& work, std::int64_t begin, std::int64_t n, void* const* run, std::uint64_t key,
                      const Indices& indices, const Wide& memory);

// Updates blocks [first, last) of the tensor.
void update(const Tensor& tensor, const Work& work, std::int64_t first, std::int64_t last);

}  // namespace fusedstep
