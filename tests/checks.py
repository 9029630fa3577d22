"""The tools of the tests: arrays between guard bands, a comparison of bits, runs against the reference."""

from __future__ import annotations

import contextlib
import functools
import itertools
import linecache
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _core
from registry import INDICES, STEP_PROLOGUE, STEPS, VALUES, Array, C, Case, Layout, Shape, Values, of_rows, rose

# ---------------------------------------------------------------------------------------------------------------- bits


def bits(array: Array) -> Array:
    """Return the elements as unsigned integers, in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.itemsize}")


def is_nan(array: Array) -> Array:
    """Return which elements are NaN, judged by their bits."""
    if array.dtype.kind in "iu":
        return np.zeros(array.size, bool)
    unsigned = bits(array)
    magnitude = unsigned & unsigned.dtype.type(2 ** (8 * array.itemsize - 1) - 1)
    return magnitude > bits(np.array([math.inf], array.dtype))[0]


def difference(found: Array, expected: Array) -> str:
    """Return where two arrays first differ in a bit, or an empty text. NaNs are equal."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return f"{found.dtype} {found.shape} instead of {expected.dtype} {expected.shape}"
    if found.tobytes() == expected.tobytes():
        return ""
    different = (bits(found) != bits(expected)) & ~(is_nan(found) & is_nan(expected))
    if not different.any():
        return ""
    first = int(np.argmax(different))
    index = tuple(int(i) for i in np.unravel_index(first, found.shape))
    return (
        f"{int(different.sum())} of {found.size} elements differ, the first at {index}: "
        f"{found.reshape(-1)[first]!r} instead of {expected.reshape(-1)[first]!r}"
    )


def assert_same(found: Mapping[str, Array], expected: Mapping[str, Array], where: str) -> None:
    assert list(found) == list(expected), where
    for name, array in expected.items():
        if told := difference(found[name], array):
            raise AssertionError(f"{where}: {name}: {told}")


class Unchanged:
    """All bytes of the memory of some arrays: ``check`` fails if one of them changed."""

    def __init__(self, arrays: Iterable[Any]) -> None:
        roots = {id(root): root for root in map(self._root, arrays) if root is not None}
        self._before = [(root, self._bytes(root)) for root in roots.values()]

    @staticmethod
    def _root(array: Any) -> Any:
        while isinstance(array, memoryview):
            array = array.obj
        while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
            array = array.base
        return array

    @staticmethod
    def _bytes(root: Any) -> Any:
        return root.tobytes() if isinstance(root, np.ndarray) else repr(root)

    def check(self, where: str = "") -> None:
        for root, before in self._before:
            assert self._bytes(root) == before, f"{where}: memory was changed"


@contextlib.contextmanager
def refused(error: Any, says: Iterable[str], arrays: Iterable[Any] = (), where: str = "") -> Iterator[Any]:
    """Check that the block raises, the message shows all of ``says``, and no byte of the arrays' memory changes."""
    unchanged = Unchanged(arrays)
    with pytest.raises(error) as caught:
        yield caught
    for part in says:
        assert part in str(caught.value), f"{where}: {part!r} is not in the message {str(caught.value)!r}"
    if isinstance(error, type):
        assert caught.type is error, where
    unchanged.check(where)


class Guarded:
    """An array of some layout, in a larger piece of memory that is filled with a pattern."""

    CANARY = 0xA5
    GUARD = 128

    def __init__(self, shape: Shape, dtype: np.dtype[Any], layout: Layout = C, offset: int = 0) -> None:
        def allocate(shape: Shape) -> Array:
            size, shift = math.prod(shape) * dtype.itemsize, offset * dtype.itemsize
            self.memory = np.full(size + shift + 2 * self.GUARD + 64, self.CANARY, np.uint8)
            start = self.GUARD + -(self.memory.ctypes.data + self.GUARD) % 64 + shift
            return self.memory[start : start + size].view(dtype).reshape(shape)

        self.array = layout.make(allocate, shape)

    def damaged(self) -> bool:
        """Return whether a byte beside the array's elements changed."""
        elements = self.array.view(f"u{self.array.itemsize}")
        kept = elements.copy()
        elements[...] = int.from_bytes(self.array.itemsize * bytes([self.CANARY]))
        damaged = bool((self.memory != self.CANARY).any())
        elements[...] = kept
        return damaged


