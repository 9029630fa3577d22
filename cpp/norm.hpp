// The norm of a list of gradients, and which of them contain an inf or a NaN. One pass reads them; the bits are the same for
// any layout, number of threads and instruction set.
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

// Returns the walk over an array in C order. Null means that it is one dense run.
std::unique_ptr<StridedOrder> c_order(const Array& array);

struct NormOperand {
  const char* data;
  std::int64_t size;
  Type type;
  Type compute;  // the type that the rule computes in
  const StridedOrder* order;
  std::int64_t whole = size;  // elements of the whole gradient, if this is a piece of one
};

struct Norm {
  double norm;
  std::vector<std::size_t> nonfinite;  // operands with an inf or a NaN after unscaling
  std::vector<double> largest;  // of each operand: an upper bound of its squares
};

// Whether the square of an element overflows its type, after unscaling, clip_value and the coefficient.
bool a_square_overflows(const NormOperand& gradient, double bound, const StepOptions& options, double clip_coef,
                        const Gather& gather);

// The norm after unscaling and clip_value.
Norm norm(std::span<const NormOperand> gradients, const StepOptions& options, const Gather& gather = {});

}  // namespace fusedstep
