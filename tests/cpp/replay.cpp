// Replays updates whose results tests/cases.py has computed by the NumPy reference: `replay FILE`, or every 2nd of them by
// `replay FILE 0 2` and `replay FILE 1 2`. They go through the C ABI, with every instruction set of this machine, several
// layouts, one thread and several, and a caller with another rounding mode and flush-to-zero. All bits must be the
// reference's, except the sign and payload of a NaN, and no byte between or beside the elements may change. So any processor,
// or an emulator, can be checked without Python on it.
#include <algorithm>
#include <bit>
#include <cfenv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <fusedstep/fusedstep.h>
#include <fusedstep/fusedstep.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// ------------------------------------------------------------------------------------------------- floating-point state

#if defined(__x86_64__)
constexpr std::uint64_t flush_to_zero = 0x8040;  // FTZ, DAZ
std::uint64_t state() { return _mm_getcsr() & ~std::uint64_t{0x3f}; }  // without the status flags
void set_state(std::uint64_t state) { _mm_setcsr(static_cast<unsigned>(state)); }
#elif defined(__aarch64__)
constexpr std::uint64_t flush_to_zero = std::uint64_t{1} << 24;  // FZ
std::uint64_t state() {
  std::uint64_t state;
  asm volatile("mrs %0, fpcr" : "=r"(state));
  return state;
}
void set_state(std::uint64_t state) { asm volatile("msr fpcr, %0" ::"r"(state)); }
#else
constexpr std::uint64_t flush_to_zero = 0;
std::uint64_t state() { return static_cast<std::uint64_t>(std::fegetround()); }
void set_state(std::uint64_t state) { std::fesetround(static_cast<int>(state)); }
#endif

// While it lives, rounds upwards and flushes subnormals. Says whether a callee has changed these settings.
class Hostile {
 public:
  explicit Hostile(bool hostile) : rounding_(std::fegetround()), before_(state()) {
    if (hostile) {
      std::fesetround(FE_UPWARD);
      set_state(state() | flush_to_zero);
    }
    set_ = state();
  }
  ~Hostile() {
    std::fesetround(rounding_);  // also for x87, which strtod may use
    set_state(before_);
  }
  Hostile(const Hostile&) = delete;
  Hostile& operator=(const Hostile&) = delete;
  bool kept() const { return state() == set_; }

 private:
  int rounding_;
  std::uint64_t before_;
  std::uint64_t set_;
};

// ----------------------------------------------------------------------------------------------------------- the cases

class Reader {
 public:
  explicit Reader(const char* path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) throw std::runtime_error(std::string(path) + ": cannot be read");
    content_.resize(static_cast<std::size_t>(file.tellg()));
    file.seekg(0).read(content_.data(), static_cast<std::streamsize>(content_.size()));
  }

  bool done() const { return at_ == content_.size(); }

  void skip(std::size_t n) {
    if (n > content_.size() - at_) throw std::runtime_error("the file of cases ends early");
    at_ += n;
  }

  std::vector<char> bytes(std::size_t n) {
    skip(n);
    return {content_.begin() + static_cast<std::ptrdiff_t>(at_ - n), content_.begin() + static_cast<std::ptrdiff_t>(at_)};
  }

  // Reads elements of this size. The file has their low bytes first.
  std::vector<char> elements(std::size_t n, std::size_t size) {
    std::vector<char> read = bytes(n * size);
    if constexpr (std::endian::native == std::endian::big) {
      for (auto at = read.begin(); at != read.end(); at += static_cast<std::ptrdiff_t>(size)) {
        std::reverse(at, at + static_cast<std::ptrdiff_t>(size));
      }
    }
    return read;
  }

  template <class T = std::int64_t>
  T number() {
    T x;
    std::memcpy(&x, elements(1, sizeof x).data(), sizeof x);
    return x;
  }

  std::string text() {
    const std::vector<char> read = bytes(static_cast<std::size_t>(number()));
    return {read.begin(), read.end()};
  }

 private:
  std::vector<char> content_;
  std::size_t at_ = 0;
};

// A dense array of the file: rows x columns in C order, one number per row, or one number.
struct Values {
  std::int32_t dtype = 0;
  std::int32_t dimensions = 0;
  std::int64_t rows = 0, columns = 0;
  std::vector<char> bytes;
};

