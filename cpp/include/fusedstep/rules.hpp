// The rules and their options, as plain values in double. Functions that take options check them: a value that is not
// finite or out of range throws std::invalid_argument with the name, the value and the range.
#pragma once

#include "rules/adadelta.hpp"
#include "rules/adagrad.hpp"
#include "rules/adagrad_da.hpp"
#include "rules/adagrad_norm.hpp"
#include "rules/proximal_adagrad.hpp"
#include "rules/rmsprop.hpp"
#include "rules/rprop.hpp"

namespace fusedstep {

/// Types, in an order.
template <class... T>
struct TypeList {
  static constexpr int size = sizeof...(T);
};

/// Every rule. A rule that is listed here has kernels, checks, a place in AnyRule, in the C interface and in Python.
using Rules = TypeList<RMSprop, Adagrad, Rprop, ProximalAdagrad, AdagradDA, AdagradNorm, Adadelta>;

template <class Wanted, class... T>
constexpr int index_in(TypeList<T...>) {
  int index = 0;
  static_cast<void>(((std::is_same_v<Wanted, T> || (++index, false)) || ...));
  return index;
}

/// Any rule of the list.
template <class T>
concept IsRule = index_in<T>(Rules{}) < Rules::size;

/// f.operator()<T>() for each type of the list.
template <class F, class... R>
constexpr void for_each(F f, TypeList<R...>) {
  (f.template operator()<R>(), ...);
}

/// f.operator()<R>() for each rule.
template <class F>
constexpr void for_each_rule(F f) {
  for_each(f, Rules{});
}

}  // namespace fusedstep
