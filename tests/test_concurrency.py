"""One optimizer used by many: threads that step, save and load it at once, forks during its steps, other interpreters,
and what the extension declares about them."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import Mirror, Unchanged, difference, in_child, memory_of
from fusedstep import _core
from registry import FIRST_OF_RULE, Array

# ------------------------------------------------------------------------------------------------ one use at a time


class Gate:
    """A place where one thread stops until it is released. Others pass."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.stops: threading.Thread | None = None

    def __call__(self) -> None:
        if threading.current_thread() is self.stops:
            self.reached.set()
            assert self.open.wait(60)


class SlowGradient:
    """A gradient that offers its memory by DLPack once it is released."""

    def __init__(self, array: Array, gate: Gate) -> None:
        self._array, self._gate = array, gate

    def __dlpack__(self, **options: Any) -> Any:
        self._gate()
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


Use = Callable[[fs.Adagrad, Any, Path], Any]
USES: dict[str, Use] = {
    "step": lambda opt, grads, folder: opt.step(grads),
    "state_dict": lambda opt, grads, folder: opt.state_dict(),
    "load_state_dict": lambda opt, grads, folder: opt.load_state_dict(pickle.loads((folder / "dict").read_bytes())),
    "save npz": lambda opt, grads, folder: opt.save(folder / "a.npz"),
    "save safetensors": lambda opt, grads, folder: opt.save(folder / "a.safetensors"),
    "load npz": lambda opt, grads, folder: opt.load(folder / "a.npz"),
    "load safetensors": lambda opt, grads, folder: opt.load(folder / "a.safetensors"),
    "deepcopy": lambda opt, grads, folder: copy.deepcopy(opt),
    "pickle": lambda opt, grads, folder: pickle.dumps(opt),
}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Put a gate into every use that Python code makes of an optimizer: where it calls these functions."""
    gate = Gate()
    for module, name in CALLED:
        true = getattr(module, name)

        def gated(*args: Any, true: Any = true, **options: Any) -> Any:
            gate()
            return true(*args, **options)

        monkeypatch.setattr(module, name, gated)
    return gate


CALLED = ((np, "array"), (np, "copyto"), (os, "fsync"), (json, "loads"))
"""Functions that a state dict, its load, a save and a load of a file call, before anything is written."""


HOLDING = [name for name in USES if name not in ("deepcopy", "pickle")]  # these release it after reading the counters


def save_all(opt: Any, folder: Path) -> None:
    """Write what the uses of an optimizer read."""
    opt.save(folder / "a.npz")
    opt.save(folder / "a.safetensors")
    (folder / "dict").write_bytes(pickle.dumps(opt.state_dict()))


@pytest.mark.parametrize("holding", HOLDING)
def test_one_use_at_a_time(holding: str, gate: Gate, tmp_path: Path) -> None:
    """While one thread steps, saves or loads, each use by another thread raises RuntimeError and changes no byte of the
    optimizer and no file. The first use goes on undisturbed, and so does the next one."""
    opt = fs.Adagrad({"w": np.arange(5.0), "v": np.ones(3)})
    grads = {"w": SlowGradient(np.ones(5), gate), "v": np.ones(3)}
    opt.step(grads)
    save_all(opt, tmp_path)
    opt.step(grads)
    alone = copy.deepcopy(opt)
    shutil.copytree(tmp_path, tmp_path / "alone")
    USES[holding](alone, grads, tmp_path / "alone")

    def hold() -> None:
        gate.stops = threading.current_thread()
        USES[holding](opt, grads, tmp_path)

    with ThreadPoolExecutor(1) as other:
        held = other.submit(hold)
        assert gate.reached.wait(60)
        memory = Unchanged(memory_of(opt))
        files = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file() and path.name[0] != "."}
        try:
            for name, use in USES.items():
                with pytest.raises(RuntimeError, match="in use already"):
                    use(opt, grads, tmp_path)
                memory.check(f"{name} during {holding}")
                assert all(path.read_bytes() == was for path, was in files.items()), f"{name} during {holding}"
        finally:
            gate.open.set()
        held.result(60)
    for path in files:
        assert path.read_bytes() == (tmp_path / "alone" / path.name).read_bytes()
    for found, wanted in zip(memory_of(opt), memory_of(alone), strict=True):
        assert not difference(found, wanted)
    for use in USES.values():
        use(opt, grads, tmp_path)


@pytest.mark.parametrize("name", HOLDING)
def test_an_error_lets_go(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a use that failed, or that Ctrl-C stopped, the optimizer is free."""
    opt = fs.Adagrad({"w": np.ones(3)})
    save_all(opt, tmp_path)
    for error in (ZeroDivisionError, KeyboardInterrupt, MemoryError):

        def fail(*args: Any, error: type[BaseException] = error, **options: Any) -> Any:
            raise error

        with monkeypatch.context() as patch:
            for module, called in CALLED:
                patch.setattr(module, called, fail)
            grads = {"w": type("Failing", (), {"__dlpack__": fail, "__dlpack_device__": fail})()}
            # An Exception of an exporter becomes the cause of a TypeError, one of a file's reader that of a ValueError.
            with pytest.raises((error, TypeError, ValueError)):
                USES[name](opt, grads, tmp_path)
        opt.step({"w": np.ones(3)})


