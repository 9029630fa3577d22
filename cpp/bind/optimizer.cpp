#include "optimizer.hpp"

#include "../cache.hpp"
#include "../optimizer.hpp"
#include "../parallel.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "arrays.hpp"
#include "containers.hpp"
#include "groups.hpp"
#include "hyperparameters.hpp"
#include "objects.hpp"

namespace fusedstep::bind {
namespace {

enum class Accepted : std::uint8_t { no, to_be_read, to_be_zeroed };

// A parameter and its last gradient as they were when they were checked. `geometry` is the place of the parameter's shape
// and strides, and the gradient's strides, in geometry_.
struct Bound {
  PyObject* parameter;
  const char* data;
  const char* gradient;
  std::size_t geometry;
  std::uint8_t ndim;
  Type type;
  Type gradient_type;
  Accepted accepted;
};

// A state as it was allocated, and the array that Python sees.
struct BoundState {
  PyObject* object;
  const Array* array;
};

class PyOptimizer final : public Repeatable {
 public:
  explicit PyOptimizer(const std::string& rule)
      : core_(rule_or_limit_named(rule)),
        groups_(core_.schema()),
        report_type_(py::type::of<PyOptimizer>().attr("_StepReport")),
        rows_type_(py::type::of<PyOptimizer>().attr("_Rows")) {}

  // The states of each parameter go into the dicts `into`, if these are given.
  py::tuple add_group(const std::vector<std::string>& names, const py::list& arrays, const py::dict& options,
                      const py::object& states, const std::optional<std::string>& state_dtype, bool nearest, bool master,
                      const std::optional<std::vector<py::dict>>& into) {
    const Hold hold(*this);
    if (into && into->size() != names.size()) throw py::value_error("into: expected a dict for each parameter");
    OwnArrays own;
    const Options values = in_group(core_.groups(), core_.groups() + 1, [&] {
      const Options found = options_from(core_.schema(), options, &own);
      check(core_.schema(), found);
      return found;
    });
    const std::size_t first = core_.size();
    const int group = core_.groups() > 0 ? static_cast<int>(core_.groups()) : -1;
    const GroupStorage storage = storage_from(state_dtype, nearest, master);
    const std::size_t rule_states = core_.schema().states.size();
    const std::size_t states_each = rule_states + (master ? 1 : 0);  // the low halves come last
    // Collects all objects first, each parameter before its states, because that may run any Python code.
    std::vector<py::object> owned;
    References references;
    for (std::size_t i = 0; i < names.size(); ++i) {
      const py::object array = arrays[i];
      owned.push_back(py::reinterpret_borrow<py::object>(as_array(array, {"", &names[i], group}, references, true)));
      if (states.is_none()) continue;
      const auto given = py::reinterpret_borrow<py::sequence>(py::object(states[py::int_(i)]));
      for (std::size_t s = 0; s < states_each; ++s) owned.push_back(given[s]);
    }
    // Then looks at their memory.
    std::vector<OptimizerCore::NewParameter> added;
    for (std::size_t i = 0, k = 0; i < names.size(); ++i) {
      auto& parameter = added.emplace_back();
      parameter.name = names[i];
      parameter.group = core_.groups();
      parameter.array = borrow(owned[k++], {"", &names[i], group}, parameter_types, true);
      for (const OwnArray& array : own) parameter.own.push_back(array.of(parameter.array));
      if (states.is_none()) continue;
      parameter.states.emplace();
      for (std::size_t s = 0; s < states_each; ++s) {
        const py::object& state = owned[k++];
        if (state.is_none()) continue;
        const std::size_t place = s < rule_states ? s : low_half;
        const schema::State& about = s < rule_states ? core_.schema().states[s] : low_halves;
        const Type floats = storage.state_type.value_or(compute_type(parameter.array.type));
        const Type type = s < rule_states ? type_of_state(about, parameter.array.type, floats) : Type::uint16;
        (*parameter.states)[place] = borrow(state, {about.name, &names[i], group}, type, true);
      }
    }
    core_.add(std::span(&values, 1), added, std::span(&storage, 1));
    owned_.insert(owned_.end(), owned.begin(), owned.end());
    return bind(first, owned, states.is_none(), states_each, into);
  }

