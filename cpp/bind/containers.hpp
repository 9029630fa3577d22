// The nested containers in which parameters came: gradients come in the same.
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
  // From Python: a number for a leaf, a list, a dict, or ("fields", type or None, {name: child}) for an object with fields;
  // of a type, where that is what tells one NamedTuple from another.
  explicit Containers(py::handle tree);

  // The leaves of `found`, which must have the same containers, in their order. All are owned by `references`, also against
  // Python code that empties a container while another is read. TypeError or ValueError with the place.
  void collect(py::handle found, std::vector<PyObject*>& leaves, References& references) const;

  // So many leaves where they are borrowed from: `found` itself, or the items of a list or tuple that holds nothing else. Null
  // for any other containers, and another number, which collect() looks at. Runs no Python code.
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
  bool flat_;  // a leaf, or a sequence of leaves in their order
};

}  // namespace fusedstep::bind
