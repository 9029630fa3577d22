#include "tensors.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <utility>
#include <vector>

#include "objects.hpp"
#include "gil.hpp"
#include "groups.hpp"
#include "optimizer.hpp"

namespace fusedstep::bind {
namespace {

// The part of DLPack's C exchange API, version 1, that is used here (https://dmlc.github.io/dlpack/latest/c_api.html): it
// describes a tensor without making an object.
struct Look {
  void* data;
  std::int32_t device;
  std::int32_t device_number;
  std::int32_t dimensions;
  std::uint8_t kind;
  std::uint8_t bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t offset;
};

struct Exchange {
  std::uint32_t major;
  std::uint32_t minor;
  const Exchange* before;
  void* not_used[3];
  int (*look)(void* tensor, Look* look);
};

// Whether a tensor is like an array in everything except its place.
bool is_like(const Look& look, const Array& array) {
  constexpr std::int32_t processor = 1;
  constexpr std::uint8_t integer = 0, natural = 1, real = 2, brain = 4;
  constexpr std::uint8_t kinds[] = {real, real, integer, brain, real, natural, integer, integer, natural, natural};
  bool like = look.device == processor && look.lanes == 1 && look.kind == kinds[static_cast<int>(array.type)] &&
              look.bits == 8 * array.item_size() && static_cast<std::size_t>(look.dimensions) == array.shape.size() &&
              (look.dimensions == 0 || look.strides != nullptr);
  for (std::size_t k = 0; like && k < array.shape.size(); ++k) {
    like = look.shape[k] == array.shape[k] &&
           (look.shape[k] == 1 || look.strides[k] * array.item_size() == array.strides[k]);
  }
  return like;
}

char* place(const Look& look) { return static_cast<char*>(look.data) + look.offset; }

// Keeps garbage collection, and so finalizers, from running meanwhile.
class NoCollection {
 public:
  NoCollection() : was_on_(PyGC_Disable()) {}
  ~NoCollection() {
    if (was_on_ != 0) PyGC_Enable();
  }
  NoCollection(const NoCollection&) = delete;
  NoCollection& operator=(const NoCollection&) = delete;

 private:
  int was_on_;
};

// What is used of torch.
struct Torch {
  const Exchange* exchange;
  py::object tensor;            // the class
  py::object profiler_enabled;  // function
  py::object increment_version;
  py::object pre_hooks;  // of all optimizers
  py::object post_hooks;
};

class TensorStep {
 public:
  // `params` has all tensors in order. `entries` has the dict of states of each, or None. `states` has an item for each
  // tensor with a dict: its states in the rule's order, or None, the low halves, or None, and the count. The counts are
  // elements of `steps`; they equal `counted` unless somebody else wrote into them.
  TensorStep(const py::object& core, const py::object& lock, const py::list& params, const py::list& entries,
             const std::vector<std::size_t>& sizes, const py::list& states, const py::array& steps, const py::array& counted,
             const py::dict& torch)
      : owner_(core),
        lock_(lock),
        steps_(steps),
        counted_(counted),
        sizes_(sizes),
        core_(repeatable(core)),
        groups_(core_.core().schema()) {
    const auto capsule = torch["exchange"].cast<py::capsule>();
    torch_ = {static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api")),
              torch["tensor"],
              torch["profiler_enabled"],
              torch["increment_version"],
              torch["pre_hooks"],
              torch["post_hooks"]};
    if (torch_.exchange == nullptr) throw py::error_already_set();
    for (const char* name : {"param_groups", "state", "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "found_inf",
                             "grad_scale", "grad", "is_neg", "untyped_storage", "nbytes", "acquire", "release"}) {
      names_.push_back(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name)));
    }
    std::size_t next = 0;
    for (std::size_t i = 0; i < params.size(); ++i) {
      Param& param = params_.emplace_back();
      param.tensor = params[i];
      param.entry = entries[i];
      if (param.entry.is_none()) continue;
      param.seen = entries_of(param.entry.ptr());
      for (const py::handle state : py::list(states[next++]))
        param.states.push_back(py::reinterpret_borrow<py::object>(state));
    }
    if (next != core_.core().size()) throw py::value_error("states: expected those of each parameter of the core");
  }

  // Remembers these groups and states. Returns false if they can't be compared, or are not those of the core's last step.
  bool remember(const py::object& groups, const py::object& state) {
#if defined(Py_GIL_DISABLED)  // another thread may change it meanwhile
    return false;
#endif
    if (torch_.exchange->major != 1 || torch_.exchange->look == nullptr || !PyDict_Check(state.ptr())) return false;
    state_ = state;
    seen_ = entries_of(state.ptr());
    return groups_.remember(groups, core_.core());
  }

