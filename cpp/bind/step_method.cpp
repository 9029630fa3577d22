#include "step_method.hpp"

#include <structmember.h>

#include "hyperparameters.hpp"
#include "optimizer.hpp"
#include "tensors.hpp"

namespace fusedstep::bind {
namespace {

// The method `step` of optimizers in Python. A call step(self, grads), or step(self) over tensors, repeats the last step
// with `self._again` if possible. Any other call goes to the wrapped function, whose name, documentation and signature this
// method shows.
struct StepMethod {
  PyObject_HEAD vectorcallfunc call;
  PyObject* function;
  PyObject* again;
  PyObject* arrays;  // the classes that can repeat a step
  PyObject* tensors;
};

StepMethod& step_method(PyObject* self) { return *reinterpret_cast<StepMethod*>(self); }

// Returns null without an error if the step must be made in full.
PyObject* repeat(const StepMethod& method, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 1 && count != 2) return nullptr;
  const auto again = py::reinterpret_steal<py::object>(PyObject_GetAttr(arguments[0], method.again));
  if (!again) PyErr_Clear();
  if (!again || reinterpret_cast<PyObject*>(Py_TYPE(again.ptr())) != (count == 2 ? method.arrays : method.tensors))
    return nullptr;
  return count == 2 ? repeat_arrays(again.ptr(), arguments[1]) : repeat_tensors(again.ptr(), arguments[0]);
}

// After a failed call: if a keyword is unknown, the error becomes one that says what was meant.
void suggest(PyObject* function, py::handle self, PyObject* keywords) {
  if (PyErr_ExceptionMatches(PyExc_TypeError) == 0) return;
  py::error_already_set error;
  try {
    const py::str name = py::str("{}.step").format(py::type::handle_of(self).attr("__name__"));
    sibling("_hints").attr("check_keywords")(py::handle(function), py::handle(keywords), name);
    error.restore();
  } catch (py::error_already_set& better) {
    better.restore();
  }
}

PyObject* step_or_repeat(PyObject* self, PyObject* const* arguments, std::size_t count, PyObject* keywords) {
  const StepMethod& method = step_method(self);
  if (keywords == nullptr || PyTuple_GET_SIZE(keywords) == 0) {
    PyObject* const done = raising([&] { return repeat(method, arguments, PyVectorcall_NARGS(count)); });
    if (done != nullptr || PyErr_Occurred() != nullptr) return done;
  }
  PyObject* const report = PyObject_Vectorcall(method.function, arguments, count, keywords);
  if (report == nullptr && keywords != nullptr && PyVectorcall_NARGS(count) > 0) {
    suggest(method.function, arguments[0], keywords);
  }
  return report;
}

PyObject* new_step_method(PyTypeObject* type, PyObject* arguments, PyObject*) {
  PyObject* function = nullptr;
  PyObject* arrays = nullptr;
  PyObject* tensors = nullptr;
  if (PyArg_ParseTuple(arguments, "OOO", &function, &arrays, &tensors) == 0) return nullptr;
  PyObject* const self = type->tp_alloc(type, 0);
  if (self == nullptr) return nullptr;
  StepMethod& method = step_method(self);
  method.call = step_or_repeat;
  method.function = Py_NewRef(function);
  method.again = PyUnicode_InternFromString("_again");
  method.arrays = Py_NewRef(arrays);
  method.tensors = Py_NewRef(tensors);
  return self;
}

int traverse_step_method(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(step_method(self).function);
  Py_VISIT(step_method(self).arrays);
  Py_VISIT(step_method(self).tensors);
  return 0;
}

int clear_step_method(PyObject* self) {
  Py_CLEAR(step_method(self).function);
  return 0;
}

void deallocate_step_method(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  Py_CLEAR(step_method(self).function);
  Py_CLEAR(step_method(self).again);
  Py_CLEAR(step_method(self).arrays);
  Py_CLEAR(step_method(self).tensors);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* bound_step_method(PyObject* self, PyObject* object, PyObject*) {
  return object == nullptr || object == Py_None ? Py_NewRef(self) : PyMethod_New(self, object);
}

// Looks names, documentation and signature up in the function.
PyObject* step_method_attribute(PyObject* self, PyObject* name) {
  PyObject* const function = step_method(self).function;
  if (PyUnicode_CompareWithASCIIString(name, "__wrapped__") == 0) return Py_NewRef(function);
  if (PyUnicode_CompareWithASCIIString(name, "__class__") == 0) return PyObject_GenericGetAttr(self, name);
  return PyObject_GetAttr(function, name);
}

PyMemberDef step_method_members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(StepMethod, call), READONLY, nullptr},
                                     {nullptr, 0, 0, 0, nullptr}};
PyType_Slot step_method_slots[] = {{Py_tp_new, reinterpret_cast<void*>(new_step_method)},
                                   {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                                   {Py_tp_descr_get, reinterpret_cast<void*>(bound_step_method)},
                                   {Py_tp_getattro, reinterpret_cast<void*>(step_method_attribute)},
                                   {Py_tp_members, step_method_members},
                                   {Py_tp_traverse, reinterpret_cast<void*>(traverse_step_method)},
                                   {Py_tp_clear, reinterpret_cast<void*>(clear_step_method)},
                                   {Py_tp_dealloc, reinterpret_cast<void*>(deallocate_step_method)},
                                   {0, nullptr}};
PyType_Spec step_method_specification = {
    "fusedstep._core.StepMethod", sizeof(StepMethod), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR, step_method_slots};

}  // namespace

void register_step_method(py::module_& module) {
  const auto type = py::reinterpret_steal<py::object>(PyType_FromSpec(&step_method_specification));
  if (!type) throw py::error_already_set();
  const py::object arrays = module.attr("OptimizerCore");
  const py::object tensors = module.attr("TensorStep");
  module.def(
      "step_method", [=](const py::object& function) { return type(function, arrays, tensors); }, py::arg("function"));
}

}  // namespace fusedstep::bind
