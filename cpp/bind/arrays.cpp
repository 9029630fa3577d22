#include "arrays.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "objects.hpp"

namespace fusedstep::bind {
namespace {

using npy = py::detail::npy_api;
static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t));

// NumPy's type numbers, by Type. ml_dtypes registers bfloat16, so its number is not fixed.
constexpr int half_number = 23;
constexpr int none = -1;
constexpr int type_numbers[] = {
    npy::NPY_FLOAT_, npy::NPY_DOUBLE_, npy::NPY_BYTE_, none, half_number, npy::NPY_USHORT_, none, none, none, none};
static_assert(std::size(type_numbers) == type_count);
constexpr char foreign_byte_order = std::endian::native == std::endian::little ? '>' : '<';

const py::detail::PyArray_Proxy* proxy(PyObject* object) { return py::detail::array_proxy(object); }

bool is_of_jax(py::handle object) {
  const std::string module = py::str(py::getattr(py::type::handle_of(object), "__module__", py::str()));
  return module.starts_with("jax");
}

constexpr const char* advice_for_jax = "JAX arrays can't be updated in place: make arrays by jax.tree.map(np.array, params)";

// What the caller can do instead, if that is known.
std::string advice(py::handle object, const std::string& dtype) {
  if (py::isinstance<py::list>(object) || py::isinstance<py::tuple>(object) || PyNumber_Check(object.ptr())) {
    return "pass np.asarray(value, dtype=np." + dtype + ")";
  }
  return is_of_jax(object) ? advice_for_jax : "pass a numpy.ndarray";
}

void check_is_array(py::handle object, const Label& label, const std::string& dtype) {
  if (is_array(object.ptr())) return;
  throw py::type_error(label.text() + ": expected a numpy.ndarray, or an object that offers its memory by DLPack or the " +
                       "buffer protocol, got " + type_name(object) + "; " + advice(object, dtype));
}

