// A small pool of threads. Created when first needed, reset in a forked child, asleep when idle.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "include/fusedstep/fusedstep.hpp"  // num_threads(), set_num_threads(), set_executor()

namespace fusedstep {

// A flag that threads exchange. Not a bool: RISC-V exchanges a single byte only with the library libatomic.
using SharedFlag = std::atomic<int>;

// Returns FUSEDSTEP_NUM_THREADS if it is set; throws std::invalid_argument if it is not a positive whole number. Otherwise
// returns the number of usable processors, or the first number of OMP_NUM_THREADS if that is less.
int default_num_threads();

// Work on units [begin, end), which may be cut anywhere.
struct Body {
  void (*run)(const void* context, std::int64_t begin, std::int64_t end);
  const void* context;
};

template <class F>
Body body(const F& f) {
  return {[](const void* context, std::int64_t begin, std::int64_t end) { (*static_cast<const F*>(context))(begin, end); },
          &f};
}

// Runs the body over [0, units) in pieces, on up to `threads` threads including the calling one, and returns when all is
// done. If another thread calls it meanwhile, that call runs on its own thread only.
void parallel_for(std::int64_t units, int threads, Body body);

// How many threads are worth using for work on this many elements now: waking a sleeping thread costs more than using a
// waiting one. The first call reads the default, and may throw like default_num_threads().
int threads_for(std::int64_t elements);

// For tests: sets whether all threads share all work, even where it does not pay. Returns the setting before.
bool share_all_work(bool share);

// Sets the floating-point settings of the calling thread, by default those of IEEE 754. Returns the settings before.
std::uint64_t exchange_floating_point(std::optional<std::uint64_t> state);

// Sets the defaults of IEEE 754 (round to nearest, no flush to zero) while this object lives, and then restores the caller's
// settings.
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
