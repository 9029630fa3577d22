"""What surrounds a step: rounding modes, flush-to-zero, threads, forks, instruction sets, environment variables."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import ctypes.util
import hashlib
import itertools
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import Mirror, assert_same, difference, make_problem, memory_of, problem, run_function, solve, threads
from registry import CASES, DTYPES, FIRST_OF_RULE, FULLEST_OF_RULE, ISAS, LAYOUT, THREADS, Case, Values, loss

Array = np.ndarray[Any, Any]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# -------------------------------------------------------------------------------------------- the processor's settings

# fesetround's numbers: to nearest, down, up, to 0.
ROUNDING = {
    "x86_64": {"nearest": 0x000, "down": 0x400, "up": 0x800, "zero": 0xC00},
    "aarch64": {"nearest": 0x000000, "up": 0x400000, "down": 0x800000, "zero": 0xC00000},
}.get(platform.machine(), {"nearest": 0})
FLUSH = 0x8040  # of MXCSR: flush results to 0, take subnormal operands for 0
FLAGS = 0x3F  # of MXCSR: what happened so far, not a setting

HELPER = """
#include <xmmintrin.h>
unsigned get_mxcsr(void) { return _mm_getcsr(); }
void set_mxcsr(unsigned value) { _mm_setcsr(value); }
"""


class Processor:
    """The floating-point settings of the calling thread."""

    def __init__(self, helper: Path | None) -> None:
        self._libm = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
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
        assert now == (ROUNDING[rounding], flush)  # what happened in between left it alone


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
    """All rounding modes, with and without flush-to-zero, set by the calling thread: the reference's bits, on small
    arrays and on ones that 1, 2 and 3 threads share; and the caller's settings are as before."""
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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_optimizers_in_any_mode(case: Case, processor: Processor) -> None:
    """The same of optimizers, which are made in that mode too, with all options of a step: the norm and the numbers at
    which states start have the reference's bits."""
    shapes = {"a": (37,), "b": (60, 50)}
    for dtype, (rounding, flush) in itertools.product(DTYPES, settings(processor)):
        rng = np.random.default_rng(2)
        params = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        mirror = Mirror(case, params)
        where = f"{case} {dtype}, rounding {rounding}, {flush=}"
        with processor.set_to(rounding, flush):
            optimizer = case.new(params)
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


def test_verification_in_any_mode(processor: Processor) -> None:
    """``verify`` raises no false alarm: the reference it runs is not touched by the caller's settings either."""
    rng = np.random.default_rng(3)
    for case, (rounding, flush) in itertools.product(FULLEST_OF_RULE, settings(processor)):
        values = delicate(case, DTYPES[0], 500)
        optimizer = case.new([values.param], verify="every")
        for t in (1, 2):
            grad = rng.standard_normal(500).astype(np.float32) * values.grads[0]
            with processor.set_to(rounding, flush):
                optimizer.step([grad], loss=loss(t), clip_norm=0.3)


def test_the_settings_are_really_set(processor: Processor) -> None:
    """In each of these modes NumPy itself gives other bits for these numbers: so the equalities above say something."""
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
    """MXCSR, whatever it was, is the same in every bit after 1,000 calls, after errors, and after work for threads."""
    before = with_mxcsr.mxcsr
    small, large = (problem(FIRST_OF_RULE[0], DTYPES[0], (n,)) for n in (50, 40_000))
    try:
        for value in (0x1F80, 0x1F80 | FLUSH, 0x7F80, 0x3FA0 | 0x8000, 0x5F80):
            for wanted, times in ((small, 1000), (large, 20)):
                arrays = {"param": wanted.values.param.copy(), "grad": wanted.values.grads[0]}
                arrays |= {name: state.copy() for name, state in wanted.values.states.items()}
                optimizer = fs.RMSprop([np.ones(50, np.float32)])
                with_mxcsr.mxcsr = value
                for _ in range(times):
                    fs.rmsprop_(**arrays, lr=0.01)
                found = [with_mxcsr.mxcsr]
                with contextlib.suppress(ValueError):
                    fs.rmsprop_(**arrays, lr=-1.0)
                found.append(with_mxcsr.mxcsr)
                with contextlib.suppress(ValueError):
                    fs.rmsprop_(arrays["param"], arrays["param"], arrays["square_avg"], lr=0.01)
                found.append(with_mxcsr.mxcsr)
                optimizer.step([arrays["grad"][:50]])
                found.append(with_mxcsr.mxcsr)
                with_mxcsr.mxcsr = before
                assert found == [value] * 4
    finally:
        with_mxcsr.mxcsr = before


