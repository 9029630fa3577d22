#include "overlap.hpp"

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace fusedstep {
namespace {

struct Interval {
  std::int64_t lo;
  std::int64_t hi;
};

// The multiples of a stride by lo to hi.
struct Term {
  std::int64_t stride;
  std::int64_t lo;
  std::int64_t hi;
};

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return -floor_div(-a, b); }

// Whether integers v_k in [lo_k, hi_k] exist for which sum stride_k v_k lies in `wanted`. A depth-first search starts at the
// largest stride; what the smaller strides can reach leaves few values to try. Views of arrays have nested strides and take
// a few visits. An artificial worst case is cut off and counts as found.
class Reachable {
 public:
  explicit Reachable(std::vector<Term> terms) : terms_(std::move(terms)) {
    for (Term& term : terms_) {
      if (term.stride < 0) term = {-term.stride, -term.hi, -term.lo};
    }
    std::sort(terms_.begin(), terms_.end(), [](const Term& a, const Term& b) { return a.stride > b.stride; });
    reach_.assign(terms_.size() + 1, {0, 0});
    for (std::size_t k = terms_.size(); k-- > 0;) {
      reach_[k] = {reach_[k + 1].lo + terms_[k].stride * terms_[k].lo, reach_[k + 1].hi + terms_[k].stride * terms_[k].hi};
    }
  }

  bool operator()(Interval wanted) { return search(0, wanted); }

 private:
  bool search(std::size_t k, Interval wanted) {
    if (++visits_ > most_visits) return true;
    if (wanted.lo > reach_[k].hi || wanted.hi < reach_[k].lo) return false;
    if (k == terms_.size()) return true;
    const Term& term = terms_[k];
    if (term.stride == 0) return search(k + 1, wanted);
    const std::int64_t first = std::max(term.lo, ceil_div(wanted.lo - reach_[k + 1].hi, term.stride));
    const std::int64_t last = std::min(term.hi, floor_div(wanted.hi - reach_[k + 1].lo, term.stride));
    for (std::int64_t v = first; v <= last; ++v) {
      if (search(k + 1, {wanted.lo - v * term.stride, wanted.hi - v * term.stride})) return true;
    }
    return false;
  }

  static constexpr std::int64_t most_visits = 100'000;
  std::vector<Term> terms_;
  std::vector<Interval> reach_;
  std::int64_t visits_ = 0;
};

std::intptr_t address(const Array& array) { return reinterpret_cast<std::intptr_t>(array.data); }

// The range from an array's first byte to its last. Not empty even if the array is.
Interval extent(const Array& array) {
  Interval bytes{address(array), address(array) + array.item_size()};
  for (std::size_t k = 0; k < array.shape.size(); ++k) {
    const std::int64_t reach = std::max(array.shape[k] - 1, std::int64_t{0}) * array.strides[k];
    (reach < 0 ? bytes.lo : bytes.hi) += reach;
  }
  return bytes;
}

bool apart(Interval a, Interval b) { return a.hi <= b.lo || b.hi <= a.lo; }

// Whether each axis steps over everything that lies along the axes after it. This is C order, with or without gaps, as most
// arrays have it.
bool axes_are_nested(const Array& array) {
  std::int64_t reach = array.item_size();
  for (std::size_t k = array.shape.size(); k-- > 0;) {
    const std::int64_t stride = std::abs(array.strides[k]);
    if (array.shape[k] == 1) continue;
    if (stride < reach) return false;
    reach += stride * (array.shape[k] - 1);
  }
  return true;
}

}  // namespace

bool share_memory(const Array& a, const Array& b) {
  const Interval in_a = extent(a);
  const Interval in_b = extent(b);
  if (apart(in_a, in_b) || a.size() == 0 || b.size() == 0) return false;

  // An element of a at offset x and one of b at offset y share a byte if -a.item_size() < address(a) + x - address(b) - y <
  // b.item_size(). Equal strides are merged into one term, which tells interleaved slices apart at once.
  std::vector<Term> terms;
  const auto add = [&](std::int64_t stride, std::int64_t lo, std::int64_t hi) {
    if (stride < 0) {
      stride = -stride;
      std::swap(lo, hi);
      lo = -lo;
      hi = -hi;
    }
    const auto same = std::find_if(terms.begin(), terms.end(), [&](const Term& t) { return t.stride == stride; });
    if (same == terms.end()) {
      terms.push_back({stride, lo, hi});
    } else {
      same->lo += lo;
      same->hi += hi;
    }
  };
  for (std::size_t k = 0; k < a.shape.size(); ++k) add(a.strides[k], 0, a.shape[k] - 1);
  for (std::size_t k = 0; k < b.shape.size(); ++k) add(b.strides[k], 1 - b.shape[k], 0);
  const std::int64_t from_a = address(b) - address(a);
  return Reachable(std::move(terms))({from_a - a.item_size() + 1, from_a + b.item_size() - 1});
}

