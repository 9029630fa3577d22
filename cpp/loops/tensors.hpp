// Updates over tensors of any layout.
#pragma once

#include <cstdint>

#include "kernel.hpp"
#include "layout.hpp"

namespace fusedstep {

// What is to be done to the tensors of one group and type.
struct Work {
  std::int64_t item_size[max_streams];  // 0: stream not used
  Kernel kernel;
  Prepared prepared;
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
