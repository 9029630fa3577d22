// What the library needs from the operating system. See system_posix.cpp and system_windows.cpp.
#pragma once

#include <cstddef>
#include <memory>

namespace fusedstep {

// The processors that this process may run on, at least 1.
int processors_by_affinity();

// Returns zeroed memory that nobody has touched, or null if there is none. Large memory is on huge pages if the system has
// them.
void* map_pages(std::size_t bytes);
void unmap_pages(void* memory, std::size_t bytes);

// Calls f in each forked child.
void call_in_children(void (*f)());

// Keeps this library's code in memory, even after its owner has closed it.
void stay_loaded();

// New threads take no signals while this object lives, because the caller's threads may wait for them, by a mask or sigwait.
// Only signals about a thread's own fault still reach it.
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