  // Raises what a step with these hyperparameters would raise.
  void check_options(std::size_t group, const py::dict& values) const {
    OwnArrays arrays;
    const Options options = options_from(core_.schema(), values, &arrays);
    core_.check_options(group, options, own_options(arrays, group, core_));
  }

  void sync_master(std::size_t i) {
    const Hold hold(*this);
    core_.sync_master(i);
  }

  // `plain`: steps get gradients exactly as the caller gave them.
  void set_tree(py::handle tree, bool plain) {
    containers_.emplace(tree);
    plain_ = plain;
  }
  void own(const py::list& groups, bool has_their_values) { groups_.own(groups, core_, has_their_values); }

  // First does everything that may run Python code, and takes ownership of all objects. Then looks at the memory, without
  // running Python code. Then works. With a mask, `grads` has copies; `zeroed` are the caller's own, which are set to 0, too.
  PyObject* step(py::handle grads, py::handle groups, py::handle loss, py::handle grad_scale, py::handle clip_norm,
                 py::handle clip_value, py::handle zero_grads, py::handle nonfinite, py::handle clip_norm_each,
                 py::handle frozen, py::handle zeroed) {
    const Hold hold(*this, true);
    StepOptions options;
    if (!grad_scale.is_none()) options.grad_scale = positive(grad_scale, "grad_scale");
    if (!clip_norm.is_none()) options.clip_norm = positive_or_inf(clip_norm, "clip_norm");
    if (!clip_norm_each.is_none()) options.clip_norm_each = positive_or_inf(clip_norm_each, "clip_norm_each");
    if (!clip_value.is_none()) options.clip_value = positive(clip_value, "clip_value");
    options.zero_grads = flag(zero_grads, "zero_grads");
    options.nonfinite = policy(nonfinite);
    if (!loss.is_none()) options.loss = real(loss, "loss");
    References references;
    std::vector<PyObject*> indices;
    std::vector<PyObject*> gradients = collect(grads, references, indices, options.zero_grads);
    groups_.read(groups, core_);
    if (!options.loss && core_.needs_loss()) {
      throw py::value_error("loss: needed by these hyperparameters, got None; pass step(grads, loss=...)");
    }

    accept(gradients, indices, options.zero_grads);
    std::vector<Array> to_zero;
    for (std::size_t i = 0; !zeroed.is_none() && i < core_.size(); ++i) {
      const auto own = py::reinterpret_borrow<py::object>(zeroed[py::int_(i)]);
      if (!own.is_none()) to_zero.push_back(borrow(own, core_.gradient(i).label, gradient_types(bound_[i].type), true));
    }
    const OptimizerCore::Frozen hidden(core_, frozen_elements(frozen));
    PyObject* const report = make_step(options);
    for (const Array& array : to_zero) set_to_zero(array);
    return report;
  }

  PyObject* repeat(PyObject* const& grads) {
    if (!plain_ || holder_.load(std::memory_order_relaxed) != std::thread::id()) return nullptr;
    const Hold hold(*this, true);
    PyObject* const* const gradients = containers_->borrow(grads, bound_.size());
    if (gradients == nullptr || !groups_.read_floats(core_) || core_.needs_loss()) return nullptr;
    References references;
    if (core_.elements() >= small) {  // another thread may run during the step
      references.reserve(bound_.size());
      for (std::size_t i = 0; i < bound_.size(); ++i) references.share(gradients[i]);
    }
    if (!same_arrays(gradients)) return nullptr;
    return make_step({});
  }

  OptimizerCore& core() override { return core_; }

