"""What surrounds a step: rounding modes, flush-to-zero, threads, forks, instruction sets, environment variables."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import ctypes
import ctypes.util
import gc
import hashlib
import itertools
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
import native
from checks import (
    Mirror,
    assert_same,
    difference,
    in_child,
    make_problem,
    memory_of,
    python,
    run_function,
    solve,
    threads,
)
from registry import DTYPES, FIRST_OF_RULE, FULLEST_OF_RULE, ISAS, KEEPING, LAYOUT, THREADS, Array, Case, Values, loss

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# -------------------------------------------------------------------------------------------- the processor's settings

# The numbers of fesetround: to nearest, down, up, to 0.
ROUNDING = {
    "x86_64": {"nearest": 0x000, "down": 0x400, "up": 0x800, "zero": 0xC00},
    "arm64": {"nearest": 0x000000, "up": 0x400000, "down": 0x800000, "zero": 0xC00000},
}.get(platform.machine().replace("aarch64", "arm64"), {"nearest": 0})
FLUSH = 0x8040  # bits of MXCSR: flush results to 0, read subnormal operands as 0
FLAGS = 0x3F  # bits of MXCSR: status, not settings

HELPER = """
#include <xmmintrin.h>
unsigned get_mxcsr(void) { return _mm_getcsr(); }
void set_mxcsr(unsigned value) { _mm_setcsr(value); }
"""


class Processor:
    """The floating-point settings of the calling thread."""

    def __init__(self, helper: Path | None) -> None:
        name = "ucrtbase" if sys.platform == "win32" else ctypes.util.find_library("m") or "libm.so.6"
        self._libm = ctypes.CDLL(name)
        self.helper = helper
        self._mxcsr = None if helper is None else ctypes.CDLL(str(helper))

    @property
    def mxcsr(self) -> int:
        assert self._mxcsr is not None
        return int(self._mxcsr.get_mxcsr()) & 0xFFFFFFFF

    @mxcsr.setter
    def mxcsr(self, value: int) -> None:
        assert self._mxcsr is not None
        self._mxcsr.set_mxcsr(ctypes.c_uint(value))

    @contextlib.contextmanager
    def set_to(self, rounding: str, flush: bool) -> Iterator[None]:
        before = self._libm.fegetround()
        assert self._libm.fesetround(ROUNDING[rounding]) == 0
        if flush:
            self.mxcsr |= FLUSH
        try:
            yield
        finally:
            now = self._libm.fegetround(), bool(flush and self.mxcsr & FLUSH == FLUSH)
            if flush:
                self.mxcsr &= ~FLUSH
            self._libm.fesetround(before)
        assert now == (ROUNDING[rounding], flush)  # the call has not changed it


@pytest.fixture(scope="session")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if platform.machine() != "x86_64" or compiler is None:
        return Processor(None)
    here = tmp_path_factory.mktemp("mxcsr")
    (here / "mxcsr.c").write_text(HELPER)
    built = subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", here / "mxcsr.so", here / "mxcsr.c"], check=False
    )
    return Processor(here / "mxcsr.so" if built.returncode == 0 else None)


@pytest.fixture
def with_mxcsr(processor: Processor) -> Processor:
    if processor.helper is None:
        pytest.skip("no C compiler, or not an x86-64")
    return processor


def settings(processor: Processor) -> list[tuple[str, bool]]:
    return list(itertools.product(ROUNDING, (False,) if processor.helper is None else (False, True)))


def delicate(case: Case, dtype: np.dtype[Any], n: int) -> Values:
    """Numbers at which every setting shows: sums and products that are not exact, subnormals in all arrays."""
    rng = np.random.default_rng(1)

    def draw() -> Array:
        x = rng.standard_normal(n).astype(dtype)
        x[::3] = rng.integers(1, 100, x[::3].shape) * np.finfo(dtype).smallest_subnormal
        x[::7] *= -1
        return x

    def start(state: Any) -> Array:
        if state.scalar:
            return np.array(0.3, dtype)
        return rng.integers(-1, 2, n).astype(np.int8) if state.sign else np.abs(draw())

    return Values(draw(), {state.name: start(state) for state in case.states}, [draw() for _ in range(2)])


@each_dtype
@pytest.mark.parametrize("case", FULLEST_OF_RULE, ids=str)
def test_rounding_and_flushing_do_not_leak_in(case: Case, dtype: np.dtype[Any], processor: Processor) -> None:
    """Compare with the reference in all rounding modes, with and without flush-to-zero, on small arrays and on arrays
    that 1, 2 and 3 threads share. The caller's settings stay."""
    for n, counts in ((37, (1,)), (33_000, THREADS)):
        wanted = solve(case, dtype, (n,), delicate(case, dtype, n))
        for (rounding, flush), count in itertools.product(settings(processor), counts):

            def call(arrays: dict[str, Array], t: int, rounding: str = rounding, flush: bool = flush) -> None:
                with processor.set_to(rounding, flush):
                    case.call(arrays, t)

            with threads(count):
                where = f"{case} {dtype}, {n=}, {count} threads, rounding {rounding}, {flush=}"
                run_function(wanted, where, call=call)
                if n < 100:
                    run_function(wanted, f"{where}, every 2nd", LAYOUT["every 2nd of the last axis"], call=call)


