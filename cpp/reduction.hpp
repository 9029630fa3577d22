// Reductions over all elements, for rules that need one before they update any: AdagradNorm needs the norm of each array's
// gradient, GRprop a sum over the whole list of arrays and the element with the smallest key.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "checks.hpp"
#include "loops/tensors.hpp"

namespace fusedstep {

// Neighbours added in pairs, again and again: a tree whose shape depends only on the number of summands.
template <class T, class Add>
T tree(std::span<T> x, Add add) {
  if (x.empty()) return T{};
  for (std::size_t n = x.size(); n > 1; n = (n + 1) / 2) {
    for (std::size_t i = 0; i < n / 2; ++i) x[i] = add(x[2 * i], x[2 * i + 1]);
    if (n % 2 != 0) x[n / 2] = x[n - 1];
  }
  return x[0];
}

// Where an optimizer has only pieces of larger arrays, and others have the rest: takes what this one knows of a list of
// numbers, and returns the whole list, in the order of the pieces. Throws if another one gave up. Empty: all is here.
using Gather = std::function<std::vector<double>(std::span<const double>)>;

// In how many blocks an array is reduced.
constexpr std::int64_t blocks_of(std::int64_t size) { return (size + block - 1) / block; }

// A parameter with its gradient and states, in the order of the streams, and what is to be done to it.
struct Operand {
  const Array* stream[max_arrays];  // without data: not used
  Work* work;
  std::int64_t whole;      // elements of the array of which this is a piece,
  std::uint64_t key;       // of its noise,
  std::int64_t first = 0;  // which counts from here

  bool needs_reduction() const { return work->kernel.reduce != nullptr && !work->per_row; }
};

class Reduction {
 public:
  // Reads, in one pass, the elements of the operands that need it, in the order of the axes. Writes nothing.
  explicit Reduction(std::span<const Operand> operands, const Gather& gather = {});

  // Before the update: completes the constants of those whose reduction runs over their own array, and updates their
  // scalars. Does not throw.
  void settle();

  // After the update of all: the element that was chosen from the whole list.
  void update_chosen() const;

 private:
  struct Value {
    alignas(8) char bytes[8];
  };
  struct OfArray {
    const Operand* operand;
    double sum;
  };

  std::vector<OfArray> of_arrays_;
  Reduced of_list_;
  const Operand* chosen_ = nullptr;
  std::int64_t index_ = 0;
  Value kept_[max_arrays];
};

}  // namespace fusedstep
