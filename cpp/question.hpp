// What a rule asks about all elements before it updates any: AdagradNorm the norm of each array's gradient, GRprop a sum
// over the whole list and the element with the smallest key.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "border.hpp"
#include "sweep/tensors.hpp"

namespace fusedstep {

// A parameter with its gradient and states, in the order of the streams, and what is to be done to it.
struct Operand {
  const Array* stream[max_streams];  // null: not used
  Work* work;

  bool asks() const { return work->kernel.total != nullptr; }
};

class Question {
 public:
  // Asks, in one reading pass over the operands that do, elements in the order of the axes; settles the coefficients of
  // those that ask about their own array, and keeps the element that the list's answer points at.
  explicit Question(std::span<const Operand> operands);

  // After the update of all: the chosen element's own.
  void update_chosen() const;

 private:
  struct Value {
    alignas(8) char bytes[8];
  };

  Total list_;
  const Operand* chosen_ = nullptr;
  std::int64_t index_ = 0;
  Value kept_[max_streams];
};

}  // namespace fusedstep