void must(std::int32_t code) {
  if (code != FUSEDSTEP_OK) throw std::runtime_error(fusedstep_last_error());
}

using Rule = std::unique_ptr<fusedstep_rule, decltype(&fusedstep_rule_destroy)>;

// A value is a number, two numbers with a comma between them, or a name.
void set(fusedstep_rule* rule, const char* name, const char* value) {
  char* end = nullptr;
  const double number = std::strtod(value, &end);
  must(*end == ','                    ? fusedstep_rule_set_pair(rule, name, number, std::strtod(end + 1, nullptr))
       : *end == '\0' && end != value ? fusedstep_rule_set(rule, name, number)
                                      : fusedstep_rule_set_choice(rule, name, value));
}

// `options` has a line per option, name=value; the rule must use these states.
Rule make_rule(const std::string& name, const std::string& options, const std::vector<std::string>& states) {
  fusedstep_rule* made = nullptr;
  must(fusedstep_rule_create(name.c_str(), nullptr, &made));
  Rule rule(made, fusedstep_rule_destroy);
  std::istringstream lines(options);
  for (std::string option, value; std::getline(lines, option, '=') && std::getline(lines, value);) {
    set(made, option.c_str(), value.c_str());
  }
  for (std::size_t k = 0; k <= states.size(); ++k) {
    const char* state = fusedstep_rule_state(made, static_cast<std::int32_t>(k));
    const std::string found = state == nullptr ? "" : state;
    const std::string expected = k < states.size() ? states[k] : "";
    if (found != expected) throw std::runtime_error(name + ": state '" + found + "' instead of '" + expected + "'");
  }
  return rule;
}

struct Step {
  std::int64_t count = 0;
  Rule rule{nullptr, fusedstep_rule_destroy};
  std::optional<std::uint64_t> key;  // of the noise
  bool by_rows = false;  // the gradient has the rows of this index
  Values index;
  Values gradient;
  std::vector<std::vector<char>> after;  // each array
};

struct Case {
  std::string name;
  std::int64_t rows, columns;
  std::vector<std::string> names;  // of the arrays: the parameter, the states, and the low halves where it has them
  std::vector<Values> start;
  std::vector<Step> steps;

  bool has_low() const { return names.back() == "param_low"; }
};

std::int64_t size_of(std::int32_t dtype) {
  constexpr std::int64_t sizes[] = {4, 8, 1, 2, 2, 2, 4, 8, 4, 8};
  return sizes[dtype];
}

std::vector<char> read_elements(Reader& file, const Values& v) {
  return file.elements(static_cast<std::size_t>(v.rows * v.columns), static_cast<std::size_t>(size_of(v.dtype)));
}

Case read_case(Reader& file) {
  Case made;
  made.name = file.text();
  const std::string rule = file.text();
  made.rows = file.number();
  made.columns = file.number();
  const auto read = [&](std::int64_t rows) {
    Values values;
    values.dtype = static_cast<std::int32_t>(file.number());
    values.dimensions = static_cast<std::int32_t>(file.number());
    values.rows = values.dimensions > 0 ? rows : 1;
    values.columns = values.dimensions > 1 ? made.columns : 1;
    values.bytes = read_elements(file, values);
    return values;
  };
  for (std::int64_t k = file.number(); k > 0; --k) {
    made.names.push_back(file.text());
    made.start.push_back(read(made.rows));
  }
  const std::vector<std::string> states(made.names.begin() + 1, made.names.end() - (made.has_low() ? 1 : 0));
  for (std::int64_t k = file.number(); k > 0; --k) {
    Step step;
    step.count = file.number();
    step.rule = make_rule(rule, file.text(), states);
    if (file.number() != 0) step.key = file.number<std::uint64_t>();
    const std::int64_t entries = file.number();
    step.by_rows = entries >= 0;
    if (step.by_rows) step.index = read(entries);
    step.gradient = read(step.by_rows ? entries : made.rows);
    for (const Values& values : made.start) step.after.push_back(read_elements(file, values));
    made.steps.push_back(std::move(step));
  }
  return made;
}

// ------------------------------------------------------------------------------------------------------------- layouts

enum class Layout { dense, offset, every_2nd, reversed, transposed, rows_cut_out };
constexpr Layout layouts[] = {Layout::dense,    Layout::offset,     Layout::every_2nd,
                              Layout::reversed, Layout::transposed, Layout::rows_cut_out};