@pytest.mark.parametrize("case", KEEPING, ids=str)
def test_optimizers_in_any_mode(case: Case, processor: Processor) -> None:
    """Do the same for optimizers, which are also made in that mode, with all options of a step: norm and starting
    values have the reference's bits, and ``verify`` raises no false alarm."""
    shapes = {"a": (37,), "b": (60, 50)}
    for dtype, (rounding, flush) in itertools.product(DTYPES, settings(processor)):
        rng = np.random.default_rng(2)
        params = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        mirror = Mirror(case, params)
        where = f"{case} {dtype}, rounding {rounding}, {flush=}"
        with processor.set_to(rounding, flush):
            optimizer = case.new(params, verify="every" if flush else "never")
        mirror.assert_like(optimizer, params, f"{where}, new")
        for t, options in enumerate(
            ({}, {"grad_scale": 3.0, "clip_norm": 0.7, "clip_value": 0.9, "nonfinite": "skip"}), 1
        ):
            grads = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
            grads["b"][::2] *= np.finfo(dtype).tiny
            norm = mirror.step(grads, loss=loss(t), **options)
            with processor.set_to(rounding, flush):
                report = optimizer.step(grads, loss=loss(t), **options)
            assert report.grad_norm == norm, where
            mirror.assert_like(optimizer, params, f"{where}, step {t}")


def test_the_settings_are_really_set(processor: Processor) -> None:
    """Check that NumPy itself gives other bits in each mode, so that the comparisons above mean something."""
    for dtype in DTYPES:
        case = FIRST_OF_RULE[0]
        values = delicate(case, dtype, 37)
        wanted = solve(case, dtype, (37,), values)
        for rounding, flush in settings(processor):
            with processor.set_to(rounding, flush):
                found = solve(case, dtype, (37,), values)
            same = not difference(found.after[-1]["param"], wanted.after[-1]["param"])
            assert same == (rounding == "nearest" and not flush), (dtype, rounding, flush)


def test_settings_do_not_leak_out(with_mxcsr: Processor) -> None:
    """Keep every bit of MXCSR over calls, errors, and work in threads."""
    before = with_mxcsr.mxcsr
    for value, n in itertools.product((0x1F80, 0x1F80 | FLUSH, 0x7F80, 0x3FA0 | 0x8000, 0x5F80), (50, 40_000)):
        param, grad, state = (np.full(n, x, np.float32) for x in (1, 0.5, 2))
        optimizer = fs.RMSprop([np.ones(n, np.float32)])
        calls: tuple[Callable[[], Any], ...] = (
            partial(fs.rmsprop_, param, grad, state, lr=0.01),
            partial(fs.rmsprop_, param, grad, state, lr=-1.0),
            partial(fs.rmsprop_, param, param, state, lr=0.01),
            partial(optimizer.step, [grad]),
        )
        with_mxcsr.mxcsr = value
        found = []
        for call in calls:
            with contextlib.suppress(ValueError):
                call()
            found.append(with_mxcsr.mxcsr)
        with_mxcsr.mxcsr = before
        assert found == [value] * len(calls)


@pytest.mark.slow
def test_the_import_changes_no_settings(with_mxcsr: Processor) -> None:
    """Keep MXCSR, except for its status flags, over the import and 1,000 calls."""
    code = f"""
        import ctypes, numpy as np
        mxcsr = ctypes.CDLL({str(with_mxcsr.helper)!r})
        found = [mxcsr.get_mxcsr()]
        import fusedstep as fs
        found.append(mxcsr.get_mxcsr())
        p, g, v = (np.ones(50_000, np.float32) for _ in range(3))
        optimizer = fs.RMSprop([p])
        for _ in range(500):
            fs.rmsprop_(p[:100], g[:100], v[:100], lr=0.1)
            optimizer.step([g])
        found.append(mxcsr.get_mxcsr())
        print(*(value & 0xFFFFFFFF & ~{FLAGS} for value in found))
    """
    assert len(set(python(code).split())) == 1


@pytest.mark.slow
def test_threads_born_in_another_mode(with_mxcsr: Processor) -> None:
    """Use a pool whose threads were started by a thread that rounds up and flushes."""
    code = f"""
        import ctypes, hashlib, numpy as np, fusedstep as fs
        mxcsr = ctypes.CDLL({str(with_mxcsr.helper)!r})
        fs.set_num_threads(3)
        fs._core.share_all_work(True)
        rng = np.random.default_rng(1)
        p, g, v = rng.standard_normal((3, 100_000)) * 10.0 ** rng.uniform(-44, 1, (3, 100_000))
        p, g, v = (x.astype(np.float32) for x in (p, g, np.abs(v)))
        expected = p.copy(), g, v.copy()
        old = mxcsr.get_mxcsr()
        mxcsr.set_mxcsr(old | {FLUSH} | 0x4000)
        for _ in range(5):
            fs.rmsprop_(p, g, v, lr=0.01)
        mxcsr.set_mxcsr(old)
        for _ in range(5):
            fs.reference.rmsprop_(*expected, lr=0.01)
        print((p.view("u4") == expected[0].view("u4")).all(), (v.view("u4") == expected[2].view("u4")).all())
    """
    assert python(code) == "True True"


