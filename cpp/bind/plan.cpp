#include "plan.hpp"

#include <pybind11/critical_section.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include "../step.hpp"
#include "arrays.hpp"
#include "hyperparameters.hpp"
#include "rules_by_name.hpp"

namespace fusedstep::bind {
namespace {

// The nested containers in which parameters came, with a number for each leaf: gradients come in the same.
struct Node {
  enum class Kind : std::uint8_t { leaf, sequence, mapping } kind;
  std::size_t leaf = 0;
  std::vector<py::object> keys;
  std::vector<Node> children;
};

Node parse(py::handle tree) {
  if (py::isinstance<py::int_>(tree)) return {Node::Kind::leaf, tree.cast<std::size_t>(), {}, {}};
  if (py::isinstance<py::dict>(tree)) {
    Node node{Node::Kind::mapping, 0, {}, {}};
    for (const auto& [key, child] : py::reinterpret_borrow<py::dict>(tree)) {
      node.keys.push_back(py::reinterpret_borrow<py::object>(key));
      node.children.push_back(parse(child));
    }
    return node;
  }
  Node node{Node::Kind::sequence, 0, {}, {}};
  for (const py::handle child : tree) node.children.push_back(parse(child));
  return node;
}

std::string joined(const std::string& path, const std::string& key) { return path.empty() ? key : path + "." + key; }

std::string place(const std::string& path) { return path.empty() ? "grads" : "grads at '" + path + "'"; }

[[noreturn]] void wrong_container(const std::string& path, const char* expected, py::handle found) {
  throw py::type_error(place(path) + ": expected " + expected + ", as in params, got " +
                       std::string(py::str(py::type::handle_of(found).attr("__name__"))));
}

// The gradients in the order of the leaves, borrowed from the containers (or held by `kept`, where a container makes
// its items anew).
class Gradients {
 public:
  explicit Gradients(std::size_t n) : by_leaf(n, nullptr) {}

  void collect(const Node& node, py::handle found, const std::string& path) {
    switch (node.kind) {
      case Node::Kind::leaf:
        by_leaf[node.leaf] = found.ptr();
        break;
      case Node::Kind::sequence:
        collect_sequence(node, found, path);
        break;
      case Node::Kind::mapping:
        collect_mapping(node, found, path);
        break;
    }
  }

  // The gradient of a leaf as an ndarray. What offers its memory may run any code first, also such that empties the
  // containers: so all gradients are held before.
  PyObject* array(std::size_t leaf, const Label& label) {
    if (is_array(by_leaf[leaf])) return by_leaf[leaf];
    if (!held_) {
      for (PyObject* gradient : by_leaf) kept_.push_back(py::reinterpret_borrow<py::object>(gradient));
      held_ = true;
    }
    return arrays_(by_leaf[leaf], label);
  }

  std::vector<PyObject*> by_leaf;

 private:
  void collect_sequence(const Node& node, py::handle found, const std::string& path) {
    if (!PyList_Check(found.ptr()) && !PyTuple_Check(found.ptr())) wrong_container(path, "a list or a tuple", found);
    const py::scoped_critical_section locked(found);
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(found.ptr());
    if (static_cast<std::size_t>(n) != node.children.size()) {
      throw py::value_error(place(path) + ": expected " + std::to_string(node.children.size()) +
                            " entries, as in params, got " + std::to_string(n) +
                            "; pass None for a parameter without a gradient");
    }
    PyObject** items = PySequence_Fast_ITEMS(found.ptr());
    for (std::size_t i = 0; i < node.children.size(); ++i) {
      const Node& child = node.children[i];
      if (child.kind == Node::Kind::leaf) {
        by_leaf[child.leaf] = kept(items[i]);
      } else {
        collect(child, kept(items[i]), joined(path, std::to_string(i)));
      }
    }
  }

