#include "containers.hpp"

#include <pybind11/critical_section.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "hyperparameters.hpp"
#include "objects.hpp"

namespace fusedstep::bind {
namespace {

std::string joined(const std::string& path, const std::string& key) { return path.empty() ? key : path + "." + key; }

std::string place(const std::string& path) { return path.empty() ? "grads" : "grads at '" + path + "'"; }

[[noreturn]] void wrong_container(const std::string& path, const std::string& expected, py::handle found) {
  throw py::type_error(place(path) + ": expected " + expected + ", as in params, got " + type_name(found));
}

[[noreturn]] void wrong_length(const std::string& path, std::size_t expected, Py_ssize_t found) {
  throw py::value_error(place(path) + ": expected " + std::to_string(expected) + " entries, as in params, got " +
                        std::to_string(found) + "; pass None for a parameter without a gradient");
}

// Returns a key of `found` that is not among the known keys; null if there is none.
py::object unknown_key(py::handle found, const std::vector<py::object>& known) {
  for (const py::handle key : py::list(py::reinterpret_borrow<py::object>(found))) {
    const auto is_key = [&](const py::object& each) { return each.equal(key); };
    if (std::ranges::none_of(known, is_key)) return py::reinterpret_borrow<py::object>(key);
  }
  return {};
}

// Returns an item of a list or tuple as a new reference, or null if the list has become shorter.
PyObject* new_item(PyObject* sequence, std::size_t i) {
  if (i >= static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence))) return nullptr;
  PyObject* const item = PySequence_Fast_GET_ITEM(sequence, static_cast<Py_ssize_t>(i));
  Py_INCREF(item);
  return item;
}

}  // namespace

Containers::Containers(py::handle tree) : root_(parse(tree)) {
  flat_ = root_.kind == Node::Kind::leaf || root_.kind == Node::Kind::sequence;
  for (std::size_t i = 0; i < root_.children.size(); ++i) {
    flat_ &= root_.children[i].kind == Node::Kind::leaf && root_.children[i].leaf == i;
  }
}

PyObject* const* Containers::borrow(PyObject* const& found, std::size_t leaves) const {
#if defined(Py_GIL_DISABLED)
  static_cast<void>(found), static_cast<void>(leaves);
  return nullptr;  // another thread may change a list meanwhile
#else
  if (!flat_ || leaves != (root_.kind == Node::Kind::leaf ? 1 : root_.children.size())) return nullptr;
  if (root_.kind == Node::Kind::leaf) return &found;
  if (!PyList_CheckExact(found) && !PyTuple_CheckExact(found)) return nullptr;
  if (static_cast<std::size_t>(PySequence_Fast_GET_SIZE(found)) != leaves) return nullptr;
  return PySequence_Fast_ITEMS(found);
#endif
}

Containers::Node Containers::parse(py::handle tree, int depth) {
  constexpr int deepest = 10'000;  // a stack of 8 MiB has room for twice as many
  if (depth > deepest) {
    PyErr_SetString(PyExc_RecursionError, "params: containers are nested more than 10,000 deep");
    throw py::error_already_set();
  }
  Node node;
  if (py::isinstance<py::int_>(tree)) {
    node.leaf = tree.cast<std::size_t>();
    return node;
  }
  py::object children = py::reinterpret_borrow<py::object>(tree);
  if (py::isinstance<py::tuple>(tree)) {
    node.kind = Node::Kind::fields;
    node.type = children[py::int_(1)];
    children = children[py::int_(2)];
  } else {
    node.kind = py::isinstance<py::dict>(tree) ? Node::Kind::mapping : Node::Kind::sequence;
  }
  if (node.kind == Node::Kind::sequence) {
    for (const py::handle child : children) node.children.push_back(parse(child, depth + 1));
  } else {
    for (const auto& [key, child] : py::reinterpret_borrow<py::dict>(children)) {
      node.keys.push_back(py::reinterpret_borrow<py::object>(key));
      node.children.push_back(parse(child, depth + 1));
    }
  }
  return node;
}

void Containers::collect(py::handle found, std::vector<PyObject*>& leaves, References& references) const {
  collect(root_, references.share(found.ptr()), "", leaves, references);
}

void Containers::collect(const Node& node, py::handle found, const std::string& path, std::vector<PyObject*>& leaves,
                         References& references) {
  switch (node.kind) {
    case Node::Kind::leaf:
      leaves[node.leaf] = found.ptr();
      break;
    case Node::Kind::sequence:
      collect_sequence(node, found, path, leaves, references);
      break;
    case Node::Kind::mapping:
      collect_mapping(node, found, path, leaves, references);
      break;
    case Node::Kind::fields:
      collect_fields(node, found, path, leaves, references);
      break;
  }
}