# ------------------------------------------------------------------------------------- other processes, and variables


@pytest.mark.slow
def test_variables() -> None:
    """FUSEDSTEP_ISA forces an instruction set, and FUSEDSTEP_NUM_THREADS sets the number of threads. The defaults are
    the best instruction set and all processors of the process."""
    code = """
        import numpy as np, fusedstep as fs
        p = np.ones(100, np.float32)
        fs.RMSprop([p]).step([p.copy()])
        print(fs.isa(), fs.show_config()["instruction set in use"], fs.get_num_threads(), fs.show_config()["threads"])
    """
    usual = int(python("import fusedstep as fs; print(fs.get_num_threads())"))
    assert 1 <= usual <= len(os.sched_getaffinity(0))
    for isa in ISAS:
        assert python(code, FUSEDSTEP_ISA=isa) == f"{isa} {isa} {usual} {usual}"
    for count in (1, 3, 256):
        assert python(code, FUSEDSTEP_NUM_THREADS=str(count)) == f"{ISAS[-1]} {ISAS[-1]} {count} {count}"
    assert python(code) == python(code, FUSEDSTEP_ISA="", FUSEDSTEP_NUM_THREADS="")
    assert python(code) == f"{ISAS[-1]} {ISAS[-1]} {usual} {usual}"


SURROUNDINGS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A machine with PROCESSORS of them, all for this process: a set that is too small for them is refused. */
int sched_getaffinity(pid_t process, size_t size, cpu_set_t *set) {
  const int count = atoi(getenv("PROCESSORS"));
  if (8 * size < (size_t)count) { errno = EINVAL; return -1; }
  CPU_ZERO_S(size, set);
  for (int k = 0; k < count; ++k) CPU_SET_S(k, size, set);
  return 0;
}

/* What the system says of this process lies in the folder SYSTEM. */
static FILE *opened(const char *name, const char *path, const char *mode) {
  FILE *(*open)(const char *, const char *) = (FILE *(*)(const char *, const char *))dlsym(RTLD_NEXT, name);
  char moved[4096];
  if (strncmp(path, "/proc/self/", 11) == 0) {
    snprintf(moved, sizeof moved, "%s/%s", getenv("SYSTEM"), path + 11);
    path = moved;
  }
  return open(path, mode);
}
FILE *fopen(const char *path, const char *mode) { return opened("fopen", path, mode); }
FILE *fopen64(const char *path, const char *mode) { return opened("fopen64", path, mode); }
"""


class Surroundings:
    """Other machines and containers as a process sees them: processors and control groups."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None or sys.platform != "linux":
            pytest.skip("no C compiler, or not Linux")
        self.library = folder / "surroundings.so"
        (folder / "surroundings.c").write_text(SURROUNDINGS)
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", self.library, folder / "surroundings.c", "-ldl"], check=True
        )

    def threads(self, processors: int, groups: str = "", mounts: str = "", files: Any = (), **variables: str) -> int:
        """How many threads a step uses there; ``@`` in the mounts is a folder of its own, with these files."""
        system = Path(tempfile.mkdtemp(dir=self.folder))
        (system / "cgroup").write_text(groups)
        (system / "mountinfo").write_text(mounts.replace("@", str(system)))
        for name, content in dict(files).items():
            (system / name).parent.mkdir(parents=True, exist_ok=True)
            (system / name).write_text(content)
        preloaded = [str(self.library), *os.environ.get("LD_PRELOAD", "").split()]
        code = "import fusedstep as fs; print(fs.get_num_threads())"
        variables |= {"LD_PRELOAD": " ".join(preloaded), "PROCESSORS": str(processors), "SYSTEM": str(system)}
        return int(python(code, **variables))


@pytest.fixture(scope="session")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Surroundings:
    return Surroundings(tmp_path_factory.mktemp("surroundings"))


@pytest.mark.slow
@pytest.mark.parametrize("processors", [1, 7, 1024, 1025, 5000])
def test_any_number_of_processors(processors: int, surroundings: Surroundings) -> None:
    """Use as many threads as processors, up to 256, also with more than the 1,024 processors of a usual set."""
    assert surroundings.threads(processors) == min(processors, 256)


V2 = "31 23 0:28 / @/sys rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "23 1 8:1 / / rw - ext4 /dev/sda1 rw\n32 31 0:29 / @/sys/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"


def v1(folder: str) -> dict[str, str]:
    """Two and a half processors, with version 1 of control groups."""
    return {f"sys/cpu/{folder}cpu.cfs_quota_us": "250000\n", f"sys/cpu/{folder}cpu.cfs_period_us": "100000\n"}


