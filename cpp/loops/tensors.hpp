// Updates over tensors of any layout.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernel.hpp"
#include "layout.hpp"

namespace fusedstep {

// Options of which each element of a parameter has its own, and what else its constants are made from.
struct OwnOptions {
  struct Values {
    const char* name;             // of the option,
    std::size_t offset;           // where it lies among all of them,
    std::vector<double> numbers;  // and that of each element, in C order

    bool operator==(const Values&) const = default;
  };
  std::vector<Values> values;

  // Of the present step.
  RuleId rule = 0;
  Options options{};
  Prologue prologue;
  std::int64_t step = 0;
};

// What is to be done to the tensors of one group that are stored alike.
struct Work {
  Storage storage;
  bool is_plain;  // all streams are of the compute type, and all elements have the same constants
  Kernel kernel;  // over streams of the compute type
  Prepared prepared;
  bool zero_gradient;
  bool per_row;  // each row is reduced by itself
  OwnOptions* own;  // null: what is prepared is for all elements
  const void* scalar;  // what a reduction has updated, where elements have their own
};

// Updates dense streams of the compute type by each element's own constants, the first being element `first`.
void update_each(const Work& work, std::int64_t n, void* const* streams, std::int64_t first);

struct Tensor {
  std::int64_t size = 0;
  void* stream[max_streams] = {};
  std::uint64_t key = 0;           // of its noise in this step
  const Layout* layout = nullptr;  // null: one dense run in every stream

  std::int64_t blocks() const { return layout != nullptr ? layout->blocks : (size + block - 1) / block; }
};

// The indices of elements: so many in a row, `across` apart; rows are `down` apart, or begin where `first` says.
struct Indices {
  std::int64_t columns;
  std::int64_t across;
  std::int64_t down;
  const std::int64_t* first = nullptr;

  // How many of the n elements from the i-th on have indices in a row.
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

// Memory for streams of the compute type, which lie so many bytes apart, and for noise of their elements.
struct Wide {
  char* bytes;
  std::int64_t apart;
  std::uint32_t* noise[2];
};

// Streams of the compute type, each where it lies if it is of that type, else converted into other memory.
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

// Elements [begin, begin + n) of a dense run in every stream, by way of other memory.
void update_converted(const Work& work, std::int64_t begin, std::int64_t n, void* const* run, std::uint64_t key,
                      const Indices& indices, const Wide& memory);

// Blocks [first, last) of the tensor.
void update(const Tensor& tensor, const Work& work, std::int64_t first, std::int64_t last);

}  // namespace fusedstep
