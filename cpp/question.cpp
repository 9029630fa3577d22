#include "question.hpp"

#include <algorithm>
#include <cstring>

#include "parallel.hpp"

namespace fusedstep {
namespace {

constexpr int gradient_stream = 1;

std::int64_t blocks(const Operand& operand) { return (operand.stream[0]->size() + block - 1) / block; }

// The gradient as the rule sees it, in place; the parameter may change too, so both are copies.
void apply_prologue(const Work& work, std::int64_t n, void* p, void*& g, void* room) {
  if (work.prologue.gradient == nullptr) return;
  work.prologue.gradient(work.prologue_coefficients, n, p, g, room);
  g = room;
}

Total total_of_block(const Operand& operand, std::int64_t index) {
  alignas(64) char room[max_streams + 1][block * sizeof(double)];
  const Work& work = *operand.work;
  const std::int64_t begin = index * block;
  const std::int64_t n = std::min(block, operand.stream[0]->size() - begin);
  void* streams[max_streams] = {};
  for (std::size_t s = 0; s < max_streams; ++s) {
    if (work.item_size[s] == 0) continue;
    const Array& array = *operand.stream[s];
    gather(array.shape, array.strides, array.data, work.item_size[s], begin, n, room[s]);
    streams[s] = room[s];
  }
  apply_prologue(work, n, streams[0], streams[gradient_stream], room[max_streams]);
  Total total = work.kernel.total(work.coefficients, n, streams);
  if (total.position >= 0) total.position += begin;
  return total;
}

// Neighbours added in pairs, again and again; of equal keys the first counts.
Total tree(std::span<Total> totals) {
  if (totals.empty()) return {};
  for (std::size_t n = totals.size(); n > 1; n = (n + 1) / 2) {
    for (std::size_t i = 0; i < n / 2; ++i) {
      Total pair = totals[2 * i];
      pair.add(totals[2 * i + 1]);
      totals[i] = pair;
    }
    if (n % 2 != 0) totals[n / 2] = totals[n - 1];
  }
  return totals[0];
}

char* element(const Array& array, std::int64_t index) {
  char* at = array.data;
  for (std::size_t axis = array.shape.size(); axis-- > 0; index /= array.shape[axis]) {
    at += index % array.shape[axis] * array.strides[axis];
  }
  return at;
}

}  // namespace

Question::Question(std::span<const Operand> operands) {
  std::vector<std::int64_t> first;  // unit of each operand; and one more
  std::int64_t elements = 0;
  first.push_back(0);
  for (const Operand& operand : operands) {
    first.push_back(first.back() + (operand.asks() ? blocks(operand) : 0));
    if (operand.asks()) elements += operand.stream[0]->size();
  }
  std::vector<Total> totals(static_cast<std::size_t>(first.back()));
  const auto ask = [&](std::int64_t begin, std::int64_t end) {
    const DefaultFloatingPoint guard;
    auto i = static_cast<std::size_t>(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
    for (std::int64_t unit = begin; unit < end; ++unit) {
      while (unit >= first[i + 1]) ++i;
      totals[static_cast<std::size_t>(unit)] = total_of_block(operands[i], unit - first[i]);
    }
  };
  parallel_for(first.back(), threads_for(elements), body(ask));

  std::vector<Total> of_list;
  std::vector<const Operand*> owner;
  for (std::size_t i = 0; i < operands.size(); ++i) {
    const Operand& operand = operands[i];
    if (!operand.asks()) continue;
    const auto own = std::span(totals).subspan(static_cast<std::size_t>(first[i]),
                                               static_cast<std::size_t>(first[i + 1] - first[i]));
    if (operand.work->kernel.settle != nullptr) {
      operand.work->kernel.settle(tree(own), operand.stream[2]->data, operand.work->coefficients);
      continue;
    }
    for (const Total& total : own) {
      if (total.key < list_.key) {
        list_.key = total.key;
        chosen_ = &operand;
        index_ = total.position;
      }
    }
    of_list.insert(of_list.end(), own.begin(), own.end());
  }
  list_ = tree(of_list);
  if (chosen_ == nullptr) return;
  for (std::size_t s = 0; s < max_streams; ++s) {
    const auto size = static_cast<std::size_t>(chosen_->work->item_size[s]);
    if (size != 0) std::memcpy(kept_[s].bytes, element(*chosen_->stream[s], index_), size);
  }
}

void Question::update_chosen() const {
  if (chosen_ == nullptr) return;
  const Work& work = *chosen_->work;
  Value values[max_streams];
  Value room;
  void* streams[max_streams];
  std::copy(std::begin(kept_), std::end(kept_), values);
  for (std::size_t s = 0; s < max_streams; ++s) streams[s] = values[s].bytes;
  apply_prologue(work, 1, streams[0], streams[gradient_stream], room.bytes);
  work.kernel.update_chosen(list_, work.coefficients, streams);
  for (std::size_t s = 0; s < max_streams; ++s) {
    if (work.item_size[s] == 0 || s == gradient_stream) continue;
    std::memcpy(element(*chosen_->stream[s], index_), values[s].bytes, static_cast<std::size_t>(work.item_size[s]));
  }
}

}  // namespace fusedstep