// An array in a layout, in the middle of memory filled with a canary.
class Placed {
 public:
  Placed(const Values& values, Layout layout) : item_(size_of(values.dtype)), shape_{values.rows, values.columns} {
    const std::int64_t n = shape_[0], m = shape_[1];
    std::int64_t first = 0;
    strides_[0] = m * item_;
    strides_[1] = item_;
    if (layout == Layout::offset) first = 1;
    if (layout == Layout::every_2nd) {
      strides_[0] *= 2;
      strides_[1] *= 2;
    }
    if (layout == Layout::reversed) {
      first = n * m == 0 ? 0 : n * m - 1;
      strides_[0] = -strides_[0];
      strides_[1] = -strides_[1];
    }
    if (layout == Layout::transposed) {
      strides_[0] = item_;
      strides_[1] = n * item_;
    }
    if (layout == Layout::rows_cut_out) {
      first = 2;
      strides_[0] = (m + 3) * item_;
    }
    memory_.assign(static_cast<std::size_t>((2 * n * (m + 3) + 2) * item_ + 3 * guard), canary);
    const auto misfit = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory_.data()) % guard);
    data_ = memory_.data() + 2 * guard - misfit + first * item_;
    array_ = {data_, shape_, strides_, values.dtype, values.dimensions};
    each([&](char* at, std::int64_t k, auto size) { std::memcpy(at, values.bytes.data() + k, size); });
    untouched_ = memory_;
    dense_.resize(values.bytes.size());
  }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;

  const fusedstep_array& array() const { return array_; }

  // How many elements differ in a bit. NaNs are equal.
  std::int64_t differences(const std::vector<char>& expected) {
    each([&](const char* at, std::int64_t k, auto size) { std::memcpy(dense_.data() + k, at, size); });
    if (dense_ == expected) return 0;  // nearly always
    std::int64_t count = 0;
    each([&](const char* at, std::int64_t k, auto size) {
      const char* other = expected.data() + k;
      count += std::memcmp(at, other, size) != 0 && !(is_nan(at) && is_nan(other));
    });
    return count;
  }

  // Whether a byte outside the elements changed. This overwrites the elements.
  bool damaged() {
    each([&](char* at, std::int64_t, auto size) { std::memcpy(at, untouched_.data() + (at - memory_.data()), size); });
    return memory_ != untouched_;
  }

 private:
  static constexpr std::int64_t guard = 64;
  static constexpr char canary = '\xa5';

  bool is_nan(const char* at) const {
    if (array_.dtype == FUSEDSTEP_FLOAT32) return magnitude<std::uint32_t>(at) > 0x7F800000u;
    if (array_.dtype == FUSEDSTEP_FLOAT64) return magnitude<std::uint64_t>(at) > std::uint64_t{0x7FF} << 52;
    if (array_.dtype == FUSEDSTEP_BFLOAT16) return magnitude<std::uint16_t>(at) > 0x7F80u;
    return array_.dtype == FUSEDSTEP_FLOAT16 && magnitude<std::uint16_t>(at) > 0x7C00u;
  }

  template <class Bits>
  static Bits magnitude(const char* at) {
    Bits bits;
    std::memcpy(&bits, at, sizeof bits);
    return static_cast<Bits>(bits & std::numeric_limits<Bits>::max() >> 1);
  }

  // Calls f(address, offset in a dense array, size) for each element. The size is a constant, so that emulators and
  // sanitizers need not call a function for each element.
  template <class F>
  void each(F f) {
    if (item_ == 1) each_of<1>(f);
    if (item_ == 2) each_of<2>(f);
    if (item_ == 4) each_of<4>(f);
    if (item_ == 8) each_of<8>(f);
  }

  template <std::size_t size, class F>
  void each_of(F f) {
    for (std::int64_t i = 0, k = 0; i < shape_[0]; ++i) {
      for (std::int64_t j = 0; j < shape_[1]; ++j, k += size) {
        f(data_ + i * strides_[0] + j * strides_[1], k, std::integral_constant<std::size_t, size>());
      }
    }
  }

  std::int64_t item_;
  std::int64_t shape_[2];
  std::int64_t strides_[2];
  std::vector<char> memory_, untouched_, dense_;
  char* data_;
  fusedstep_array array_;
};