@pytest.mark.slow
def test_the_import_changes_no_settings(with_mxcsr: Processor) -> None:
    """MXCSR is equal, but for the flags of what happened, before and after the import and 1,000 calls."""
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
    assert len(set(run(code).split())) == 1


@pytest.mark.slow
def test_threads_born_in_another_mode(with_mxcsr: Processor) -> None:
    """A pool whose threads were started by a thread that rounds up and flushes works as any other."""
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
    assert run(code) == "True True"


# ------------------------------------------------------------------------------------- other processes, and variables


def run(code: str, fails: bool = False, **variables: str) -> str:
    """Run Python code in a fresh process; return what it prints, or its last line of error."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FUSEDSTEP_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr.strip().splitlines()[-1] if fails else done.stdout.strip()


@pytest.mark.slow
def test_variables() -> None:
    """FUSEDSTEP_ISA forces an instruction set of this machine, and the forced one runs; FUSEDSTEP_NUM_THREADS says how
    many threads there are at the start. Without them: the best, and as many as the process may use processors."""
    code = """
        import numpy as np, fusedstep as fs
        p = np.ones(100, np.float32)
        fs.RMSprop([p]).step([p.copy()])
        print(fs.isa(), fs.show_config()["instruction set in use"], fs.get_num_threads(), fs.show_config()["threads"])
    """
    usual = len(os.sched_getaffinity(0))
    for isa in ISAS:
        assert run(code, FUSEDSTEP_ISA=isa) == f"{isa} {isa} {usual} {usual}"
    for count in (1, 3, 256):
        assert run(code, FUSEDSTEP_NUM_THREADS=str(count)) == f"{ISAS[-1]} {ISAS[-1]} {count} {count}"
    assert run(code) == run(code, FUSEDSTEP_ISA="", FUSEDSTEP_NUM_THREADS="")
    assert run(code) == f"{ISAS[-1]} {ISAS[-1]} {usual} {usual}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "right", "values"),
    [
        ("FUSEDSTEP_ISA", ", ".join(ISAS), ("sse9", "AVX2", "avx2 ", "avx,avx2")),
        ("FUSEDSTEP_NUM_THREADS", "1 to 256", ("0", "-1", "two", "1.5", "257", " 2", "0x2", "99999999999999999999")),
    ],
)
def test_bad_variables(name: str, right: str, values: tuple[str, ...]) -> None:
    """Anything else: the import fails, with the variable's name, its value and all that would be right."""
    for value in values:
        told = run("import fusedstep", fails=True, **{name: value})
        assert told.startswith(f"ValueError: {name}")
        assert value in told
        assert right in told


# --------------------------------------------------------------------------------- instruction sets and thread counts


def test_instruction_sets() -> None:
    """The baseline is always there; ``use_isa`` holds within its block, in all threads, and nests."""
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
    """An unknown name is refused with the value and all that would be right, and nothing changes."""
    before = fs.isa()
    with pytest.raises((TypeError, ValueError)) as caught, fs.use_isa(isa):
        pass
    assert ", ".join(ISAS) in str(caught.value)
    assert (isa if isinstance(isa, str) else repr(isa)) in str(caught.value)
    assert fs.isa() == before


