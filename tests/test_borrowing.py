"""Objects that offer their memory by the buffer protocol or DLPack are borrowed like ndarrays: in place, without a
copy, only as long as needed, and never written if they may not be."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import refused
from registry import Array

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
SHAPE = (3, 4)

try:
    import torch
except ImportError:
    torch = None
try:
    import jax
except ImportError:
    jax = None


class Exporter:
    """An object that offers the memory of an array by DLPack, and does nothing else."""

    def __init__(self, memory: Array) -> None:
        self.memory = memory

    def __dlpack__(self, **options: Any) -> Any:
        return self.memory.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.memory.__dlpack_device__()


class OldExporter(Exporter):
    """An exporter from before DLPack 1.0. It can't say that its memory may be written, so it counts as read-only."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        return self.memory.__dlpack__()


# Each makes an object with the values of an array, and the ndarray by which the test looks at its memory.
Make = Callable[[Array], tuple[Any, Array]]


def standard_array(values: Array) -> tuple[Any, Array]:
    made = array.array(values.dtype.char, values.ravel().tolist())
    return made, np.frombuffer(made, values.dtype)


def ctypes_array(values: Array) -> tuple[Any, Array]:
    item = {"f": ctypes.c_float, "d": ctypes.c_double, "b": ctypes.c_int8}[values.dtype.char]
    made = (item * values.shape[1] * values.shape[0])(*map(tuple, values.tolist()))
    return made, np.frombuffer(made, values.dtype).reshape(values.shape)


def mapped_memory(values: Array) -> tuple[Any, Array]:
    made = memoryview(mmap.mmap(-1, values.nbytes)).cast(values.dtype.char, values.shape)
    seen = np.asarray(made)
    seen[...] = values
    return made, seen


def view(layout: Callable[[Array], Array], export: Callable[[Array], Any]) -> Make:
    def make(values: Array) -> tuple[Any, Array]:
        seen = layout(values)
        seen[...] = values
        return export(seen), seen

    return make


def torch_tensor(values: Array) -> tuple[Any, Array]:
    made = torch.from_numpy(values.copy()).t().contiguous().t()
    return made, made.numpy()


Layout = Callable[[Array], Array]
c_order: Layout = lambda values: np.empty(values.shape, values.dtype)  # noqa: E731
transposed: Layout = lambda values: np.empty(values.shape[::-1], values.dtype).T  # noqa: E731
backwards: Layout = lambda values: np.empty((2 * len(values), *values.shape[1:]), values.dtype)[::-2]  # noqa: E731


WRITEABLE: dict[str, Make] = {
    "array.array": standard_array,
    "ctypes array": ctypes_array,
    "mmap": mapped_memory,
    "memoryview": view(c_order, memoryview),
    "memoryview, transposed": view(transposed, memoryview),
    "memoryview, backwards": view(backwards, memoryview),
    "DLPack": view(c_order, Exporter),
    "DLPack, transposed": view(transposed, Exporter),
    "DLPack, backwards": view(backwards, Exporter),
}
if torch is not None:
    WRITEABLE["torch"] = torch_tensor


def read_only(seen: Array) -> Array:
    seen = seen[...]
    seen.flags.writeable = False
    return seen


READ_ONLY: dict[str, Make] = {
    "bytes": lambda values: (memoryview(values.tobytes()).cast(values.dtype.char, values.shape), values),
    "memoryview": view(transposed, lambda seen: memoryview(seen).toreadonly()),
    "DLPack": view(c_order, lambda seen: Exporter(read_only(seen))),
    "DLPack before 1.0": view(c_order, OldExporter),
}
if jax is not None:
    READ_ONLY["jax"] = lambda values: (jax.numpy.asarray(values), values)

# {rule: (states, options)}
RULES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "rmsprop_": (("square_avg", "grad_avg", "momentum_buffer"), {"lr": 0.01, "momentum": 0.5}),
    "adagrad_": (("square_sum",), {"lr": 0.01}),
    "rprop_": (("step_size", "prev_sign"), {}),
}
CLASSES = ("RMSprop", "Adagrad", "Rprop")

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_class = pytest.mark.parametrize("name", CLASSES)
each_rule = pytest.mark.parametrize("rule", RULES)
each_writeable = pytest.mark.parametrize("source", WRITEABLE)
each_read_only = pytest.mark.parametrize("source", READ_ONLY)


def numbers(seed: int, dtype: np.dtype[Any]) -> Array:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(dtype)


