// Puts the pool of threads under load, for the thread sanitizer: many threads step their own small and large optimizers at
// once, while the number of threads and the instruction set change. Then the same with the caller's threads, of which some
// fail. Every result has the bits of a single thread. Between steps the pool sleeps, wakes up, and learns what that costs.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <fusedstep/fusedstep.hpp>

#include "../consumer/lcg.hpp"

namespace fs = fusedstep;

namespace {

constexpr int steps = 6;
constexpr std::array<std::int64_t, 2> sizes{100, 40'003};

// An optimizer over two parameters, one large enough to be shared among threads and one strided.
template <class T>
struct Run {
  explicit Run(const fs::AnyRule& rule, std::int64_t n)
      : large(values(n, 1)),
        strided(values(2 * n, 2)),
        size(n),
        optimizer({rule}, {{"large", fs::span{large}}, {"strided", every_2nd(strided)}}) {}

  // Returns n of the random numbers from this one on. They are drawn once, because emulators and sanitizers draw slowly.
  static std::vector<T> values(std::int64_t n, std::int64_t first) {
    static const std::vector<T> drawn = [] {
      Lcg random(1);
      std::vector<T> made(static_cast<std::size_t>(2 * sizes.back() + 20 + steps));
      for (T& x : made) x = random.next<T>();
      return made;
    }();
    return {drawn.begin() + first, drawn.begin() + first + n};
  }

  fs::span<T> every_2nd(std::vector<T>& x) const { return fs::span<T>(x.data(), {size}, {2}); }

  void step(int t) {
    std::vector<T> g = values(size, 10 + t);
    std::vector<T> h = values(2 * size, 20 + t);
    const std::array<fs::AnySpan, 2> gradients{fs::span{g}, every_2nd(h)};
    optimizer.step(gradients, {.clip_norm = 1.0, .zero_grads = t % 2 == 0, .loss = 1.0 + t % 3});
  }

  bool operator==(const Run& other) const {
    return std::memcmp(large.data(), other.large.data(), large.size() * sizeof(T)) == 0 &&
           std::memcmp(strided.data(), other.strided.data(), strided.size() * sizeof(T)) == 0;
  }

  std::vector<T> large;
  std::vector<T> strided;
  std::int64_t size;
  fs::Optimizer optimizer;
};

const std::vector<fs::AnyRule> rules{
    fs::RMSprop{.centered = true, .momentum = 0.9, .bias_correction = true},
    fs::Adagrad{.lr_decay = 0.1, .weight_decay = 0.1},
    fs::AdagradNorm{.lr = 0.5},
    fs::Rprop{.variant = fs::RpropVariant::irprop_plus},
    fs::Rprop{.variant = fs::RpropVariant::grprop_slr},
};

template <class T>
std::vector<Run<T>> alone() {
  std::vector<Run<T>> runs;
  for (const fs::AnyRule& rule : rules) {
    for (const std::int64_t n : sizes) {
      for (int t = 0; t < steps; ++t) {
        if (t == 0) runs.emplace_back(rule, n);
        runs.back().step(t);
      }
    }
  }
  return runs;
}

std::atomic<int> differences = 0;

template <class T>
void work(const std::vector<Run<T>>& expected) {
  std::size_t k = 0;
  for (const fs::AnyRule& rule : rules) {
    for (const std::int64_t n : sizes) {
      Run<T> run(rule, n);
      for (int t = 0; t < steps; ++t) run.step(t);
      if (!(run == expected[k++])) ++differences;
    }
  }
}

void many_at_once(int rounds, const std::vector<Run<float>>& f, const std::vector<Run<double>>& d) {
  std::atomic<bool> done = false;
  std::thread changes([&] {
    const std::vector<std::string> isas = fs::available_isas();
    for (std::size_t k = 0; !done; ++k) {
      fs::set_num_threads(static_cast<int>(1 + k % 5));
      fs::force_isa(k % 7 == 0 ? "" : isas[k % isas.size()]);
      if (fs::num_threads() < 1 || fs::isa().empty()) ++differences;
      std::this_thread::yield();
    }
  });
  for (int round = 0; round < rounds; ++round) {
    std::vector<std::thread> threads;
    for (int k = 0; k < 6; ++k) threads.emplace_back([&, k] { k % 2 == 0 ? work(f) : work(d); });
    for (std::thread& thread : threads) thread.join();
  }
  done = true;
  changes.join();
}

// Steps on one thread, with pauses in which the workers fall asleep.
void with_pauses(const std::vector<Run<float>>& f) {
  for (const int microseconds : {10, 100, 300, 1000}) {
    std::size_t k = 0;
    for (const fs::AnyRule& rule : rules) {
      for (const std::int64_t n : sizes) {
        Run<float> run(rule, n);
        for (int t = 0; t < steps; ++t) {
          std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
          run.step(t);
        }
        if (!(run == f[k++])) ++differences;
      }
    }
  }
}

using Ranges = const std::function<void(std::int64_t)>&;

// Executors that do too little or too much.
const std::vector<fs::Executor> poor_executors{
    [](std::int64_t, Ranges) { throw std::runtime_error("no threads"); },
    [](std::int64_t, Ranges) { throw 7; },
    [](std::int64_t, Ranges) {},
    [](std::int64_t ranges, Ranges run) {
      for (std::int64_t k = 0; k < ranges; k += 2) run(k);
      throw std::runtime_error("half of it");
    },
    [](std::int64_t ranges, Ranges run) {
      for (std::int64_t k = -2; k < ranges + 2; ++k) run(k);
      run(0);
    },
    [](std::int64_t ranges, Ranges run) {
      std::vector<std::thread> threads;
      for (int twice = 0; twice < 2; ++twice) {
        for (std::int64_t k = 0; k < ranges; ++k) threads.emplace_back([&run, k] { run(k); });
      }
      for (std::thread& thread : threads) thread.join();
      throw std::runtime_error("after all");
    },
};

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 1;
  fs::set_num_threads(1);
  const auto f = alone<float>();
  const auto d = alone<double>();
  fs::set_num_threads(3);
  many_at_once(rounds, f, d);
  fs::set_num_threads(3);
  with_pauses(f);
  fs::set_executor([](std::int64_t ranges, const std::function<void(std::int64_t)>& run) {
    std::vector<std::thread> threads;
    for (std::int64_t k = 0; k < ranges; ++k) threads.emplace_back([&run, k] { run(k); });
    for (std::thread& thread : threads) thread.join();
  });
  many_at_once(rounds, f, d);
  fs::set_num_threads(3);
  for (const fs::Executor& executor : poor_executors) {
    fs::set_executor(executor);
    work(f);
    work(d);
  }
  fs::set_executor({});
  if (differences != 0) std::fprintf(stderr, "%d runs differ from that of one thread\n", differences.load());
  return differences == 0 ? 0 : 1;
}
