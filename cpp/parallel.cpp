#include "parallel.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "loops/kernel.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fusedstep {
namespace {

#if defined(__x86_64__)
constexpr std::uint64_t default_state = 0x1f80;  // all exceptions masked, round to nearest, denormals kept
constexpr std::uint64_t status_flags = 0x3f;     // what happened so far: changes nothing
std::uint64_t floating_point_state() { return _mm_getcsr(); }
void set_floating_point_state(std::uint64_t state) { _mm_setcsr(static_cast<unsigned>(state)); }
void relax() { _mm_pause(); }
#elif defined(__aarch64__)
constexpr std::uint64_t default_state = 0;
constexpr std::uint64_t status_flags = 0;  // they have a register of their own
std::uint64_t floating_point_state() {
  std::uint64_t state;
  asm volatile("mrs %0, fpcr" : "=r"(state));
  return state;
}
void set_floating_point_state(std::uint64_t state) { asm volatile("msr fpcr, %0" ::"r"(state)); }
void relax() { asm volatile("yield"); }
#else
#error "fusedstep sets the floating-point state by hand: add this processor's register here"
#endif

constexpr int max_threads = 256;

// After a job a worker watches for the next one for about this many pauses (some tens of microseconds), then sleeps.
constexpr int watchful_pauses = 2000;

int processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::clamp(CPU_COUNT(&set), 1, max_threads);
}