def test_thread_counts() -> None:
    """From 1 to 256, integers of any type; anything else is refused with the value, and the number stays."""
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


@pytest.mark.slow
def test_threads_are_really_there() -> None:
    """Large work starts as many threads as asked for, small work none, and one thread means one."""
    code = """
        import os, numpy as np, fusedstep as fs
        count = lambda: len(os.listdir("/proc/self/task"))
        start = count()
        big, small = np.ones(1_000_000, np.float32), np.ones(1000, np.float32)
        fs.set_num_threads(3)
        fs.adagrad_(small, small.copy(), small.copy(), lr=0.1)
        fs.RMSprop([small]).step([small.copy()])
        print(count() - start, end=" ")
        fs.set_num_threads(1)
        fs.adagrad_(big, big.copy(), big.copy(), lr=0.1)
        print(count() - start, end=" ")
        fs.set_num_threads(3)
        fs.adagrad_(big, big.copy(), big.copy(), lr=0.1)
        print(count() - start, end=" ")
        fs.RMSprop([big]).step([big.copy()])
        print(count() - start)
    """
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc")
    assert run(code) == "0 0 2 2"


def test_the_interpreter_goes_on_meanwhile() -> None:
    """The GIL is released around a large update: another Python thread counts on."""
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
    sys.setswitchinterval(1000.0)  # no thread gives way but where it lets go itself
    other = threading.Thread(target=count)
    try:
        other.start()
        with threads(1):
            started = counted
            for _ in range(10):
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


def tasks() -> int:
    """How many threads this process has; 0 where the system does not say."""
    return len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else 0


def big_step_in_child() -> tuple[str, int]:
    """The same, and how many threads it started."""
    before = tasks()
    digest = big_step()
    return digest, tasks() - before


def send_big_step(pipe: Any) -> None:
    pipe.send(big_step_in_child())
    pipe.close()


@pytest.fixture
def warm_pool() -> Iterator[str]:
    with threads(3):
        yield big_step()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_child_processes(method: str, warm_pool: str) -> None:
    """Children of all three kinds, made when the pool is warm, finish steps of their own, with threads of their own and
    the same bits; so does the parent afterwards."""
    context = multiprocessing.get_context(method)
    children = []
    for _ in range(3):
        mine, theirs = context.Pipe(duplex=False)
        child = context.Process(target=send_big_step, args=(theirs,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks is the point
            child.start()
        children.append((child, mine))
    for child, mine in children:
        try:
            assert mine.poll(60), f"a child by {method} did not finish"
            assert mine.recv() == (warm_pool, 2 if tasks() else 0)
            child.join(20)
            assert child.exitcode == 0
        finally:
            if child.is_alive():
                child.kill()
                child.join()
    assert big_step() == warm_pool


def forked(body: Callable[[], bool], seconds: float = 30) -> None:
    """Run ``body`` in a forked child that must end in time and say that all is well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = 0 if body() else 1
        os._exit(code)
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail(f"a forked child did not finish in {seconds} s")
        time.sleep(0.002)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.slow
def test_forks_of_forks(warm_pool: str) -> None:
    """A child's pool is as good as its parent's: its own children, made when it is warm, finish too."""

    def grandchild() -> bool:
        return big_step_in_child() == (warm_pool, 2 if tasks() else 0)

    def child() -> bool:
        all_is_well = grandchild()
        forked(grandchild)
        return all_is_well and big_step() == warm_pool

    forked(child, 60)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forks_while_other_threads_work(warm_pool: str) -> None:
    """Forks in the middle of other threads' steps, when the pool is in use: each child finishes its own."""
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
            forked(child)
    finally:
        stop.set()
        for worker in workers:
            worker.join()


# -------------------------------------------------------------------------------------------------------------- threads


def in_threads(bodies: list[Callable[[], None]]) -> None:
    """Run all at once; raise what one of them raises."""
    ready = threading.Barrier(len(bodies))
    errors: list[BaseException] = []

    def run_one(body: Callable[[], None]) -> None:
        try:
            ready.wait()
            body()
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=run_one, args=(body,)) for body in bodies]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(120)
        assert not thread.is_alive(), "a thread did not finish"
    if errors:
        raise errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", FULLEST_OF_RULE, ids=str)
