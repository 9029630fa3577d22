// The nested containers of the parameters. Gradients come in the same containers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

#include "gil.hpp"

namespace fusedstep::bind {

namespace py = pybind11;

class Containers {
 public:
  // Takes the tree as Python describes it: a number for a leaf, a list, a dict, or ("fields", type or None, {name: child})
  // for an object with fields. The type tells one NamedTuple from another.
  explicit Containers(py::handle tree);

  // Collects the leaves of `found` in their order. It must have the same containers. `references` owns all of them, in case
  // Python code empties a container while another one is read. TypeError or ValueError with the place.
  void collect(py::handle found, std::vector<PyObject*>& leaves, References& references) const;

  // Borrows the leaves without collecting them: `found` itself, or the items of a list or tuple of just that many leaves.
  // Returns null for anything else, which collect() handles. Runs no Python code.
  PyObject* const* borrow(PyObject* const& found, std::size_t leaves) const;

  // For Python's garbage collection.
  int traverse(visitproc visit, void* arg) const;

 private:
  struct Node {
    enum class Kind : std::uint8_t { leaf, sequence, mapping, fields } kind = Kind::leaf;
    std::size_t leaf = 0;
    py::object type;
    std::vector<py::object> keys;
    std::vector<Node> children;
  };

  static Node parse(py::handle tree, int depth = 0);
  static void collect(const Node& node, py::handle found, const std::string& path, std::vector<PyObject*>& leaves,
                      References& references);
  static void collect_sequence(const Node& node, py::handle found, const std::string& path, std::vector<PyObject*>& leaves,
                               References& references);
  static void collect_mapping(const Node& node, py::handle found, const std::string& path, std::vector<PyObject*>& leaves,
                              References& references);
  static void collect_fields(const Node& node, py::handle found, const std::string& path, std::vector<PyObject*>& leaves,
                             References& references);
  static int traverse(const Node& node, visitproc visit, void* arg);

  Node root_;
  bool flat_;  // the root is a leaf, or a sequence of leaves in their order
};

}  // namespace fusedstep::bind
