"""More of everything than usual: elements past 2^31, 100,000 tensors, and no memory left."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import time
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import assert_same, difference, python, reference_step, threads
from fusedstep import _core
from registry import BFLOAT16, DECLARED, FIRST_OF_RULE, Array, Case

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("columns", [1000, 1007])
def test_noise_past_2_32(columns: int) -> None:
    """An index has 64 bits, and the row that is updated has elements on both sides of 2^32."""
    rows = 2**32 // columns + 1
    row = rows - 1

    def table() -> Array:  # of which only the pages of one row are in memory
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        return np.frombuffer(mmap.mmap(-1, rows * columns * 2, flags), BFLOAT16).reshape(rows, columns)

    rng = np.random.default_rng(0)
    param, square_sum = table(), table()
    for key in range(20):  # a wrong bit of noise may not show in what is rounded
        param[row], square_sum[row] = rng.standard_normal(columns), 0
        grad = rng.standard_normal((1, columns)).astype(BFLOAT16)
        wide = {name: array[row].astype(np.float32) for name, array in (("param", param), ("square_sum", square_sum))}
        fs.reference.adagrad_(wide["param"], grad[0].astype(np.float32), wide["square_sum"], lr=0.1)
        bits = fs.reference.noise(key, row * columns + np.arange(columns))
        halves = {"param": bits & 0xFFFF, "square_sum": bits >> 16}
        expected = {name: fs.reference.to_bfloat16(wide[name], half) for name, half in halves.items()}

        fs.adagrad_(param, grad, square_sum, lr=0.1, rows=np.array([row]), key=key)
        assert_same({"param": param[row], "square_sum": square_sum[row]}, expected, f"row {row}, key {key}")


# ------------------------------------------------------------------------------------------------------ past 2^31

PAST = 2**31 + 17
PERIOD = 2**20
"""Elements of an array after which the same memory comes again."""
WINDOWS = (0, 2**29, 2**30, 2**31 - 4096, 2**31)
"""Elements at which pages of an array's own begin: around what 32 bits can count, in elements and in bytes."""
WINDOW = 4096

if sys.platform != "linux":
    pytest.skip("maps memory as Linux does", allow_module_level=True)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000


class Large:
    """A vector of ``PAST`` elements: one small piece of memory, mapped over and over, except for own pages at the
    windows.

    In one thread, an element of the small piece is updated as often as it is mapped.
    """

    def __init__(self, dtype: np.dtype[Any], value: float) -> None:
        size = PAST * dtype.itemsize
        bytes_again = PERIOD * dtype.itemsize
        size += -size % bytes_again
        self._mapped = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        start = np.frombuffer(self._mapped, np.uint8).ctypes.data
        piece = os.memfd_create("piece")
        os.ftruncate(piece, bytes_again)
        self._map(start, piece, range(0, size, bytes_again), bytes_again)
        self.piece = np.frombuffer(mmap.mmap(piece, bytes_again), dtype)
        self.piece[...] = value
        os.close(piece)
        width = WINDOW * dtype.itemsize
        self._map(start, -1, (at * dtype.itemsize for at in WINDOWS), max(width, mmap.PAGESIZE))
        self.array = np.frombuffer(self._mapped, dtype)[:PAST]
        self.windows = [self.array[at : at + WINDOW] for at in WINDOWS]
        for own in self.windows:
            own[...] = value

    @staticmethod
    def _map(start: int, file: int, offsets: Any, size: int) -> None:
        kind = mmap.MAP_SHARED if file >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        for offset in offsets:
            found = _libc.mmap(start + offset, size, mmap.PROT_READ | mmap.PROT_WRITE, kind | MAP_FIXED, file, 0)
            if found != start + offset:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def visits(self) -> Array:
        """How often each element of the small piece is part of the array."""
        times = np.zeros(self.piece.size, np.int64)
        for first in range(0, PAST, times.size):
            times[: PAST - first] += 1
        for at in WINDOWS:
            inside = np.arange(at, min(at + WINDOW, PAST)) % times.size
            np.subtract.at(times, inside, 1)
        return times


def larges(case: Case) -> dict[str, Large]:
    """Return arrays of that length for a rule. Elements differ only in the windows."""
    dtype = np.dtype(np.float32)
    rng = np.random.default_rng(1)
    made = {"param": Large(dtype, 0.5), "grad": Large(dtype, 1.0)}
    made |= {state.name: Large(state.dtype(dtype), state.start) for state in case.states}
    for param, grad in zip(made["param"].windows, made["grad"].windows, strict=True):
        param[...] = rng.standard_normal(param.shape)
        grad[...] = rng.integers(-9, 10, grad.shape)  # their squares add up exactly in any order
    return made


def check_past(made: dict[str, Large], expected: dict[str, Array], windows: list[dict[str, Array]], where: str) -> None:
    """Check that each element was updated as often as it is mapped. ``expected`` are the values after 0, 1, 2, ...
    updates."""
    for name, values in expected.items():
        assert not difference(made[name].piece, values[made[name].visits()]), f"{where}: {name}"
        for k, own in enumerate(windows):
            assert not difference(made[name].windows[k], own[name]), f"{where}: {name} from {WINDOWS[k]}"


