#include "norm.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>

#include "dispatch.hpp"
#include "loops/layout.hpp"
#include "parallel.hpp"
#include "reduction.hpp"

namespace fusedstep {
namespace {

std::int64_t blocks(const NormOperand& gradient) { return (gradient.size + block - 1) / block; }

double sum_of_block(const NormOperand& gradient, std::int64_t index, const Prepared& prepared, double& poison) {
  const std::int64_t begin = index * block;
  const std::int64_t n = std::min(block, gradient.size - begin);
  const std::int64_t item = size_of(gradient.type);
  const auto sum_of_squares = kernels().norm[static_cast<std::size_t>(gradient.type)].sum_of_squares;
  if (gradient.order == nullptr) return sum_of_squares(prepared, n, gradient.data + begin * item, poison);
  alignas(64) char dense[block * sizeof(double)];
  gather(gradient.order->shape, gradient.order->strides.data(), gradient.data, item, begin, n, dense);
  return sum_of_squares(prepared, n, dense, poison);
}

}  // namespace

std::unique_ptr<MemoryOrder> memory_order(const Array& array) {
  std::vector<std::size_t> axes;
  for (std::size_t axis = 0; axis < array.shape.size(); ++axis) {
    if (array.shape[axis] != 1) axes.push_back(axis);
  }
  std::stable_sort(axes.begin(), axes.end(), [&](std::size_t a, std::size_t b) {
    return std::abs(array.strides[a]) > std::abs(array.strides[b]);
  });
  std::int64_t dense = array.item_size();
  bool is_dense = true;
  for (std::size_t k = axes.size(); k-- > 0; dense *= array.shape[axes[k]]) is_dense &= array.strides[axes[k]] == dense;
  if (is_dense || array.size() == 0) return nullptr;
  auto order = std::make_unique<MemoryOrder>();
  for (const std::size_t axis : axes) {
    order->shape.push_back(array.shape[axis]);
    order->strides.push_back(array.strides[axis]);
  }
  return order;
}

Norm norm(std::span<const NormOperand> gradients, const StepOptions& options) {
  std::vector<std::int64_t> first{0};  // block of each gradient; and one more
  std::int64_t elements = 0;
  for (const NormOperand& gradient : gradients) {
    first.push_back(first.back() + blocks(gradient));
    elements += gradient.size + tensor_overhead;
  }
  std::vector<double> sums(static_cast<std::size_t>(first.back()));
  std::vector<char> poisoned(static_cast<std::size_t>(first.back()));

  Prologue clipping;
  clipping.unscale = 1.0 / options.grad_scale;
  if (options.clip_value != 0) clipping.clip_value = options.clip_value;
  Prepared prepared[parameter_types];
  for (int type = 0; type < parameter_types; ++type) kernels().norm[type].prepare(clipping, prepared[type]);

  const auto run = [&](std::int64_t begin, std::int64_t end) {
    const DefaultFloatingPoint guard;
    auto i = static_cast<std::size_t>(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
    for (std::int64_t unit = begin; unit < end; ++unit) {
      while (unit >= first[i + 1]) ++i;
      double poison = 0.0;
      const auto type = static_cast<std::size_t>(gradients[i].type);
      sums[static_cast<std::size_t>(unit)] = sum_of_block(gradients[i], unit - first[i], prepared[type], poison);
      poisoned[static_cast<std::size_t>(unit)] = std::isnan(poison);
    }
  };
  parallel_for(first.back(), threads_for(elements), body(run));

  Norm result;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const auto from = poisoned.begin() + first[i];
    const auto to = poisoned.begin() + first[i + 1];
    if (std::find(from, to, true) != to) result.nonfinite.push_back(i);
  }
  result.norm = std::sqrt(tree(std::span(sums), std::plus<double>()));
  return result;
}

}  // namespace fusedstep