def test_disjoint_optimizers_in_eight_threads(case: Case) -> None:
    """Each thread its own optimizer, small and large arrays, options and functions: the bits of one after another."""
    shapes: tuple[tuple[int, ...], ...] = ((50_000,), (3,), (120, 130))

    def trained(k: int) -> dict[str, Array]:
        rng = np.random.default_rng(k)
        params = [rng.standard_normal(shape).astype(DTYPES[k % 2]) for shape in shapes]
        optimizer = case.new(params)
        for t in range(1, 6):
            grads = [rng.standard_normal(shape).astype(DTYPES[k % 2]).T for shape in [s[::-1] for s in shapes]]
            optimizer.step(grads, clip_norm=1.0 if t % 2 else None, zero_grads=t == 3, loss=loss(t))
        values = make_problem(case, DTYPES[0], (40_000,)).values
        arrays = {"param": values.param, "grad": values.grads[k % 5], **values.states}
        case.call(arrays)
        return {str(i): array for i, array in enumerate([*memory_of(optimizer), *arrays.values()])}

    with threads(3):
        serial = [trained(k) for k in range(8)]
        parallel: list[dict[str, Array]] = [{} for _ in range(8)]

        def body(k: int) -> Callable[[], None]:
            return lambda: parallel[k].update(trained(k))

        in_threads([body(k) for k in range(8)])
    for k in range(8):
        assert_same(parallel[k], serial[k], f"{case}, thread {k}")


@pytest.mark.slow
def test_arrays_that_are_let_go_meanwhile() -> None:
    """Another thread drops its references to the arrays, and makes and fills others, while they are being updated."""
    case, dtype = FIRST_OF_RULE[1], DTYPES[1]
    wanted = make_problem(case, dtype, (400_000,))
    boxes: list[dict[str, Array]] = []
    stop = threading.Event()

    def drop() -> None:
        while not stop.is_set():
            if boxes:
                boxes.pop().clear()
            np.full(400_000, np.nan)

    other = threading.Thread(target=drop)
    other.start()
    try:
        for _ in range(30):
            arrays = {"param": wanted.values.param.copy(), "grad": wanted.values.grads[0].copy()}
            arrays |= {name: state.copy() for name, state in wanted.values.states.items()}
            box = dict(arrays)
            param = box["param"]
            del arrays
            given = dict(box)
            boxes.append(box)
            case.call(given)
            assert not difference(param, wanted.after[0]["param"])
    finally:
        stop.set()
        other.join()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the process was started with it ignored."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread alone")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_interrupts_find_whole_parameters() -> None:
    """Ctrl-C again and again during steps: the KeyboardInterrupt comes between updates; parameters are those of a whole
    number of steps."""
    rng = np.random.default_rng(6)
    start = {"a": rng.standard_normal(300_000), "b": rng.standard_normal(5)}
    grads = {name: rng.standard_normal(array.shape) for name, array in start.items()}
    case = FIRST_OF_RULE[0]
    params = {name: array.copy() for name, array in start.items()}
    optimizer, mirror = case.new(params), Mirror(case, start)

    def step_for_30_s(timer: threading.Timer) -> None:
        timer.start()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            optimizer.step(grads)

    for k in range(15):
        timer = threading.Timer(0.002 + 0.0003 * k, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            step_for_30_s(timer)
        timer.join()
        steps = optimizer.step(grads).step
        while mirror.steps < steps:
            mirror.step(grads)
        mirror.assert_like(optimizer, params, f"interrupt {k}")