  void collect_mapping(const Node& node, py::handle found, const std::string& path) {
    const bool dict = PyDict_Check(found.ptr());
    if (!dict && !py::isinstance(found, py::module_::import("collections.abc").attr("Mapping"))) {
      wrong_container(path, "a mapping", found);
    }
    const py::scoped_critical_section locked(found);
    for (std::size_t i = 0; i < node.children.size(); ++i) {
      PyObject* item = dict ? PyDict_GetItemWithError(found.ptr(), node.keys[i].ptr())
                            : PyObject_GetItem(found.ptr(), node.keys[i].ptr());
      if (item == nullptr) {
        if (PyErr_Occurred() != nullptr && PyErr_ExceptionMatches(PyExc_KeyError) == 0) throw py::error_already_set();
        PyErr_Clear();
        throw py::value_error("grads: no entry for '" + joined(path, py::str(node.keys[i])) +
                              "'; pass None for a parameter without a gradient");
      }
      if (dict) {
        kept(item);
      } else {
        kept_.push_back(py::reinterpret_steal<py::object>(item));
      }
      collect(node.children[i], item, joined(path, py::str(node.keys[i])));
    }
    if (static_cast<std::size_t>(PyObject_Size(found.ptr())) != node.children.size()) {
      for (const py::handle key : found) {
        bool known = false;
        for (const py::object& expected : node.keys) known |= expected.equal(key);
        if (!known) {
          throw py::value_error("grads: '" + joined(path, py::str(key)) + "' is the name of no parameter");
        }
      }
    }
  }

  // Without a GIL, another thread may take an item out of its container as soon as that is unlocked.
  PyObject* kept(PyObject* item) {
#ifdef Py_GIL_DISABLED
    kept_.push_back(py::reinterpret_borrow<py::object>(item));
#endif
    return item;
  }

  std::vector<py::object> kept_;
  Arrays arrays_;
  bool held_ = false;
};

// A group's dict of hyperparameters, as read last: values are compared by identity, and read again where they differ.
struct Group {
  Options options;
  std::vector<py::object> seen;                            // by field
  std::vector<std::pair<py::object, py::object>> entries;  // of the dict, in its order; none: it must be read

  // The quick look: the same objects have the same values, but for a list.
  bool unchanged(PyObject* values) const {
    Py_ssize_t position = 0;
    PyObject* key;
    PyObject* value;
    std::size_t k = 0;
    while (PyDict_Next(values, &position, &key, &value) != 0) {
      if (k == entries.size() || entries[k].first.ptr() != key || entries[k].second.ptr() != value) return false;
      ++k;
    }
    return k == entries.size() && k > 0;
  }

  void remember(PyObject* values) {
    Py_ssize_t position = 0;
    PyObject* key;
    PyObject* value;
    while (PyDict_Next(values, &position, &key, &value) != 0) {
      if (PyList_Check(value)) {
        entries.clear();
        return;
      }
      entries.emplace_back(py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value));
    }
  }
};

enum class Accepted : std::uint8_t { no, to_be_read, to_be_zeroed };

// A parameter and its last gradient as they were when they were checked; the geometry is shape, strides and strides of
// the gradient, in a row with those of the other parameters.
struct Bound {
  PyObject* parameter;
  const char* data;
  const char* gradient;
  std::size_t geometry;
  std::uint8_t ndim;
  Element element;
  Accepted accepted;
};

class Optimizer {
 public:
  Optimizer(const std::string& rule, const py::list& names, const std::vector<int>& groups, int group_count,
            const py::list& parameters, const py::list& states, const py::object& tree)
      : plan_(rule_by_name(rule), group_count > 1),
        description_(description(plan_.rule())),
        groups_(static_cast<std::size_t>(group_count)),
        tree_(parse(tree)),
        report_type_(py::module_::import("fusedstep._core").attr("StepReport")) {
    for (Group& group : groups_) {
      description_.construct(group.options.bytes);
      group.seen.resize(description_.fields.size());
    }
    for (const Field& field : description_.fields) {
      keys_.push_back(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(field.name)));
    }
    for (std::size_t i = 0; i < names.size(); ++i) {
      add(names[i].cast<std::string>(), groups[i], parameters[i], states[i].cast<py::list>());
    }
    plan_.bind();
  }

