// The norm of a list of gradients, and which of them have an inf or a NaN: one reading pass, the same bits for any layout,
// number of threads and instruction set.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "checks.hpp"
#include "include/fusedstep/fusedstep.hpp"
#include "loops/bands.hpp"
#include "reduction.hpp"

namespace fusedstep {

// Null: one dense run.
std::unique_ptr<StridedOrder> c_order(const Array& array);

struct NormOperand {
  const char* data;
  std::int64_t size;
  Type type;
  Type compute;  // the type that the rule computes in
  const StridedOrder* order;
  std::int64_t whole = size;  // elements of the gradient of which this is a piece
};

struct Norm {
  double norm;
  std::vector<std::size_t> nonfinite;  // operands with an inf or a NaN after unscaling
  std::vector<double> largest;         // of each operand: a bound of all of its squares
};

// Whether the square of an element, after unscaling, clip_value and a coefficient, overflows its type.
bool a_square_overflows(const NormOperand& gradient, double bound, const StepOptions& options, double clip_coef,
                        const Gather& gather);

// After unscaling and clip_value.
Norm norm(std::span<const NormOperand> gradients, const StepOptions& options, const Gather& gather = {});

}  // namespace fusedstep