QUOTAS: dict[str, tuple[int, str, str, dict[str, str]]] = {
    "one and a half": (2, "0::/\n", V2, {"sys/cpu.max": "150000 100000\n"}),
    "one": (1, "0::/\n", V2, {"sys/cpu.max": "100000 100000\n"}),
    "a tenth": (1, "0::/\n", V2, {"sys/cpu.max": "10000 100000\n"}),
    "more than there are": (8, "0::/\n", V2, {"sys/cpu.max": "9000000 100000\n"}),
    "none": (8, "0::/\n", V2, {"sys/cpu.max": "max 100000\n"}),
    "no file": (8, "0::/\n", V2, {}),
    "nonsense": (8, "0::/\n::::\nx\n", V2 + "nonsense - \n-\n", {"sys/cpu.max": "a lot\n"}),
    "of the group": (3, "0::/a/b\n", V2, {"sys/a/b/cpu.max": "300000 100000\n", "sys/cpu.max": "max 100000\n"}),
    "of the group above": (3, "0::/a/b\n", V2, {"sys/a/b/cpu.max": "max 100000\n", "sys/a/cpu.max": "30 10\n"}),
    "the least": (2, "0::/a/b\n", V2, {"sys/a/b/cpu.max": "20 10\n", "sys/a/cpu.max": "30 10\n"}),
    "of another group": (8, "0::/a\n", V2, {"sys/b/cpu.max": "10 10\n"}),
    "seen from a container": (3, "0::/../other\n", V2, {"sys/cpu.max": "30 10\n"}),
    "a blank in the path": (3, "0::/\n", V2.replace("@/sys", "@/a\\040b"), {"a b/cpu.max": "30 10\n"}),
    "version 1": (3, "4:memory:/x\n1:cpu,cpuacct:/\n0::/\n", V1, v1("")),
    "version 1, none": (8, "1:cpu:/\n", V1, {"sys/cpu/cpu.cfs_quota_us": "-1\n", "sys/cpu/cpu.cfs_period_us": "10\n"}),
    "version 1, a group": (
        3, "1:cpu,cpuacct:/docker/f00\n", V1, v1("docker/f00/"),
    ),
    "version 1, mounted from there": (
        3, "1:cpu,cpuacct:/docker/f00\n", V1.replace("0:29 /", "0:29 /docker/f00"),
        v1(""),
    ),
    "version 1, mounted from elsewhere": (
        3, "1:cpu,cpuacct:/docker/f00/child\n", V1.replace("0:29 /", "0:29 /docker/f0"),
        v1(""),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", QUOTAS)
def test_quotas(name: str, surroundings: Surroundings) -> None:
    """Use no more threads than the quotas of the control groups allow, rounded up, on 8 processors."""
    wanted, groups, mounts, files = QUOTAS[name]
    assert surroundings.threads(8, groups, mounts, files) == wanted


@pytest.mark.slow
def test_openmp_variable(surroundings: Surroundings) -> None:
    """Take the first number of OMP_NUM_THREADS as an upper limit, unless FUSEDSTEP_NUM_THREADS is set."""
    lists = {"1": 1, "3": 3, "3,2": 3, " 4 , 2": 4, "2,nonsense": 2, "8": 8, "9": 8, "1000000": 8}
    for said, wanted in lists.items():
        assert surroundings.threads(8, OMP_NUM_THREADS=said) == wanted, said
    for nonsense in ("", "0", "-2", "two", "3 2", "3x", "2.5", ",2", "99999999999999999999"):
        assert surroundings.threads(8, OMP_NUM_THREADS=nonsense) == 8, nonsense
    quota = ("0::/\n", V2, {"sys/cpu.max": "20 10\n"})
    assert surroundings.threads(8, *quota, OMP_NUM_THREADS="3") == 2
    assert surroundings.threads(8, *quota, OMP_NUM_THREADS="1") == 1
    assert surroundings.threads(8, *quota, OMP_NUM_THREADS="1", FUSEDSTEP_NUM_THREADS="5") == 5


@pytest.mark.slow
def test_when_the_surroundings_are_read() -> None:
    """Read them at the first large step, again in a forked child, and never after ``set_num_threads``."""
    code = """
        import os, numpy as np, fusedstep as fs
        x = np.ones(100_000)

        def forked():
            pid = os.fork()
            if pid == 0:
                fs.adagrad_(x, x + 1, s := x + 1, lr=0.1)
                os._exit(fs.get_num_threads())
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        seen = []
        for name, value in (("OMP_NUM_THREADS", "1"), ("FUSEDSTEP_NUM_THREADS", "3"), ("FUSEDSTEP_NUM_THREADS", "4")):
            os.environ[name] = value
            seen.append(fs.get_num_threads())
        fs.adagrad_(x, x + 1, s := x + 1, lr=0.1)
        os.environ["FUSEDSTEP_NUM_THREADS"] = "5"
        seen += [fs.get_num_threads(), forked(), fs.get_num_threads()]
        fs.set_num_threads(2)
        seen += [fs.get_num_threads(), forked()]
        print(seen)
    """
    assert python(code) == "[1, 3, 4, 4, 5, 4, 2, 2]"


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")


@needs_proc
@pytest.mark.slow
def test_an_affinity_that_is_set_at_run_time() -> None:
    """Respect an affinity that is set after the import and before the first step, as by Slurm and Dask."""
    code = """
        import os, numpy as np, fusedstep as fs
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        x = np.ones(100_000)
        fs.adagrad_(x, x + 1, s := x + 1, lr=0.1)
        print(fs.get_num_threads(), len(os.listdir("/proc/self/task")))
    """
    assert python(code, OPENBLAS_NUM_THREADS="1") == "1 1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "right", "values"),
    [
        ("FUSEDSTEP_ISA", ", ".join(ISAS), ("sse9", "AVX2", "avx2 ", "avx,avx2")),
        ("FUSEDSTEP_NUM_THREADS", "1 to 256", ("0", "-1", "two", "1.5", "257", " 2", "0x2", "99999999999999999999")),
    ],
)
def test_bad_variables(name: str, right: str, values: tuple[str, ...]) -> None:
    """Fail the import with the variable's name, its value and the valid values."""
    for value in values:
        told = python("import fusedstep", fails=True, **{name: value})
        assert told.startswith(f"ValueError: {name}")
        assert value in told
        assert right in told


@pytest.mark.slow
def test_a_variable_that_is_spoilt_before_the_first_step() -> None:
    """It is read then, and refused before the first byte is written, also by a rule that writes its states first."""
    code = """
        import os, numpy as np, fusedstep as fs
        os.environ["FUSEDSTEP_NUM_THREADS"] = "abc"
        refused = []
        for cls in (fs.AdagradNorm, fs.Adagrad, fs.Rprop):
            params = [np.ones(20_000) for _ in range(50)]
            try:
                optimizer = cls(params)
                optimizer.step([np.ones(20_000) for _ in params])
            except ValueError as error:
                refused.append(str(error).startswith("FUSEDSTEP_NUM_THREADS"))
            if cls is not fs.Rprop:  # whose states are filled when it is made
                assert not any(state.any() for each in optimizer.state.values() for state in each.values())
                assert optimizer.steps == 0
            assert all((param == 1).all() for param in params)
        print(refused)
    """
    assert python(code) == "[True, True, True]"


# --------------------------------------------------------------------------------- instruction sets and thread counts


def test_instruction_sets() -> None:
    """The baseline is always there. ``use_isa`` is in force within its block, in all threads, and nests."""
    assert ISAS[0] == "baseline"
    assert len(set(ISAS)) == len(ISAS)
    assert set(ISAS) <= set(fs.show_config()["instruction sets compiled"])
    before = fs.isa()
    assert before in ISAS
    for isa, inner in itertools.product(ISAS, repeat=2):
        with fs.use_isa(isa):
            assert fs.isa() == isa
            with concurrent.futures.ThreadPoolExecutor(1) as other:
                assert other.submit(fs.isa).result() == isa
            with fs.use_isa(inner):
                assert fs.isa() == fs.show_config()["instruction set in use"] == inner
            assert fs.isa() == isa
            with pytest.raises(ZeroDivisionError), fs.use_isa(inner):
                raise ZeroDivisionError
            assert fs.isa() == isa
        assert fs.isa() == before


@pytest.mark.parametrize("isa", ["sse9", "", "AVX2", "Baseline", None, 2, b"avx2", ["avx2"]], ids=repr)
def test_bad_instruction_sets(isa: Any) -> None:
    """Refuse an unknown name with its value and the valid names, and change nothing."""
    before = fs.isa()
    with pytest.raises((TypeError, ValueError)) as caught, fs.use_isa(isa):
        pass
    assert ", ".join(ISAS) in str(caught.value)
    assert (isa if isinstance(isa, str) else repr(isa)) in str(caught.value)
    assert fs.isa() == before


def test_thread_counts() -> None:
    """Accept 1 to 256 in any integer type. Refuse anything else with its value, and keep the number."""
    with threads(1):
        for n in (1, 2, 3, 17, 256, np.int64(5), np.uint8(6)):
            fs.set_num_threads(n)  # type: ignore[arg-type]
            assert fs.get_num_threads() == n
        wrong: list[Any] = [0, -1, 257, 2**40, 2**70, True, 1.0, "2", None, np.float64(2), [2]]
        for n in wrong:
            error = ValueError if type(n) is int else TypeError
            with pytest.raises(error, match="num_threads: expected a whole number") as caught:
                fs.set_num_threads(n)
            assert repr(n) in str(caught.value)
            assert fs.get_num_threads() == 6


def test_a_test_keeps_the_threads_it_begins_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what the system allows changes meanwhile, so that ``settings_stay`` sees only what a test does."""
    before = fs.get_num_threads()
    monkeypatch.setenv("FUSEDSTEP_NUM_THREADS", str(before + 1))
    assert fs.get_num_threads() == before


@needs_proc
@pytest.mark.slow
def test_threads_are_really_there() -> None:
    """Start as many threads as asked for if work is large, none if it is small."""
    code = """
        import os, numpy as np, fusedstep as fs
        count = lambda: len(os.listdir("/proc/self/task"))
        start, seen = count(), []
        big, small = np.ones(1_000_000, np.float32), np.ones(1000, np.float32)
        for threads, x in ((3, small), (1, big), (3, big)):
            fs.set_num_threads(threads)
            fs.adagrad_(x, x.copy(), s := x.copy(), lr=0.1)
            seen.append(count() - start)
            fs.RMSprop([x]).step([x.copy()])
            seen.append(count() - start)
        print(seen)
    """
    assert python(code) == "[0, 0, 0, 0, 2, 2]"


@needs_proc
@pytest.mark.slow
def test_signals_are_for_the_callers_threads() -> None:
    """The pool's threads take no signals, however the caller waits: by a mask and sigwait, or not at all. Only faults
    reach the thread that caused them."""
    code = """
        import os, re, signal, time, numpy as np, fusedstep as fs
        fs.set_num_threads(3)
        before = {*os.listdir("/proc/self/task")}
        p = np.ones(1_000_000, np.float32)
        fs.adagrad_(p, p.copy(), s := p.copy(), lr=0.1)
        workers = {*os.listdir("/proc/self/task")} - before
        def mask_of(worker):
            with open(f"/proc/self/task/{worker}/status") as status:
                return int(re.search(r"SigBlk:\\s*(\\w+)", status.read())[1], 16)
        end = time.monotonic() + 60
        while len(masks := {*map(mask_of, workers)}) > 1 and time.monotonic() < end:
            time.sleep(0.01)  # a new thread blocks all signals until it begins
        [mask] = masks
        faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
        free = {n for n in signal.valid_signals() if not mask >> n - 1 & 1} - faults
        mine = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
        for _ in range(50):
            for sent in (signal.SIGUSR1, signal.SIGTERM):
                os.kill(os.getpid(), sent)
                assert signal.sigtimedwait({signal.SIGUSR1, signal.SIGTERM}, 10).si_signo == sent
        print(len(workers), *sorted(free - {signal.SIGKILL, signal.SIGSTOP}), len(mine))
    """
    assert python(code, OPENBLAS_NUM_THREADS="1") == "2 0"  # keeps NumPy from starting threads that take all signals


@pytest.mark.slow
def test_exit_beside_a_daemon_thread() -> None:
    """End the main thread while daemon threads step or call functions, without an abort, whatever they are doing."""
    code = """
        import sys, threading, time, numpy as np, fusedstep as fs
        optimizer, grad = {optimizer}, np.ones(100_000)
        def work():
            p, g, s = (np.ones(100_000) for _ in range(3))
            while True:
                {step}
        for _ in range({threads}):
            threading.Thread(target=work, daemon=True).start()
        time.sleep({seconds})
    """
    for k in range(20):
        optimizer = ("fs.RMSprop(np.ones(100_000))", "fs.AdagradNorm(np.ones(100_000))")[k % 2]
        options = ("", ", clip_norm=1.0, nonfinite='skip'", ", zero_grads=True", ", loss=1.0")[k % 4]
        step = f"optimizer.step(grad{options})"
        python(code.format(optimizer=optimizer, step=step, threads=1, seconds=0.01 * (k % 5)))
    for _ in range(5):
        python(code.format(optimizer=None, step="fs.rmsprop_(p, g, s, lr=0.1)", threads=3, seconds=0.02))


@pytest.mark.slow
def test_a_stack_of_64_kib() -> None:
    """A step, with Python's own share, fits in a stack of 64 KiB."""
    code = """
        import threading, numpy as np, fusedstep as fs
        threading.stack_size(64 * 1024)
        steps = 0
        def work():
            global steps
            for rule in (fs.Adagrad, fs.AdagradDA, fs.AdagradNorm, fs.ProximalAdagrad, fs.RMSprop, fs.Rprop):
                for dtype in (np.float32, np.float64):
                    shape = (300, 401)
                    params = [np.ones(shape, dtype), np.ones(shape, dtype)[:, ::2], np.ones(shape, dtype).T]
                    optimizer = rule(params)
                    grads = [np.ones(array.shape, dtype) for array in params]
                    for _ in range(2):
                        optimizer.step(grads, loss=1.0, clip_norm=1.0, nonfinite="skip", zero_grads=True)
                        steps += 1
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print(steps)
    """
    assert python(code) == "24"


@pytest.mark.slow
def test_the_shared_library_is_closed_under_its_threads() -> None:
    """Call dlclose() while the pool is awake, and while it sleeps. The process ends normally."""
    code = f"""
        import _ctypes, ctypes, time
        class Array(ctypes.Structure):
            _fields_ = [("data", ctypes.c_void_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
                        ("dtype", ctypes.c_int32), ("dimensions", ctypes.c_int32)]
        n = 1_000_000
        shape = (ctypes.c_int64 * 1)(n)
        memory = [(ctypes.c_float * n)() for _ in range(3)]
        arrays = [Array(ctypes.addressof(x), ctypes.addressof(shape), None, 0, 1) for x in memory]
        library = ctypes.CDLL({str(native.shared_library())!r})
        error = library.fusedstep_last_error
        error.restype = ctypes.c_char_p
        rule = ctypes.c_void_p()
        assert library.fusedstep_set_num_threads(3) == 0
        assert library.fusedstep_rule_create(b"adagrad", None, ctypes.byref(rule)) == 0
        for _ in range(20):
            assert library.fusedstep_step(rule, ctypes.c_int64(1), *map(ctypes.byref, arrays), 1) == 0, error()
        library.fusedstep_rule_destroy(rule)
        _ctypes.dlclose(library._handle)
        for seconds in (0.0001, 0.001, 0.01, 0.1):
            time.sleep(seconds)
        print("well")
    """
    assert python(code) == "well"


@needs_proc
@pytest.mark.slow
def test_waking_is_learned_from_steps() -> None:
    """No step sleeps to measure the cost of waking. A measurement takes the best of three, so it would show as three
    times that the calling thread gave up its processor; a lock of the system may do that once."""
    code = """
        import time, numpy as np, fusedstep as fs
        def given_up():
            with open("/proc/thread-self/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("voluntary"))
        fs.set_num_threads(2)
        p, g, s = (np.ones(20_000, np.float32) for _ in range(3))
        fs.adagrad_(p[:100], g[:100], s[:100], lr=0.1)
        slept = []
        for k in range(40):
            before = given_up()
            fs.adagrad_(p, g, s, lr=0.1)
            slept.append(given_up() - before)
            time.sleep(0.001)
        print(max(slept))
    """
    assert int(python(code)) < 3


class Owner(np.ndarray[Any, Any]):
    """An array that knows the model it is part of."""

    model: Any


class Model:
    pass


class Key(float):
    """A key of a mapping, and a number, that refer to the model."""

    model: Any


class Mine(fs.RMSprop):
    model: Any


def of_model(made: Any, model: Any) -> Any:
    made.model = model
    return made


CYCLES: dict[str, Callable[[Owner, Owner], tuple[Any, Any]]] = {
    "array": lambda w, g: (fs.RMSprop(w), g),
    "group": lambda w, g: (fs.Adagrad([{"params": [w], "lr": 0.5}, {"params": np.ones(3)}]), [[g], np.ones(3)]),
    "nested": lambda w, g: (fs.Rprop({"a": [{"b": w}]}), {"a": [{"b": g}]}),
    "key and number": lambda w, g: (
        fs.RMSprop({(key := of_model(Key(0.25), w.model)): np.ones(3)}, lr=key), {key: np.ones(3)}
    ),
    "copy": lambda w, g: (copy.copy(fs.RMSprop(w)), g),
    "subclass": lambda w, g: (of_model(Mine(np.ones(3)), w.model), np.ones(3)),
}  # fmt: skip


def test_cycles_are_collected() -> None:
    """Collect an array that refers to its model, which holds its optimizer, before the first step and after."""

    def made(kind: str, steps: int) -> weakref.ref[Any]:
        model: Any = Model()
        model.w, grad = (of_model(np.ones(5).view(Owner), model) for _ in range(2))
        model.optimizer, grads = CYCLES[kind](model.w, grad)
        for _ in range(steps):
            model.optimizer.step(grads)
        return weakref.ref(model)

    models = {which: made(*which) for which in itertools.product(CYCLES, (0, 2))}
    gc.collect()
    assert not [which for which, model in models.items() if model() is not None]


def test_containers_nested_deeply() -> None:
    """Raise RecursionError for 30,000 levels of parameters or gradients, and leave the optimizer as it was."""
    wraps: list[Callable[[Any], Any]] = [lambda x: [x], lambda x: (x,), lambda x: {"a": x}, lambda x: UserDict(a=x)]
    for wrap in wraps:
        nested: Any = np.ones(3)
        for _ in range(30_000):
            nested = wrap(nested)
        with pytest.raises(RecursionError):
            fs.RMSprop(nested)
        optimizer = fs.RMSprop([np.ones(3)])
        for wrong in (nested, [nested]):
            with pytest.raises((RecursionError, TypeError, ValueError)):
                optimizer.step(wrong)
        assert optimizer.step([np.ones(3)]).step == 1
        while isinstance(nested, list | tuple | dict | UserDict):  # taken apart without recursion
            [nested] = nested.values() if isinstance(nested, dict | UserDict) else nested


def test_the_interpreter_goes_on_meanwhile() -> None:
    """Release the GIL during a large update: another Python thread goes on counting."""
    param = np.ones(2_000_000)
    arrays = {"param": param, "grad": param.copy(), "square_sum": param.copy()}
    counted = 0
    stop = False

    def count() -> None:
        nonlocal counted
        while not stop:
            counted += 1
            time.sleep(0)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)  # a thread runs until it releases the GIL itself
    other = threading.Thread(target=count)
    try:
        other.start()
        with threads(1):
            started = counted
            end = time.monotonic() + 60
            while counted == started and time.monotonic() < end:
                fs.adagrad_(**arrays, lr=0.1)
            during = counted - started
    finally:
        stop = True
        sys.setswitchinterval(switch)
        other.join()
    assert during > 0