  PyObject* step(py::handle grads, py::handle groups, py::handle loss, py::handle grad_scale, py::handle clip_norm,
                 py::handle clip_value, py::handle zero_grads, py::handle nonfinite) {
    const Hold hold(*this);
    StepOptions options;
    if (!grad_scale.is_none()) options.grad_scale = positive(grad_scale, "grad_scale");
    if (!clip_norm.is_none()) options.clip_norm = positive(clip_norm, "clip_norm");
    if (!clip_value.is_none()) options.clip_value = positive(clip_value, "clip_value");
    options.zero_grads = flag(zero_grads, "zero_grads");
    options.nonfinite = policy(nonfinite);
    const double loss_now = loss.is_none() ? std::nan("") : real(loss, "loss");

    read_groups(groups);
    const std::vector<Options> now = options_now(loss, loss_now);
    Gradients gradients(plan_.size());
    gradients.collect(tree_, grads, "");
    accept(gradients, options.zero_grads);

    const Outcome report = run(gradients.by_leaf, now, options);
    if (options.nonfinite == Nonfinite::raise && report.skipped) {
      std::string names;
      for (const std::size_t i : report.nonfinite) names += (names.empty() ? "'" : ", '") + plan_.member(i).name + "'";
      PyErr_SetString(PyExc_FloatingPointError,
                      ("inf or NaN in the gradient of " + names + "; nothing was changed").c_str());
      return nullptr;
    }
    if (!report.skipped) {
      ++steps_;
      if (!loss.is_none()) last_loss_ = loss_now;
    }
    return make_report(report).release().ptr();
  }

  // The gradients by parameter, for who wants to copy them: fit to be read, and of the size that they should have.
  py::list gradients(py::handle grads) const {
    Gradients found(plan_.size());
    found.collect(tree_, grads, "");
    py::list list;
    for (std::size_t i = 0; i < plan_.size(); ++i) {
      PyObject* gradient = found.by_leaf[i];
      if (gradient != Py_None) {
        const Label& label = plan_.member(i).gradient.label;
        gradient = found.array(i, label);
        check_shape(borrow(gradient, label, bound_[i].element, false), plan_.member(i).parameter);
      }
      list.append(py::handle(gradient));
    }
    return list;
  }

  // One use at a time: a step, or what reads or writes all of the optimizer from outside. Two threads in the same
  // optimizer are a mistake of the caller, told as such.
  void hold() {
    if (busy_.exchange(true)) {
      throw std::runtime_error(
          "this optimizer is in use already, by a step, a save or a load in another thread; give each thread its own");
    }
  }
  void release() { busy_ = false; }

  std::int64_t steps() const { return steps_; }
  void set_steps(std::int64_t steps) { steps_ = steps; }
  std::optional<double> last_loss() const { return last_loss_; }
  void set_last_loss(std::optional<double> loss) { last_loss_ = loss; }

  std::vector<std::int64_t> times() {
    std::vector<std::int64_t> times;
    for (std::size_t i = 0; i < plan_.size(); ++i) times.push_back(plan_.time(i));
    return times;
  }

  void set_times(const std::vector<std::int64_t>& times) {
    if (times.size() != plan_.size()) throw py::value_error("times: expected one a parameter");
    for (std::size_t i = 0; i < plan_.size(); ++i) plan_.time(i) = times[i];
  }

 private:
  class Hold {
   public:
    explicit Hold(Optimizer& optimizer) : optimizer_(optimizer) { optimizer_.hold(); }
    ~Hold() { optimizer_.release(); }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    Optimizer& optimizer_;
  };

  static double positive(py::handle value, const char* name) {
    const double x = real(value, name);
    if (std::isfinite(x) && x > 0) return x;
    throw py::value_error(std::string(name) + ": expected a finite number with " + name + " > 0, got " +
                          std::string(py::repr(value)));
  }