bool shares_memory_with_itself(const Array& array) {
  if (array.size() <= 1 || axes_are_nested(array)) return false;
  // Two elements differ first in some dimension k: by at least 1 there, and by any amount in those after it.
  for (std::size_t k = 0; k < array.shape.size(); ++k) {
    if (array.shape[k] == 1) continue;
    std::vector<Term> terms{{array.strides[k], 1, array.shape[k] - 1}};
    for (std::size_t j = k + 1; j < array.shape.size(); ++j) {
      terms.push_back({array.strides[j], 1 - array.shape[j], array.shape[j] - 1});
    }
    if (Reachable(std::move(terms))({1 - array.item_size(), array.item_size() - 1})) return true;
  }
  return false;
}

void check_distinct_elements(const Array& written) {
  if (!shares_memory_with_itself(written)) return;
  std::vector<std::int64_t> strides(written.strides, written.strides + written.shape.size());
  refuse(written.label.text() + ": elements of shape " + shape_text(written.shape) + " with strides " + shape_text(strides) +
         " share memory (a broadcast or a sliding window), so that it cannot be written; pass a copy");
}

void check_disjoint(const Array& a, const Array& b) {
  if (!share_memory(a, b)) return;
  const bool parameters = *a.label.role == '\0' && *b.label.role == '\0';
  if (parameters && a.size() == b.size() && extent(a).lo == extent(b).lo && extent(a).hi == extent(b).hi) {
    refuse(a.label.text() + " shares memory with " + b.label.text() +
           "; both have the same elements, as tied weights do: give " + "the array once, and add both gradients");
  }
  refuse(a.label.text() + " shares memory with " + b.label.text() +
         "; an update in place needs arrays that do not overlap: pass a copy of one");
}

void check_disjoint(std::span<const Array* const> written, std::span<const Array* const> read) {
  constexpr std::size_t few = 8;
  Interval bytes[few];
  const auto check = [&](const Array& array, Interval own, std::size_t others) {
    for (std::size_t k = 0; k < others; ++k) {
      if (!apart(own, bytes[k])) check_disjoint(array, *written[k]);
    }
  };
  for (std::size_t k = 0; k < written.size(); ++k) {
    bytes[k] = extent(*written[k]);
    check(*written[k], bytes[k], k);
  }
  for (const Array* array : read) check(*array, extent(*array), written.size());
}

WrittenMemory::WrittenMemory(std::vector<Array> arrays) : arrays_(std::move(arrays)) {
  extents_.reserve(arrays_.size());
  for (std::size_t i = 0; i < arrays_.size(); ++i) {
    if (arrays_[i].size() == 0) continue;
    const Interval bytes = extent(arrays_[i]);
    extents_.push_back({static_cast<std::uintptr_t>(bytes.lo), static_cast<std::uintptr_t>(bytes.hi), 0, i});
  }
  std::sort(extents_.begin(), extents_.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  std::uintptr_t furthest = 0;
  for (std::size_t i = 0; i < extents_.size(); ++i) {
    for (std::size_t j = i; j-- > 0 && extents_[j].furthest > extents_[i].begin;) {
      check_disjoint(arrays_[extents_[i].array], arrays_[extents_[j].array]);
    }
    furthest = std::max(furthest, extents_[i].end);
    extents_[i].furthest = furthest;
  }
}

template <class F>
bool WrittenMemory::any_near(const Array& array, F f) const {
  if (array.size() == 0) return false;
  const Interval bytes = extent(array);
  const auto end = static_cast<std::uintptr_t>(bytes.hi);
  const bool as_before = (after_ == extents_.size() || extents_[after_].begin >= end) &&
                         (after_ == 0 || extents_[after_ - 1].begin < end);
  if (!as_before) {
    const auto after = std::lower_bound(extents_.begin(), extents_.end(), end,
                                        [](const Extent& e, std::uintptr_t wanted) { return e.begin < wanted; });
    after_ = static_cast<std::size_t>(after - extents_.begin());
  }
  for (auto e = extents_.begin() + static_cast<std::ptrdiff_t>(after_); e != extents_.begin();) {
    --e;
    if (e->furthest <= static_cast<std::uintptr_t>(bytes.lo)) break;
    if (f(arrays_[e->array])) return true;
  }
  return false;
}

void WrittenMemory::check_disjoint_from(const Array& array) const {
  any_near(array, [&](const Array& written) {
    check_disjoint(array, written);
    return false;
  });
}

bool WrittenMemory::is_disjoint_from(const Array& array) const {
  return !any_near(array, [&](const Array& written) { return share_memory(array, written); });
}

}  // namespace fusedstep