def expect(case: Case, made: dict[str, Large], **more: Any) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """Return the values of an element after 0, 1, 2, ... updates by the same gradient, and the windows after one."""

    def update(arrays: dict[str, Array]) -> None:
        reference_step(case, {n: a for n, a in arrays.items() if n != "grad"}, arrays["grad"], 1, False, **more)

    now = {name: large.piece[:1].copy() for name, large in made.items()}
    rows = [{name: array.copy() for name, array in now.items()}]
    for _ in range(made["param"].visits().max()):
        update(now)
        rows.append({name: array.copy() for name, array in now.items()})
    windows = [{name: large.windows[k].copy() for name, large in made.items()} for k in range(len(WINDOWS))]
    for own in windows:
        update(own)
    return {name: np.concatenate([row[name] for row in rows]) for name in made}, windows


ADAGRAD = next(case for case in FIRST_OF_RULE if case.rule == "adagrad")


def test_a_whole_step_past_2_31() -> None:
    """2^31 + 17 elements in a few MiB of memory are each updated once. They are clipped by the norm of all gradients,
    beside a small tensor."""
    case = ADAGRAD
    made = larges(case)
    small = {"param": np.ones(5, np.float32), "square_sum": np.zeros(5, np.float32)}
    grad = np.arange(5, dtype=np.float32)
    parts = [*made["grad"].windows, grad]
    others = PAST - sum(own.size for own in made["grad"].windows)  # each of them 1
    norm = math.sqrt(others + sum(int((own.astype(int) ** 2).sum()) for own in parts))
    expected, windows = expect(case, made, clip_coef=100.0 / norm)
    core = _core.OptimizerCore("adagrad")
    arrays, _ = core.add_group(
        ["large", "small"], [made["param"].array, small["param"]], dict(case.class_options),
        [[made["square_sum"].array], [small["square_sum"]]],
    )  # fmt: skip
    fields = DECLARED["adagrad"]["fields"]
    options = {key: spec["default"] for key, spec in fields.items() if spec["purpose"] == "option"}
    groups = [{"params": tuple(arrays), **options, **case.class_options}]
    core.set_tree([0, 1])
    core.own(groups, True)
    with threads(1):
        report = core.step([made["grad"].array, grad], groups, None, None, 100.0, None, False, "raise", None)
    assert report == (1, norm, False, ())
    check_past(made, expected, windows, "an optimizer")
    beside = {"param": np.ones(5, np.float32), "square_sum": np.zeros(5, np.float32)}
    reference_step(case, beside, grad, 1, False, clip_coef=100.0 / norm)
    assert_same(small, beside, "the small one")


# ------------------------------------------------------------------------------------------------------ many tensors


def test_100_000_tensors() -> None:
    """One optimizer with 100,000 tensors: right bits, less than 2 microseconds of processor time per tensor and step
    (measured: 0.1 on an idle machine); made and saved in seconds."""
    n, size = 100_000, 16
    rng = np.random.default_rng(3)
    start = rng.standard_normal((n, size), dtype=np.float32)
    params, grads = start.copy(), rng.standard_normal((n, size), dtype=np.float32)
    begin = time.process_time()
    opt = fs.RMSprop(list(params))
    made = time.process_time() - begin
    rows = list(grads)
    spent = []
    for _ in range(5):
        begin = time.process_time()
        opt.step(rows, clip_norm=1.0)
        spent.append(time.process_time() - begin)
    square_avg = np.zeros_like(start)
    coef = 1.0 / fs.reference.norm(rows)
    for _ in range(5):
        fs.reference.rmsprop_(start, grads, square_avg, lr=0.01, clip_coef=coef)
    assert not difference(params, start)
    assert not difference(np.stack([own["square_avg"] for own in opt.state.values()]), square_avg)
    print(f"100,000 tensors: made in {made:.2f} s, a step in {min(spent) * 1e3:.1f} ms")
    assert min(spent) < 0.2
    assert made < 60


def test_20_000_tensors_of_different_counts() -> None:
    """Each with constants of its own, as the decay of lr asks for: a few microseconds of the processor for each
    (measured: 0.5 on an idle machine), and not more for many than for few."""
    n = 20_000
    opt = fs.Adagrad({f"p{i}": np.ones(1) for i in range(n)}, lr_decay=0.1)
    saved = opt.state_dict()
    opt.load_state_dict({**saved, "times": dict(zip(saved["times"], range(n), strict=True))})
    grads = {name: np.ones(1) for name in opt.state}
    spent = []
    for _ in range(3):
        begin = time.process_time()
        opt.step(grads)
        spent.append(time.process_time() - begin)
    assert min(spent) < 5e-6 * n
    param, square_sum = np.ones(1), np.zeros(1)
    for t in (1, 2, 3):
        fs.reference.adagrad_(param, np.ones(1), square_sum, lr=0.01 / (1 + (n - 2 + t) * 0.1))
    assert not difference(opt.parameters[f"p{n - 1}"], param)