  static Nonfinite policy(py::handle value) {
    if (PyUnicode_Check(value.ptr())) {
      if (PyUnicode_CompareWithASCIIString(value.ptr(), "propagate") == 0) return Nonfinite::propagate;
      if (PyUnicode_CompareWithASCIIString(value.ptr(), "skip") == 0) return Nonfinite::skip;
      if (PyUnicode_CompareWithASCIIString(value.ptr(), "raise") == 0) return Nonfinite::raise;
    }
    throw py::value_error("nonfinite: expected one of 'propagate', 'skip', 'raise', got " +
                          std::string(py::repr(value)));
  }

  void add(std::string name, int group, py::handle parameter, const py::list& states) {
    const Label label{"", &name, groups_.size() > 1 ? group : -1};
    const auto array = py::reinterpret_borrow<py::object>(Arrays()(parameter, label));
    const Borrowed borrowed = borrow_parameter(array, label);
    std::vector<Array> state_arrays(description_.states.size());
    arrays_.push_back(array);
    for (std::size_t s = 0; s < state_arrays.size(); ++s) {
      const py::handle state = states[s];
      states_.push_back(py::reinterpret_borrow<py::object>(state));
      if (state.is_none()) continue;
      const Label of{description_.states[s].name, &name, label.group};
      state_arrays[s] = borrow(state, of, element_of_state(s, borrowed.element), true);
    }
    plan_.add(name, group, dtype_of(borrowed.element), borrowed.array, state_arrays);
    Bound bound{array.ptr(), borrowed.array.data, nullptr, geometry_.size(),
                static_cast<std::uint8_t>(borrowed.array.shape.size()), borrowed.element, Accepted::no};
    const auto& shape = borrowed.array.shape;
    geometry_.insert(geometry_.end(), shape.begin(), shape.end());
    geometry_.insert(geometry_.end(), borrowed.array.strides, borrowed.array.strides + shape.size());
    geometry_.resize(geometry_.size() + shape.size());
    bound_.push_back(bound);
  }

  Element element_of_state(std::size_t s, Element parameter) const {
    return description_.states[s].storage == Storage::int8 ? Element::int8 : parameter;
  }

  void read_groups(py::handle groups) {
    if (!PyList_Check(groups.ptr()) || static_cast<std::size_t>(PyList_GET_SIZE(groups.ptr())) != groups_.size()) {
      throw py::value_error("param_groups: expected the list of " + std::to_string(groups_.size()) +
                            " groups that the optimizer was made with");
    }
    for (std::size_t k = 0; k < groups_.size(); ++k) {
      read_group(groups_[k], k, PyList_GET_ITEM(groups.ptr(), static_cast<Py_ssize_t>(k)));
    }
  }

  void read_group(Group& group, std::size_t index, PyObject* values) {
    if (!PyDict_Check(values)) {
      throw py::type_error("param_groups[" + std::to_string(index) + "]: expected a dict of hyperparameters, got " +
                           std::string(py::str(py::type::handle_of(values).attr("__name__"))));
    }
    const py::scoped_critical_section locked(values);
    if (group.unchanged(values)) return;
    group.entries.clear();
    Options options = group.options;
    std::vector<std::pair<std::size_t, PyObject*>> changed;
    for (std::size_t f = 0; f < keys_.size(); ++f) {
      PyObject* value = PyDict_GetItemWithError(values, keys_[f].ptr());
      if (value == nullptr && group.seen[f]) {
        throw py::value_error("param_groups[" + std::to_string(index) + "]: expected a value for '" +
                              description_.fields[f].name + "', got none");
      }
      // The same object has the same value, but for a list.
      if (value == nullptr || (value == group.seen[f].ptr() && !PyList_Check(value))) continue;
      set_field(description_.fields[f], value, options.bytes);
      changed.emplace_back(f, value);
    }
    if (changed.empty()) {
      group.remember(values);
      return;
    }
    if (const std::string wrong = description_.conflict(options.bytes); !wrong.empty()) throw py::value_error(wrong);
    plan_.check_states(static_cast<int>(index), options);
    group.options = options;
    for (const auto& [f, value] : changed) group.seen[f] = py::reinterpret_borrow<py::object>(value);
    group.remember(values);
  }