  bool take_again(std::size_t i, char* data) override {
    Bound& bound = bound_[i];
    if (bound.accepted == Accepted::no) return false;
    if (data == bound.gradient) {
      core_.keep(i);
      return true;
    }
    if (!core_.move(i, data)) return false;
    bound.gradient = data;
    bound.accepted = Accepted::to_be_read;
    return true;
  }

  void step_again() override { run({}); }

  // Returns the gradients by parameter, checked as for a step. A gradient of rows is returned as (values, index).
  py::list gradients(py::handle grads, py::handle zero) {
    const Hold hold(*this, true);
    const bool zero_grads = flag(zero, "zero_grads");
    References references;
    std::vector<PyObject*> indices;
    const std::vector<PyObject*> found = collect(grads, references, indices, zero_grads);
    accept(found, indices, zero_grads);
    if (zero_grads) core_.check_gradients_disjoint();
    py::list list;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const py::handle gradient = found[i];
      const bool by_rows = !indices.empty() && indices[i] != nullptr;
      list.append(by_rows ? py::object(py::make_tuple(gradient, py::handle(indices[i])))
                          : py::reinterpret_borrow<py::object>(gradient));
    }
    return list;
  }

  void share(const std::vector<std::pair<std::int64_t, std::int64_t>>& pieces, const py::object& gather) {
    const Hold hold(*this);
    if (pieces.size() != core_.size()) throw py::value_error("pieces: expected one for each parameter");
    std::vector<OptimizerCore::Piece> made;
    for (const auto& [first, whole] : pieces) made.push_back({first, whole});
    gather_ = gather;
    core_.share(made, [this](std::span<const double> own) {
      const py::gil_scoped_acquire held;
      const py::array_t<double> mine(static_cast<py::ssize_t>(own.size()), own.data());
      return gather_(mine).cast<std::vector<double>>();
    });
  }

  static bool is_as_made(const BoundState& state, bool written) {
    const Array& array = *state.array;
    return unchanged(state.object, descriptor_of(array.type), array.data, array.shape.size(), array.shape.data(),
                     array.strides, written);
  }

  // Raises ValueError if a state has another shape or dtype than when it was made, or is read-only but must be written.
  void check_states(bool written) const {
    for (const BoundState& state : states_) {
      if (is_as_made(state, written)) continue;
      const auto& [object, array] = state;
      const py::handle now = object;
      const bool writeable = now.attr("flags").attr("writeable").cast<bool>();
      throw py::value_error(array->label.text() + ": expected a writeable array of " + name_of(array->type) + " and shape " +
                            shape_text(array->shape) + ", as it was made, got a " + (writeable ? "writeable" : "read-only") +
                            " one of " + std::string(py::str(now.attr("dtype"))) + " and shape " +
                            std::string(py::str(now.attr("shape"))) + "; " +
                            (writeable ? "change it back" : "load the state_dict() of this optimizer into a new one"));
    }
  }

  // From now on the user can change the arrays of the states.
  void show_states() { states_are_shown_ = true; }

  void enter() { take(false); }
  void leave() { give_back(); }

  std::int64_t steps() { return core_.steps(); }
  void set_steps(std::int64_t steps) { core_.steps() = steps; }
  std::uint64_t seed() { return core_.seed(); }
  void set_seed(std::uint64_t seed) { core_.seed() = seed; }
  std::optional<double> last_loss() { return core_.last_loss(); }
  void set_last_loss(std::optional<double> loss) { core_.last_loss() = loss; }

  std::vector<std::int64_t> counts() {
    std::vector<std::int64_t> counts;
    for (std::size_t i = 0; i < core_.size(); ++i) counts.push_back(core_.count(i));
    return counts;
  }

  void set_counts(const std::vector<std::int64_t>& counts) {
    if (counts.size() != core_.size()) throw py::value_error("counts: expected one for each parameter");
    for (std::size_t i = 0; i < core_.size(); ++i) core_.count(i) = counts[i];
  }

