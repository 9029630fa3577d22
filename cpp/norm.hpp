// The norm of a list of gradients, and which of them have an inf or a NaN: one reading pass, the same bits for any number
// of threads and any instruction set.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "checks.hpp"
#include "include/fusedstep/fusedstep.hpp"

namespace fusedstep {

// An array in the order of its own memory (NumPy's order="K"), where that is not one dense run.
struct MemoryOrder {
  std::vector<std::int64_t> shape;  // outermost first
  std::vector<std::int64_t> strides;
};

// Null: one dense run from the first element.
std::unique_ptr<MemoryOrder> memory_order(const Array& array);

struct NormOperand {
  const char* data;
  std::int64_t size;
  Type type;
  const MemoryOrder* order;
};

struct Norm {
  double norm;
  std::vector<std::size_t> nonfinite;  // operands with an inf or a NaN after unscaling
};

// After unscaling and clip_value.
Norm norm(std::span<const NormOperand> gradients, const StepOptions& options);

}  // namespace fusedstep
