// Compiled once per instruction set (FUSEDSTEP_KERNELS names the table): nothing here but the table and what it points
// at, all of it local to this object.
#include <new>

#include "rules/adagrad.hpp"
#include "rules/rmsprop.hpp"
#include "rules/rprop.hpp"
#include "rules/traffic.hpp"
#include "sweep/contiguous.hpp"
#include "sweep/kernel.hpp"
#include "sweep/norm.hpp"

namespace fusedstep {
namespace {

template <class Options, class T>
Kernel update(const void* options) {
  return compose(*static_cast<const Options*>(options), []<class Rule>(Rule) { return kernel<Rule, T, Options>(); });
}

template <class T>
PrologueKernel prologue(const Prologue& o) {
  const auto kernel = []<Decay decay>() {
    return PrologueKernel{ErasedPrologue<decay, T>::prepare, ErasedPrologue<decay, T>::gradient};
  };
  if (o.weight_decay == 0) return kernel.template operator()<Decay::none>();
  if (o.decoupled_weight_decay) return kernel.template operator()<Decay::decoupled>();
  return kernel.template operator()<Decay::coupled>();
}

// The divider's rate: independent values that stay in registers, so many that none waits for the one before.
template <int roots, int divisions, class T>
FUSEDSTEP_NARROW [[gnu::noinline]] double divide_and_root_loop(std::int64_t n) noexcept {
  constexpr std::int64_t in_registers = 512 / static_cast<std::int64_t>(sizeof(T));
  T x[in_registers];
  for (std::int64_t k = 0; k < in_registers; ++k) x[k] = static_cast<T>(k + 1);
  for (std::int64_t i = 0; i < n; i += in_registers) {
    for (std::int64_t k = 0; k < in_registers; ++k) x[k] = divide_and_root<roots, divisions>(x[k]);
  }
  double sum = 0;
  for (std::int64_t k = 0; k < in_registers; ++k) sum += static_cast<double>(x[k]);
  return sum;
}

}  // namespace

extern const Kernels FUSEDSTEP_KERNELS;
const Kernels FUSEDSTEP_KERNELS = {
    .update = {{update<RMSprop, float>, update<RMSprop, double>},
               {update<Adagrad, float>, update<Adagrad, double>},
               {update<Rprop, float>, update<Rprop, double>},
               {update<ProximalAdagrad, float>, update<ProximalAdagrad, double>},
               {update<AdagradDA, float>, update<AdagradDA, double>},
               {update<AdagradNorm, float>, update<AdagradNorm, double>},
               {update<Traffic, float>, update<Traffic, double>},
               {update<SignTraffic, float>, update<SignTraffic, double>}},
    .prologue = {prologue<float>, prologue<double>},
    .norm = {{sum_of_squares<float>}, {sum_of_squares<double>}},
    .divide_and_root = {{divide_and_root_loop<0, 1, float>, divide_and_root_loop<0, 1, double>},
                        {divide_and_root_loop<1, 1, float>, divide_and_root_loop<1, 1, double>},
                        {divide_and_root_loop<1, 2, float>, divide_and_root_loop<1, 2, double>}},
};

}  // namespace fusedstep