  int traverse(visitproc visit, void* arg) const {
    for (const py::object& object : owned_) Py_VISIT(object.ptr());
    Py_VISIT(report_type_.ptr());
    Py_VISIT(report_.ptr());
    Py_VISIT(gather_.ptr());
    Py_VISIT(rows_type_.ptr());
    if (const int result = groups_.traverse(visit, arg); result != 0) return result;
    return containers_ ? containers_->traverse(visit, arg) : 0;
  }

  // Drops everything that may be part of a cycle. Nobody can reach this object any more.
  void clear() {
    containers_.reset();
    groups_.clear();
    std::vector<py::object>().swap(owned_);
    states_.clear();
    bound_.clear();
    gather_ = py::object();
  }

 private:
  // Allows one use at a time: a step, or something that reads or writes all of the optimizer and may make a step itself.
  // Using one optimizer in two threads is a mistake of the caller.
  class Hold {
   public:
    explicit Hold(PyOptimizer& optimizer, bool in_step = false) : optimizer_(optimizer), outer_(optimizer.holder_) {
      nested_ = in_step && outer_ == std::this_thread::get_id() && !optimizer.in_step_.exchange(true);
      if (!nested_) optimizer_.take(in_step);
    }
    ~Hold() {
      if (nested_) {
        optimizer_.in_step_ = false;
      } else {
        optimizer_.give_back();
      }
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    PyOptimizer& optimizer_;
    std::thread::id outer_;
    bool nested_ = false;
  };

  void take(bool in_step) {
    std::thread::id nobody;
    if (!holder_.compare_exchange_strong(nobody, std::this_thread::get_id())) {
      throw std::runtime_error(
          "this optimizer is in use already, by a step, a save or a load in another thread; give each thread its own");
    }
    in_step_ = in_step;
  }

  void give_back() {
    in_step_ = false;
    holder_ = std::thread::id();
  }

  static double positive(py::handle value, const char* name) {
    const double x = real(value, name);
    if (std::isfinite(x) && x > 0) return x;
    throw py::value_error(std::string(name) + ": expected a finite number with " + name + " > 0, got " +
                          std::string(py::repr(value)));
  }

  static double positive_or_inf(py::handle value, const char* name) {
    const double x = real(value, name);
    return std::isinf(x) && x > 0 ? x : positive(value, name);
  }

  static Nonfinite policy(py::handle value) {
    if (PyUnicode_Check(value.ptr())) {
      if (PyUnicode_CompareWithASCIIString(value.ptr(), "propagate") == 0) return Nonfinite::propagate;
      if (PyUnicode_CompareWithASCIIString(value.ptr(), "skip") == 0) return Nonfinite::skip;
      if (PyUnicode_CompareWithASCIIString(value.ptr(), "raise") == 0) return Nonfinite::raise;
    }
    py::list known;
    for (const char* word : {"propagate", "skip", "raise"}) known.append(word);
    throw py::value_error("nonfinite: expected one of 'propagate', 'skip', 'raise', got " + std::string(py::repr(value)) +
                          did_you_mean(value, known));
  }

