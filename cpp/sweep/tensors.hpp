// Updates over tensors of any layout, by blocks: the prologue, the rule and the zeroing of the gradient while a block
// is in the first-level cache.
#pragma once

#include <cstdint>

#include "kernel.hpp"
#include "layout.hpp"

namespace fusedstep {

// What is to be done to the tensors of one group and type.
struct Work {
  std::int64_t item_size[max_streams];  // 0: stream not used
  Kernel kernel;
  Coefficients coefficients;
  PrologueKernel prologue;  // gradient null: nothing to be done
  Coefficients prologue_coefficients;
  bool zero_gradient;
};

struct Tensor {
  std::int64_t size = 0;
  void* stream[max_streams] = {};
  const Layout* layout = nullptr;  // null: one dense run in every stream

  std::int64_t blocks() const { return layout != nullptr ? layout->blocks : (size + block - 1) / block; }
};

// Blocks [first, last) of the tensor.
void update(const Tensor& tensor, const Work& work, std::int64_t first, std::int64_t last);

}  // namespace fusedstep
