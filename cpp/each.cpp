// Updates where each element has options of its own. The maths is that of kernels.cpp, element by element, compiled once for
// all instruction sets.
#include <cstring>

#include "include/fusedstep/rules.hpp"
#include "loops/tensors.hpp"
#include "loops/update.hpp"

namespace fusedstep {
namespace {

template <class Options, class T>
void update(const OwnOptions& own, std::int64_t n, void* const* streams, std::int64_t first, const void* scalar) {
  Options options = *reinterpret_cast<const Options*>(own.options.bytes);
  compose(options, [&]<class Rule>(Rule) {
    Erased<Rule, T, PrologueConstants>::with_types(streams, [&](auto states, T* p, const T* g, auto*... s) {
      for (std::int64_t i = 0; i < n; ++i) {
        for (const OwnOptions::Values& values : own.values) {
          const double* const number = values.numbers.data() + first + i;
          std::memcpy(reinterpret_cast<char*>(&options) + values.offset, number, sizeof *number);
        }
        Loop<Rule, T, PrologueConstants> constants(options, own.prologue, own.step);
        if constexpr (requires { Rule::template settle<T>(0.0, 1, T(), constants.rule); }) {
          Rule::template settle<T>(0.0, 1, *static_cast<const T*>(scalar), constants.rule);  // with nothing more to add
        }
        update_element(states, constants, i, p, g, s...);
      }
    });
  });
}

using Update = void (*)(const OwnOptions&, std::int64_t, void* const*, std::int64_t, const void*);

template <class... R>
constexpr auto table(TypeList<R...>) {
  struct Table {
    Update update[sizeof...(R)][compute_types];
  };
  return Table{{{update<R, float>, update<R, double>}...}};
}

}  // namespace

void update_each(const Work& work, std::int64_t n, void* const* streams, std::int64_t first) {
  constexpr auto updates = table(Rules{});
  updates.update[work.own->rule][static_cast<std::size_t>(work.storage.compute())](*work.own, n, streams, first,
                                                                                   work.scalar);
}

}  // namespace fusedstep