  // The options of each group for this step. A loss that rose since the last step is one for the rules that ask.
  std::vector<Options> options_now(py::handle loss, double loss_now) const {
    std::vector<Options> now;
    for (const Group& group : groups_) {
      Options& options = now.emplace_back(group.options);
      if (!description_.needs_loss(options.bytes)) continue;
      if (loss.is_none()) throw py::value_error("loss: needed by variant 'irprop+', got None; pass step(grads, loss=...)");
      set_flag(description_, "loss_increased", last_loss_.has_value() && loss_now > *last_loss_, options.bytes);
    }
    return now;
  }

  // Every parameter is where it was bound, and every gradient fit for this step; nothing is taken for granted but what
  // was looked at now. The states need no look: they are views, which NumPy does not resize.
  void accept(Gradients& gradients, bool written) {
    const Descriptors& descriptors = native_descriptors();
    const Accepted enough = written ? Accepted::to_be_zeroed : Accepted::to_be_read;
    bool any_new = false;
    for (std::size_t i = 0; i < bound_.size(); ++i) {
      Bound& bound = bound_[i];
      const PyObject* descriptor = descriptors[static_cast<std::size_t>(bound.element)];
      const std::int64_t* shape = geometry_.data() + bound.geometry;
      const std::int64_t* strides = shape + bound.ndim;
      if (!unchanged(bound.parameter, descriptor, bound.data, bound.ndim, shape, strides, true)) check_bound(i);
      PyObject* const given = gradients.by_leaf[i];
      if (given == Py_None) {
        plan_.leave_out(i);
        continue;
      }
      if (bound.accepted >= enough &&
          unchanged(given, descriptor, bound.gradient, bound.ndim, shape, strides + bound.ndim, written)) {
        any_new |= !plan_.present(i);
        plan_.keep(i);
        continue;
      }
      const Label& label = plan_.member(i).gradient.label;
      const Array gradient = borrow(gradients.array(i, label), label, bound.element, written);
      plan_.accept(i, gradient, written);
      bound.gradient = gradient.data;
      bound.accepted = written ? Accepted::to_be_zeroed : Accepted::to_be_read;
      std::copy_n(gradient.strides, bound.ndim, geometry_.begin() + static_cast<std::ptrdiff_t>(bound.geometry) + 2 * bound.ndim);
      any_new = true;
    }
    gradients_disjoint_ = gradients_disjoint_ && !any_new;
    if (written && !gradients_disjoint_) {
      plan_.check_gradients_disjoint();
      gradients_disjoint_ = true;
    }
  }

  // Says what changed about a parameter, if it did.
  void check_bound(std::size_t i) const {
    const Array& bound = plan_.member(i).parameter;
    const Array now = borrow(bound_[i].parameter, bound.label, bound_[i].element, true);
    const std::size_t ndim = bound.shape.size();
    if (now.data == bound.data && std::equal(now.shape.begin(), now.shape.end(), bound.shape.begin(), bound.shape.end()) &&
        std::equal(now.strides, now.strides + ndim, bound.strides)) {
      return;
    }
    throw py::value_error(bound.label.text() + ": was resized, reshaped or moved since the optimizer was made (shape " +
                          shape_text(bound.shape) + " then, " + shape_text(now.shape) + " now); make a new optimizer");
  }

  Outcome run(const std::vector<PyObject*>& gradients, const std::vector<Options>& options,
                 const StepOptions& step_options) {
    if (plan_.elements() < small) return plan_.step(options, step_options);
    for (PyObject* gradient : gradients) Py_INCREF(gradient);
    Outcome report;
    std::exception_ptr failure;
    {
      const py::gil_scoped_release release;
      try {
        report = plan_.step(options, step_options);
      } catch (...) {
        failure = std::current_exception();
      }
    }
    for (PyObject* gradient : gradients) Py_DECREF(gradient);
    if (failure) std::rethrow_exception(failure);
    return report;
  }

