// Updates over tensors of any layout.
#pragma once

#include <cstdint>

#include "kernel.hpp"
#include "layout.hpp"

namespace fusedstep {

// What is to be done to the tensors of one group that are stored alike.
struct Work {
  Storage storage;
  Kernel kernel;  // over streams of the compute type
  Prepared prepared;
  bool zero_gradient;
  bool per_row;  // each row is reduced by itself
};

struct Tensor {
  std::int64_t size = 0;
  void* stream[max_streams] = {};
  std::uint64_t key = 0;           // of its noise in this step
  const Layout* layout = nullptr;  // null: one dense run in every stream

  std::int64_t blocks() const { return layout != nullptr ? layout->blocks : (size + block - 1) / block; }
};

// Streams of the compute type, each where it lies if it is of that type, else converted into memory of the object. At most a
// block of elements.
class Converted {
 public:
  Converted(const Work& work, std::int64_t n, void* const* streams);
  void* const* streams() const { return wide_; }

  // Rounds what was written, and stores it.
  void store(const std::uint32_t* noise, const std::uint32_t* second_noise) const;

 private:
  // An odd number of cache lines apart, as in Scratch.
  static constexpr std::size_t apart = block * sizeof(double) + 64;

  const Work& work_;
  std::int64_t n_;
  void* const* stored_;
  void* wide_[max_streams];
  alignas(64) char bytes_[first_state + max_states][apart];
};

// Blocks [first, last) of the tensor.
void update(const Tensor& tensor, const Work& work, std::int64_t first, std::int64_t last);

}  // namespace fusedstep