# ----------------------------------------------------------------------------------------------------- functional form


@dataclass(frozen=True)
class Problem:
    """Starting values, and all arrays as the reference has them after each step."""

    case: Case
    dtype: np.dtype[Any]
    shape: Shape
    values: Values
    after: list[dict[str, Array]]
    rows: tuple[Array, ...] = ()
    """Of each step, where its gradient is one of some rows."""


def reference_step(case: Case, arrays: Mapping[str, Array], grad: Array, t: int, rises: bool, **changed: Any) -> None:
    """Update ``arrays`` (``param`` and the states) in place by the reference, at update ``t`` of the parameter."""
    options = {**case.options, **case.at_step(t, rises), **case.reference_at_step(t, rises), **changed}
    getattr(fs.reference, case.function_name)(grad=grad, **arrays, **options)


def solve(case: Case, dtype: np.dtype[Any], shape: Shape, values: Values, rows: tuple[Array, ...] = ()) -> Problem:
    """Run the reference over dense arrays. Layout and threads make no difference to its results."""
    now = {"param": values.param.copy(), **{name: state.copy() for name, state in values.states.items()}}
    after = []
    for t, grad in enumerate(values.grads, 1):
        reference_step(case, now, grad, t, rose(t), **_rows_at(rows, t))
        after.append({name: array.copy() for name, array in now.items()})
    return Problem(case, dtype, shape, values, after, rows)


def _rows_at(rows: tuple[Array, ...], t: int) -> dict[str, Array]:
    return {"rows": rows[t - 1]} if rows else {}


def make_problem(case: Case, dtype: np.dtype[Any], shape: Shape, kind: str = "ordinary") -> Problem:
    rng = np.random.default_rng(zlib.crc32(repr((case.name, dtype.name, shape, kind)).encode()))
    values = VALUES[kind](case, dtype, shape, rng)
    return solve(case, dtype, shape, values if case.storage is None else case.storage.stored(case, values))