  py::object make_report(const Outcome& report) const {
    auto made = py::reinterpret_steal<py::object>(PyStructSequence_New(reinterpret_cast<PyTypeObject*>(report_type_.ptr())));
    if (!made) throw py::error_already_set();
    py::object norm = py::none();
    py::object nonfinite = py::none();
    if (report.grad_norm.has_value()) {
      norm = py::float_(*report.grad_norm);
      py::tuple names(report.nonfinite.size());
      for (std::size_t k = 0; k < names.size(); ++k) names[k] = plan_.member(report.nonfinite[k]).name;
      nonfinite = std::move(names);
    }
    PyStructSequence_SetItem(made.ptr(), 0, PyLong_FromLongLong(steps_));
    PyStructSequence_SetItem(made.ptr(), 1, norm.release().ptr());
    PyStructSequence_SetItem(made.ptr(), 2, py::bool_(report.skipped).release().ptr());
    PyStructSequence_SetItem(made.ptr(), 3, nonfinite.release().ptr());
    return made;
  }

  Plan plan_;
  const Description& description_;
  std::vector<Group> groups_;
  std::vector<py::object> keys_;  // by field, interned
  Node tree_;
  std::vector<py::object> arrays_;
  std::vector<py::object> states_;  // by parameter, then by state
  std::vector<Bound> bound_;
  std::vector<std::int64_t> geometry_;
  py::object report_type_;    // an interpreter's own
  bool gradients_disjoint_ = false;  // those accepted last, of all parameters that have one
  std::int64_t steps_ = 0;
  std::optional<double> last_loss_;
  std::atomic<bool> busy_{false};
};

PyObject* step(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return raising([&]() -> PyObject* {
    if (count != 8) throw py::type_error("step() takes 8 arguments, got " + std::to_string(count));
    auto& optimizer = *py::cast<Optimizer*>(py::handle(self));
    return optimizer.step(arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5],
                          arguments[6], arguments[7]);
  });
}

PyMethodDef step_definition = {"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(step)),
                               METH_FASTCALL,
                               "step(grads, groups, loss, grad_scale, clip_norm, clip_value, zero_grads, nonfinite)"};

PyStructSequence_Field report_fields[] = {
    {"step", "steps taken so far, this one included"},
    {"grad_norm", "norm of all gradients after unscaling and clip_value; None where nothing asked for it"},
    {"skipped", "whether the step was left out, and nothing changed, for an inf or a NaN"},
    {"nonfinite", "names of the parameters with an inf or a NaN in their gradient; None where nothing asked for it"},
    {nullptr, nullptr}};

PyStructSequence_Desc report_description = {"fusedstep.StepReport", "What a step did.", report_fields, 4};

}  // namespace

void register_plan(py::module_& module) {
  const auto report_type =
      py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(PyStructSequence_NewType(&report_description)));
  if (!report_type) throw py::error_already_set();
  module.attr("StepReport") = report_type;

  py::class_<Optimizer> type(module, "Plan");
  type.def(py::init<const std::string&, const py::list&, const std::vector<int>&, int, const py::list&, const py::list&,
                    const py::object&>(),
           py::arg("rule"), py::arg("names"), py::arg("groups"), py::arg("group_count"), py::arg("parameters"),
           py::arg("states"), py::arg("tree"))
      .def("__enter__", &Optimizer::hold)
      .def("__exit__", [](Optimizer& optimizer, const py::args&) { optimizer.release(); })
      .def("gradients", &Optimizer::gradients, py::arg("grads"))
      .def_property("steps", &Optimizer::steps, &Optimizer::set_steps)
      .def_property("last_loss", &Optimizer::last_loss, &Optimizer::set_last_loss)
      .def_property("times", &Optimizer::times, &Optimizer::set_times);
  auto method = py::reinterpret_steal<py::object>(
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(type.ptr()), &step_definition));
  type.attr("step") = method;
}

}  // namespace fusedstep::bind