# ------------------------------------------------------------------------------------------------------- no memory left

OUT_OF_MEMORY = """
    import copy, os, pickle, resource, sys, tempfile
    import numpy as np
    import fusedstep as fs

    fs.set_num_threads(1)
    folder = tempfile.mkdtemp()
    n = 100_000
    rng = np.random.default_rng(1)
    params = {"w": rng.standard_normal(n), "t": rng.standard_normal((300, 250)).T, "b": np.ones(3)}
    grads = {name: rng.standard_normal(p.shape) for name, p in params.items()}
    grads["t"] = rng.standard_normal((500, 300))[::2]
    opt = fs.RMSprop(params, momentum=0.9)
    opt.step(grads)
    for ending in ("npz", "safetensors"):
        opt.save(f"{folder}/a.{ending}")
    older = opt.state_dict()
    opt.step(grads)
    many = {str(i): np.ones(1) for i in range(20_000 if "many" in sys.argv[1] else 3)}
    crowd = fs.Adagrad(many)
    ones = {name: np.ones(1) for name in many}
    mask = {name: rng.random(p.shape) < 0.5 for name, p in params.items()}
    rows = {**grads, "t": fs.Rows(np.arange(250) % 7, grads["t"])}

    uses = {
        "make": lambda: fs.Adagrad({name: p for name, p in params.items()}, initial_accumulator_value=1.0),
        "make many": lambda: fs.Adagrad(many),
        "step of many": lambda: crowd.step(ones, clip_norm=1.0),
        "first step": lambda: fresh.step(grads, clip_norm=1.0, nonfinite="raise"),
        "verified step": lambda: verified.step(grads, clip_norm=1.0),
        "masked step": lambda: fresh.step(grads, clip_norm=1.0, mask=mask),
        "step by rows": lambda: fresh.step(rows, clip_norm=1.0),
        "step that reduces": lambda: normed.step(grads),
        "add a group": lambda: fresh.add_param_group({"params": {"more": np.ones(50_000)}, "lr": 0.5}),
        "reset": opt.reset,
        "state_dict": opt.state_dict,
        "load_state_dict": lambda: opt.load_state_dict(older),
        "save npz": lambda: opt.save(f"{folder}/a.npz"),
        "save safetensors": lambda: opt.save(f"{folder}/a.safetensors"),
        "load npz": lambda: opt.load(f"{folder}/a.npz"),
        "load safetensors": lambda: opt.load(f"{folder}/a.safetensors"),
        "deepcopy": lambda: copy.deepcopy(opt),
        "pickle": lambda: pickle.dumps(opt),
    }
    use = uses[sys.argv[1]]

    def memory(optimizer):
        arrays = [p for group in optimizer.param_groups for p in group["params"]]
        arrays += [a for states in optimizer.state.values() for a in states.values()]
        return b"".join(a.tobytes() for a in arrays)

    def everything():
        files = [open(f"{folder}/{name}", "rb").read() for name in sorted(os.listdir(folder))]
        all_of_them = [opt, fresh, verified, normed, crowd]
        return [*map(memory, all_of_them), *(each.steps for each in all_of_them), *files]

    def size():
        return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

    refused = 0
    for slack in [0, *(2**k for k in range(14, 31))]:
        fresh = fs.Adagrad({name: p.copy() for name, p in params.items()})
        verified = fs.Adagrad({name: p.copy() for name, p in params.items()}, verify="every")
        normed = fs.AdagradNorm({name: p.copy() for name, p in params.items()})
        before = everything()
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size() + slack, limit[1]))
        try:
            done = use()
        except MemoryError:
            done = MemoryError
        resource.setrlimit(resource.RLIMIT_AS, limit)
        if done is not MemoryError:
            break
        refused += 1
        assert everything() == before, (sys.argv[1], slack)
    else:
        raise SystemExit("never enough memory")
    print(refused)
"""
NEEDS_MEMORY = (
    "make", "make many", "state_dict", "load_state_dict", "save npz", "save safetensors", "load npz",
    "load safetensors", "deepcopy", "pickle", "verified step", "masked step", "add a group",
)  # fmt: skip
"""Steps need next to none, and may find it among what was freed before."""


@pytest.mark.parametrize(
    "use", [*NEEDS_MEMORY, "first step", "step of many", "step by rows", "step that reduces", "reset"]
)
def test_out_of_memory(use: str) -> None:
    """With more and more memory, from none on, each use either succeeds or raises MemoryError and leaves every byte,
    count and file as it was."""
    # Freed memory goes back to the system at once, so that the limit takes effect.
    refused = python(OUT_OF_MEMORY, use, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="0")
    assert int(refused) >= (1 if use in NEEDS_MEMORY else 0)