@each_dtype
@each_read_only
def test_read_only_memory(source: str, dtype: np.dtype[Any]) -> None:
    """Accept read-only memory for a gradient, and refuse it where it would be written."""
    if source == "jax" and dtype == np.float64:
        pytest.skip("JAX has float64 only if asked before it is imported")
    given, _ = READ_ONLY[source](numbers(1, dtype))
    param, square_avg = numbers(0, dtype), np.zeros(SHAPE, dtype)
    expected, its_square_avg = param.copy(), square_avg.copy()
    fs.rmsprop_(expected, numbers(1, dtype), its_square_avg, lr=0.01)
    fs.rmsprop_(param, given, square_avg, lr=0.01)
    assert np.array_equal(param, expected)
    optimizer = fs.RMSprop(param, lr=0.01)
    optimizer.step(given)
    fs.RMSprop(expected, lr=0.01).step(numbers(1, dtype))
    assert np.array_equal(param, expected)

    calls: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: fs.rmsprop_(given, numbers(1, dtype), square_avg, lr=0.01), "param: "),
        (lambda: fs.rmsprop_(param, numbers(1, dtype), given, lr=0.01), "square_avg: "),
        (lambda: fs.RMSprop({"w": given}), "parameter 'w'"),
        (lambda: optimizer.step(given, zero_grads=True), "gradient of parameter"),
    )
    for call, name in calls:
        with refused(ValueError, [name, "writeable", "read-only"], [param, square_avg]):
            call()


@each_dtype
@each_writeable
@each_rule
def test_the_functions_update_it_in_place(rule: str, source: str, dtype: np.dtype[Any]) -> None:
    """Update parameter, gradient and states to the bits that ndarrays get."""
    states, options = RULES[rule]
    values = {"param": numbers(0, dtype), "grad": numbers(1, dtype)}
    values |= {state: np.full(SHAPE, 0.25, np.int8 if state == "prev_sign" else dtype) for state in states}
    made = {name: WRITEABLE[source](value) for name, value in values.items()}
    if source == "array.array":
        values = {name: value.ravel() for name, value in values.items()}
    for t in range(3):
        values["grad"][...] = (-1) ** t * values["grad"] + 0.1
        made["grad"][1][...] = values["grad"]
        getattr(fs, rule)(**values, **options)
        getattr(fs, rule)(**{name: given for name, (given, _) in made.items()}, **options)
        for name, (_, seen) in made.items():
            assert np.array_equal(seen, values[name]), name


@each_dtype
@each_writeable
@each_class
def test_the_optimizers_update_it_in_place(name: str, source: str, dtype: np.dtype[Any]) -> None:
    """Update parameters of a class beside ndarrays; the reference verifies them."""
    values = {key: numbers(k, dtype) for k, key in enumerate("ab")}
    made = {key: WRITEABLE[source](value) for key, value in values.items()}
    if source == "array.array":
        values = {key: value.ravel() for key, value in values.items()}
    given = {**{key: param for key, (param, _) in made.items()}, "c": np.ones(3, dtype)}
    optimizer = getattr(fs, name)(given, verify="every")
    plain = getattr(fs, name)({**values, "c": np.ones(3, dtype)})
    for t in range(3):
        grads = {key: numbers(10 * t + k, dtype).reshape(value.shape) for k, (key, value) in enumerate(values.items())}
        foreign = {key: WRITEABLE[source](numbers(10 * t + k, dtype)) for k, key in enumerate(values)}
        plain.step({**grads, "c": np.ones(3, dtype)}, clip_norm=1.0)
        optimizer.step({**{key: grad for key, (grad, _) in foreign.items()}, "c": np.ones(3, dtype)}, clip_norm=1.0)
        for key, (_, seen) in made.items():
            assert np.array_equal(seen, values[key])
        for key, (_, seen) in foreign.items():
            assert np.array_equal(seen, grads[key]), "a gradient was written"


@each_writeable
def test_gradients_are_set_to_zero_in_place(source: str) -> None:
    """``zero_grads`` reaches the memory of every gradient."""
    param, _ = WRITEABLE[source](numbers(0, DTYPES[0]))
    grad, seen = WRITEABLE[source](numbers(1, DTYPES[0]))
    fs.Adagrad([param]).step([grad], zero_grads=True)
    assert not seen.any()