  // Remembers the new parameters as they are, and returns them with their states as Python sees them.
  py::tuple bind(std::size_t first, const std::vector<py::object>& owned, bool make_views, std::size_t states_each,
                 const std::optional<std::vector<py::dict>>& into) {
    py::list parameters;
    py::list states;
    py::object memory;
    if (make_views && core_.size() > first && core_.owner(first)) {
      memory = py::capsule(new OptimizerCore::Owner(core_.owner(first)),
                           [](void* owner) { delete static_cast<OptimizerCore::Owner*>(owner); });
    }
    const std::size_t apart = make_views ? 1 : 1 + states_each;
    for (std::size_t i = first; i < core_.size(); ++i) {
      const Array& array = core_.parameter(i);
      const py::object& parameter = owned[(i - first) * apart];
      bound_.push_back({parameter.ptr(), array.data, nullptr, geometry_.size(),
                        static_cast<std::uint8_t>(array.shape.size()), array.type, array.type, Accepted::no});
      geometry_.insert(geometry_.end(), array.shape.begin(), array.shape.end());
      geometry_.insert(geometry_.end(), array.strides, array.strides + array.shape.size());
      geometry_.resize(geometry_.size() + array.shape.size());
      parameters.append(parameter);
      py::dict by_name = into ? (*into)[i - first] : py::dict();
      for (std::size_t s = 0; s < state_arrays; ++s) {
        if (core_.state(i, s).data == nullptr) continue;
        const char* const name = core_.state_name(i, s);
        if (make_views) {
          by_name[name] = owned_.emplace_back(array_over(core_.state(i, s), memory));
          states_.push_back({owned_.back().ptr(), &core_.state(i, s)});
        } else {
          by_name[name] = owned[(i - first) * apart + 1 + (s == low_half ? core_.schema().states.size() : s)];
        }
      }
      states.append(by_name);
    }
    return py::make_tuple(parameters, states);
  }

  static Label of(Label label, const char* role) {
    label.role = role;
    return label;
  }

  // Returns the gradients as ndarrays owned by `references`, or None for a missing one. `indices` gets the index of each
  // gradient of rows; it stays empty if there is none.
  std::vector<PyObject*> collect(py::handle grads, References& references, std::vector<PyObject*>& indices,
                                 bool to_be_zeroed = false) const {
    if (!containers_) throw py::value_error("the optimizer has no parameters yet");
    std::vector<PyObject*> found(core_.size(), Py_None);
    references.reserve(core_.size() + 8);  // the leaves and usually their containers
    containers_->collect(grads, found, references);
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (found[i] == Py_None || is_plain_array(found[i])) continue;
      const Label& label = core_.gradient(i).label;
      if (Py_TYPE(found[i]) == reinterpret_cast<PyTypeObject*>(rows_type_.ptr())) {
        const py::object rows = py::reinterpret_borrow<py::object>(found[i]);
        indices.resize(core_.size());
        indices[i] = as_array(rows.attr("index"), of(label, "index"), references, false);
        references.share(indices[i]);
        found[i] = as_array(rows.attr("values"), of(label, "values"), references, to_be_zeroed);
        references.share(found[i]);
      } else if (core_.parameter(i).shape.empty() && is_scalar(found[i])) {
        if (to_be_zeroed) {
          throw py::type_error(label.text() +
                               ": expected a 0-d array with zero_grads=True, got a number, which can't be set " + "to 0");
        }
        found[i] = as_array(found[i], compute_type(bound_[i].type), references);
      } else {
        found[i] = as_array(found[i], label, references, to_be_zeroed);
      }
    }
    return found;
  }

  // Checks that every parameter is where it was bound, and that every gradient suits this step. It relies only on what it
  // has just looked at. The same goes for states once a user has seen them; until then their check, a third of the step of a
  // small array, is left out.
  void accept(const std::vector<PyObject*>& gradients, const std::vector<PyObject*>& indices, bool written) {
    if (states_are_shown_) check_states(true);
    const Descriptors& descriptors = native_descriptors();
    const Accepted enough = written ? Accepted::to_be_zeroed : Accepted::to_be_read;
    for (std::size_t i = 0; i < bound_.size(); ++i) {
      Bound& bound = bound_[i];
      const PyObject* descriptor = descriptors[static_cast<std::size_t>(bound.type)];
      const std::int64_t* shape = geometry_.data() + bound.geometry;
      const std::int64_t* strides = shape + bound.ndim;
      if (!unchanged(bound.parameter, descriptor, bound.data, bound.ndim, shape, strides, true)) check_bound(i);
      PyObject* const given = gradients[i];
      if (given == Py_None) {
        core_.leave_out(i);
        continue;
      }
      if (!indices.empty() && indices[i] != nullptr) {
        const Label& label = core_.gradient(i).label;
        bound.accepted = Accepted::no;
        core_.accept_rows(i, borrow_index(indices[i], of(label, "index")),
                          borrow(given, of(label, "values"), gradient_types(bound.type), written), written);
        continue;
      }
      if (bound.accepted >= enough && unchanged(given, descriptors[static_cast<std::size_t>(bound.gradient_type)],
                                                bound.gradient, bound.ndim, shape, strides + bound.ndim, written)) {
        core_.keep(i);
        continue;
      }
      const Array gradient = borrow(given, core_.gradient(i).label, gradient_types(bound.type), written);
      bound.accepted = Accepted::no;
      core_.accept(i, gradient, written);
      bound.gradient = gradient.data;
      bound.gradient_type = gradient.type;
      bound.accepted = enough;
      std::copy_n(gradient.strides, bound.ndim,
                  geometry_.begin() + static_cast<std::ptrdiff_t>(bound.geometry) + 2 * bound.ndim);
    }
  }

