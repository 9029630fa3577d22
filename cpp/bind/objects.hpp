// Helpers for Python objects: names of their types, dicts that are compared with an earlier state, and objects of classes
// that pybind11 binds.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

namespace fusedstep::bind {

namespace py = pybind11;

std::string type_name(py::handle object);

// The entries of a dict, in its order. All objects are held.
using Entries = std::vector<std::pair<py::object, py::object>>;

Entries entries_of(PyObject* dict);

// Whether the dict still has the same keys, in the same order, with the same objects.
bool holds(PyObject* dict, const Entries& entries);

int traverse(const Entries& entries, visitproc visit, void* arg);

// Returns the T in an object of exactly the class of T.
template <class T>
T& held(PyObject* object) {
  return *static_cast<T*>(reinterpret_cast<py::detail::instance*>(object)->get_value_and_holder().value_ptr());
}

// Makes objects of a class take part in garbage collection, by T's traverse() and clear().
template <class T>
void take_part_in_collection(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!py::detail::is_holder_constructed(self)) return 0;
    return py::cast<T&>(py::handle(self)).traverse(visit, arg);
  };
  type.tp_clear = [](PyObject* self) {
    if (py::detail::is_holder_constructed(self)) py::cast<T&>(py::handle(self)).clear();
    return 0;
  };
}

}  // namespace fusedstep::bind