// ----------------------------------------------------------------------------------------------------------------- runs

std::int32_t call(const Case& problem, const Step& step, const fusedstep_array& index, const fusedstep_array& gradient,
                  const std::vector<fusedstep_array>& arrays) {
  const fusedstep_array* const parameter = arrays.data();
  const fusedstep_array* const states = parameter + 1;
  const fusedstep_array* const low = problem.has_low() ? &arrays.back() : nullptr;
  const auto count = static_cast<std::int32_t>(arrays.size() - (low != nullptr ? 2 : 1));
  const std::uint64_t* const key = step.key ? &*step.key : nullptr;
  const fusedstep_rule* const rule = step.rule.get();
  if (step.by_rows) {
    return fusedstep_step_rows(rule, step.count, parameter, &index, &gradient, states, count, key, low);
  }
  if (key == nullptr && low == nullptr) return fusedstep_step(rule, step.count, parameter, &gradient, states, count);
  return fusedstep_step_narrow(rule, step.count, parameter, &gradient, states, count, key, low);
}

// Returns what is wrong, or an empty text.
std::string run(const Case& problem, Layout layout, Layout of_gradient, bool hostile) {
  std::vector<std::unique_ptr<Placed>> placed;
  std::vector<fusedstep_array> arrays;
  for (const Values& values : problem.start) {
    placed.push_back(std::make_unique<Placed>(values, layout));
    arrays.push_back(placed.back()->array());
  }
  for (std::size_t t = 0; t < problem.steps.size(); ++t) {
    const Step& step = problem.steps[t];
    const std::string where = "after step " + std::to_string(t + 1) + ": ";
    Placed gradient(step.gradient, of_gradient);
    const Placed index(step.index, of_gradient);
    {
      const Hostile caller(hostile);
      const std::int32_t code = call(problem, step, index.array(), gradient.array(), arrays);
      if (code != FUSEDSTEP_OK) return where + fusedstep_last_error();
      if (!caller.kept()) return where + "the caller's floating-point state changed";
    }
    for (std::size_t k = 0; k < step.after.size(); ++k) {
      if (const std::int64_t count = placed[k]->differences(step.after[k]); count != 0) {
        return where + std::to_string(count) + " elements of " + problem.names[k] + " differ";
      }
    }
    if (gradient.differences(step.gradient.bytes) != 0) return where + "the gradient changed";
    if (gradient.damaged()) return where + "memory beside the gradient changed";
  }
  bool damaged = false;
  for (auto& array : placed) damaged |= array->damaged();
  return damaged ? "memory beside the elements changed" : "";
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2 && argc != 4) throw std::runtime_error("expected the path of a file that tests/cases.py wrote");
  Reader file(argv[1]);
  const int part = argc == 4 ? std::atoi(argv[2]) : 0, parts = argc == 4 ? std::atoi(argv[3]) : 1;
  std::int64_t cases = 0, runs = 0, wrong = 0;
  for (std::int64_t number = 0; !file.done(); ++number) {
    const auto size = static_cast<std::size_t>(file.number());
    if (number % parts != part) {
      file.skip(size);
      continue;
    }
    const Case problem = read_case(file);
    ++cases;
    const bool large = problem.rows * problem.columns > 10'000;
    for (const std::string& isa : fusedstep::available_isas()) {
      must(fusedstep_force_isa(isa.c_str()));
      for (std::size_t k = 0; k < std::size(layouts); ++k) {
        for (const int threads : large ? std::vector<int>{1, 3} : std::vector<int>{1}) {
          must(fusedstep_set_num_threads(threads));
          // The gradient has another layout in every second run, and the caller is hostile in every third.
          const Layout of_gradient = runs % 2 == 0 ? layouts[k] : layouts[(k + 3) % std::size(layouts)];
          const std::string told = run(problem, layouts[k], of_gradient, runs % 3 == 0);
          ++runs;
          if (told.empty()) continue;
          if (++wrong <= 20) {
            std::fprintf(stderr, "%s, %s, layout %zu, %d threads: %s\n", problem.name.c_str(), isa.c_str(), k, threads,
                         told.c_str());
          }
        }
      }
    }
  }
  std::printf("%lld cases, %lld runs, %lld wrong\n", static_cast<long long>(cases), static_cast<long long>(runs),
              static_cast<long long>(wrong));
  return cases > 0 && wrong == 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
