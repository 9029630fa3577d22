#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "parallel.hpp"
#include "sweep/kernel.hpp"

namespace fusedstep {
namespace {

constexpr std::size_t huge_page = std::size_t{1} << 21;

}  // namespace

void Unmap::operator()(std::byte* memory) const { munmap(memory, bytes); }

Memory allocate(std::size_t bytes) {
  if (bytes == 0) bytes = 1;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // A wish: where the system has no huge pages to give, small ones serve.
  if (bytes >= huge_page) static_cast<void>(madvise(memory, bytes, MADV_HUGEPAGE));
#endif
  return Memory(static_cast<std::byte*>(memory), Unmap{bytes});
}

template <class T>
void fill(T* elements, std::int64_t n, double value) {
  const DefaultFloatingPoint guard;
  volatile T rounded = static_cast<T>(value);  // volatile: not before the guard
  const T each = rounded;
  const auto part = [=](std::int64_t begin, std::int64_t end) {
    std::fill(elements + begin * block, elements + std::min(end * block, n), each);
  };
  parallel_for((n + block - 1) / block, threads_for(n), body(part));
}

template void fill(float*, std::int64_t, double);
template void fill(double*, std::int64_t, double);

}  // namespace fusedstep
