#include "spans.hpp"

#include <algorithm>

namespace fusedstep {
namespace {

void check_extents(const AnySpan& span, const Label& label) {
  if (span.dimensions > max_span_dimensions) {
    refuse(label.text() + ": expected at most 8 dimensions, got " + std::to_string(span.dimensions));
  }
  bool empty = false;
  for (std::size_t k = 0; k < span.dimensions; ++k) {
    empty |= span.shape[k] == 0;
    if (span.shape[k] < 0) refuse(label.text() + ": expected extents >= 0, got " + std::to_string(span.shape[k]));
  }
  if (span.data == nullptr && !empty) refuse(label.text() + ": expected data, got NULL");
}

}  // namespace

Array checked(const AnySpan& span, const Label& label, TypeSet types, bool written) {
  check_extents(span, label);
  Array array{label, static_cast<char*>(span.data), span.type, {span.shape.data(), span.dimensions}, span.strides.data()};
  if (!types.has(span.type)) refuse_type(array, types);
  if (written && span.read_only) {
    refuse(label.text() + ": expected a writeable array, got a read-only one; pass a writeable array");
  }
  check_reach(array);
  if (array.data == nullptr) {
    // Null would mean that there is no array. This one exists and is empty.
    alignas(double) static constexpr char nowhere[1] = {};
    array.data = const_cast<char*>(nowhere);
  }
  const std::int64_t item_size = array.item_size();
  bool aligned = reinterpret_cast<std::uintptr_t>(array.data) % static_cast<std::uintptr_t>(item_size) == 0;
  for (std::size_t k = 0; k < span.dimensions; ++k) {
    aligned &= span.shape[k] <= 1 || span.strides[k] % item_size == 0;
  }
  if (!aligned) {
    refuse(label.text() + ": expected an array aligned to its dtype " + name_of(span.type) +
           ", got a misaligned one; pass a copy");
  }
  return array;
}

AnySpan span_of(const Array& array) {
  AnySpan span;
  span.data = array.data;
  span.type = array.type;
  span.dimensions = array.shape.size();
  std::copy(array.shape.begin(), array.shape.end(), span.shape.begin());
  std::copy_n(array.strides, span.dimensions, span.strides.begin());
  return span;
}

bool same(const AnySpan& a, const AnySpan& b) {
  return a.data == b.data && a.type == b.type && a.read_only == b.read_only && a.dimensions == b.dimensions &&
         std::equal(a.shape.begin(), a.shape.begin() + a.dimensions, b.shape.begin()) &&
         std::equal(a.strides.begin(), a.strides.begin() + a.dimensions, b.strides.begin());
}

}  // namespace fusedstep