  // The same check for a step where at most the places of gradients are new. If it returns false, accept() starts anew with
  // all gradients.
  bool same_arrays(PyObject* const* gradients) {
    constexpr std::size_t ahead = 4;  // the headers of arrays are all over the memory
    const Descriptors& descriptors = native_descriptors();
    const PyTypeObject* const array_type = py::detail::npy_api::get().PyArray_Type_;
    if (states_are_shown_ &&
        !std::ranges::all_of(states_, [](const BoundState& state) { return is_as_made(state, true); })) {
      return false;
    }
    const std::size_t n = bound_.size();
    for (std::size_t i = 0; i < n; ++i) {
      if (i + ahead < n) {
        for (const PyObject* array : {gradients[i + ahead], bound_[i + ahead].parameter}) {
          prefetch<3>(array);
          prefetch<3>(reinterpret_cast<const char*>(array) + cache_line);
        }
      }
      Bound& bound = bound_[i];
      const PyObject* const descriptor = descriptors[static_cast<std::size_t>(bound.type)];
      const std::int64_t* const shape = geometry_.data() + bound.geometry;
      const std::int64_t* const strides = shape + bound.ndim;
      PyObject* const parameter = bound.parameter;  // its class can't have changed
      if (!same_form(parameter, descriptor, bound.ndim, shape, strides, true) ||
          py::detail::array_proxy(parameter)->data != bound.data) {
        return false;
      }
      PyObject* const given = gradients[i];
      if (given == Py_None) {
        core_.leave_out(i);
        continue;
      }
      if (Py_TYPE(given) != array_type || !same_form(given, descriptors[static_cast<std::size_t>(bound.gradient_type)],
                                                     bound.ndim, shape, strides + bound.ndim, false)) {
        return false;
      }
      if (!take_again(i, py::detail::array_proxy(given)->data)) return false;
    }
    return true;
  }

  // With a mask, there is an array of bool or None for each parameter; True means frozen.
  std::vector<const bool*> frozen_elements(py::handle frozen) const {
    std::vector<const bool*> found;
    if (frozen.is_none()) return found;
    for (std::size_t i = 0; i < core_.size(); ++i) {
      const auto given = py::reinterpret_borrow<py::object>(frozen[py::int_(i)]);
      if (given.is_none()) {
        found.push_back(nullptr);
        continue;
      }
      const auto mask = py::reinterpret_borrow<py::array>(given);
      if (!is_plain_array(given.ptr()) || mask.dtype().kind() != 'b' || (mask.flags() & py::array::c_style) == 0 ||
          !std::ranges::equal(std::span(mask.shape(), static_cast<std::size_t>(mask.ndim())), core_.parameter(i).shape)) {
        throw py::value_error("frozen: expected arrays of bool in the shapes of the parameters, in C order");
      }
      found.push_back(static_cast<const bool*>(mask.data()));
    }
    return found;
  }

  StepReport run(const StepOptions& options) {
    if (core_.elements() < small) return core_.step(options);
    StepReport report;
    without_gil([&] { report = core_.step(options); });
    return report;
  }

