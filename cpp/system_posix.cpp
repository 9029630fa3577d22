#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "system.hpp"

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace fusedstep {

#if defined(__linux__)

// cpu_set_t has room for 1,024 processors. If the system knows more, it refuses a set that is too small.
int processors_by_affinity() {
  for (std::size_t most = 1024; most <= std::size_t{1} << 22; most *= 2) {
    cpu_set_t* const set = CPU_ALLOC(most);
    if (set == nullptr) break;
    const std::size_t size = CPU_ALLOC_SIZE(most);
    const bool known = sched_getaffinity(0, size, set) == 0;
    const bool too_small = !known && errno == EINVAL;
    const int count = known ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
    if (!too_small) break;
  }
  return 1;
}

// The linker option -z nodelete does this.
void stay_loaded() {}

#else

// Other systems do not bind threads to processors.
int processors_by_affinity() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

void stay_loaded() {
#if defined(__APPLE__)
  Dl_info here;
  if (dladdr(reinterpret_cast<const void*>(&stay_loaded), &here) != 0) dlopen(here.dli_fname, RTLD_LAZY | RTLD_NODELETE);
#endif
}

#endif

void* map_pages(std::size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  // A request: without huge pages the system gives small ones.
  constexpr std::size_t huge_page = std::size_t{1} << 21;
  if (bytes >= huge_page) static_cast<void>(madvise(memory, bytes, MADV_HUGEPAGE));
#endif
  return memory;
}

void unmap_pages(void* memory, std::size_t bytes) { munmap(memory, bytes); }

void call_in_children(void (*f)()) { pthread_atfork(nullptr, nullptr, f); }

struct SignalsBlocked::Mask {
  sigset_t signals;
};

SignalsBlocked::SignalsBlocked() : callers_(std::make_unique<Mask>()) {
  sigset_t signals;
  sigfillset(&signals);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&signals, fault);
  pthread_sigmask(SIG_SETMASK, &signals, &callers_->signals);
}

SignalsBlocked::~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &callers_->signals, nullptr); }

}  // namespace fusedstep
