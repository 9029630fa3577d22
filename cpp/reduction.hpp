// Reductions over all elements, for rules that need one before they update any. AdagradNorm needs the norm of each array's
// gradient. GRprop needs a sum over all arrays of the list, and the element with the smallest key.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "checks.hpp"
#include "loops/tensors.hpp"

namespace fusedstep {

// Adds neighbours in pairs, again and again. The shape of this tree depends only on the number of summands.
template <class T, class Add>
T tree(std::span<T> x, Add add) {
  if (x.empty()) return T{};
  for (std::size_t n = x.size(); n > 1; n = (n + 1) / 2) {
    for (std::size_t i = 0; i < n / 2; ++i) x[i] = add(x[2 * i], x[2 * i + 1]);
    if (n % 2 != 0) x[n / 2] = x[n - 1];
  }
  return x[0];
}

// If an optimizer has only pieces of larger arrays: takes the numbers of this process and returns those of all processes, in
// the order of the pieces. Throws if another process gave up. Empty if this process has everything.
using Gather = std::function<std::vector<double>(std::span<const double>)>;

// The number of blocks in which an array is reduced.
constexpr std::int64_t blocks_of(std::int64_t size) { return (size + block - 1) / block; }

// A parameter with its gradient and states, in the order of the streams, and its work.
struct Operand {
  const Array* stream[max_arrays];  // null data: not used
  Work* work;
  std::int64_t whole;      // elements of the whole array, if this is a piece of one
  std::uint64_t key;       // of its noise
  std::int64_t first = 0;  // the noise's index of the first element

  bool needs_reduction() const { return work->kernel.reduce != nullptr && !work->per_row; }
};

class Reduction {
 public:
  // Reads the elements of the operands that need a reduction, in one pass and in C order. Writes nothing.
  explicit Reduction(std::span<const Operand> operands, const Gather& gather = {});

  // Called before the update. Completes the constants of operands whose reduction covers their own array, and updates their
  // scalars. Does not throw.
  void settle();

  // Called after the update of all elements. Updates the element that was chosen from the whole list.
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