std::int64_t nanoseconds() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Pool {
 public:
  // Whether work on so many elements repays what it costs to bring the workers to it. One piece of work does not repay
  // waking them if it is small, but many in a row do: once awake, they wait for the next.
  bool pays(std::int64_t elements) {
    const bool asleep = sleepers_.load(std::memory_order_relaxed) > 0 || workers_.load(std::memory_order_relaxed) == 0;
    return !asleep || elements >= repays_waking() || in_a_row();
  }

  // Work that was large enough to be shared, but was not, ends now.
  void ended_alone() { last_end_.store(nanoseconds(), std::memory_order_relaxed); }

  // False, and nothing is done, if another thread is using the pool.
  bool run(std::int64_t units, std::int64_t grain, int threads, Body body) {
    std::unique_lock in_use(in_use_, std::try_to_lock);
    if (!in_use.owns_lock()) return false;
    grow(threads - 1);

    body_ = body;
    grain_ = grain;
    threads_ = threads;
    const std::int64_t pieces = (units + grain - 1) / grain;
    for (int k = 0; k < threads; ++k) {
      slices_[k].next.store(pieces * k / threads * grain, std::memory_order_relaxed);
      slices_[k].end = std::min(units, pieces * (k + 1) / threads * grain);
    }

    open_job();
    work(0);
    close_job();
    return true;
  }

 private:
  static constexpr std::uint32_t open = 1u << 31;  // the low bits count the workers inside

  // Each thread works through a slice of its own, then helps with the others: a thread that sleeps or is held up costs
  // no more than its own absence.
  struct alignas(64) Slice {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  void open_job() {
    state_.store(open, std::memory_order_release);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) epoch_.notify_all();
  }

  // No worker that comes late may enter; those that are inside finish their piece.
  void close_job() {
    state_.fetch_and(~open, std::memory_order_acq_rel);
    while (state_.load(std::memory_order_acquire) != 0) relax();
  }

  bool in_a_row() {
    constexpr std::int64_t soon = 30'000;  // nanoseconds: less than workers watch for the next job
    constexpr int row = 8;
    const bool follows = nanoseconds() - last_end_.load(std::memory_order_relaxed) < soon;
    const int count = follows ? in_a_row_.load(std::memory_order_relaxed) + 1 : 0;
    in_a_row_.store(count, std::memory_order_relaxed);
    return count >= row;
  }

  // The least number of elements that repays waking the workers, measured once (6 ms): it differs by the system, from
  // about 20,000 to 300,000. The caller loses the time of the call
  // that wakes them, W, and works alone until the first arrives, after L: with two threads a work of t takes
  // (t + L + W) / 2, less than t from t = L + W on.
  std::int64_t repays_waking() {
    constexpr double nanoseconds_per_element = 0.3;
    std::unique_lock in_use(in_use_, std::try_to_lock);
    if (!in_use.owns_lock()) return std::numeric_limits<std::int64_t>::max();
    if (repays_waking_ == 0) {
      std::int64_t least = patience;
      for (int k = 0; k < 3; ++k) least = std::min(least, cost_of_waking());
      repays_waking_ = static_cast<std::int64_t>(static_cast<double>(least) / nanoseconds_per_element);
    }
    return repays_waking_;
  }

  // L + W in nanoseconds: a job that only a worker can take.
  std::int64_t cost_of_waking() {
    grow(1);
    std::atomic<bool> arrived{false};
    const auto arrive = [&](std::int64_t, std::int64_t) { arrived.store(true, std::memory_order_release); };
    body_ = body(arrive);
    grain_ = 1;
    threads_ = 2;
    slices_[0].end = 0;
    slices_[1].next.store(0, std::memory_order_relaxed);
    slices_[1].end = 1;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // a processor that sleeps long sleeps deeply
    const std::int64_t start = nanoseconds();
    open_job();
    const std::int64_t called = nanoseconds() - start;
    std::int64_t waited = called;
    while (!arrived.load(std::memory_order_acquire) && waited < patience) waited = nanoseconds() - start;
    close_job();
    return called + waited;
  }

  void work(int first) {
    for (int k = 0; k < threads_; ++k) {
      Slice& slice = slices_[(first + k) % threads_];
      for (;;) {
        if (slice.next.load(std::memory_order_relaxed) >= slice.end) break;
        const std::int64_t begin = slice.next.fetch_add(grain_, std::memory_order_relaxed);
        if (begin >= slice.end) break;
        body_.run(body_.context, begin, std::min(begin + grain_, slice.end));
      }
    }
  }

  void grow(int workers) {
    workers = std::min(workers, max_threads - 1);
    while (workers_ < workers) {
      try {
        std::thread([this, id = workers_.load() + 1] { live(id); }).detach();
      } catch (const std::system_error&) {
        return;  // the system gives no more threads: those that there are do the work
      }
      ++workers_;
    }
  }

  [[noreturn]] void live(int id) {
    set_floating_point_state(default_state);
    for (std::uint32_t seen = 0;;) {
      seen = await_job(id, seen);
      if (enter(id)) {
        work(id);
        state_.fetch_sub(1, std::memory_order_acq_rel);
      }
    }
  }

  std::uint32_t await_job(int id, std::uint32_t seen) {
    for (int i = 0; id < processors_ && i < watchful_pauses; ++i) {
      const std::uint32_t epoch = epoch_.load(std::memory_order_acquire);
      if (epoch != seen) return epoch;
      relax();
    }
    // Counted as asleep before the last look at the epoch: a job opened in between is either seen or sends a wake-up.
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    epoch_.wait(seen, std::memory_order_seq_cst);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    return epoch_.load(std::memory_order_acquire);
  }

  // Only while the job is open: its description does not change before all that entered have left.
  bool enter(int id) {
    std::uint32_t state = state_.load(std::memory_order_acquire);
    while ((state & open) != 0) {
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
      if (id < threads_) return true;
      state_.fetch_sub(1, std::memory_order_acq_rel);
      return false;
    }
    return false;
  }

  static constexpr std::int64_t patience = 200'000;  // nanoseconds: a busy machine says little about an idle one

  std::mutex in_use_;
  std::int64_t repays_waking_ = 0;  // 0: not measured
  std::atomic<std::int64_t> last_end_{0};
  std::atomic<int> in_a_row_{0};
  std::atomic<int> workers_{0};
  const int processors_ = processors();
  Body body_{};
  std::int64_t grain_ = 1;
  int threads_ = 1;
  alignas(64) std::atomic<std::uint32_t> state_{0};
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  std::atomic<std::uint32_t> sleepers_{0};
  Slice slices_[max_threads];
};

Executor& callers_executor() {
  static Executor executor;
  return executor;
}

std::atomic<Pool*> current_pool{nullptr};
std::atomic<int> chosen_threads{0};
std::atomic<bool> all_work_is_shared{false};

// What each thread should have at least. A parallel region takes about 2 us when the workers are awake: with two such
// shares Rprop, the fastest rule, breaks even.
constexpr std::int64_t least_share = 8192;
std::mutex creation;