# ---------------------------------------------------------------------------------------------------------------- forks


def big_step() -> str:
    """Make a step that needs the pool, and one of an optimizer; return a digest of all bits."""
    digest = hashlib.sha256()
    with threads(3):
        for case in FIRST_OF_RULE:
            values = make_problem(case, DTYPES[0], (50_000,)).values
            arrays = {"param": values.param, "grad": values.grads[0], **values.states}
            optimizer = case.new([np.zeros(50_000, np.float32), np.ones(7)])
            for t in (1, 2):
                case.call(arrays, t)
                optimizer.step([values.grads[t], np.ones(7)], loss=loss(t), clip_norm=1.0)
            for array in [*arrays.values(), *memory_of(optimizer)]:
                digest.update(array.tobytes())
    return digest.hexdigest()


def big_step_in_child() -> tuple[str, int]:
    """The same, and how many threads it started, where the system says how many there are."""
    tasks = lambda: len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else 0  # noqa: E731
    before = tasks()
    return big_step(), tasks() - before


STARTED = 2 if Path("/proc/self/task").exists() else 0


@pytest.fixture
def warm_pool() -> Iterator[str]:
    with threads(3):
        yield big_step()


def send_big_step(pipe: Any) -> None:
    pipe.send(big_step_in_child())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it forks a process with threads on purpose
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_child_processes(method: str, warm_pool: str) -> None:
    """Children of all three kinds, made while the pool is awake, finish their steps with threads of their own and the
    same bits. So does the parent."""
    context = multiprocessing.get_context(method)
    children = []
    for _ in range(3):
        mine, theirs = context.Pipe(duplex=False)
        children.append((context.Process(target=send_big_step, args=(theirs,), daemon=True), mine))
        children[-1][0].start()
    for child, mine in children:
        assert mine.poll(60), f"a child by {method} did not finish"
        assert mine.recv() == (warm_pool, STARTED)
        child.join(20)
        assert child.exitcode == 0
    assert big_step() == warm_pool