@pytest.mark.slow
def test_eight_threads_share_gradients_while_groups_change() -> None:
    """Each steps an optimizer of its own with gradients that all read, while another thread gives all groups new
    numbers of the same value, and takes keys and groups away and puts them back: a step is done with the right bits, or
    refused."""
    case = FIRST_OF_RULE[0]
    rng = np.random.default_rng(3)
    shapes = {"w": (5000,), "0": (3,), "1": (7, 4)}
    start, gradients = ({name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(2))
    grads = [{"w": gradients["w"]}, [gradients["0"], gradients["1"]]]
    params = [{name: array.copy() for name, array in start.items()} for _ in range(8)]
    optimizers = [case.new([{"params": {"w": p["w"]}}, {"params": [p["0"], p["1"]]}], lr=0.01) for p in params]
    stop = threading.Event()

    def work(optimizer: Any) -> int:
        steps, end = 0, time.monotonic() + 1
        while time.monotonic() < end:
            with contextlib.suppress(ValueError, TypeError):
                steps = optimizer.step(grads).step
        return steps

    def change() -> None:
        k = 0
        while not stop.is_set():
            groups = optimizers[k % 8].param_groups
            groups[k % 2]["lr"] = float(f"0.01{'0' * (k % 5)}")
            groups[1]["eps"] = groups[1].pop("eps")
            groups.append(groups.pop())
            k += 1

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(9) as pool:
            changer = pool.submit(change)
            try:
                steps = list(pool.map(work, optimizers, timeout=60))
            finally:
                stop.set()
            changer.result(60)
    finally:
        sys.setswitchinterval(switch)
    wanted = Mirror(case, start, {key: {"lr": 0.01} for key in start})
    for count, optimizer, own in sorted(zip(steps, optimizers, params, strict=True), key=lambda each: each[0]):
        while wanted.steps < count:
            wanted.step(gradients)
        wanted.assert_like(optimizer, own, f"{count} steps")
    assert max(steps) > 0


# --------------------------------------------------------------------------------------- forks in the middle of steps


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.parametrize("when", ["in a step", "between two"])
def test_forks_at_a_known_moment(when: str) -> None:
    """While another thread is stopped in the middle of a step, the child's copy of the optimizer stays as before the
    step and refuses any use; between two steps it is complete. An optimizer of the child's own works in both cases."""
    param = np.arange(5.0)
    opt = fs.Adagrad(param)
    opt.step(np.ones(5))
    gate = Gate()
    holder = gate.stops = threading.Thread(target=lambda: opt.step(SlowGradient(np.ones(5), gate)))
    memory = Unchanged(memory_of(opt))

    def child() -> str:
        own = fs.Adagrad(np.arange(5.0))
        assert own.step(np.ones(5)).step == 1
        memory.check("in the child")
        for use in (lambda: opt.step(np.ones(5)), opt.state_dict):
            if when == "in a step":
                with pytest.raises(RuntimeError, match="in use already"):
                    use()
            else:
                use()
        return "as it should be"

    if when == "in a step":
        holder.start()
        assert gate.reached.wait(60)
    try:
        assert in_child(child) == "as it should be"
    finally:
        gate.open.set()
        if when == "in a step":
            holder.join(60)
    assert opt.step(np.ones(5)).step == (3 if when == "in a step" else 2)


# ------------------------------------------------------------------------------------------------- mischief in a call


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_containers(seed: int) -> None:
    """Run ``fuzz/hostile.py`` for some seconds, in a process that overwrites freed memory."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "fuzz" / "hostile.py", "--seconds", "4", "--seed", str(seed)],
        env=os.environ | {"PYTHONMALLOC": "debug", "MALLOC_PERTURB_": "85"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "calls refused" in done.stdout


# --------------------------------------------------------------------------------------------------- other interpreters

IN_ANOTHER_INTERPRETER = """
    import sys
    import textwrap

    if sys.version_info >= (3, 13):
        import _interpreters as interpreters
    else:
        import _xxsubinterpreters as interpreters

    place = f"import sys, warnings; sys.path[:0] = {sys.argv[2:]!r}; warnings.simplefilter('ignore')"
    code = place + textwrap.dedent('''
        try:
            import numpy as np
            import fusedstep as fs
        except ImportError as error:
            print("refused:", *str(error).split())
        else:
            for _ in range(3):
                p = np.ones(3)
                assert fs.RMSprop(p).step(np.ones(3)).step == 1
                assert type(fs.Adagrad(p).step(np.ones(3))) is fs.StepReport
            print("works")
    ''')

    def ask():
        other = interpreters.create()
        said = (interpreters.exec if sys.version_info >= (3, 13) else interpreters.run_string)(other, code)
        assert said is None, said
        interpreters.destroy(other)

    if sys.argv[1] == "first":
        ask()  # only the first interpreter can import NumPy
        raise SystemExit
    exec(place)
    import numpy as np
    import fusedstep as fs

    opt = fs.RMSprop(np.ones(3))
    for _ in range(3):
        opt.step(np.ones(3))
        ask()
    report = opt.step(np.ones(3))
    assert type(report) is fs.StepReport and report.step == 4
"""


@pytest.mark.parametrize("when", ["first", "later"])
def test_other_interpreters(when: str, tmp_path: Path) -> None:
    """In a second interpreter of the process, the package works or the import is refused (NumPy works in only one). The
    first interpreter is undisturbed, even after the second has ended."""
    # A copy outside site-packages: an editable install builds again on import, and not every interpreter may do that.
    copied = shutil.copytree(Path(fs.__file__).parent, tmp_path / "fusedstep")
    if not Path(_core.__file__).is_relative_to(Path(fs.__file__).parent):
        shutil.copy(_core.__file__, copied)
    places = [str(tmp_path), str(Path(np.__file__).parents[1])]

    def run(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", "-c", textwrap.dedent(code), when, *places]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    done = run(IN_ANOTHER_INTERPRETER)
    without_us = IN_ANOTHER_INTERPRETER.replace("import fusedstep as fs", "raise ImportError('not needed')")
    if done.returncode < 0 and run(without_us).returncode < 0:
        pytest.skip(f"NumPy {np.__version__} by itself ends the process")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == (1 if when == "first" else 3), said
    known = "works|refused: .*(subinterpreter|module more than once per process|Error importing numpy)"
    assert all(re.match(known, line) for line in said), said


def test_the_gil_stays_off() -> None:
    """In free-threaded Python, the import does not switch the GIL on."""
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("this Python has a GIL")
    code = "import sys, numpy, fusedstep; print(sys._is_gil_enabled())"
    assert subprocess.check_output([sys.executable, "-W", "error", "-c", code], text=True).strip() == "False"
