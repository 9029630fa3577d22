#include "norm.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace fusedstep {
namespace {

// Reads the blocks [first, last) of a gradient one after the other, in its logical C order and in the compute type.
class Blocks {
 public:
  Blocks(const NormOperand& gradient, std::int64_t first, std::int64_t last) : gradient_(gradient) {
    const std::int64_t end = std::min(last * block, gradient.size);
    if (gradient.order != nullptr)
      strided_.emplace(*gradient.order, gradient.data, size_of(gradient.type), first * block, end);
  }

  // Calls f(n, dense) with the elements of a block.
  template <class F>
  double with(std::int64_t index, F f) {
    const std::int64_t begin = index * block;
    const std::int64_t n = std::min(block, gradient_.size - begin);
    alignas(64) char dense[block * sizeof(double)];
    const char* const found = strided_ ? strided_->read(begin, n, dense) : gradient_.data + begin * size_of(gradient_.type);
    if (gradient_.type == gradient_.compute) return f(n, found);
    alignas(64) char wide[block * sizeof(double)];
    const auto compute = static_cast<std::size_t>(gradient_.compute);
    kernels().conversions.widen[compute][static_cast<std::size_t>(gradient_.type)](n, found, wide);
    return f(n, wide);
  }

 private:
  const NormOperand& gradient_;
  std::optional<InCOrder> strided_;
};

template <class T>
bool a_square_overflows(const NormOperand& gradient, const StepOptions& options, double clip_coef) {
  const T unscale = static_cast<T>(1.0 / options.grad_scale);
  const T coef = static_cast<T>(clip_coef);
  const T largest = options.clip_value == 0 ? std::numeric_limits<T>::infinity() : static_cast<T>(options.clip_value);
  bool found = false;
  Blocks of_gradient(gradient, 0, blocks_of(gradient.size));
  for (std::int64_t k = 0; k < blocks_of(gradient.size) && !found; ++k) {
    of_gradient.with(k, [&](std::int64_t n, const void* dense) {
      for (std::int64_t i = 0; i < n; ++i) {
        const T g = std::min(std::abs(static_cast<const T*>(dense)[i] * unscale), largest) * coef;
        found |= std::isinf(g * g) && !std::isinf(g);
      }
      return 0.0;
    });
  }
  return found;
}

}  // namespace

bool a_square_overflows(const NormOperand& gradient, double bound, const StepOptions& options, double clip_coef,
                        const Gather& gather) {
  const bool is_float = gradient.compute == Type::float32;
  const double most = is_float ? static_cast<double>(std::numeric_limits<float>::max()) : std::numeric_limits<double>::max();
  if (bound * clip_coef * clip_coef < 0.5 * most) return false;  // the usual case
  const double found = is_float ? a_square_overflows<float>(gradient, options, clip_coef)
                                : a_square_overflows<double>(gradient, options, clip_coef);
  const std::vector<double> all = gather ? gather({&found, 1}) : std::vector{found};
  return std::find(all.begin(), all.end(), 1.0) != all.end();
}

std::unique_ptr<StridedOrder> c_order(const Array& array) {
  StridedOrder order;
  for (std::size_t axis = array.shape.size(); axis-- > 0;) {
    const std::int64_t extent = array.shape[axis];
    const std::int64_t stride = array.strides[axis];
    if (extent == 1) continue;
    if (!order.shape.empty() && stride == order.shape.back() * order.strides.back()) {
      order.shape.back() *= extent;
    } else {
      order.shape.push_back(extent);
      order.strides.push_back(stride);
    }
  }
  const bool is_dense = order.shape.empty() || (order.shape.size() == 1 && order.strides[0] == array.item_size());
  if (is_dense || array.size() == 0) return nullptr;
  std::reverse(order.shape.begin(), order.shape.end());
  std::reverse(order.strides.begin(), order.strides.end());
  return std::make_unique<StridedOrder>(std::move(order));
}

Norm norm(std::span<const NormOperand> gradients, const StepOptions& options, const Gather& gather) {
  std::vector<std::int64_t> first{0};  // first block of each gradient, then the number of blocks
  std::vector<std::int64_t> whole_first{0};
  std::int64_t elements = 0;
  for (const NormOperand& gradient : gradients) {
    first.push_back(first.back() + blocks_of(gradient.size));
    whole_first.push_back(whole_first.back() + blocks_of(gradient.whole));
    elements += gradient.size + tensor_overhead;
  }

  Prologue clipping;
  clipping.unscale = 1.0 / options.grad_scale;
  if (options.clip_value != 0) clipping.clip_value = options.clip_value;
  Prepared prepared[compute_types];
  for (int type = 0; type < compute_types; ++type) kernels().norm[type].prepare(clipping, prepared[type]);

  double scale = 1.0;
  std::vector<double> by_block(static_cast<std::size_t>(2 * first.back()));  // its sum; NaN if an element is inf or NaN
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    const DefaultFloatingPoint guard;
    auto i = static_cast<std::size_t>(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
    std::optional<Blocks> of_gradient;
    for (std::int64_t unit = begin; unit < end; ++unit) {
      if (unit >= first[i + 1]) of_gradient.reset();
      while (unit >= first[i + 1]) ++i;
      if (!of_gradient) of_gradient.emplace(gradients[i], unit - first[i], std::min(end, first[i + 1]) - first[i]);
      double poison = 0.0;
      const auto type = static_cast<std::size_t>(gradients[i].compute);
      const NormKernel& kernel = kernels().norm[type];
      const auto at = static_cast<std::size_t>(2 * unit);
      by_block[at] = of_gradient->with(unit - first[i], [&](std::int64_t n, const void* g) {
        return scale == 1.0 ? kernel.sum_of_squares(prepared[type], n, g, poison)
                            : kernel.scaled_sum_of_squares(prepared[type], scale, n, g);
      });
      by_block[at + 1] = poison;
    }
  };
  std::vector<double> sums(static_cast<std::size_t>(whole_first.back()));
  std::vector<char> poisoned(sums.size());
  const auto sum_all = [&] {
    parallel_for(first.back(), threads_for(elements), body(run));
    const std::vector<double> all = gather ? gather(by_block) : by_block;
    for (std::size_t k = 0; k < sums.size(); ++k) {
      sums[k] = all[2 * k];
      poisoned[k] = std::isnan(all[2 * k + 1]);
    }
  };

  sum_all();
  Norm result;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const auto [from, to] = std::pair(whole_first[i], whole_first[i + 1]);
    if (std::find(poisoned.begin() + from, poisoned.begin() + to, true) != poisoned.begin() + to) {
      result.nonfinite.push_back(i);
    }
    result.largest.push_back(from == to ? 0.0 : *std::max_element(sums.begin() + from, sums.begin() + to));
  }
  result.norm = std::sqrt(tree(std::span(sums), std::plus<double>()));
  // The squares may leave the range of double where their root does not. Scaling by a power of 2 is exact.
  if (std::isinf(result.norm) && result.nonfinite.empty()) scale = 0x1p-600;
  if (result.norm < 0x1p-450) scale = 0x1p600;
  if (scale == 1.0) return result;
  sum_all();
  result.norm = std::sqrt(tree(std::span(sums), std::plus<double>())) / scale;
  return result;
}

}  // namespace fusedstep