void Containers::collect_sequence(const Node& node, py::handle found, const std::string& path,
                                  std::vector<PyObject*>& leaves, References& references) {
  if (!PyList_Check(found.ptr()) && !PyTuple_Check(found.ptr())) wrong_container(path, "a list or a tuple", found);
  const py::scoped_critical_section locked(found);
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(found.ptr());
  if (static_cast<std::size_t>(n) != node.children.size()) wrong_length(path, node.children.size(), n);
  for (std::size_t i = 0; i < node.children.size(); ++i) {
    PyObject* const item = new_item(found.ptr(), i);
    if (item == nullptr) wrong_length(path, node.children.size(), static_cast<Py_ssize_t>(i));
    references.take(item);
    const Node& child = node.children[i];
    if (child.kind == Node::Kind::leaf) {
      leaves[child.leaf] = item;
    } else {
      collect(child, item, joined(path, std::to_string(i)), leaves, references);
    }
  }
}

void Containers::collect_mapping(const Node& node, py::handle found, const std::string& path, std::vector<PyObject*>& leaves,
                                 References& references) {
  const bool dict = PyDict_Check(found.ptr());
  if (!dict && !py::isinstance(found, py::module_::import("collections.abc").attr("Mapping"))) {
    wrong_container(path, "a mapping", found);
  }
  const py::scoped_critical_section locked(found);
  for (std::size_t i = 0; i < node.children.size(); ++i) {
    const py::object& key = node.keys[i];
    PyObject* item = nullptr;
    if (dict) {
      item = PyDict_GetItemWithError(found.ptr(), key.ptr());
      Py_XINCREF(item);
    } else {
      item = PyObject_GetItem(found.ptr(), key.ptr());
    }
    if (item == nullptr) {
      if (PyErr_Occurred() != nullptr && PyErr_ExceptionMatches(PyExc_KeyError) == 0) throw py::error_already_set();
      PyErr_Clear();
      const py::object other = unknown_key(found, node.keys);
      const std::string got = other ? std::string(py::repr(other)) + did_you_mean(other, py::cast(node.keys)) : "none";
      throw py::value_error("grads: expected an entry for '" + joined(path, py::str(key)) + "', got " + got +
                            "; pass None for a parameter without a gradient");
    }
    references.take(item);
    const Node& child = node.children[i];
    if (child.kind == Node::Kind::leaf) {
      leaves[child.leaf] = item;
    } else {
      collect(child, item, joined(path, py::str(key)), leaves, references);
    }
  }
  const Py_ssize_t n = PyObject_Size(found.ptr());
  if (n < 0) throw py::error_already_set();
  if (static_cast<std::size_t>(n) == node.children.size()) return;
  if (const py::object other = unknown_key(found, node.keys)) {
    throw py::value_error("grads: expected entries as in params, got '" + joined(path, py::str(other)) + "' as well");
  }
}

void Containers::collect_fields(const Node& node, py::handle found, const std::string& path, std::vector<PyObject*>& leaves,
                                References& references) {
  if (!node.type.is_none() && !py::type::handle_of(found).is(node.type)) {
    wrong_container(path, std::string(py::str(node.type.attr("__name__"))), found);
  }
  for (std::size_t i = 0; i < node.children.size(); ++i) {
    const std::string below = joined(path, py::str(node.keys[i]));
    PyObject* const item = PyObject_GetAttr(found.ptr(), node.keys[i].ptr());
    if (item == nullptr) {
      if (PyErr_ExceptionMatches(PyExc_AttributeError) == 0) throw py::error_already_set();
      PyErr_Clear();
      throw py::type_error(place(path) + ": expected a field '" + std::string(py::str(node.keys[i])) +
                           "', as in params, got " + type_name(found));
    }
    collect(node.children[i], references.take(item), below, leaves, references);
  }
}

int Containers::traverse(visitproc visit, void* arg) const { return traverse(root_, visit, arg); }

int Containers::traverse(const Node& node, visitproc visit, void* arg) {
  Py_VISIT(node.type.ptr());
  for (const py::object& key : node.keys) Py_VISIT(key.ptr());
  for (const Node& child : node.children) {
    if (const int result = traverse(child, visit, arg); result != 0) return result;
  }
  return 0;
}

}  // namespace fusedstep::bind
