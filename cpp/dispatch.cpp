#include "dispatch.hpp"

#include <atomic>
#include <stdexcept>

#include "platform.hpp"

namespace fusedstep {

extern const Kernels kernels_baseline;
#ifdef FUSEDSTEP_HAS_AVX2
extern const Kernels kernels_avx2;
#endif
#ifdef FUSEDSTEP_HAS_AVX512
extern const Kernels kernels_avx512;
#endif

namespace {

struct Isa {
  const char* name;
  const Kernels* kernels;
  bool (*supported)();
};

constexpr Isa isas[] = {
    {"baseline", &kernels_baseline, [] { return true; }},
#ifdef FUSEDSTEP_HAS_AVX2
    {"avx2", &kernels_avx2, [] { return Features().avx2(); }},
#endif
#ifdef FUSEDSTEP_HAS_AVX512
    {"avx512", &kernels_avx512, [] { return Features().avx512(); }},
#endif
};

const Isa* best() {
  const Isa* found = isas;
  for (const Isa& isa : isas) {
    if (isa.supported()) found = &isa;
  }
  return found;
}

std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> isa = best();
  return isa;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed)->kernels; }

std::string isa() { return chosen().load()->name; }

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas) names.emplace_back(isa.name);
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas) {
    if (isa.supported()) names.emplace_back(isa.name);
  }
  return names;
}

void force_isa(std::string_view name) {
  if (name.empty()) {
    chosen() = best();
    return;
  }
  std::string valid;
  for (const Isa& isa : isas) {
    if (!isa.supported()) continue;
    if (name == isa.name) {
      chosen() = &isa;
      return;
    }
    valid += (valid.empty() ? "" : ", ") + std::string(isa.name);
  }
  throw std::invalid_argument("isa: expected one of " + valid + " on this machine, got '" + std::string(name) + "'");
}

}  // namespace fusedstep