// Before NumPy 2.1, from_dlpack() has no `copy`, and never copies.
py::object from_dlpack(const py::module_& numpy, py::handle object) {
  const py::object function = numpy.attr("from_dlpack");
  try {
    return function(object, py::arg("copy") = false);
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return function(object);
}

// Returns an ndarray of the memory that an object offers. NumPy's scalars offer theirs as well, but they are values, not
// arrays. Memory that is to be written must be the object's own: one that offers copies is refused.
py::object array_of(py::handle object, const Label& label, bool written) {
  const auto numpy = py::module_::import("numpy");
  const bool buffer = PyObject_CheckBuffer(object.ptr()) != 0 && !py::isinstance(object, numpy.attr("generic"));
  const std::string_view role = label.role;
  const char* const usual = role == "rows" || role == "index" ? "int64" : "float32";
  if (!buffer && !py::hasattr(object, "__dlpack__")) check_is_array(object, label, usual);
  if (py::hasattr(object, "is_neg") && py::object(object.attr("is_neg")()).cast<bool>()) {  // DLPack does not report it
    throw py::type_error(label.text() + ": expected elements as they are in memory, got a lazy negative of " +
                         type_name(object) + "; pass tensor.resolve_neg()");
  }
  const auto offered = [&] {
    if (!buffer) return from_dlpack(numpy, object);
    const auto memory = py::reinterpret_steal<py::object>(PyMemoryView_FromObject(object.ptr()));
    if (!memory) throw py::error_already_set();
    return py::object(numpy.attr("array")(memory, py::arg("copy") = false));
  };
  try {
    const py::object array = offered();
    if (!written) return array;
    if (!array.attr("flags").attr("writeable").cast<bool>()) {
      if (!is_of_jax(object)) return array;
      throw py::value_error(label.text() + ": expected a writeable array, got a read-only one; " + advice_for_jax);
    }
    const py::object again = offered();  // not all who make copies say so
    if (proxy(array.ptr())->data == proxy(again.ptr())->data) return array;
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;
    const std::string why = py::str(error.value());
    const std::string what = label.text() + ": no numpy.ndarray can be made of the memory of this " + type_name(object);
    py::raise_from(error, PyExc_TypeError, (what + ": " + why).c_str());
    throw py::error_already_set();
  }
  throw py::type_error(label.text() + ": expected an object that offers its own memory, got a " + type_name(object) +
                       ", which offers another copy each time, so that updates would be lost; pass a numpy.ndarray");
}

// TypeError if the array's own arithmetic does more than that of its numbers: it has a mask, or its class computes itself.
void check_arithmetic(py::handle array, const Label& label) {
  // Who has a masked array has imported numpy.ma. An import in a call would take milliseconds, and memory.
  const auto modules = py::reinterpret_borrow<py::dict>(PyImport_GetModuleDict());
  if (modules.contains("numpy.ma") && py::isinstance(array, modules["numpy.ma"].attr("MaskedArray"))) {
    throw py::type_error(label.text() + ": expected a numpy.ndarray, got a masked array, whose mask an update would " +
                         "ignore; pass its data, or numpy.ma.filled(array, 0)");
  }
  const auto ndarray = py::handle(reinterpret_cast<PyObject*>(npy::get().PyArray_Type_));
  if (py::type::handle_of(array).attr("__array_ufunc__").is(ndarray.attr("__array_ufunc__"))) return;
  throw py::type_error(label.text() + ": expected a numpy.ndarray, got a " + type_name(array) +
                       ", which has arithmetic of " +
                       "its own that an update would not do; pass array.view(numpy.ndarray), which shares its memory");
}

// The dtype of bfloat16. It exists only if ml_dtypes was imported, and without that nobody has such an array.
py::object bfloat16_dtype(const py::object& ml_dtypes) {
  return py::module_::import("numpy").attr("dtype")(ml_dtypes.attr("bfloat16"));
}

void look_for_bfloat16() {
  if (descriptor_of(Type::bfloat16) != nullptr) return;
  const auto modules = py::reinterpret_borrow<py::dict>(PyImport_GetModuleDict());
  if (modules.contains("ml_dtypes")) descriptor_of(Type::bfloat16) = bfloat16_dtype(modules["ml_dtypes"]).release().ptr();
}

std::optional<Type> type_of(PyObject* object) {
  const PyObject* const descriptor = proxy(object)->descr;
  for (std::size_t k = 0; k < type_count; ++k) {
    if (descriptor == native_descriptors()[k]) return static_cast<Type>(k);
  }
  const auto dtype = py::reinterpret_borrow<py::dtype>(const_cast<PyObject*>(descriptor));
  if (dtype.byteorder() == foreign_byte_order) return std::nullopt;
  for (std::size_t k = 0; k < type_count; ++k) {
    if (dtype.num() == type_numbers[k]) return static_cast<Type>(k);
  }
  look_for_bfloat16();
  const PyObject* const bfloat16 = descriptor_of(Type::bfloat16);
  if (bfloat16 != nullptr && dtype.equal(py::handle(const_cast<PyObject*>(bfloat16)))) return Type::bfloat16;
  return std::nullopt;
}

std::string dtype_text(PyObject* object) { return py::str(py::handle(proxy(object)->descr)); }

void check_byte_order(PyObject* object, const Label& label) {
  const auto dtype = py::reinterpret_borrow<py::dtype>(proxy(object)->descr);
  if (dtype.attr("isnative").cast<bool>()) return;
  throw py::type_error(label.text() + ": expected native byte order, got dtype " + dtype_text(object) +
                       "; pass array.astype(array.dtype.newbyteorder('='))");
}

[[noreturn]] void wrong_dtype(PyObject* object, const Label& label, const std::string& expected) {
  const auto dtype = py::reinterpret_borrow<py::dtype>(proxy(object)->descr);
  if (dtype.kind() == 'c') {
    throw py::type_error(label.text() + ": expected dtype " + expected + ", got " + dtype_text(object) +
                         "; pass array.view(np.float64 or np.float32), which has the real and imaginary parts as elements");
  }
  throw py::type_error(label.text() + ": expected dtype " + expected + ", got " + dtype_text(object) +
                       "; arrays are borrowed, never converted: pass one of that dtype");
}

Array view(PyObject* object, const Label& label, Type type, bool written) {
  const auto* array = proxy(object);
  if (written && (array->flags & npy::NPY_ARRAY_WRITEABLE_) == 0) {
    throw py::value_error(label.text() + ": expected a writeable array, got a read-only one; pass a writeable array");
  }
  if ((array->flags & npy::NPY_ARRAY_ALIGNED_) == 0) {
    throw py::value_error(label.text() + ": expected an array aligned to its dtype " + name_of(type) +
                          ", got a misaligned one; pass a copy");
  }
  const Array borrowed{label,
                       array->data,
                       type,
                       {reinterpret_cast<const std::int64_t*>(array->dimensions), static_cast<std::size_t>(array->nd)},
                       reinterpret_cast<const std::int64_t*>(array->strides)};
  check_reach(borrowed);
  return borrowed;
}

}  // namespace