def problems(case: Case, dtype: np.dtype[Any], lengths: Sequence[int]) -> dict[int, Problem]:
    """Return problems of some lengths: the first elements of one, if the elements know nothing of each other."""
    if not case.apart:
        return {n: problem(case, dtype, (n,)) for n in lengths}
    whole = problem(case, dtype, (max(lengths),))

    def first(n: int, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {name: array[:n] for name, array in arrays.items()}

    def cut(n: int) -> Problem:
        values = whole.values
        some = Values(values.param[:n], first(n, values.states), [grad[:n] for grad in values.grads])
        return Problem(case, dtype, (n,), some, [first(n, after) for after in whole.after])

    return {n: cut(n) for n in lengths}


def rows_problem(case: Case, dtype: np.dtype[Any], shape: Shape, name: str) -> Problem:
    """A run whose steps name rows in one of the ways of ``INDICES``."""
    rng = np.random.default_rng(zlib.crc32(repr((case.name, dtype.name, shape, name)).encode()))
    rows = tuple(INDICES[name](shape[0], rng) for _ in range(STEPS))
    values = of_rows(case, dtype, shape, rows, rng)
    return solve(case, dtype, shape, values if case.storage is None else case.storage.stored(case, values), rows)


problem = functools.lru_cache(maxsize=512)(make_problem)


def run_function(
    problem: Problem,
    where: str,
    *layouts: Layout,
    offset: int = 0,
    grads: list[Array] | None = None,
    call: Callable[..., None] | None = None,
    compare: Iterable[int] = range(1, 1 + STEPS),
) -> None:
    """Run the functional form from the start of a problem. After each step (of ``compare``) every bit is the
    reference's, and no other byte has changed.

    ``layouts`` are those of the parameter, the gradient and the states; missing ones are the parameter's. All arrays
    start ``offset`` elements from a cache line.
    """
    case = problem.case
    start = {"param": problem.values.param, "grad": problem.values.grads[0], **problem.values.states}
    lying = itertools.chain(layouts, itertools.repeat(layouts[0] if layouts else C))
    guarded = {
        name: Guarded(array.shape, array.dtype, layout, offset)
        for (name, array), layout in zip(start.items(), lying, strict=False)
    }
    arrays = {name: own.array for name, own in guarded.items()}
    for name, array in arrays.items():
        array[...] = start[name]
    unchanged = Unchanged(problem.rows)
    for t, (grad, after) in enumerate(zip(problem.values.grads, problem.after, strict=True), 1):
        if grads is None:
            arrays["grad"][...] = grad
        else:
            arrays["grad"] = grads[t - 1]
        (call or case.call)(arrays, t, **_rows_at(problem.rows, t))
        if t not in compare:
            continue
        assert_same(
            {name: array for name, array in arrays.items() if name != "grad"}, after, f"{where}, after step {t}"
        )
        assert not difference(arrays["grad"], grad), f"{where}, after step {t}: the gradient changed"
    unchanged.check(where)
    for name, own in guarded.items():
        assert not own.damaged(), f"{where}: memory beside {name} changed"


# --------------------------------------------------------------------------------------------------------- class form


class Mirror:
    """What an optimizer should hold: parameters and states by name, updated by the reference."""

    def __init__(self, case: Case, params: Mapping[str, Array], options: Mapping[str, Mapping[str, Any]] | None = None):
        self.case = case
        self.options = {name: dict((options or {}).get(name, {})) for name in params}
        self.arrays = {name: {"param": param.copy(), **self._states(name, param)} for name, param in params.items()}
        self.times = dict.fromkeys(params, 0)
        self.steps = 0
        self.last_loss: float | None = None

    def _states(self, name: str, param: Array) -> dict[str, Array]:
        own, storage = self.options[name], self.case.storage
        return {
            state.name: np.full(
                state.shape(param.shape),
                own.get(state.starts_at, state.start),
                state.dtype(param.dtype) if storage is None else storage.state_dtype(state),
            )
            for state in self.case.states
        } | ({"param_low": np.zeros(param.shape, np.uint16)} if storage and storage.master else {})

    def _of_reference(self, options: dict[str, Any]) -> dict[str, Any]:
        """Leave out the options that only the class takes: which states there are, and where they start."""
        return {key: value for key, value in options.items() if key in self.case.reference_takes}

    def _worse(self, loss: float | None, maximize: bool) -> bool:
        if loss is None or self.last_loss is None:
            return False
        return loss < self.last_loss if maximize else loss > self.last_loss

    def _summed(self, name: str, grad: Array | fs.Rows) -> Array:
        if not isinstance(grad, fs.Rows):
            return grad
        return fs.reference.summed(self.arrays[name]["param"], grad.values, grad.index)[1]

    def step(
        self,
        grads: Mapping[str, Array | fs.Rows | None],
        *,
        loss: float | None = None,
        grad_scale: float | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        zero_grads: bool = False,
        nonfinite: str = "propagate",
        clip_norm_each: float | None = None,
    ) -> float | None:
        """Make a step and return the norm if an option asks for it."""

        def clipped(norm: float, limit: float | None) -> float:
            if limit is None or math.isinf(limit):
                return 1.0
            return limit / (norm if norm > limit or math.isnan(norm) else limit)

        norm = None
        coefs = dict.fromkeys(grads, 1.0)
        if clip_norm is not None or clip_norm_each is not None or nonfinite != "propagate":
            present = {
                name: fs.reference.widened(
                    self._summed(name, grad), fs.reference.compute_type(self.arrays[name]["param"])
                )
                for name, grad in grads.items()
                if grad is not None
            }
            scaling = {"grad_scale": grad_scale, "clip_value": clip_value}
            norm = fs.reference.norm(present.values(), **scaling)
            coefs = dict.fromkeys(grads, clipped(norm, clip_norm))
            if clip_norm_each is not None:
                coefs = {
                    name: clipped(fs.reference.norm([grad], **scaling), clip_norm_each)
                    for name, grad in present.items()
                }
        members = {}
        for name, grad in grads.items():
            if grad is None:
                continue
            self.times[name] += 1
            t = self.times[name]
            own = {**self.case.class_options, **self.options[name]}
            rises = self._worse(loss, bool(own.get("maximize")))
            options = {
                **own,
                **self.case.at_step(t, rises),
                **self.case.reference_at_step(t, rises),
            }
            if self.case.storage and self.case.storage.stochastic:
                options["key"] = fs.noise_key(own.get("seed", 0), t, name)
            prologue = dict(zip(STEP_PROLOGUE, (grad_scale, clip_value, coefs[name]), strict=True))
            rows = {"rows": grad.index} if isinstance(grad, fs.Rows) else {}
            values = grad.values if isinstance(grad, fs.Rows) else grad
            members[name] = (self.arrays[name], values, self._of_reference(options) | prologue | rows)
        more = self.case.across(list(members.values()))
        for (arrays, grad, options), own in zip(members.values(), more, strict=True):
            getattr(fs.reference, self.case.function_name)(grad=grad, **arrays, **options, **own)
        self.steps += 1
        if loss is not None:
            self.last_loss = loss
        return norm

    def assert_like(self, optimizer: Any, params: Mapping[str, Array], where: str) -> None:
        """Check every bit of parameters and states in the optimizer's live arrays."""
        assert list(optimizer.state) == list(self.arrays), where
        held_as = {state.name: state.held_as for state in self.case.states}
        for name, arrays in self.arrays.items():
            found = {"param": params[name], **optimizer.state[name]}
            expected = {held_as.get(key, key): array for key, array in arrays.items()}
            assert_same(found, expected, f"{where}: {name}")


def memory_of(optimizer: Any, *more: Any) -> list[Any]:
    """Return all arrays that an optimizer writes, and ``more``."""
    params = [array for group in optimizer.param_groups for array in group["params"]]
    return [*params, *(array for states in optimizer.state.values() for array in states.values()), *more]


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Use this many threads, which share all work, even where that does not pay."""
    before = fs.get_num_threads()
    fs.set_num_threads(n)
    shared = _core.share_all_work(True)
    try:
        yield
    finally:
        _core.share_all_work(shared)
        fs.set_num_threads(before)


# ----------------------------------------------------------------------------------------------------- other processes


def python(code: str, *arguments: Any, fails: bool = False, **variables: str) -> str:
    """Run Python code in a fresh process; return what it prints, or its last line of error."""
    ours = ("FUSEDSTEP_", "OMP_NUM_THREADS")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment = {**inherited, "SKBUILD_EDITABLE_VERBOSE": "0", **variables}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode != 0) == fails, done.stderr[-4000:]
    return done.stderr.strip().splitlines()[-1] if fails else done.stdout.strip()


def in_child(body: Callable[[], Any], seconds: float = 60) -> Any:
    """Return what ``body`` returns in a forked child, which must end in time."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it forks a process with threads on purpose
        pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.write(write, pickle.dumps(body()))
        os._exit(0)
    os.close(write)
    end = time.monotonic() + seconds
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail(f"a forked child did not finish in {seconds} s")
        time.sleep(0.001)
    with open(read, "rb") as said:
        told = said.read()
    assert told, "a forked child failed"
    return pickle.loads(told)


def interrupted(k: int, call: Callable[[], Any]) -> bool:
    """Call it with Ctrl-C at the k-th line or return of this package's Python; return whether that was reached."""
    here = os.path.dirname(fs.__file__)
    left = iter(range(k))

    def trace(frame: Any, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(here):
            return None
        if linecache.getline(file, frame.f_lineno).lstrip().startswith("with "):
            return trace  # signals arrive after calls, so never between the body of a "with" and its end
        if event in ("line", "return") and next(left, None) is None:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def shows(message: str, value: Any) -> bool:
    """Whether a message shows a value, in one of the ways to write a number."""
    if isinstance(value, tuple | list) and value:
        return repr(value) in message or any(shows(message, part) for part in value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return repr(value) in message or shows(message, value.item())
    if isinstance(value, np.ndarray):
        return repr(value) in message
    if isinstance(value, int) and abs(value) >= 2**1024:
        return "range of double" in message
    texts = {repr(value), str(value)}
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        texts |= {f"{float(value):g}", repr(float(value)), np.format_float_positional(float(value), trim="-")}
        if math.isfinite(value) and float(value).is_integer():
            texts.add(str(int(value)))
    return any(text in message for text in texts)
