// Arrays, borrowed: never converted, never copied.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <vector>

#include "../border.hpp"
#include "../description.hpp"

namespace fusedstep::bind {

namespace py = pybind11;

enum class Element : std::uint8_t { float32, float64, int8 };

inline DType dtype_of(Element element) { return element == Element::float32 ? DType::float32 : DType::float64; }
inline Element element_of(DType dtype) { return dtype == DType::float32 ? Element::float32 : Element::float64; }

inline bool is_array(PyObject* object) {
  PyTypeObject* const array_type = py::detail::npy_api::get().PyArray_Type_;
  return Py_TYPE(object) == array_type || PyType_IsSubtype(Py_TYPE(object), array_type) != 0;
}

// The arrays of a call. What is no numpy.ndarray but offers its memory, by the buffer protocol or DLPack, gets an
// ndarray of that memory, which keeps it in place as long as this object lives.
class Arrays {
 public:
  // The object itself where it is an ndarray. TypeError if it has no memory to offer.
  PyObject* operator()(py::handle object, const Label& label) {
    return is_array(object.ptr()) ? object.ptr() : make(object, label);
  }

 private:
  PyObject* make(py::handle object, const Label& label);

  std::vector<py::object> made_;
};

struct Borrowed {
  Array array;
  Element element;
};

// A parameter: float32 or float64. Raises TypeError (not an array, dtype, byte order) or ValueError (read-only,
// misaligned), with the label, what was found and what to do. The array must outlive what is returned.
Borrowed borrow_parameter(py::handle object, const Label& label);

// An array of one element type, written or only read.
Array borrow(py::handle object, const Label& label, Element element, bool written);

// NumPy's own descriptors of the native types, by element: nearly every array points at one of them.
using Descriptors = std::array<const PyObject*, 3>;
const Descriptors& native_descriptors();

// The quick look at an array that was accepted before: same place, shape, strides and type, and as writable as before.
// Inline, for it is taken twice a parameter and step.
inline bool unchanged(PyObject* object, const PyObject* descriptor, const char* data, std::size_t ndim,
                      const std::int64_t* shape, const std::int64_t* strides, bool written) {
  using npy = py::detail::npy_api;
  if (!is_array(object)) return false;
  const auto* array = py::detail::array_proxy(object);
  const int needed = npy::NPY_ARRAY_ALIGNED_ | (written ? npy::NPY_ARRAY_WRITEABLE_ : 0);
  bool same = array->data == data && array->descr == descriptor && (array->flags & needed) == needed &&
              static_cast<std::size_t>(array->nd) == ndim;
  for (std::size_t k = 0; same && k < ndim; ++k) same = array->dimensions[k] == shape[k] && array->strides[k] == strides[k];
  return same;
}

}  // namespace fusedstep::bind