Descriptors& native_descriptors() {
  const auto get = []<std::size_t... k>(std::index_sequence<k...>) {
    return Descriptors{(type_numbers[k] == none ? nullptr : npy::get().PyArray_DescrFromType_(type_numbers[k]))...};
  };
  static Descriptors descriptors = get(std::make_index_sequence<type_count>{});
  return descriptors;
}

py::dtype dtype_of(Type type) {
  if (type == Type::bfloat16 && descriptor_of(type) == nullptr) {
    descriptor_of(type) = bfloat16_dtype(py::module_::import("ml_dtypes")).release().ptr();
  }
  return py::reinterpret_borrow<py::dtype>(const_cast<PyObject*>(descriptor_of(type).load()));
}

PyObject* as_array(py::handle object, const Label& label, References& references, bool written) {
  if (is_plain_array(object.ptr())) return object.ptr();
  if (!is_array(object.ptr())) return references.take(array_of(object, label, written).release().ptr());
  check_arithmetic(object, label);
  return object.ptr();
}

bool is_scalar(PyObject* object) {
  return PyFloat_Check(object) != 0 || py::isinstance(object, py::module_::import("numpy").attr("generic"));
}

PyObject* as_array(py::handle scalar, Type rounded_to, References& references) {
  const auto numpy = py::module_::import("numpy");
  const bool rounded = PyFloat_CheckExact(scalar.ptr());
  return references.share(
      (rounded ? numpy.attr("asarray")(scalar, py::arg("dtype") = name_of(rounded_to)) : numpy.attr("asarray")(scalar))
          .ptr());
}

Array borrow_index(py::handle object, const Label& label) {
  if (!is_array(object.ptr())) {
    throw py::type_error(label.text() + ": expected a numpy.ndarray of integers, got " + type_name(object) +
                         "; pass np.asarray(index, dtype=np.int64)");
  }
  const auto dtype = py::reinterpret_borrow<py::dtype>(proxy(object.ptr())->descr);
  const std::int64_t size = dtype.itemsize();
  if ((dtype.kind() != 'i' && dtype.kind() != 'u') || (size != 4 && size != 8)) {
    wrong_dtype(object.ptr(), label, "int32, int64, uint32 or uint64");
  }
  if (dtype.byteorder() == foreign_byte_order) check_byte_order(object.ptr(), label);
  const bool is_signed = dtype.kind() == 'i';
  const Type type = size == 4 ? (is_signed ? Type::int32 : Type::uint32) : (is_signed ? Type::int64 : Type::uint64);
  return view(object.ptr(), label, type, false);
}

Array borrow(py::handle object, const Label& label, TypeSet types, bool written) {
  check_is_array(object, label, types.has(Type::float64) && !types.has(Type::float32) ? "float64" : "float32");
  const std::optional<Type> type = type_of(object.ptr());
  if (type && types.has(*type)) return view(object.ptr(), label, *type, written);
  const auto dtype = py::reinterpret_borrow<py::dtype>(proxy(object.ptr())->descr);
  for (std::size_t k = 0; k < type_count; ++k) {
    if (types.has(static_cast<Type>(k)) && dtype.num() == type_numbers[k]) check_byte_order(object.ptr(), label);
  }
  wrong_dtype(object.ptr(), label, types.text());
}

py::array array_over(const Array& array, py::handle base) {
  const std::vector<py::ssize_t> shape(array.shape.begin(), array.shape.end());
  const std::vector<py::ssize_t> strides(array.strides, array.strides + array.shape.size());
  return py::array(dtype_of(array.type), shape, strides, array.data, base);
}

}  // namespace fusedstep::bind
