// Releases the GIL during the work, and keeps references until it is held again.
#pragma once

#include <Python.h>

#include <cstdint>
#include <exception>
#include <utility>
#include <vector>

namespace fusedstep::bind {

// Work on fewer elements takes less time than passing the interpreter to another thread.
inline constexpr std::int64_t small = 4096;

// Whether this thread waits for the GIL, or ended while it waited.
inline thread_local bool waits_for_gil = false;

// Runs f, which must not touch Python objects, without the GIL. When the interpreter ends, a daemon thread never gets it
// back: Python ends the thread while it waits, by unwinding its stack. So no destructor waits for it, and destructors must
// not touch Python objects while `waits_for_gil`.
template <class F>
void without_gil(F f) {
  PyThreadState* const state = PyEval_SaveThread();
  std::exception_ptr failure;
  try {
    f();
  } catch (...) {
    failure = std::current_exception();
  }
  waits_for_gil = true;
  PyEval_RestoreThread(state);
  waits_for_gil = false;
  if (failure) std::rethrow_exception(failure);
}

// Owned references to the objects that a call looks at. They are released at its end, unless the thread has ended.
class References {
 public:
  References() = default;
  ~References() {
    if (waits_for_gil) return;
    for (PyObject* object : objects_) Py_XDECREF(object);
  }
  References(const References&) = delete;
  References& operator=(const References&) = delete;

  void reserve(std::size_t n) { objects_.reserve(n); }

  // Takes ownership of a new reference.
  PyObject* take(PyObject* object) {
    objects_.push_back(object);
    return object;
  }

  PyObject* share(PyObject* object) {
    Py_XINCREF(object);
    return take(object);
  }

 private:
  std::vector<PyObject*> objects_;
};

}  // namespace fusedstep::bind
