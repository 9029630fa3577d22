// Compiled once per instruction set; FUSEDSTEP_KERNELS names the table. This file has only the table and what it points to,
// all local to its object: a symbol that the linker shared between instruction sets could crash an older machine.
#include "include/fusedstep/rules.hpp"
#include "loops/conversions.hpp"
#include "loops/kernel.hpp"
#include "loops/narrow.hpp"
#include "loops/reductions.hpp"
#include "loops/update.hpp"

namespace fusedstep {
namespace {

template <class Rule, class T, template <class> class Before, class Options>
constexpr Kernel kernel() {
  using Reduction = ErasedReduction<Rule, T, Before>;
  Kernel kernel{};
  if constexpr (requires { Rule::chooses_one; }) {  // its other elements follow another rule
    kernel = fusedstep::kernel<typename Rule::Elsewhere, T, Before, Options>();
    kernel.reduce = Reduction::reduce;
    kernel.update_chosen = Reduction::update_chosen;
  } else {
    kernel.prepare = Erased<Rule, T, Before>::template prepare<Options>;
    kernel.update = Erased<Rule, T, Before>::update;
    if constexpr (Rule::divides || in_groups<Rule>()) kernel.update_apart = Erased<Rule, T, Before>::update_apart;
    if constexpr (IsRule<Options> && std::is_same_v<Before<T>, NoPrologue<float>>) {
      using Loops = Narrow<Rule>;
      kernel.update_narrow[0][0][1] = Loops::template update<float, float, bfloat16>();
      kernel.update_narrow[0][1][0] = Loops::template update<float, bfloat16, float>();
      kernel.update_narrow[0][1][1] = Loops::template update<float, bfloat16, bfloat16>();
      kernel.update_narrow[1][1][0] = Loops::template update<bfloat16, bfloat16, float>();
      kernel.update_narrow[1][1][1] = Loops::template update<bfloat16, bfloat16, bfloat16>();
      kernel.update_master = Loops::template update<bfloat16, bfloat16, bfloat16, std::uint16_t>();
    }
  }
  if constexpr (requires(typename Rule::template Constants<T> c) { Rule::template settle<T>(0.0, 1, T(), c); }) {
    kernel.reduce = Reduction::reduce;
    kernel.settle = Reduction::settle;
  }
  return kernel;
}

template <class Options, class T>
Kernel update(const void* options, bool with_prologue) {
  return compose(*static_cast<const Options*>(options), [=]<class Rule>(Rule) {
    if constexpr (IsRule<Options>) {
      if (with_prologue) return kernel<Rule, T, PrologueConstants, Options>();
    }
    return kernel<Rule, T, NoPrologue, Options>();
  });
}

// Measures the rate of the divider on independent values in registers, enough of them that none waits for another.
template <int roots, int divisions, class T>
FUSEDSTEP_HALF_WIDTH FUSEDSTEP_NOINLINE double divide_and_root_loop(std::int64_t n) noexcept {
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

template <class... R>
constexpr Kernels table(TypeList<R...>) {
  return {
      .update = {{update<R, float>, update<R, double>}...},
      .norm = {norm_kernel<float>(), norm_kernel<double>()},
      .conversions = conversions(),
      .add = {add<float>, add<double>},
      .divide_and_root = {{divide_and_root_loop<0, 1, float>, divide_and_root_loop<0, 1, double>},
                          {divide_and_root_loop<1, 1, float>, divide_and_root_loop<1, 1, double>},
                          {divide_and_root_loop<1, 2, float>, divide_and_root_loop<1, 2, double>}},
  };
}

}  // namespace

extern const Kernels FUSEDSTEP_KERNELS;
constexpr Kernels FUSEDSTEP_KERNELS = table(AllRules{});

}  // namespace fusedstep
