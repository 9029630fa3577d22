#include "reduction.hpp"

#include <algorithm>
#include <cstring>

#include "loops/noise.hpp"
#include "parallel.hpp"
#include "platform.hpp"

namespace fusedstep {
namespace {

// A separate function, because these copies need as much of the stack as everything else.
FUSEDSTEP_NOINLINE Reduced reduce_narrow(const Work& work, std::int64_t n, void* const* streams) {
  constexpr std::int64_t apart = block * std::int64_t{sizeof(double)} + 64;
  alignas(64) char wide[low_stream * apart];
  return work.kernel.reduce(work.prepared, n, Converted(work, n, streams, {wide, apart, {}}).streams());
}

Reduced reduce_block(const Operand& operand, std::int64_t index) {
  constexpr std::size_t apart = block * sizeof(double);
  alignas(64) char dense[low_stream * apart + block * sizeof(std::uint16_t)];  // low halves come last
  const Work& work = *operand.work;
  const std::int64_t begin = index * block;
  const std::int64_t n = std::min(block, operand.stream[0]->size() - begin);
  void* streams[max_streams] = {};
  for (std::size_t s = 0; s < max_arrays; ++s) {
    const std::int64_t item_size = work.storage.item_size[s];
    if (item_size == 0) continue;
    const Array& array = *operand.stream[s];
    gather(array.shape, array.strides, array.data, item_size, begin, n, dense + s * apart);
    streams[s] = dense + s * apart;
  }
  Reduced reduced = work.is_plain ? work.kernel.reduce(work.prepared, n, streams) : reduce_narrow(work, n, streams);
  if (reduced.position >= 0) reduced.position += begin;
  return reduced;
}

// Among equal keys, the first one wins.
Reduced tree_of(std::span<Reduced> blocks) {
  return tree(blocks, [](Reduced left, const Reduced& right) {
    left.add(right);
    return left;
  });
}

char* element(const Array& array, std::int64_t index) {
  char* at = array.data;
  for (std::size_t axis = array.shape.size(); axis-- > 0; index /= array.shape[axis]) {
    at += index % array.shape[axis] * array.strides[axis];
  }
  return at;
}

}  // namespace

Reduction::Reduction(std::span<const Operand> operands, const Gather& gather) {
  std::vector<std::int64_t> first{0};  // first block of each operand, then the number of blocks
  std::int64_t elements = 0;
  for (const Operand& operand : operands) {
    first.push_back(first.back() + (operand.needs_reduction() ? blocks_of(operand.stream[0]->size()) : 0));
    if (operand.needs_reduction()) elements += operand.stream[0]->size();
  }
  std::vector<Reduced> by_block(static_cast<std::size_t>(first.back()));
  const auto reduce = [&](std::int64_t begin, std::int64_t end) {
    const DefaultFloatingPoint guard;
    auto i = static_cast<std::size_t>(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
    for (std::int64_t unit = begin; unit < end; ++unit) {
      while (unit >= first[i + 1]) ++i;
      by_block[static_cast<std::size_t>(unit)] = reduce_block(operands[i], unit - first[i]);
    }
  };
  parallel_for(first.back(), threads_for(elements), body(reduce));

  std::vector<Reduced> list;
  std::vector<double> sums;  // of the reductions over one array
  for (std::size_t i = 0; i < operands.size(); ++i) {
    const Operand& operand = operands[i];
    if (!operand.needs_reduction()) continue;
    const auto own = std::span(by_block).subspan(static_cast<std::size_t>(first[i]),
                                                 static_cast<std::size_t>(first[i + 1] - first[i]));
    if (operand.work->kernel.settle != nullptr) {
      of_arrays_.push_back({&operand, 0});
      for (const Reduced& reduced : own) sums.push_back(reduced.sum);
      continue;
    }
    for (const Reduced& reduced : own) {
      if (reduced.key < of_list_.key) {
        of_list_.key = reduced.key;
        chosen_ = &operand;
        index_ = reduced.position;
      }
    }
    list.insert(list.end(), own.begin(), own.end());
  }
  if (gather) sums = gather(sums);
  auto rest = std::span(sums);
  for (OfArray& each : of_arrays_) {
    const auto n = static_cast<std::size_t>(blocks_of(each.operand->whole));
    each.sum = tree(rest.first(n), std::plus<double>());
    rest = rest.subspan(n);
  }
  of_list_ = tree_of(list);
  if (chosen_ == nullptr) return;
  for (std::size_t s = 0; s < max_arrays; ++s) {
    const auto size = static_cast<std::size_t>(chosen_->work->storage.item_size[s]);
    if (size != 0) std::memcpy(kept_[s].bytes, element(*chosen_->stream[s], index_), size);
  }
}

void Reduction::settle() {
  for (const OfArray& each : of_arrays_) {
    Work& work = *each.operand->work;
    char* const scalar = each.operand->stream[first_state]->data;
    work.kernel.settle(each.sum, each.operand->whole, scalar, work.prepared);
    work.scalar = scalar;
  }
}

void Reduction::update_chosen() const {
  if (chosen_ == nullptr) return;
  const Work& work = *chosen_->work;
  Value values[max_arrays];
  void* streams[max_streams] = {};
  std::copy(std::begin(kept_), std::end(kept_), values);
  for (std::size_t s = 0; s < max_arrays; ++s) streams[s] = values[s].bytes;
  const auto index = static_cast<std::uint64_t>(chosen_->first + index_);
  std::uint32_t noise[2] = {Noise(chosen_->key, index).next(), Noise(second_key(chosen_->key), index).next()};
  float wide[low_stream];
  const Converted converted(work, 1, streams, {reinterpret_cast<char*>(wide), sizeof(float), {noise, noise + 1}});
  work.kernel.update_chosen(of_list_.sum, work.prepared, converted.streams());
  converted.store();
  for (std::size_t s = 0; s < max_arrays; ++s) {
    const auto size = static_cast<std::size_t>(work.storage.item_size[s]);
    if (size != 0 && s != gradient_stream) std::memcpy(element(*chosen_->stream[s], index_), values[s].bytes, size);
  }
}

}  // namespace fusedstep
