// Arrays are borrowed: never converted, never copied.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <atomic>

#include "../checks.hpp"
#include "gil.hpp"

namespace fusedstep::bind {

namespace py = pybind11;

inline bool is_plain_array(PyObject* object) { return Py_TYPE(object) == py::detail::npy_api::get().PyArray_Type_; }

inline bool is_array(PyObject* object) {
  return is_plain_array(object) || PyType_IsSubtype(Py_TYPE(object), py::detail::npy_api::get().PyArray_Type_) != 0;
}

// Returns the object itself if it is a numpy.ndarray. An object that offers its memory by the buffer protocol or DLPack
// becomes an ndarray of that memory, which `references` keeps in place. TypeError if it offers no memory, if it offers only
// copies and is to be written, or if it is an array whose arithmetic means something else (a masked array). May run any
// Python code.
PyObject* as_array(py::handle object, const Label& label, References& references, bool written);

// Whether an object is a number that may stand for a gradient of a 0-d parameter: a Python float, or a NumPy scalar, which
// arithmetic on 0-d arrays returns.
bool is_scalar(PyObject* object);

// Returns such a number as a 0-d array. A float is rounded, a NumPy scalar keeps its type.
PyObject* as_array(py::handle scalar, Type rounded_to, References& references);

// Borrows an index of rows: integers of 4 or 8 bytes.
Array borrow_index(py::handle object, const Label& label);

// Borrows an array of one of these types. Raises TypeError (not an array, dtype, byte order) or ValueError (read-only,
// misaligned); the message has the label, what was found and what to do. The object must outlive the result. Runs no Python
// code, except to say what is wrong.
Array borrow(py::handle object, const Label& label, TypeSet types, bool written);

// Returns an ndarray over memory that `base` keeps.
py::array array_over(const Array& array, py::handle base);

// The descriptors of the native types, by Type. Nearly every array points to one of them. That of bfloat16 is null until the
// first such array.
using Descriptors = std::array<std::atomic<const PyObject*>, type_count>;
Descriptors& native_descriptors();
inline std::atomic<const PyObject*>& descriptor_of(Type type) {
  return native_descriptors()[static_cast<std::size_t>(type)];
}

// Whether an ndarray has the same type, shape and strides as one that was accepted before, and is writable if needed.
// Inline, because each parameter takes it twice per step.
inline bool same_form(PyObject* object, const PyObject* descriptor, std::size_t ndim, const std::int64_t* shape,
                      const std::int64_t* strides, bool written) {
  using npy = py::detail::npy_api;
  const auto* array = py::detail::array_proxy(object);
  const int needed = npy::NPY_ARRAY_ALIGNED_ | (written ? npy::NPY_ARRAY_WRITEABLE_ : 0);
  bool same = array->descr == descriptor && (array->flags & needed) == needed && static_cast<std::size_t>(array->nd) == ndim;
  for (std::size_t k = 0; same && k < ndim; ++k) same = array->dimensions[k] == shape[k] && array->strides[k] == strides[k];
  return same;
}

// Whether it is in the same place as well.
inline bool unchanged(PyObject* object, const PyObject* descriptor, const char* data, std::size_t ndim,
                      const std::int64_t* shape, const std::int64_t* strides, bool written) {
  return is_array(object) && same_form(object, descriptor, ndim, shape, strides, written) &&
         py::detail::array_proxy(object)->data == data;
}

}  // namespace fusedstep::bind