def test_parameters_of_jax() -> None:
    """They can't be updated in place, and the message says what can."""
    jax = pytest.importorskip("jax")
    w, state = np.ones(3, np.float32), np.ones(3, np.float32)
    for call in (lambda x: fs.RMSprop({"w": x}), lambda x: fs.adagrad_(x, w, state, lr=0.1)):
        with pytest.raises(ValueError, match=r"read-only one; .*jax\.tree\.map\(np\.array, params\)"):
            call(jax.numpy.ones(3))


# ------------------------------------------------------------------------------------------------------------ lifetimes


def test_memory_of_parameters_is_held() -> None:
    """Hold it as long as the optimizer lives: a buffer can't be resized, an exporter's memory outlives its owner."""
    values = array.array("f", [1.0, 2.0])
    exporter = Exporter(np.ones(2, np.float32))
    memory = weakref.ref(exporter.memory)
    optimizer = fs.RMSprop([values, exporter])
    del exporter
    gc.collect()
    with pytest.raises(BufferError):
        values.append(3.0)
    held = memory()
    assert held is not None
    optimizer.step([np.ones(2, np.float32), np.ones(2, np.float32)])
    assert (held < 1).all()
    del optimizer, held
    gc.collect()
    values.append(3.0)
    assert memory() is None


def test_memory_of_a_call_is_released() -> None:
    """Release gradients and arrays after a step or a function, whether it succeeded or not."""
    param, state = np.ones(2, np.float32), np.zeros(2, np.float32)
    optimizer = fs.RMSprop(param)
    for bad in (False, True):
        grad = array.array("f", [1.0, 2.0, 3.0] if bad else [1.0, 2.0])
        exporter = Exporter(np.ones(3 if bad else 2, np.float32))
        memory = weakref.ref(exporter.memory)
        calls: list[Callable[[], Any]] = [
            lambda grad=grad: optimizer.step(grad),
            lambda exporter=exporter: optimizer.step(exporter),
            lambda grad=grad: fs.adagrad_(param, grad, state, lr=0.1),
            lambda exporter=exporter: fs.adagrad_(param, exporter, state, lr=0.1),
        ]
        for call in calls:
            if bad:
                with pytest.raises(ValueError, match="shape"):
                    call()
            else:
                call()
        del call, calls, exporter
        gc.collect()
        assert memory() is None
        grad.append(1.0)


class Emptying(Exporter):
    """An exporter that empties a container when it is asked for its memory."""

    def __init__(self, memory: Array, container: Any) -> None:
        super().__init__(memory)
        self.container = container

    def __dlpack__(self, **options: Any) -> Any:
        self.container.clear()
        gc.collect()
        return super().__dlpack__(**options)


@pytest.mark.parametrize("keyed", [False, True], ids=("list", "dict"))
def test_an_exporter_that_empties_the_container(keyed: bool) -> None:
    """Hold all gradients of the step before any of their code runs."""
    params = [np.zeros(5000) for _ in range(3)]
    keys = "abc" if keyed else range(3)
    grads: Any = dict.fromkeys(keys) if keyed else [None] * 3
    for key in keys:
        grads[key] = Emptying(np.ones(5000), grads) if key in ("b", 1) else np.ones(5000)
    optimizer = fs.Adagrad(dict(zip(keys, params, strict=True)) if keyed else params, lr=1.0, eps=1e-30)
    optimizer.step(grads)
    assert len(grads) == 0
    assert all((param == -1).all() for param in params)


def test_an_exporter_that_steps() -> None:
    """Refuse a step inside a step of the same optimizer. The outer step fails, and nothing is written."""
    param = np.zeros(3)
    optimizer = fs.Adagrad(param)

    class Stepping(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            optimizer.step(np.ones(3))

    with pytest.raises(TypeError, match="in use already") as caught:
        optimizer.step(Stepping(np.ones(3)))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not param.any()
    assert optimizer.step(np.ones(3)).step == 1


# --------------------------------------------------------------------------------------------------------------- errors


class Refusing(Exporter):
    """An exporter whose memory can't be reached."""

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("the memory is on another planet")


class Copying(Exporter):
    """One that says nothing of the copies that it hands out."""

    def __dlpack__(self, **options: Any) -> Any:
        return self.memory.copy().__dlpack__(**options)


class CopyingBefore(Exporter):
    """The same, of before anybody could ask for memory that is no copy."""

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None) -> Any:  # type: ignore[override]
        return self.memory.copy().__dlpack__(max_version=max_version)