Pool& pool() {
  Pool* pool = current_pool.load(std::memory_order_acquire);
  if (pool != nullptr) return *pool;
  const std::lock_guard lock(creation);
  pool = current_pool.load(std::memory_order_acquire);
  if (pool == nullptr) {
    static const int registered = pthread_atfork(nullptr, nullptr, [] {
      // The child has none of the threads, and the locks may be held by threads it does not have: begin anew.
      current_pool.store(nullptr, std::memory_order_relaxed);
      new (&creation) std::mutex;
    });
    static_cast<void>(registered);
    pool = new Pool;  // never destroyed: its threads may outlive static destructors
    current_pool.store(pool, std::memory_order_release);
  }
  return *pool;
}

}  // namespace

std::uint64_t exchange_floating_point(std::optional<std::uint64_t> state) {
  const std::uint64_t before = floating_point_state();
  set_floating_point_state(state.value_or(default_state));
  return before;
}

// Written only where there is something to change: where a status flag of another is cleared and raised again, a call
// takes 70 ns longer.
DefaultFloatingPoint::DefaultFloatingPoint() : callers_(floating_point_state()) {
  if ((callers_ & ~status_flags) != default_state) set_floating_point_state(default_state);
}

DefaultFloatingPoint::~DefaultFloatingPoint() {
  if (floating_point_state() != callers_) set_floating_point_state(callers_);
}

int default_num_threads() {
  const char* wanted = std::getenv("FUSEDSTEP_NUM_THREADS");
  if (wanted == nullptr || *wanted == '\0') return processors();
  int n = 0;
  const char* end = wanted + std::strlen(wanted);
  const auto parsed = std::from_chars(wanted, end, n);
  if (parsed.ec != std::errc() || parsed.ptr != end || n < 1 || n > max_threads) {
    throw std::invalid_argument("FUSEDSTEP_NUM_THREADS: expected a whole number from 1 to " +
                                std::to_string(max_threads) + ", got '" + wanted + "'");
  }
  return n;
}

int num_threads() {
  int n = chosen_threads.load(std::memory_order_relaxed);
  if (n == 0) {
    n = default_num_threads();
    chosen_threads.store(n, std::memory_order_relaxed);
  }
  return n;
}

void set_num_threads(int n) {
  if (n < 1 || n > max_threads) {
    throw std::invalid_argument("num_threads: expected a whole number from 1 to " + std::to_string(max_threads) +
                                ", got " + std::to_string(n));
  }
  chosen_threads.store(n, std::memory_order_relaxed);
}

bool share_all_work(bool share) { return all_work_is_shared.exchange(share, std::memory_order_relaxed); }

int threads_for(std::int64_t elements) {
  if (all_work_is_shared.load(std::memory_order_relaxed)) return num_threads();
  if (elements < 2 * least_share) return 1;
  const int n = num_threads();
  if (n == 1) return 1;
  if (!callers_executor() && !pool().pays(elements)) return 1;
  return static_cast<int>(std::min<std::int64_t>(n, elements / least_share));
}

void set_executor(Executor executor) { callers_executor() = std::move(executor); }

void parallel_for(std::int64_t units, int threads, Body body) {
  // Several pieces a thread: what one that is held up has not begun, the others do.
  const std::int64_t grain = std::clamp<std::int64_t>(units / (4 * threads), 1, 32);
  if (const Executor& execute = callers_executor(); execute && threads > 1 && units > grain) {
    const std::int64_t pieces = (units + grain - 1) / grain;
    const std::int64_t ranges = std::min<std::int64_t>(threads, pieces);
    execute(ranges, [&](std::int64_t k) {
      const DefaultFloatingPoint guard;
      body.run(body.context, pieces * k / ranges * grain, std::min(units, pieces * (k + 1) / ranges * grain));
    });
    return;
  }
  if (threads > 1 && units > grain && pool().run(units, grain, threads, body)) return;
  body.run(body.context, 0, units);
  if (threads == 1 && units >= 2 * least_share / block) {
    if (Pool* asleep = current_pool.load(std::memory_order_acquire)) asleep->ended_alone();
  }
}

}  // namespace fusedstep
