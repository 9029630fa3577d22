#include "arrays.hpp"

#include <algorithm>
#include <cstring>
#include <string>

namespace fusedstep::bind {
namespace {

using npy = py::detail::npy_api;
static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t));

constexpr const char* names[] = {"float32", "float64", "int8"};
constexpr int type_numbers[] = {npy::NPY_FLOAT_, npy::NPY_DOUBLE_, npy::NPY_BYTE_};

const py::detail::PyArray_Proxy* proxy(PyObject* object) { return py::detail::array_proxy(object); }

// NumPy's own descriptors of the native types: nearly every array points at one of them.
PyObject* native_descriptor(Element element) {
  static PyObject* const descriptors[] = {npy::get().PyArray_DescrFromType_(npy::NPY_FLOAT_),
                                          npy::get().PyArray_DescrFromType_(npy::NPY_DOUBLE_),
                                          npy::get().PyArray_DescrFromType_(npy::NPY_BYTE_)};
  return descriptors[static_cast<int>(element)];
}

bool is_array(PyObject* object) {
  PyTypeObject* const array_type = npy::get().PyArray_Type_;
  return Py_TYPE(object) == array_type || PyType_IsSubtype(Py_TYPE(object), array_type) != 0;
}

std::string type_name(py::handle object) { return py::str(py::type::handle_of(object).attr("__name__")); }

void check_is_array(py::handle object, const Label& label) {
  if (is_array(object.ptr())) return;
  throw py::type_error(label.text() + ": expected a numpy.ndarray, got " + type_name(object) +
                       "; arrays are updated in place, never converted: pass the array itself");
}

bool has_element(PyObject* object, Element element) {
  const auto* array = proxy(object);
  if (array->descr == native_descriptor(element)) return true;
  const auto dtype = py::reinterpret_borrow<py::dtype>(array->descr);
  return dtype.num() == type_numbers[static_cast<int>(element)] && dtype.byteorder() != '>' && dtype.byteorder() != '<';
}

std::string dtype_text(PyObject* object) { return py::str(py::handle(proxy(object)->descr)); }

void check_byte_order(PyObject* object, const Label& label) {
  const auto dtype = py::reinterpret_borrow<py::dtype>(proxy(object)->descr);
  if (dtype.attr("isnative").cast<bool>()) return;
  throw py::type_error(label.text() + ": expected native byte order, got dtype " + dtype_text(object) +
                       "; pass array.astype(array.dtype.newbyteorder('='))");
}

[[noreturn]] void wrong_dtype(PyObject* object, const Label& label, const std::string& expected) {
  throw py::type_error(label.text() + ": expected dtype " + expected + ", got " + dtype_text(object) +
                       "; arrays are borrowed, never converted: pass one of that dtype");
}

Array view(PyObject* object, const Label& label, Element element, bool written) {
  const auto* array = proxy(object);
  if (written && (array->flags & npy::NPY_ARRAY_WRITEABLE_) == 0) {
    throw py::value_error(label.text() + ": expected a writeable array, got a read-only one; pass a writeable array");
  }
  if ((array->flags & npy::NPY_ARRAY_ALIGNED_) == 0) {
    throw py::value_error(label.text() + ": expected an array aligned to its dtype " + names[static_cast<int>(element)] +
                          ", got a misaligned one; pass a copy");
  }
  Array borrowed;
  borrowed.label = label;
  borrowed.data = array->data;
  borrowed.shape = {reinterpret_cast<const std::int64_t*>(array->dimensions), static_cast<std::size_t>(array->nd)};
  borrowed.strides = reinterpret_cast<const std::int64_t*>(array->strides);
  borrowed.item_size = element == Element::int8 ? 1 : item_size(dtype_of(element));
  return borrowed;
}

}  // namespace

Borrowed borrow_parameter(py::handle object, const Label& label) {
  check_is_array(object, label);
  for (const Element element : {Element::float32, Element::float64}) {
    if (has_element(object.ptr(), element)) return {view(object.ptr(), label, element, true), element};
  }
  const auto dtype = py::reinterpret_borrow<py::dtype>(proxy(object.ptr())->descr);
  if (dtype.num() == npy::NPY_FLOAT_ || dtype.num() == npy::NPY_DOUBLE_) check_byte_order(object.ptr(), label);
  wrong_dtype(object.ptr(), label, "float32 or float64");
}

Array borrow(py::handle object, const Label& label, Element element, bool written) {
  check_is_array(object, label);
  if (!has_element(object.ptr(), element)) {
    const auto dtype = py::reinterpret_borrow<py::dtype>(proxy(object.ptr())->descr);
    if (dtype.num() == type_numbers[static_cast<int>(element)]) check_byte_order(object.ptr(), label);
    wrong_dtype(object.ptr(), label, names[static_cast<int>(element)]);
  }
  return view(object.ptr(), label, element, written);
}

bool unchanged(PyObject* object, Element element, const char* data, std::span<const std::int64_t> shape,
               const std::int64_t* strides, bool written) {
  if (!is_array(object)) return false;
  const auto* array = proxy(object);
  const int needed = npy::NPY_ARRAY_ALIGNED_ | (written ? npy::NPY_ARRAY_WRITEABLE_ : 0);
  if (array->data != data || array->descr != native_descriptor(element) || (array->flags & needed) != needed ||
      static_cast<std::size_t>(array->nd) != shape.size()) {
    return false;
  }
  for (std::size_t k = 0; k < shape.size(); ++k) {
    if (array->dimensions[k] != shape[k] || array->strides[k] != strides[k]) return false;
  }
  return true;
}

}  // namespace fusedstep::bind