@pytest.mark.slow
def test_forks_of_forks(warm_pool: str) -> None:
    """Children of a child finish, too, when its pool is awake."""

    def child() -> tuple[Any, ...]:
        return big_step_in_child(), in_child(big_step_in_child), big_step()

    assert in_child(child) == ((warm_pool, STARTED), (warm_pool, STARTED), warm_pool)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forks_while_other_threads_work(warm_pool: str) -> None:
    """Fork in the middle of other threads' steps, while the pool is in use. Each child finishes its own steps."""
    stop = threading.Event()

    def work() -> None:
        p, g, v = (np.ones(300_000, np.float32) for _ in range(3))
        while not stop.is_set():
            fs.rmsprop_(p, g, v, lr=0.01)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    p, g, v = (np.ones(100_000, np.float32) for _ in range(3))
    expected = p.copy(), g, v.copy()
    fs.reference.rmsprop_(*expected, lr=0.01)

    def child() -> bool:
        fs.rmsprop_(p, g, v, lr=0.01)
        return not difference(p, expected[0]) and not difference(v, expected[2])

    try:
        for _ in range(25):
            assert in_child(child)
    finally:
        stop.set()
        for worker in workers:
            worker.join()


# -------------------------------------------------------------------------------------------------------------- threads


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one came while a generator was closed
@pytest.mark.parametrize("kind", ["verified", "masked", "masked and verified"])
def test_any_number_of_interrupts(kind: str) -> None:
    """One after another, at any time of a step, also while it puts frozen elements or a step that it could not verify
    back: what moves is that of a whole number of steps, and what is frozen is as it was."""
    rng = np.random.default_rng(7)
    n = 20_000
    case = FIRST_OF_RULE[0]
    moves = rng.random(n) < 0.5 if "masked" in kind else np.ones(n, bool)
    start, grad = rng.standard_normal(n), rng.standard_normal(n)
    param = start.copy()
    optimizer = case.new(param, verify="every" if "verified" in kind else "never")
    mirror = Mirror(case, {"0": start[moves]})
    options: dict[str, Any] = {"mask": moves} if "masked" in kind else {}
    state = {key: array.copy() for key, array in optimizer.state["0"].items()}
    here = os.fspath(Path(fs.__file__).parent)

    def interrupt(_: int, frame: Any) -> None:
        while frame is not None and not frame.f_code.co_filename.startswith(here):
            frame = frame.f_back
        if frame is not None:  # in a step, and not in the test
            raise KeyboardInterrupt

    handled = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    optimizer.step(grad, **options)  # imports what it needs
    begin = time.monotonic()
    optimizer.step(grad, **options)
    longest = 1.2 * (time.monotonic() - begin)
    try:
        for _ in range(150):
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, longest), 2e-4)
            try:
                optimizer.step(grad, **options)
            except KeyboardInterrupt:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            while mirror.steps < optimizer.steps:
                mirror.step({"0": grad[moves]})
            found = {"param": param, **optimizer.state["0"]}
            assert_same({key: array[moves] for key, array in found.items()}, mirror.arrays["0"], kind)
            assert_same({key: array[~moves] for key, array in found.items()},
                        {key: array[~moves] for key, array in {"param": start, **state}.items()}, kind)  # fmt: skip
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handled)
    assert interrupted > 10, "too few interrupts to show anything"
