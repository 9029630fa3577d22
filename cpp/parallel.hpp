// A small pool of threads. Created when first needed, reset in a forked child, asleep when idle.
#pragma once

#include <cstdint>
#include <optional>

#include "include/fusedstep/fusedstep.hpp"  // num_threads(), set_num_threads(), set_executor()

namespace fusedstep {

// What FUSEDSTEP_NUM_THREADS says; std::invalid_argument if it is set to anything but a positive whole number. Else the
// processors that there are for this process, or the first number of OMP_NUM_THREADS, if that is less.
int default_num_threads();

// A piece of work over units [begin, end), cut anywhere.
struct Body {
  void (*run)(const void* context, std::int64_t begin, std::int64_t end);
  const void* context;
};

template <class F>
Body body(const F& f) {
  return {[](const void* context, std::int64_t begin, std::int64_t end) { (*static_cast<const F*>(context))(begin, end); },
          &f};
}

// Runs the body over [0, units) in pieces, on up to `threads` threads (the calling one included), and returns when all is
// done. Another call at the same time, from another thread, runs on its own thread only.
void parallel_for(std::int64_t units, int threads, Body body);

// How many threads pay for work on this many elements now: waking a sleeping thread costs more than a waiting one. The
// first time it reads the default, and may throw as default_num_threads() does.
int threads_for(std::int64_t elements);

// Whether all threads share all work, whether that pays or not: for tests. Returns what was set before.
bool share_all_work(bool share);

// Sets the calling thread's floating-point settings, IEEE 754's where none are given; returns those before.
std::uint64_t exchange_floating_point(std::optional<std::uint64_t> state);

// IEEE 754 defaults (round to nearest, no flush to zero) while this object lives; the caller's settings afterwards.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint();
  ~DefaultFloatingPoint();
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
  std::uint64_t callers_;
};

}  // namespace fusedstep
