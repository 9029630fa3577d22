// Checks what only the C++ API has, from outside: spans, parts, executors, rules as structs, errors as exceptions. The bits
// of every rule are those of cpp/replay.cpp.
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fusedstep/fusedstep.hpp>

#include "lcg.hpp"

namespace fs = fusedstep;

namespace {

int failures = 0;

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition); \
      ++failures;                                                          \
    }                                                                      \
  } while (false)

template <class T>
std::vector<T> random_values(std::size_t n, std::uint64_t seed) {
  Lcg random(seed);
  std::vector<T> values(n);
  for (T& value : values) value = random.next<T>();
  return values;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class Error = std::invalid_argument>
std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

constexpr std::int64_t large = 100'003;  // enough for threads
const fs::RMSprop rule{.lr = 0.02, .weight_decay = 0.1};

struct Arrays {
  std::vector<float> w = random_values<float>(large, 1);
  std::vector<float> g = random_values<float>(large, 2);
  std::vector<float> v = std::vector<float>(large);

  bool operator==(const Arrays& other) const { return same(w, other.w) && same(g, other.g) && same(v, other.v); }
};

Arrays stepped() {
  Arrays a;
  fs::step(rule, fs::span{a.w}, fs::span{a.g}, fs::span{a.v});
  return a;
}

void check_starts() {
  // The numbers at which an optimizer's states start.
  std::vector<float> w(3, 1.0f);
  const auto start = [&](const fs::AnyRule& of, const char* state) {
    const fs::Optimizer optimizer({of}, {{"w", fs::span{w}}});
    return *static_cast<const float*>(optimizer.state(0, state).data);
  };
  CHECK(start(fs::RMSprop{}, "square_avg") == 0.0f);
  CHECK(start(fs::RMSprop{.initial_square_avg = 0.5}, "square_avg") == 0.5f);
  CHECK(start(fs::Rprop{.lr = 0.5}, "step_size") == 0.5f);
  CHECK(start(fs::AnyRule::named("rprop"), "step_size") == 0.01f);
  CHECK(start(fs::AnyRule::named("adagrad", "keras"), "square_sum") == 0.1f);
  CHECK(message([] { fs::AnyRule::named("adam"); }).starts_with("rule: expected one of 'rmsprop', 'adagrad', "));
  CHECK(message([] { fs::AnyRule::named("adagrad", "keras2"); }) == message([] { fs::Adagrad::like("keras2"); }));
  CHECK(message([&] {
          start(fs::Adagrad{.initial_accumulator_value = -1.0}, "square_sum");
        }).starts_with("initial_accumulator_value: "));

  CHECK(fs::RMSprop::like("torch").alpha == 0.99);
  CHECK(fs::Rprop::like("torch").variant == fs::RpropVariant::irprop_minus);
  fs::RMSprop tf1 = fs::RMSprop::like("tf1");  // it has no default for lr
  CHECK(message([&] { start(tf1, "square_avg"); }).starts_with("lr: "));
  tf1.lr = 0.01;
  CHECK(start(tf1, "square_avg") == 1.0f);
}

void check_parts() {
  std::vector<double> w(12);
  const fs::span whole(w.data(), {4, 3}, {-3, 1});
  const fs::span part = whole.part(1, 2);
  CHECK(part.data() == w.data() - 3 && part.shape()[0] == 2 && part.shape()[1] == 3 && part.strides()[0] == -3);
  CHECK(whole.part(0, 4).shape()[0] == 4);
  CHECK(whole.part(4, 0).shape()[0] == 0);
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  const std::pair<std::int64_t, std::int64_t> outside[] = {{-1, 2}, {0, 5}, {3, 2}, {5, 0}, {1, -1}, {1, most}, {most, 1}};
  for (const auto& place : outside) {  // Clang 14 can't capture structured bindings
    const std::int64_t begin = place.first, n = place.second;
    CHECK(message([&] { whole.part(begin, n); }) ==
          "span: expected a part of 4 elements, got " + std::to_string(n) + " elements from " + std::to_string(begin));
  }
  CHECK(message([&] { fs::span(w.data(), {}, {}).part(0, 0); }) != "no error");
  CHECK(message([&] { fs::span(w.data(), {4, 3}, {3}); }) != "no error");
  CHECK(message([&] { fs::span(w.data(), {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}); }) != "no error");
}

void check_bad_spans() {
  std::vector<float> w(4), g(4), v(4);
  const auto step = [&](const fs::AnySpan& param, const fs::AnySpan& grad, const fs::AnySpan& state) {
    return message([&] { fs::step(fs::AnyRule(rule), 1, param, grad, std::array<fs::AnySpan, 1>{state}); });
  };
  const fs::span good{w};
  CHECK(step(fs::span(w.data(), -4), fs::span{g}, fs::span{v}) == "param: expected extents >= 0, got -4");
  CHECK(step(good, fs::span<float>(nullptr, 4), fs::span{v}) == "grad: expected data, got NULL");
  CHECK(step(good, fs::span{g}, fs::AnySpan()) == "square_avg: expected data, got NULL");
  CHECK(step(fs::span{std::as_const(w)}, fs::span{g}, fs::span{v}).find("read-only") != std::string::npos);
  fs::AnySpan deep = good;
  deep.dimensions = 9;
  CHECK(step(deep, fs::span{g}, fs::span{v}) == "param: expected at most 8 dimensions, got 9");
  CHECK(message([&] { fs::norm(std::array<fs::AnySpan, 1>{}); }) == "gradient: expected data, got NULL");
  CHECK(message([&] { fs::Optimizer({rule}, {{"w", {}}}); }) == "parameter 'w': expected data, got NULL");
  std::vector<float> none;  // its data may be null
  CHECK(step(fs::span{none}, fs::span{none}, fs::span{none}) == "no error");
}

void check_own_threads() {
  Arrays a;
  std::vector<std::thread> threads;
  constexpr int n = 3;
  for (int k = 0; k < n; ++k) {
    threads.emplace_back([&a, k] {
      const std::int64_t begin = large * k / n;
      const std::int64_t size = large * (k + 1) / n - begin;
      fs::step(rule, fs::span{a.w}.part(begin, size), fs::span{a.g}.part(begin, size), fs::span{a.v}.part(begin, size));
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(a == stepped());

  Arrays rows;  // a matrix with reversed rows
  const auto matrix = [](std::vector<float>& x) { return fs::span(x.data() + 99'990, {10'000, 10}, {-10, 1}); };
  Arrays whole;
  fs::step(rule, matrix(whole.w), matrix(whole.g), matrix(whole.v));
  for (std::int64_t begin = 0; begin < 10'000; begin += 2'500) {
    fs::step(rule, matrix(rows.w).part(begin, 2'500), matrix(rows.g).part(begin, 2'500), matrix(rows.v).part(begin, 2'500));
  }
  CHECK(rows == whole);
}

void check_executor() {
  const int before = fs::num_threads();
  fs::set_num_threads(4);
  std::atomic<std::int64_t> asked = 0, run_by_us = 0;
  fs::set_executor([&](std::int64_t ranges, const std::function<void(std::int64_t)>& run) {
    asked += ranges;
    std::vector<std::thread> threads;
    for (std::int64_t k = ranges; k-- > 0;) {
      threads.emplace_back([&run, &run_by_us, k] {
        run(k);
        ++run_by_us;
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  const Arrays a = stepped();
  CHECK(asked == 4 && run_by_us == 4);
  const double norm = fs::norm(std::array<fs::AnySpan, 1>{fs::span{a.g}});
  CHECK(asked == 8);
  fs::set_executor({});
  const Arrays b = stepped();
  CHECK(asked == 8);
  CHECK(a == b);
  CHECK(norm == fs::norm(std::array<fs::AnySpan, 1>{fs::span{a.g}}));
  fs::set_num_threads(before);
}

void check_lists() {
  // An optimizer of many arrays does what step() does to each, group by group, and skips arrays without a gradient.
  const fs::RMSprop fast{.lr = 0.5, .momentum = 0.9};
  std::vector<std::vector<double>> params, expected, grads, squares, buffers;
  std::vector<fs::Optimizer::Parameter> list;
  for (std::uint64_t k = 0; k < 20; ++k) {
    params.push_back(random_values<double>(k * k, k));
    grads.push_back(random_values<double>(k * k, 100 + k));
    squares.emplace_back(k * k);
    buffers.emplace_back(k * k);
  }
  expected = params;
  for (std::size_t k = 0; k < params.size(); ++k) {
    list.push_back({std::string("p").append(std::to_string(k)), fs::span{params[k]}, k % 2});
  }
  fs::Optimizer first({rule, fast}, list);
  fs::Optimizer optimizer = std::move(first);
  fs::RMSprop now = fast;
  for (std::int64_t t = 1; t <= 3; ++t) {
    if (t == 3) {
      now.lr = 0.001;
      optimizer.set_rule(1, now);
    }
    std::vector<fs::AnySpan> gradients;
    for (std::size_t k = 0; k < params.size(); ++k) {
      const bool left_out = k % 5 == 0 && t == 2;  // also an empty one
      gradients.push_back(left_out ? fs::AnySpan() : fs::span{std::as_const(grads[k])});
      if (left_out) continue;
      if (k % 2 == 0) {
        fs::step(rule, t, fs::span{expected[k]}, fs::span{grads[k]}, fs::span{squares[k]});
      } else {
        fs::step(now, t, fs::span{expected[k]}, fs::span{grads[k]}, fs::span{squares[k]}, fs::span{buffers[k]});
      }
    }
    const fs::StepReport report = optimizer.step(gradients);
    CHECK(report.step == t && !report.skipped && !report.grad_norm && report.nonfinite.empty());
    // A bad array at the end: nothing is changed.
    gradients.back() = fs::span{grads[3]};
    CHECK(message([&] { optimizer.step(gradients); }).find("p19") != std::string::npos);
    for (std::size_t k = 0; k < params.size(); ++k) CHECK(same(params[k], expected[k]));
  }
  const fs::AnySpan state = optimizer.state(7, "momentum_buffer");
  CHECK(state.dimensions == 1 && state.shape[0] == 49 && state.strides[0] == 8 && state.type == fs::Type::float64);
  CHECK(std::memcmp(state.data, buffers[7].data(), 49 * sizeof(double)) == 0);
  CHECK(optimizer.state(6, "momentum_buffer").data == nullptr);
  CHECK(optimizer.state(7, "no such state").data == nullptr);
}

void check_prologue() {
  std::vector<double> w{1.0, 2.0}, g{3.0, 4.0};
  fs::Optimizer optimizer({fs::Adagrad{.lr = 1.0, .eps = 1e-300}}, {{"w", fs::span{w}}});
  const std::array<fs::AnySpan, 1> gradients{fs::span{g}};
  CHECK(fs::norm(gradients) == 5.0);
  const fs::StepReport report = optimizer.step(gradients, {.grad_scale = 2.0, .clip_norm = 1.25, .zero_grads = true});
  CHECK(report.grad_norm == 2.5);  // unscaled
  const auto* square_sum = static_cast<const double*>(optimizer.state(0, "square_sum").data);
  CHECK(square_sum[0] == 0.75 * 0.75 && square_sum[1] == 1.0);
  CHECK(w[0] == 0.0 && w[1] == 1.0);
  CHECK(g[0] == 0.0 && g[1] == 0.0);
  g[1] = std::numeric_limits<double>::quiet_NaN();
  const fs::StepReport skipped = optimizer.step(gradients, {.zero_grads = true, .nonfinite = fs::Nonfinite::skip});
  CHECK(skipped.skipped && skipped.step == 1 && skipped.nonfinite == std::vector<std::size_t>{0});
  CHECK(w[0] == 0.0 && w[1] == 1.0 && g[1] == 0.0);
  g[1] = std::numeric_limits<double>::quiet_NaN();
  CHECK(message<std::domain_error>([&] {
          optimizer.step(gradients, {.nonfinite = fs::Nonfinite::raise});
        }).starts_with("inf or NaN in the gradient of 'w'"));
  const std::array<fs::AnySpan, 1> read_only{fs::span{std::as_const(g)}};
  CHECK(message([&] { optimizer.step(read_only, {.zero_grads = true}); }).find("read-only") != std::string::npos);

  // A step that writes gradients checks them again: before, read-only and overlapping ones were accepted.
  std::vector<float> a(4, 1.0f), b(4, 1.0f), shared(6, 1.0f), own(8, 1.0f);
  fs::Optimizer pair({fs::Adagrad{}}, {{"a", fs::span{a}}, {"b", fs::span{b}}});
  const std::vector<fs::AnySpan> one_read_only{fs::span(own.data(), 4), fs::span(std::as_const(own).data() + 4, 4)};
  const std::vector<fs::AnySpan> overlapping{fs::span(shared.data(), 4), fs::span(shared.data() + 2, 4)};
  for (int k = 0; k < 2; ++k) {
    pair.step(one_read_only);
    CHECK(message([&] { pair.step(one_read_only, {.zero_grads = true}); }).find("read-only") != std::string::npos);
    pair.step(overlapping);
    CHECK(message([&] { pair.step(overlapping, {.zero_grads = true}); }).find("shares memory") != std::string::npos);
  }
  const std::vector<fs::AnySpan> separate{fs::span(own.data(), 4), fs::span(own.data() + 4, 4)};
  for (int k = 0; k < 2; ++k) CHECK(pair.step(separate, {.zero_grads = true}).step == 5 + k);
  CHECK(own == std::vector<float>(8, 0.0f));
  CHECK(message([&] { pair.step(overlapping, {.zero_grads = true}); }).find("shares memory") != std::string::npos);
}

// An optimizer of 16-bit arrays does what step() does with its keys.
void check_narrow() {
  constexpr std::size_t n = 1000;
  const std::vector<float> g = random_values<float>(n, 9);
  std::vector<fs::bfloat16> w(n, fs::bfloat16{0x3F80}), v(n), w2 = w;
  const fs::RMSprop rmsprop{.lr = 1e-3};
  const std::array<fs::GroupStorage, 1> narrow{{{.state_type = fs::Type::bfloat16}}}, master{{{.master = true}}};
  fs::Optimizer optimizer({rmsprop}, {{"w", fs::span{w2}}}, narrow, 5);
  for (std::int64_t t = 1; t <= 3; ++t) {
    const std::array<fs::AnySpan, 1> states{fs::span{v}};
    fs::step(fs::AnyRule(rmsprop), t, fs::span{w}, fs::span{g}, states, {.key = fs::noise_key(5, t, "w")});
    optimizer.step(std::array<fs::AnySpan, 1>{fs::span{g}});
  }
  CHECK(std::memcmp(w.data(), w2.data(), n * sizeof w[0]) == 0);
  CHECK(std::memcmp(v.data(), optimizer.state(0, "square_avg").data, n * sizeof v[0]) == 0);
  CHECK(message([&] { optimizer.sync_master(0); }).find("master") != std::string::npos);
  std::vector<float> wide(n);
  CHECK(message([&] { fs::Optimizer({rmsprop}, {{"w", fs::span{wide}}}, master); }).find("master") != std::string::npos);
}

// A gradient of rows, as an argument of a function and of an optimizer, where it is refused by the place of a bad entry.
void check_rows() {
  std::vector<float> table(40 * 24, 1.0f), sum(table.size()), other = table, values(5 * 24, 1.0f);
  const std::vector<std::int64_t> index{7, 39, 7, 0, 7}, beyond{0, 0, 0, 40, 0};
  const auto matrix = [](std::vector<float>& x) {
    return fs::span(x.data(), {static_cast<std::int64_t>(x.size()) / 24, 24}, {24, 1});
  };
  const fs::Adagrad adagrad{.lr = 0.1};
  const fs::Rows gradient{fs::span{index}, matrix(values)}, bad{fs::span{beyond}, matrix(values)};
  const std::array<fs::AnySpan, 1> states{matrix(sum)};
  fs::step(adagrad, 1, matrix(table), gradient, states);
  fs::Optimizer optimizer({adagrad}, {{"table", matrix(other)}});
  optimizer.step(std::array<fs::Gradient, 1>{gradient});
  optimizer.step(std::array<fs::Gradient, 1>{fs::AnySpan()});
  CHECK(same(table, other) && table[7 * 24] < 1.0f && table[8 * 24] == 1.0f && sum[7 * 24] == 9.0f);
  for (const std::string& told : {message<std::out_of_range>([&] { optimizer.step(std::array<fs::Gradient, 1>{bad}); }),
                                  message<std::out_of_range>([&] { fs::step(adagrad, 1, matrix(table), bad, states); })}) {
    CHECK(told.find("got 40") != std::string::npos && told.find("place 3") != std::string::npos);
  }
  CHECK(same(table, other));
  optimizer.step(std::array<fs::Gradient, 1>{gradient}, {.zero_grads = true});
  CHECK(values == std::vector<float>(5 * 24, 0.0f));
}

}  // namespace

int main() {
  check_starts();
  check_parts();
  check_bad_spans();
  check_own_threads();
  check_executor();
  check_lists();
  check_prologue();
  check_narrow();
  check_rows();
  if (failures != 0) std::fprintf(stderr, "%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