  PyObject* repeat(PyObject* optimizer) {
    const Lock lock(*this);
    if (!lock.is_mine()) return nullptr;
    References gradients;
    {
      const NoCollection guard;
      if (!is_plain(optimizer) || !same_tensors(gradients)) {
        PyErr_Clear();
        return nullptr;
      }
    }
    core_.step_again();
    py::list updated;
    for (std::size_t i = 0, k = 0; k < params_.size(); ++k) {
      if (params_[k].entry.is_none()) continue;
      if (core_.core().is_present(i)) {
        updated.append(params_[k].tensor);
        count(i);
      }
      ++i;
    }
    torch_.increment_version(updated);
    return Py_NewRef(Py_None);
  }

  int traverse(visitproc visit, void* arg) const {
    for (const py::object* object : {&owner_, &lock_, &state_, &torch_.tensor, &torch_.profiler_enabled,
                                     &torch_.increment_version, &torch_.pre_hooks, &torch_.post_hooks}) {
      Py_VISIT(object->ptr());
    }
    for (const Param& param : params_) {
      Py_VISIT(param.tensor.ptr());
      Py_VISIT(param.entry.ptr());
      if (const int result = bind::traverse(param.seen, visit, arg); result != 0) return result;
      for (const py::object& state : param.states) Py_VISIT(state.ptr());
    }
    if (const int result = bind::traverse(seen_, visit, arg); result != 0) return result;
    return groups_.traverse(visit, arg);
  }

  void clear() {
    params_.clear();
    seen_.clear();
    groups_.clear();
  }

 private:
  enum Name {
    param_groups,
    state,
    own_pre_hooks,
    own_post_hooks,
    found_inf,
    grad_scale,
    grad,
    is_neg,
    untyped_storage,
    nbytes,
    acquire,
    release
  };

  struct Param {
    py::object tensor;
    py::object entry;
    Entries seen;
    std::vector<py::object> states;  // and the count at the end
  };

  // Takes the optimizer's lock, unless another thread has it.
  class Lock {
   public:
    explicit Lock(TensorStep& step) : step_(step) {
      const auto got = py::reinterpret_steal<py::object>(
          PyObject_CallMethodOneArg(step.lock_.ptr(), step.names_[acquire].ptr(), Py_False));
      if (!got) PyErr_Clear();
      mine_ = got.ptr() == Py_True;
    }
    ~Lock() {
      if (!mine_ || waits_for_gil) return;
      const py::error_scope kept;
      Py_XDECREF(PyObject_CallMethodNoArgs(step_.lock_.ptr(), step_.names_[release].ptr()));
    }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    bool is_mine() const { return mine_; }

   private:
    TensorStep& step_;
    bool mine_;
  };

  PyObject* get(PyObject* dict, Name name) const { return PyDict_GetItemWithError(dict, names_[name].ptr()); }

  static bool is_empty(PyObject* dict) { return dict != nullptr && PyDict_Check(dict) && PyDict_GET_SIZE(dict) == 0; }

