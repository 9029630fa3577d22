#include "checks.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <vector>

#include "platform.hpp"

namespace fusedstep {

std::string Label::text() const {
  if (parameter == nullptr) return role;
  std::string text = *role == '\0' ? "" : std::string(role) + " of ";
  text += "parameter '" + *parameter + "'";
  return group < 0 ? text : text + " (group " + std::to_string(group) + ")";
}

std::int64_t Array::size() const {
  std::int64_t n = 1;
  for (const std::int64_t extent : shape) n *= extent;
  return n;
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "(";
  for (std::size_t k = 0; k < shape.size(); ++k) text += (k == 0 ? "" : ", ") + std::to_string(shape[k]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

std::string TypeSet::text() const {
  std::string text;
  for (int k = type_count; k-- > 0;) {
    const Type type = static_cast<Type>(k);
    if (has(type)) text = name_of(type) + (text.empty() ? "" : (text.find(" or ") == text.npos ? " or " : ", ") + text);
  }
  return text;
}

void refuse_type(const Array& array, TypeSet expected) {
  refuse(array.label.text() + ": expected dtype " + expected.text() + ", got " + name_of(array.type) +
         "; arrays are borrowed, never converted: pass one of that dtype");
}

void check_reach(const Array& array) {
  // Overlap checks add up to twice the reach of two arrays and an address between them: this limit keeps the sum in 64 bits.
  constexpr std::int64_t most = std::int64_t{1} << 60;
  std::int64_t bytes = array.item_size();
  std::int64_t reach = 0;
  for (std::size_t k = 0; k < array.shape.size(); ++k) {
    const std::int64_t extent = array.shape[k];
    const std::int64_t stride = array.strides[k];
    std::int64_t along = 0;  // stays 0 for an axis of one element or none
    bool beyond = multiply_overflows(bytes, std::max(extent, std::int64_t{1}), bytes) || bytes > most;
    beyond |= stride == std::numeric_limits<std::int64_t>::min();
    beyond = beyond || (extent > 1 && multiply_overflows(std::abs(stride), extent - 1, along));
    beyond = beyond || add_overflows(reach, along, reach) || reach > most;
    if (!beyond) continue;
    const std::vector<std::int64_t> strides(array.strides, array.strides + array.shape.size());
    refuse(array.label.text() + ": expected an array that fits into memory, got shape " + shape_text(array.shape) +
           " with strides " + shape_text(strides));
  }
}

void check_has_rows(const Array& parameter) {
  if (!parameter.shape.empty()) return;
  refuse(parameter.label.text() + ": expected at least one dimension, that of the rows, got shape ()");
}

void check_shape(const Array& array, const Array& parameter) {
  if (std::equal(array.shape.begin(), array.shape.end(), parameter.shape.begin(), parameter.shape.end())) return;
  refuse(array.label.text() + ": expected shape " + shape_text(parameter.shape) + ", that of the parameter, got " +
         shape_text(array.shape));
}

}  // namespace fusedstep
