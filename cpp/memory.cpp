#include "memory.hpp"

#include <algorithm>
#include <new>

#include "cache.hpp"
#include "loops/kernel.hpp"
#include "loops/storage.hpp"
#include "parallel.hpp"
#include "system.hpp"

namespace fusedstep {
namespace {

constexpr std::size_t page = 4096;

}  // namespace

void Unmap::operator()(std::byte* memory) const { unmap_pages(memory, bytes); }

Memory allocate(std::size_t bytes) {
  if (bytes == 0) bytes = 1;
  void* const memory = map_pages(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return Memory(static_cast<std::byte*>(memory), Unmap{bytes});
}

Placement place(std::span<const std::size_t> sizes) {
  Placement placement;
  std::size_t next_offset = 0;
  for (const std::size_t size : sizes) {
    next_offset = (next_offset + 17 * cache_line) % page;  // an odd number of lines: uses all offsets
    if (size >= page) placement.bytes += (next_offset + page - placement.bytes % page) % page;
    placement.offsets.push_back(placement.bytes);
    placement.bytes += (size + cache_line - 1) / cache_line * cache_line;
  }
  return placement;
}

namespace {

template <class T>
void fill(T* elements, std::int64_t n, T each) {
  const auto part = [=](std::int64_t begin, std::int64_t end) {
    std::fill(elements + begin * block, elements + std::min(end * block, n), each);
  };
  parallel_for((n + block - 1) / block, threads_for(n), body(part));
}

}  // namespace

void fill(void* elements, Type type, std::int64_t n, double value) {
  const DefaultFloatingPoint guard;
  volatile auto rounded = static_cast<float>(value);  // volatile: rounded after the guard, not before
  if (type == Type::float64) fill(static_cast<double*>(elements), n, value);
  if (type == Type::float32) fill(static_cast<float*>(elements), n, float{rounded});
  if (type == Type::bfloat16) fill(static_cast<bfloat16*>(elements), n, to_nearest(Tag<bfloat16>{}, rounded));
}

}  // namespace fusedstep
