#include "objects.hpp"

#include <pybind11/critical_section.h>

namespace fusedstep::bind {

std::string type_name(py::handle object) { return py::str(py::type::handle_of(object).attr("__name__")); }

Entries entries_of(PyObject* dict) {
  Entries entries;
  const py::scoped_critical_section locked(dict);
  Py_ssize_t position = 0;
  PyObject* key;
  PyObject* value;
  while (PyDict_Next(dict, &position, &key, &value) != 0) {
    entries.emplace_back(py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value));
  }
  return entries;
}

bool holds(PyObject* dict, const Entries& entries) {
  const py::scoped_critical_section locked(dict);
  Py_ssize_t position = 0;
  PyObject* key;
  PyObject* value;
  std::size_t k = 0;
  while (PyDict_Next(dict, &position, &key, &value) != 0) {
    if (k == entries.size() || entries[k].first.ptr() != key || entries[k].second.ptr() != value) return false;
    ++k;
  }
  return k == entries.size();
}

int traverse(const Entries& entries, visitproc visit, void* arg) {
  for (const auto& [key, value] : entries) {
    Py_VISIT(key.ptr());
    Py_VISIT(value.ptr());
  }
  return 0;
}

}  // namespace fusedstep::bind