@pytest.mark.parametrize("kind", [Copying, CopyingBefore])
def test_an_exporter_that_makes_copies(kind: type[Exporter]) -> None:
    """The update of a copy would be lost: it is good for what is only read."""
    w, g, state = np.ones(3), np.ones(3), np.ones(3)
    optimizer = fs.Adagrad(w)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: fs.adagrad_(kind(w), g, state, lr=0.1),
        lambda: fs.adagrad_(w, g, kind(state), lr=0.1),
        lambda: fs.Adagrad({"w": kind(w)}),
        lambda: optimizer.step(kind(g), zero_grads=True),
    )
    for call in calls:
        with pytest.raises((TypeError, ValueError), match=r"another copy each time|read-only"):
            call()
    assert all((array == 1).all() for array in (w, g, state))
    fs.adagrad_(w, kind(g), state, lr=0.1)
    assert optimizer.step(kind(g)).step == 1


WRONG: tuple[tuple[Callable[[], Any], type[Exception], str], ...] = (
    (lambda: bytes(8), TypeError, "dtype.*float32.*uint8"),
    (lambda: bytearray(8), TypeError, "dtype.*float32.*uint8"),
    (lambda: array.array("d", [1, 2]), TypeError, "dtype.*float32.*float64"),
    (lambda: array.array("i", [1, 2]), TypeError, "dtype.*float32.*int32"),
    (lambda: Exporter(np.ones(2)), TypeError, "dtype.*float32.*float64"),
    (lambda: array.array("f", [1, 2, 3]), ValueError, r"shape \(2,\).*\(3,\)"),
    (lambda: memoryview(np.ones((2, 1), np.float32)), ValueError, r"shape \(2,\).*\(2, 1\)"),
    (lambda: memoryview(np.ones(2, ">f4")), TypeError, "byte order.*>f4"),
    (lambda: memoryview(bytearray(9))[1:].cast("f"), ValueError, "aligned"),
    (lambda: Refusing(np.ones(2, np.float32)), TypeError, "Refusing: the memory is on another planet"),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong[2])
def test_memory_that_does_not_fit(wrong: Any) -> None:
    """Refuse it like an ndarray, after looking at all others and before writing anything."""
    make, error, message = wrong
    w, g, v = (np.ones(2, np.float32) for _ in range(3))
    with pytest.raises(error, match=f"grad: .*{message}"):
        fs.rmsprop_(w, make(), v, lr=0.1)
    params = [np.ones(2, np.float32) for _ in range(3)]
    optimizer = fs.RMSprop(params)
    with pytest.raises(error, match=f"gradient of parameter '2'.*{message}"):
        optimizer.step([array.array("f", [1, 1]), g, make()])
    assert all((each == 1).all() for each in (*params, w, v))
    assert optimizer.step([g, g, g]).step == 1


def test_what_the_exporter_said_is_the_cause() -> None:
    """Keep the exporter's exception as the cause. Exceptions that are no ordinary errors pass through."""
    w, state = np.ones(2), np.ones(2)
    with pytest.raises(TypeError) as caught:
        fs.adagrad_(Refusing(w), w, w, lr=0.1)
    assert isinstance(caught.value.__cause__, BufferError)

    class Interrupted(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fs.adagrad_(w, Interrupted(np.ones(2)), state, lr=0.1)


def test_overlaps_are_seen() -> None:
    """See overlaps by memory, whatever objects own it."""
    w, state = np.ones(4, np.float32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="grad shares memory with param"):
        fs.adagrad_(w, memoryview(w), state, lr=0.1)
    with pytest.raises(ValueError, match="shares memory"):
        fs.Adagrad([w, memoryview(w[::2])])
    with pytest.raises(ValueError, match=r"gradient of parameter.*shares memory"):
        fs.Adagrad([w]).step([Exporter(w)])


@pytest.mark.skipif(torch is None, reason="needs torch")
def test_tensors_of_torch_that_cannot_be_borrowed() -> None:
    """Pass torch's advice on for tensors that require a gradient, are sparse, or have a type that NumPy lacks."""
    v = np.ones(2, np.float32)
    for tensor, message in (
        (torch.ones(2, requires_grad=True), r"Tensor: .*detach\(\)"),
        (torch.ones(2).to_sparse(), "Tensor: .*strided"),
        (torch.ones(2, dtype=torch.bfloat16), "Tensor: .*dtype"),
        (torch.ones(2, device="meta"), "Tensor: .*meta"),
        (torch.ones(2, dtype=torch.complex64).conj().imag, r"lazy negative of Tensor.*resolve_neg\(\)"),
    ):
        with pytest.raises(TypeError, match=message):
            fs.adagrad_(tensor, v, v.copy(), lr=0.1)
