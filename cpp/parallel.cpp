#include "parallel.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "loops/kernel.hpp"
#include "platform.hpp"
#include "processors.hpp"
#include "system.hpp"

namespace fusedstep {
namespace {

constexpr int max_threads = 256;

// After a job, a worker watches for the next one for about this many pauses (some tens of microseconds). Then it sleeps.
constexpr int watchful_pauses = 2000;

std::int64_t nanoseconds() { return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The cost of waking workers for a job: W, the time of the call that wakes them, and L, the time until the first one
// arrives. It depends on the system, from a few microseconds to a hundred, and is measured while jobs run.
class CostOfWaking {
 public:
  // Whether a job on so many elements is worth this cost. With two threads, work of time t takes (t + L + W) / 2, which is
  // less than t from t = L + W on. Now and then a smaller job is let through as well, because the cost may have changed.
  // Until it is known, all jobs are.
  bool repaid_by(std::int64_t elements) {
    constexpr double nanoseconds_per_element = 0.3;
    constexpr std::uint32_t now_and_then = 256;
    const std::int64_t cost = cost_.load(std::memory_order_relaxed);
    if (static_cast<double>(elements) * nanoseconds_per_element >= static_cast<double>(cost)) return true;
    return refused_.fetch_add(1, std::memory_order_relaxed) % now_and_then == now_and_then - 1;
  }

  // Called by the first worker: before it goes to sleep, and after it wakes up.
  void sleeps() {
    asleep_since_ = nanoseconds();
    sleeps_.store(true, std::memory_order_seq_cst);
  }
  void is_awake() {
    if (sleeps_.exchange(false, std::memory_order_acq_rel)) return;  // nobody woke it: a job was there already
    const std::int64_t called_at = called_at_.load(std::memory_order_relaxed);
    if (called_at - asleep_since_ < sound_sleep) return;
    const std::int64_t cost = std::min(nanoseconds() - called_at + call_.load(std::memory_order_relaxed), patience);
    const std::int64_t before = cost_.load(std::memory_order_relaxed);
    // Follows a lower cost at once and a higher one slowly: a busy machine says little about an idle one.
    const std::int64_t higher = before + (cost - before) / 16;
    cost_.store(before == 0 || cost < before ? cost : higher, std::memory_order_relaxed);
  }

  // Called by the caller: before and after the call that wakes the workers. `before_call` returns the time.
  std::int64_t before_call() {
    const std::int64_t now = nanoseconds();
    if (sleeps_.load(std::memory_order_relaxed)) {
      called_at_.store(now, std::memory_order_relaxed);
      sleeps_.store(false, std::memory_order_release);
    }
    return now;
  }
  void after_call(std::int64_t began) { call_.store(nanoseconds() - began, std::memory_order_relaxed); }

 private:
  static constexpr std::int64_t patience = 200'000;     // nanoseconds
  static constexpr std::int64_t sound_sleep = 10'000;  // nanoseconds; a worker that has just gone to sleep wakes up faster

  std::atomic<std::int64_t> cost_{0};  // 0: unknown
  std::atomic<std::int64_t> call_{0};
  std::atomic<std::int64_t> called_at_{0};
  std::atomic<std::uint32_t> refused_{0};
  SharedFlag sleeps_{false};
  std::int64_t asleep_since_ = 0;  // only the first worker uses it
};

class Pool {
 public:
  // Whether work on so many elements is worth the cost of waking workers. One small job is not, but many in a row are: once
  // awake, workers wait for the next.
  bool pays(std::int64_t elements) {
    const bool asleep = sleepers_.load(std::memory_order_relaxed) > 0 || workers_.load(std::memory_order_relaxed) == 0;
    return !asleep || in_a_row() || waking_.repaid_by(elements);
  }

  // Notes the end of work that was large enough to be shared, but ran on one thread.
  void ended_alone() { last_end_.store(nanoseconds(), std::memory_order_relaxed); }

  // Returns false, and does nothing, if another thread is using the pool.
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

  // Each thread works through its own slice and then helps with the others. So a thread that is asleep or delayed costs only
  // its own absence.
  struct alignas(64) Slice {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  void open_job() {
    const bool asleep = sleepers_.load(std::memory_order_relaxed) > 0;
    const std::int64_t began = asleep ? waking_.before_call() : 0;
    state_.store(open, std::memory_order_release);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) epoch_.notify_all();
    if (asleep) waking_.after_call(began);
  }

  // Lets no more workers in, and waits for those inside to finish their pieces.
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
    if (workers_ >= workers) return;
    stay_loaded();
    while (workers_ < workers) {
      try {
        const SignalsBlocked blocked;
        std::thread([this, id = workers_.load() + 1] { live(id); }).detach();
      } catch (const std::system_error&) {
        return;  // no more threads to be had: the existing ones do the work
      } catch (const std::bad_alloc&) {
        return;
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
    // Counts this worker as asleep before it looks at the epoch for the last time. A job that is opened in between is either
    // seen here or sends a wake-up.
    if (id == 1) waking_.sleeps();
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    epoch_.wait(seen, std::memory_order_seq_cst);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    if (id == 1) waking_.is_awake();
    return epoch_.load(std::memory_order_acquire);
  }

  // Workers enter only while the job is open. Its description stays the same until all of them have left.
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

  std::mutex in_use_;
  CostOfWaking waking_;
  std::atomic<std::int64_t> last_end_{0};
  std::atomic<int> in_a_row_{0};
  std::atomic<int> workers_{0};
  const int processors_ = usable_processors();
  Body body_{};
  std::int64_t grain_ = 1;
  int threads_ = 1;
  alignas(64) std::atomic<std::uint32_t> state_{0};
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  std::atomic<std::uint32_t> sleepers_{0};
  Slice slices_[max_threads];
};

// Never destroyed, because steps of daemon threads may outlive static destructors.
Executor& callers_executor() {
  static Executor& executor = *new Executor;
  return executor;
}

std::atomic<Pool*> current_pool{nullptr};
std::atomic<int> chosen_threads{0};  // set by set_num_threads(); 0: not set
std::atomic<int> usual_threads{0};  // default_num_threads() at the first step; 0: not read yet
SharedFlag all_work_is_shared{false};

// The least number of elements for each thread. A parallel region takes about 2 us when the workers are awake: Rprop, the
// fastest rule, breaks even at two such shares.
constexpr std::int64_t least_share = 8192;
std::mutex creation;
SharedFlag watches_forks{false};

// A forked child starts anew: it has none of the threads, its locks may be held by threads that it does not have, and it may
// be bound to other processors.
void begin_anew_in_children() {
  if (watches_forks.exchange(true, std::memory_order_relaxed)) return;
  call_in_children([] {
    current_pool.store(nullptr, std::memory_order_relaxed);
    usual_threads.store(0, std::memory_order_relaxed);
    new (&creation) std::mutex;
  });
}

// Returns null if there is no memory for it.
Pool* pool() {
  Pool* pool = current_pool.load(std::memory_order_acquire);
  if (pool != nullptr) return pool;
  const std::lock_guard lock(creation);
  pool = current_pool.load(std::memory_order_acquire);
  if (pool == nullptr) {
    begin_anew_in_children();
    pool = new (std::nothrow) Pool;  // never destroyed, because its threads may outlive static destructors
    current_pool.store(pool, std::memory_order_release);
  }
  return pool;
}

// Reads the first number of a list as OpenMP has it, one number per level of nesting, the outermost first. Returns 0 for
// anything else.
int first_number(const char* text) {
  std::string_view rest = text == nullptr ? "" : text;
  const auto skip_blanks = [&] { rest.remove_prefix(std::min(rest.find_first_not_of(" \t\n"), rest.size())); };
  skip_blanks();
  int n = 0;
  const auto parsed = std::from_chars(rest.data(), rest.data() + rest.size(), n);
  if (parsed.ec != std::errc() || n < 1) return 0;
  rest.remove_prefix(static_cast<std::size_t>(parsed.ptr - rest.data()));
  skip_blanks();
  return rest.empty() || rest.front() == ',' ? n : 0;
}

// The number of threads of a step. The first call reads the environment.
int threads_of_a_step() {
  if (const int chosen = chosen_threads.load(std::memory_order_relaxed); chosen != 0) return chosen;
  int usual = usual_threads.load(std::memory_order_relaxed);
  if (usual == 0) {
    begin_anew_in_children();
    usual = default_num_threads();
    usual_threads.store(usual, std::memory_order_relaxed);
  }
  return usual;
}

// Ranges of work that the caller's executor runs. Each range runs exactly once: those that the executor leaves out, by
// mistake or because it throws, run here. Its exception is dropped, because the work is complete, and half a step would be
// worse.
class Ranges {
 public:
  Ranges(std::int64_t units, std::int64_t grain, int threads, Body body)
      : units_(units),
        grain_(grain),
        pieces_((units + grain - 1) / grain),
        count_(std::min<std::int64_t>(std::min(threads, max_threads), pieces_)),
        body_(body) {}

  void run_by(const Executor& execute) {
    try {
      execute(count_, [this](std::int64_t k) { run(k); });
    } catch (...) {
    }
    for (std::int64_t k = 0; k < count_; ++k) run(k);
    while (done_.load(std::memory_order_acquire) != count_) std::this_thread::yield();
  }

 private:
  void run(std::int64_t k) {
    if (k < 0 || k >= count_ || begun_[static_cast<std::size_t>(k)].exchange(true, std::memory_order_relaxed)) return;
    {
      const DefaultFloatingPoint guard;
      body_.run(body_.context, pieces_ * k / count_ * grain_, std::min(units_, pieces_ * (k + 1) / count_ * grain_));
    }
    done_.fetch_add(1, std::memory_order_acq_rel);
  }

  std::int64_t units_;
  std::int64_t grain_;
  std::int64_t pieces_;
  std::int64_t count_;
  Body body_;
  std::atomic<std::int64_t> done_{0};
  std::array<SharedFlag, max_threads> begun_{};
};

}  // namespace

std::uint64_t exchange_floating_point(std::optional<std::uint64_t> state) {
  const std::uint64_t before = floating_point_state();
  set_floating_point_state(state.value_or(default_state));
  return before;
}

// Writes the register only if a setting differs: clearing and raising status flags costs 70 ns per call.
DefaultFloatingPoint::DefaultFloatingPoint() : callers_(floating_point_state()) {
  if ((callers_ & ~status_flags) != default_state) set_floating_point_state(default_state);
}

DefaultFloatingPoint::~DefaultFloatingPoint() {
  if (floating_point_state() != callers_) set_floating_point_state(callers_);
}

int default_num_threads() {
  const char* wanted = std::getenv("FUSEDSTEP_NUM_THREADS");
  if (wanted == nullptr || *wanted == '\0') {
    const int usual = std::min(usable_processors(), max_threads);
    const int of_openmp = first_number(std::getenv("OMP_NUM_THREADS"));
    return of_openmp == 0 ? usual : std::min(usual, of_openmp);
  }
  int n = 0;
  const char* end = wanted + std::strlen(wanted);
  const auto parsed = std::from_chars(wanted, end, n);
  if (parsed.ec != std::errc() || parsed.ptr != end || n < 1 || n > max_threads) {
    throw std::invalid_argument("FUSEDSTEP_NUM_THREADS: expected a whole number from 1 to " + std::to_string(max_threads) +
                                ", got '" + wanted + "'");
  }
  return n;
}

int num_threads() {
  for (const std::atomic<int>* known : {&chosen_threads, &usual_threads}) {
    if (const int n = known->load(std::memory_order_relaxed); n != 0) return n;
  }
  return default_num_threads();
}

void set_num_threads(int n) {
  if (n < 1 || n > max_threads) {
    throw std::invalid_argument("num_threads: expected a whole number from 1 to " + std::to_string(max_threads) + ", got " +
                                std::to_string(n));
  }
  chosen_threads.store(n, std::memory_order_relaxed);
}

bool share_all_work(bool share) { return all_work_is_shared.exchange(share, std::memory_order_relaxed); }

int threads_for(std::int64_t elements) {
  if (all_work_is_shared.load(std::memory_order_relaxed)) return threads_of_a_step();
  if (elements < 2 * least_share) return 1;
  const int n = threads_of_a_step();
  if (n == 1) return 1;
  if (!callers_executor()) {
    Pool* const there = pool();
    if (there == nullptr || !there->pays(elements)) return 1;
  }
  return static_cast<int>(std::min<std::int64_t>(n, elements / least_share));
}

void set_executor(Executor executor) { callers_executor() = std::move(executor); }

void parallel_for(std::int64_t units, int threads, Body body) {
  // Several pieces per thread: if a thread is delayed, the others take the pieces that it has not begun.
  const std::int64_t grain = std::clamp<std::int64_t>(units / (4 * threads), 1, 32);
  if (threads > 1 && units > grain) {
    if (const Executor& execute = callers_executor()) {
      Ranges(units, grain, threads, body).run_by(execute);
      return;
    }
    if (Pool* const there = pool(); there != nullptr && there->run(units, grain, threads, body)) return;
  }
  body.run(body.context, 0, units);
  if (threads == 1 && units >= 2 * least_share / block) {
    if (Pool* asleep = current_pool.load(std::memory_order_acquire)) asleep->ended_alone();
  }
}

}  // namespace fusedstep