  // Whether there are no hooks, no profiler and no gradient scale, and the groups, their lists and the states are those of
  // the last step.
  bool is_plain(PyObject* optimizer) {
    const auto attributes = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer, nullptr));
    PyObject* const dict = attributes.ptr();
    if (dict == nullptr || get(dict, state) != state_.ptr() || get(dict, found_inf) != nullptr ||
        get(dict, grad_scale) != nullptr || !is_empty(get(dict, own_pre_hooks)) || !is_empty(get(dict, own_post_hooks)) ||
        !is_empty(torch_.pre_hooks.ptr()) || !is_empty(torch_.post_hooks.ptr())) {
      return false;
    }
    const auto profiled = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(torch_.profiler_enabled.ptr()));
    if (profiled.ptr() != Py_False || !groups_.are(get(dict, param_groups)) || !groups_.read_floats(core_.core()))
      return false;
    std::size_t i = 0;
    for (std::size_t k = 0; k < sizes_.size(); ++k) {
      PyObject* const list = groups_.params(k).ptr();
      if (list == nullptr || !PyList_CheckExact(list) || static_cast<std::size_t>(PyList_GET_SIZE(list)) != sizes_[k])
        return false;
      for (std::size_t j = 0; j < sizes_[k]; ++j, ++i) {
        if (PyList_GET_ITEM(list, static_cast<Py_ssize_t>(j)) != params_[i].tensor.ptr()) return false;
      }
    }
    return holds(state_.ptr(), seen_);
  }

  bool look(PyObject* tensor, Look& out) const { return torch_.exchange->look(tensor, &out) == 0; }

  // Whether a tensor has exactly the memory of an array.
  bool is(PyObject* tensor, const Array& array) const {
    Look found;
    return look(tensor, found) && is_like(found, array) && place(found) == array.data;
  }

  bool same_tensors(References& gradients) {
    gradients.reserve(params_.size());
    std::size_t i = 0;
    bool any = false;
    for (const Param& param : params_) {
      PyObject* const gradient = gradients.take(PyObject_GetAttr(param.tensor.ptr(), names_[grad].ptr()));
      if (gradient == nullptr) return false;
      if (param.entry.is_none()) {
        if (gradient != Py_None) return false;
        continue;
      }
      if (!same_states(i, param)) return false;
      if (gradient == Py_None) {
        core_.core().leave_out(i);
      } else if (!take(i, gradient)) {
        return false;
      }
      any |= gradient != Py_None;
      ++i;
    }
    return any;
  }

  bool same_states(std::size_t i, const Param& param) const {
    const OptimizerCore& core = core_.core();
    if (!holds(param.entry.ptr(), param.seen) || !is(param.tensor.ptr(), core.parameter(i))) return false;
    const std::size_t n = param.states.size() - 1;
    for (std::size_t s = 0; s < n; ++s) {
      const std::size_t place = s < core.schema().states.size() ? s : low_half;
      if (!param.states[s].is_none() && !is(param.states[s].ptr(), core.state(i, place))) return false;
    }
    Look found;
    return look(param.states[n].ptr(), found) && found.dimensions == 0 && place(found) == element(steps_, i) &&
           found.bits == 8 * steps_.itemsize() &&
           std::memcmp(element(steps_, i), element(counted_, i), static_cast<std::size_t>(steps_.itemsize())) == 0;
  }

  // Takes the gradient if its memory is as torch says.
  bool take(std::size_t i, PyObject* gradient) {
    Look found;
    const Array& last = core_.core().gradient(i);
    if (reinterpret_cast<PyObject*>(Py_TYPE(gradient)) != torch_.tensor.ptr() || !look(gradient, found) ||
        !is_like(found, last) || place(found) == nullptr) {
      return false;
    }
    const auto negative = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(gradient, names_[is_neg].ptr()));
    if (negative.ptr() != Py_False) return false;
    const auto storage = py::reinterpret_steal<py::object>(
        PyObject_CallMethodNoArgs(gradient, names_[untyped_storage].ptr()));
    if (!storage) return false;
    const auto bytes = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(storage.ptr(), names_[nbytes].ptr()));
    if (!bytes || PyLong_AsLongLong(bytes.ptr()) < last.size() * last.item_size()) return false;
    return core_.take_again(i, place(found));
  }

  static char* element(const py::array& array, std::size_t i) {
    return static_cast<char*>(const_cast<void*>(array.data())) + static_cast<py::ssize_t>(i) * array.itemsize();
  }

  void count(std::size_t i) {
    for (const py::array* array : {&steps_, &counted_}) {
      if (array->itemsize() == sizeof(float)) {
        *reinterpret_cast<float*>(element(*array, i)) += 1;
      } else {
        *reinterpret_cast<double*>(element(*array, i)) += 1;
      }
    }
  }

  py::object owner_;  // keeps the core alive
  py::object lock_;
  py::array steps_;
  py::array counted_;
  py::object state_;
  std::vector<std::size_t> sizes_;  // how many tensors each group has
  std::vector<Param> params_;
  std::vector<py::object> names_;
  Entries seen_;
  Torch torch_;
  Repeatable& core_;
  Groups groups_;
};

}  // namespace

PyObject* repeat_tensors(PyObject* tensor_step, PyObject* optimizer) {
  return held<TensorStep>(tensor_step).repeat(optimizer);
}

void register_tensors(py::module_& module) {
  py::class_<TensorStep>(module, "TensorStep", py::custom_type_setup(take_part_in_collection<TensorStep>))
      .def(py::init<const py::object&, const py::object&, const py::list&, const py::list&, const std::vector<std::size_t>&,
                    const py::list&, const py::array&, const py::array&, const py::dict&>(),
           py::arg("core"), py::arg("lock"), py::arg("params"), py::arg("entries"), py::arg("sizes"), py::arg("states"),
           py::arg("steps"), py::arg("counted"), py::arg("torch"))
      .def("remember", &TensorStep::remember, py::arg("groups"), py::arg("state"));
}

}  // namespace fusedstep::bind
