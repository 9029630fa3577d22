// Compiled once per instruction set (FUSEDSTEP_KERNELS names the table): nothing here but the table and what it points
// at, all of it local to this object.
#include <new>

#include "rules/adagrad.hpp"
#include "rules/rmsprop.hpp"
#include "rules/rprop.hpp"
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

}  // namespace

extern const Kernels FUSEDSTEP_KERNELS;
const Kernels FUSEDSTEP_KERNELS = {
    .update = {{update<RMSprop, float>, update<RMSprop, double>},
               {update<Adagrad, float>, update<Adagrad, double>},
               {update<Rprop, float>, update<Rprop, double>},
               {update<ProximalAdagrad, float>, update<ProximalAdagrad, double>},
               {update<AdagradDA, float>, update<AdagradDA, double>},
               {update<AdagradNorm, float>, update<AdagradNorm, double>}},
    .prologue = {prologue<float>, prologue<double>},
    .norm = {{sum_of_squares<float>}, {sum_of_squares<double>}},
};

}  // namespace fusedstep
