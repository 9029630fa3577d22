// What the library asks of the operating system: system_posix.cpp and system_windows.cpp.
#pragma once

#include <cstddef>
#include <memory>

namespace fusedstep {

// The processors that this process may run on, at least 1.
int processors_by_affinity();

// Zeroed memory that nobody has touched; null if there is none. Large memory lies on huge pages where the system has them.
void* map_pages(std::size_t bytes);
void unmap_pages(void* memory, std::size_t bytes);

// Calls this in each child that a fork makes.
void call_in_children(void (*f)());

// Keeps this library's code in memory, also after its owner has closed it.
void stay_loaded();

// While this object lives, threads that are made take no signal: the caller's own wait for them, by a mask or sigwait.
// Only what a thread does wrong itself is left to the handlers that report it.
class SignalsBlocked {
 public:
  SignalsBlocked();
  ~SignalsBlocked();
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  struct Mask;
  std::unique_ptr<Mask> callers_;
};

}  // namespace fusedstep