  PyObject* make_step(const StepOptions& options) {
    const StepReport report = run(options);
    if (report.grad_norm.has_value()) return make_report(report).release().ptr();
    return plain_report(report.step).release().ptr();
  }

  // Returns a report that has only the count. Making one costs as much as a small update, so the last report is changed and
  // returned again if nobody else holds it. A report that somebody holds never changes.
  py::object plain_report(std::int64_t step) {
#if !defined(Py_GIL_DISABLED) && PY_VERSION_HEX < 0x030E0000  // later versions keep a tuple's hash
    if (report_ && Py_REFCNT(report_.ptr()) == 1) {
      PyObject* const count = PyLong_FromLongLong(step);
      if (count == nullptr) throw py::error_already_set();
      Py_SETREF(PyTuple_GET_ITEM(report_.ptr(), 0), count);
      return report_;
    }
#endif
    return report_ = make_report({.step = step});
  }

  // Raises ValueError if something about a parameter has changed.
  void check_bound(std::size_t i) const {
    const Array& bound = core_.parameter(i);
    const Array now = borrow(bound_[i].parameter, bound.label, bound.type, true);
    if (now.data == bound.data && std::ranges::equal(now.shape, bound.shape) &&
        std::equal(now.strides, now.strides + bound.shape.size(), bound.strides)) {
      return;
    }
    throw py::value_error(bound.label.text() + ": was resized, reshaped or moved since the optimizer was made (shape " +
                          shape_text(bound.shape) + " then, " + shape_text(now.shape) + " now); make a new optimizer");
  }

  py::object make_report(const StepReport& report) const {
    auto made = py::reinterpret_steal<py::object>(PyStructSequence_New(reinterpret_cast<PyTypeObject*>(report_type_.ptr())));
    if (!made) throw py::error_already_set();
    py::object norm = py::none();
    py::object nonfinite = py::none();
    if (report.grad_norm.has_value()) {
      norm = py::float_(*report.grad_norm);
      py::tuple names(report.nonfinite.size());
      for (std::size_t k = 0; k < names.size(); ++k) names[k] = core_.name(report.nonfinite[k]);
      nonfinite = std::move(names);
    }
    PyStructSequence_SetItem(made.ptr(), 0, PyLong_FromLongLong(report.step));
    PyStructSequence_SetItem(made.ptr(), 1, norm.release().ptr());
    PyStructSequence_SetItem(made.ptr(), 2, py::bool_(report.skipped).release().ptr());
    PyStructSequence_SetItem(made.ptr(), 3, nonfinite.release().ptr());
    return made;
  }

  OptimizerCore core_;
  Groups groups_;
  std::optional<Containers> containers_;
  std::vector<py::object> owned_;  // parameters, and states that the caller owns
  std::vector<Bound> bound_;
  std::vector<BoundState> states_;  // states that were allocated here
  bool states_are_shown_ = false;
  std::vector<std::int64_t> geometry_;
  py::object report_type_;  // each interpreter has its own
  py::object report_;       // the last plain one
  py::object gather_;       // null unless shared
  py::object rows_type_;    // each interpreter has its own
  std::atomic<std::thread::id> holder_{};
  SharedFlag in_step_{false};
  bool plain_ = false;
};

PyObject* step(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return raising([&]() -> PyObject* {
    if (count != 9 && count != 11) throw py::type_error("step() takes 9 or 11 arguments, got " + std::to_string(count));
    auto& optimizer = *py::cast<PyOptimizer*>(py::handle(self));
    return optimizer.step(arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5], arguments[6],
                          arguments[7], arguments[8], count > 9 ? arguments[9] : Py_None,
                          count > 9 ? arguments[10] : Py_None);
  });
}

PyMethodDef step_definition = {"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(step)), METH_FASTCALL,
                               "step(grads, groups, loss, grad_scale, clip_norm, clip_value, zero_grads, nonfinite, "
                               "clip_norm_each, frozen=None, zeroed=None)"};

PyStructSequence_Field report_fields[] = {
    {"step", "steps taken so far, this one included"},
    {"grad_norm", "norm of all gradients after unscaling and clip_value; None where no option needed it"},
    {"skipped", "whether the step was skipped, and nothing changed, because of an inf or a NaN"},
    {"nonfinite", "names of the parameters with an inf or a NaN in their gradient; None where no option needed them"},
    {nullptr, nullptr}};

PyStructSequence_Desc report_description = {"fusedstep.StepReport", R"(What a step did.

Examples
--------
>>> import numpy as np, fusedstep as fs
>>> opt = fs.RMSprop(np.zeros(4))
>>> report = opt.step(np.ones(4), clip_norm=1.0)
>>> report.step, report.grad_norm, report.skipped
(1, 2.0, False)
)",
                                            report_fields, 4};

}  // namespace

Repeatable& repeatable(py::handle optimizer) { return py::cast<PyOptimizer&>(optimizer); }

PyObject* repeat_arrays(PyObject* optimizer, PyObject* const& grads) { return held<PyOptimizer>(optimizer).repeat(grads); }

py::module_ sibling(const char* name) {
  const auto own = py::type::of<PyOptimizer>().attr("__module__").cast<std::string>();
  return py::module_::import((own.substr(0, own.rfind('.') + 1) + name).c_str());
}

void register_optimizer(py::module_& module) {
  const auto report_type = py::reinterpret_steal<py::object>(
      reinterpret_cast<PyObject*>(PyStructSequence_NewType(&report_description)));
  if (!report_type) throw py::error_already_set();
  module.attr("StepReport") = report_type;

  py::class_<PyOptimizer> type(module,
                               "OptimizerCore", // it may be part of a cycle: a subclass of ndarray may hold the optimizer
                               py::custom_type_setup(take_part_in_collection<PyOptimizer>));
  type.def(py::init<const std::string&>(), py::arg("rule"))
      .def("add_group", &PyOptimizer::add_group, py::arg("names"), py::arg("arrays"), py::arg("options"),
           py::arg("states") = py::none(), py::arg("state_dtype") = py::none(), py::arg("nearest") = false,
           py::arg("master") = false, py::arg("into") = py::none())
      .def("check_options", &PyOptimizer::check_options, py::arg("group"), py::arg("values"))
      .def("sync_master", &PyOptimizer::sync_master, py::arg("parameter"))
      .def("set_tree", &PyOptimizer::set_tree, py::arg("tree"), py::arg("plain") = false)
      .def("own", &PyOptimizer::own, py::arg("groups"), py::arg("has_their_values"))
      .def("show_states", &PyOptimizer::show_states)
      .def("check_states", &PyOptimizer::check_states, py::arg("written"))
      .def("__enter__", &PyOptimizer::enter)
      .def("__exit__", [](PyOptimizer& optimizer, const py::args&) { optimizer.leave(); })
      .def("gradients", &PyOptimizer::gradients, py::arg("grads"), py::arg("zero_grads") = false)
      .def("share", &PyOptimizer::share, py::arg("pieces"), py::arg("gather"))
      .def_property("steps", &PyOptimizer::steps, &PyOptimizer::set_steps)
      .def_property("seed", &PyOptimizer::seed, &PyOptimizer::set_seed)
      .def_property("last_loss", &PyOptimizer::last_loss, &PyOptimizer::set_last_loss)
      .def_property("counts", &PyOptimizer::counts, &PyOptimizer::set_counts);
  auto method = py::reinterpret_steal<py::object>(
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(type.ptr()), &step_definition));
  type.attr("step") = method;
  type.attr("_StepReport") = report_type;
  // Sets the class of gradients of rows, for optimizers made from then on.
  module.def(
      "register_rows", [](const py::type& rows) { py::type::of<PyOptimizer>().attr("_Rows") = rows; }, py::arg("rows"));
}

}  // namespace fusedstep::bind
