"""The scenarios that ``test_mpi.py`` runs on several ranks: ``mpiexec -n 3 python ranks.py SCENARIO FOLDER``.

Each scenario runs on all ranks and asserts on each of them. An error on one rank ends all with a status that is not 0.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

import fusedstep as fs
import fusedstep.mpi
from checks import Mirror, Unchanged, assert_same, memory_of
from registry import CASES, CONTAINERS, FULLEST_OF_RULE, STEP_OPTIONS, STORAGES, Array, Case, loss

Grads = dict[str, Array | None]

COMM = MPI.COMM_WORLD
LANES = 4
BLOCK = 1024
SHAREABLE = [case for case in CASES if not str(case.options.get("variant")).startswith("grprop")]
"""The others choose one element of all arrays."""
FULLEST = [case for case in FULLEST_OF_RULE if case in SHAREABLE]


def parameters(seed: int = 0) -> dict[str, Array]:
    """Return parameters of both types and several layouts, whose blocks no number of ranks divides evenly."""
    rng = np.random.default_rng(seed)
    drawn = {name: rng.normal(size=shape) for name, shape in (("w", (70, 50)), ("s", ()), ("t", (9, 300)), ("v", 2800))}
    return {
        "w": drawn["w"].astype(np.float32),
        "s": np.asarray(drawn["s"]),
        "empty": np.zeros((0, 3), np.float32),
        "t": np.asfortranarray(drawn["t"]),
        "v": drawn["v"].astype(np.float32)[::-2],
    }


def gradients(number: int, present: bool = True) -> Grads:
    rng = np.random.default_rng([1, number])
    found: Grads = {name: rng.normal(size=p.shape).astype(p.dtype) for name, p in parameters().items()}
    return found if present else {**found, "t": None}


def summed(grads: list[Grads]) -> Grads:
    """Return the sum by the tree: the largest power of two that leaves something over, and the rest."""
    if len(grads) == 1:
        return grads[0]
    left = 1 << (len(grads) - 1).bit_length() - 1
    a, b = summed(grads[:left]), summed(grads[left:])
    return {name: None if g is None else np.asarray(g + b[name]) for name, g in a.items()}


def mean(grads: list[Grads]) -> Grads:
    total = summed(grads)
    return {name: None if g is None else np.asarray(g / g.dtype.type(len(grads))) for name, g in total.items()}


def whole_state(opt: Any, params: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Put the pieces of all ranks together."""
    return {
        name: {
            key: np.concatenate(COMM.allgather(piece)).reshape(params[name].shape) if piece.ndim else piece
            for key, piece in states.items()
        }
        for name, states in opt.state.items()
    }


class Whole:
    """An optimizer of shards, as ``Mirror`` sees it."""

    def __init__(self, opt: Any, params: Mapping[str, Array]) -> None:
        self.state = whole_state(opt, params)


def options_of_steps() -> Iterator[tuple[int, dict[str, Any]]]:
    """Return steps without options, with all of them, and with a norm whose squares leave the range of double."""
    yield 1, {}
    yield 2, {"grad_scale": 0.7, "clip_value": 0.9, "clip_norm": 3.0, "nonfinite": "skip"}
    yield 3, {"clip_norm": 1e-3}


# --------------------------------------------------------------------------------------------------------------- equal


def lanes_give_the_bits_of_one_process(folder: Path) -> None:
    for case in SHAREABLE if COMM.size == 3 else FULLEST:
        params = parameters()
        opt = fs.mpi.Sharded(case.cls, params, comm=COMM, lanes=LANES, **case.class_options)
        mirror = Mirror(case, parameters())
        for t, options in options_of_steps():
            grads = [gradients(LANES * t + lane, present=t != 2) for lane in range(LANES)]
            for lane in reversed(opt.lanes) if t == 3 else opt.lanes:
                opt.add(lane, grads[lane])
            report = opt.step(loss=loss(t), **options)
            norm = mirror.step(mean(grads), loss=loss(t), **options)
            assert (report.step, report.grad_norm, report.skipped) == (t, norm, False), (case, t)
            mirror.assert_like(Whole(opt, params), params, f"{case}, step {t}")


def gradients_are_added_in_a_tree(folder: Path) -> None:
    """Different gradients without lanes are added in the tree over rank numbers, whatever MPI does."""
    case = FULLEST[0]
    for reduce, reduced in (("mean", mean), ("sum", summed)):
        params = parameters()
        opt = fs.mpi.Sharded(case.cls, params, comm=COMM, reduce=reduce, **case.class_options)
        mirror = Mirror(case, parameters())
        for name, options in STEP_OPTIONS.items():
            grads = gradients(opt.steps + COMM.rank)
            mirror.step(reduced([gradients(opt.steps + rank) for rank in range(COMM.size)]), **options)
            opt.step(grads, **options)
            mirror.assert_like(Whole(opt, params), params, f"{name}, {reduce}")
            expected = dict.fromkeys(grads, 0) if options.get("zero_grads") else gradients(opt.steps - 1 + COMM.rank)
            for key, gradient in grads.items():
                assert np.array_equal(gradient, np.broadcast_to(expected[key], gradient.shape)), (name, key)


def narrow_storage(folder: Path) -> None:
    """16-bit arrays: a single gradient travels as it is, sums in the compute type, and the noise counts from the start
    of the whole parameter."""
    for case in (case.as_stored(storage) for case in FULLEST for storage in STORAGES):
        storage = case.storage
        assert storage is not None
        params, same = ({name: p.astype(storage.param) for name, p in parameters().items()} for _ in range(2))
        opt = fs.mpi.Sharded(case.cls, params, comm=COMM, lanes=LANES, **case.class_options)
        one = case.new(same)
        for t, options in options_of_steps():
            grads = [
                {name: None if g is None else g.astype(storage.grad) for name, g in gradients(LANES * t + lane).items()}
                for lane in range(LANES)
            ]
            for lane in opt.lanes:
                opt.add(lane, grads[lane])
            wide = [{n: None if g is None else g.astype(storage.compute) for n, g in each.items()} for each in grads]
            report = opt.step(loss=loss(t), **options)
            assert report == one.step(mean(wide), loss=loss(t), **options), (case, t)
        state = whole_state(opt, params)
        for name in params:
            found, expected = {"p": params[name], **state[name]}, {"p": same[name], **one.state[name]}
            assert_same(found, expected, f"{case}: {name}")


def containers(folder: Path) -> None:
    for container in CONTAINERS:
        case = FULLEST[0]
        shape = (33, 41)
        arrays = [np.full(shape, k, np.float32) for k in range(len(container.names))]
        ones = [np.full(shape, k + 1, np.float32) for k in range(len(container.names))]
        same = [array.copy() for array in arrays]
        opt = fs.mpi.Sharded(case.cls, container.params(arrays), comm=COMM, **case.class_options)
        one = case.new(container.params(same))
        for _ in range(2):
            assert opt.step(container.grads(ones)) == one.step(container.grads(ones)), container
        assert tuple(opt.state) == container.names
        state = whole_state(opt, dict(zip(container.names, arrays, strict=True)))
        for k, name in enumerate(container.names):
            assert_same({"p": arrays[k], **state[name]}, {"p": same[k], **one.state[name]}, f"{container}: {name}")
        for group, other in zip(opt.param_groups, one.param_groups, strict=True):
            assert {**group, "params": 0} == {**other, "params": 0}


def buckets_only_bound_memory(folder: Path) -> None:
    """A step in many buckets has the same bits."""
    from fusedstep import _shards

    _shards._BUCKET = 1  # one element per bucket
    lanes_give_the_bits_of_one_process(folder)


def hyperparameters_may_change(folder: Path) -> None:
    case = FULLEST[0]
    params, same = parameters(), parameters()
    opt = fs.mpi.Sharded(case.cls, params, comm=COMM, **case.class_options)
    one = case.new(same)
    for changed in (opt, one):
        changed.lr = 0.125
    assert opt.lr == 0.125
    assert opt.param_groups[0]["lr"] == 0.125
    if COMM.size in (1, 2, 4):
        opt.step(gradients(0))
        one.step(gradients(0))
        assert_same(params, same, "lr changed")
    for action in (lambda: opt.no_such, lambda: setattr(opt, "lrr", 1.0)):
        with pytest.raises(AttributeError, match=r"lrr|no_such"):
            action()
    assert f"rank {COMM.rank} of {COMM.size}" in repr(opt)


# ------------------------------------------------------------------------------------------------- infinite, too large


def nonfinite_gradients(folder: Path) -> None:
    """All ranks see an inf or a NaN on one of them, and a square that overflows in one rank's elements."""
    for bad in (np.inf, np.nan, 1e30):
        params = parameters()
        opt = fs.mpi.Sharded(fs.RMSprop, params, comm=COMM)
        one = fs.RMSprop(same := parameters())
        grads = gradients(0)
        grads["w"][-1, -1] = bad  # all ranks have it, but its elements belong to one
        unchanged = Unchanged([*params.values(), *memory_of(opt)])
        report = opt.step(grads, nonfinite="skip")
        assert (report.skipped, report.nonfinite) == (True, ("w",))
        unchanged.check()
        with pytest.raises(FloatingPointError, match="'w'"):
            opt.step(grads, nonfinite="raise")
        unchanged.check()
        assert opt.steps == 0
        if COMM.size in (1, 2, 4):
            assert repr(opt.step(grads, clip_norm=1.0)) == repr(one.step(grads, clip_norm=1.0))
            assert_same(params, same, f"{bad}")


def norms_out_of_range(folder: Path) -> None:
    """The squares leave the range of double, in both directions."""
    for size in (1e200, 1e-200):
        params, same = {"x": np.ones(5000)}, {"x": np.ones(5000)}
        opt, one = fs.mpi.Sharded(fs.Adagrad, params, comm=COMM, lanes=LANES), fs.Adagrad(same)
        grads = {"x": np.linspace(1, 2, 5000) * size}
        for lane in opt.lanes:
            opt.add(lane, grads)
        report = opt.step(clip_norm=size)
        assert report == one.step(grads, clip_norm=size)
        assert np.isfinite(report.grad_norm)
        assert report.grad_norm > 0
        assert_same(params, same, f"{size}")


# --------------------------------------------------------------------------------------------------------- checkpoints


def trained(case: Case, steps: int) -> tuple[Any, dict[str, Array]]:
    params = parameters()
    opt = fs.mpi.Sharded(case.cls, params, comm=COMM, lanes=LANES, **case.class_options)
    go_on(opt, steps)
    return opt, params


def go_on(opt: Any, steps: int) -> None:
    for _ in range(steps):
        t = opt.steps + 1
        for lane in opt.lanes:
            opt.add(lane, gradients(LANES * t + lane))
        opt.step(loss=loss(t))


EXTRA = {"epoch": 3, "order": np.arange(4)}


def files(folder: Path) -> Iterator[tuple[Case, Path]]:
    for case in FULLEST:
        for ending in (".npz", ".safetensors"):
            yield case, folder / f"{case.rule}{ending}"


def save(folder: Path) -> None:
    for case, path in files(folder):
        opt, _ = trained(case, 2)
        opt.save(path if COMM.rank == 0 else "no such folder/ignored", extra=EXTRA)


def load_and_go_on(folder: Path) -> None:
    """Whoever saved the files, one more step equals that of an uninterrupted run."""
    for case, path in files(folder):
        through, expected = trained(case, 3)
        params = parameters(1)
        opt = fs.mpi.Sharded(case.cls, params, comm=COMM, lanes=LANES, **{**case.class_options, "lr": 5.0})
        if opt.lanes:
            opt.add(opt.lanes[0], gradients(0))  # the load drops it
        extra = opt.load(path)
        assert (extra["epoch"], list(extra["order"])) == (3, [0, 1, 2, 3])
        go_on(opt, 1)
        assert opt.steps == 3
        assert_same(params, expected, f"{path}")
        found, wanted = whole_state(opt, params), whole_state(through, params)
        for name in found:
            assert_same(found[name], wanted[name], f"{path}: {name}")


def one_process(folder: Path) -> None:
    """An ordinary optimizer saves the bytes that it loads from ranks, and goes on like them."""
    for case, path in files(folder):
        through, expected = trained(case, 3)
        one = case.new(params := parameters(1))
        extra = one.load(path)
        one.save(folder / f"again{path.suffix}", extra=extra)
        assert (folder / f"again{path.suffix}").read_bytes() == path.read_bytes()
        one.step(mean([gradients(LANES * 3 + lane) for lane in range(LANES)]), loss=loss(3))
        assert_same(params, expected, f"{path}")
        for name, states in through.state.items():
            flat = {key: array.reshape(-1) if array.ndim else array for key, array in one.state[name].items()}
            assert_same({key: piece.reshape(flat[key].shape) for key, piece in states.items()}, flat, f"{path}: {name}")


def load_what_fits(folder: Path) -> None:
    for case, path in files(folder):
        params, same = ({**parameters(1), "head": np.zeros(7), "w": np.zeros(3)} for _ in range(2))
        opt, one = fs.mpi.Sharded(case.cls, params, comm=COMM, **case.class_options), case.new(same)
        report, _ = opt.load(path, strict=False)
        assert report == one.load(path, strict=False)[0]
        assert set(report.fresh) == {"w", "head"}
        state = whole_state(opt, params)
        for name in params:
            assert_same({"p": params[name], **state[name]}, {"p": same[name], **one.state[name]}, f"{path}: {name}")


def load_version_1(folder: Path) -> None:
    """Load a file of 0.1.0 with states that must be computed and names of fields that have changed."""
    from data import make_version_1

    for name, (cls, options, container) in make_version_1.CASES.items():
        made = [make_version_1.CONTAINERS[container](np.zeros((2, 3)), np.zeros(4)) for _ in range(2)]
        opt = fs.mpi.Sharded(getattr(fs, cls), made[0], comm=COMM, **options)
        one = getattr(fs, cls)(made[1], **options)
        path = Path(make_version_1.__file__).parent / f"{name}.npz"
        opt.load(path)
        one.load(path)
        expected = dict(zip(one.state, (p for group in one.param_groups for p in group["params"]), strict=True))
        state = whole_state(opt, expected)
        assert opt.steps == one.steps
        for key, states in one.state.items():
            assert_same(state[key], states, f"{name}: {key}")


# ---------------------------------------------------------------------------------------------------------- docstrings


def docstrings(folder: Path) -> None:
    """Run the examples of the module here, because MPI must not start in the process that runs all tests."""
    import test_docstrings

    test_docstrings.MODULES[:] = ["fusedstep.mpi"]
    test_docstrings.PUBLIC.update(found := dict(test_docstrings.public()))
    assert "fusedstep.mpi.Sharded.step" in found
    for name in found:
        test_docstrings.test_docstrings_are_numpydocs(name)
        if name.startswith("fusedstep.mpi."):
            test_docstrings.test_examples_run(name)


# -------------------------------------------------------------------------------------------------------------- errors


def refused(folder: Path) -> None:
    """If one rank refuses, all raise the error of the lowest such rank, and nothing is written."""
    rank, last = COMM.rank, COMM.size - 1
    params = parameters()
    opt = fs.mpi.Sharded(fs.RMSprop, params, comm=COMM)
    laned = fs.mpi.Sharded(fs.RMSprop, other := parameters(), comm=COMM, lanes=LANES)
    opt.step(gradients(0))
    good = gradients(1)
    spoilt = gradients(1)

    def on_last(bad: Any, fine: Any) -> Any:
        return bad if rank == last else fine

    def make(params: Any = None, **options: Any) -> Any:
        return fs.mpi.Sharded(options.pop("cls", fs.RMSprop), parameters() if params is None else params, comm=COMM,
                              **options)  # fmt: skip

    def add_all(*lanes: int) -> Any:
        for lane in lanes:
            laned.add(lane, good)

    cases: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
        "shape": (lambda: opt.step({**good, "w": on_last(np.zeros(3, np.float32), good["w"])}), ValueError,
                  (f"rank {last}: ", "'w'", "(3,)")),
        "dtype": (lambda: opt.step({**good, "w": on_last(np.zeros((70, 50)), good["w"])}), TypeError,
                  (f"rank {last}: ", "'w'", "float64")),
        "name": (lambda: opt.step(on_last({"w": good["w"]}, good)), ValueError, (f"rank {last}: ", "'s'")),
        "rows": (lambda: opt.step({**good, "w": fs.Rows(np.array([1, 2]), np.ones((2, 50), np.float32))}), ValueError,
                 ("rank 0: ", "'w'", "rows")),
        "overlap": (lambda: opt.step({**good, "w": on_last(params["w"], good["w"])}), ValueError,
                    (f"rank {last}: ", "shares memory")),
        "clip_norm": (lambda: opt.step(good, clip_norm=-1.0), ValueError, ("rank 0: ", "clip_norm", "-1")),
        "zero_grads": (lambda: opt.step(good, zero_grads=1), TypeError, ("rank 0: ", "zero_grads")),
        "a bad hyperparameter": (lambda: with_lr(opt, -1.0, good), ValueError, ("rank 0: ", "lr", "-1")),
        "lanes that are missing": (lambda: laned.step(), ValueError, ("rank 0: ", "lane: 0 ", "add")),
        "lanes and gradients": (lambda: laned.step(good), ValueError, ("rank 0: ", "grads", "add")),
        "lanes and zero_grads": (lambda: laned.step(zero_grads=True), ValueError, ("rank 0: ", "zero_grads")),
        "a subset of lanes": (lambda: make(lanes=3), ValueError, ("rank 0: ", "lanes", "power of two", "3")),
        "no lanes": (lambda: make(lanes=0), ValueError, ("rank 0: ", "lanes", "0")),
        "lanes of a type": (lambda: make(lanes=4.0), TypeError, ("rank 0: ", "lanes", "float")),
        "reduce": (lambda: make(reduce="max"), ValueError, ("rank 0: ", "reduce", "max")),
        "verify": (lambda: make(verify="first"), ValueError, ("rank 0: ", "verify", "first")),
        "mask": (lambda: make([{"params": parameters(), "mask": np.zeros(1, bool)}]), ValueError, ("rank 0: ", "mask")),
        "an lr for each element": (lambda: make(lr=np.ones(1)), ValueError, ("rank 0: ", "lr", "array")),
        "an lr for each element, later": (lambda: with_lr(opt, np.ones(1), good), ValueError, ("lr", "array")),
        "cls": (lambda: make(cls=dict), TypeError, ("rank 0: ", "cls", "dict")),
        "an option": (lambda: make(lrr=1.0), TypeError, ("rank 0: ", "lrr")),
        "GRprop": (lambda: make(cls=fs.Rprop, variant="grprop-slr"), ValueError, ("rank 0: ", "rprop", "element")),
        "AdagradNorm by rows": (lambda: make(cls=fs.AdagradNorm, per="row"), ValueError, ("rank 0: ", "per", "'row'")),
        "a parameter": (lambda: make({"w": on_last(np.zeros(3, np.int64), np.zeros(3))}), TypeError,
                        (f"rank {last}: ", "'w'", "int64")),
        "a folder": (lambda: opt.save(folder / "no" / "x.npz"), FileNotFoundError, ("rank 0: ", "x.npz")),
        "extra": (lambda: opt.save(folder / "x.npz", extra=object()), TypeError, ("rank 0: ", "extra")),
        "a file": (lambda: opt.load(on_last(folder / "no.npz", folder / "there.npz")), FileNotFoundError,
                   (f"rank {last}: ", "no.npz")),
        "another's lane": (lambda: laned.add(-1, good), ValueError, ("lane", "opt.lanes", "-1")),
        "a lane of a type": (lambda: laned.add(1.0, good), TypeError, ("lane", "float")),
        "a lane that is there": (lambda: add_all(laned.lanes[0], laned.lanes[0]), ValueError, ("lane", "already")),
        "a lane without a parameter": (
            lambda: add_all() or laned.add(laned.lanes[-1], gradients(0, present=False)) or laned.step(),
            ValueError, ("'t'" if len(laned.lanes) > 1 else "already",)),
        "add without lanes": (lambda: opt.add(0, good), ValueError, ("add", "lanes")),
    }  # fmt: skip
    if COMM.size > 1:
        differ = ("on rank 0", f"on rank {last}")
        cases |= {
            "None": (lambda: opt.step({**good, "t": on_last(None, good["t"])}), ValueError, ("'t'", "None", *differ)),
            "loss": (lambda: opt.step(good, loss=on_last(1.0, 2.0)), ValueError, ("loss", "1.0", "2.0", *differ)),
            "options": (lambda: opt.step(good, clip_norm=on_last(1.0, None)), ValueError, ("clip_norm", *differ)),
            "hyperparameters": (lambda: with_lr(opt, on_last(0.5, 0.25), good), ValueError, ("lr", "0.5", *differ)),
            "values": (lambda: make(parameters(on_last(1, 0))), ValueError, ("hash of parameter 'w'", *differ)),
            "shapes": (lambda: make({"w": np.zeros(on_last(4, 5))}), ValueError, ("shape", "'w'", "(4,)", *differ)),
            "names": (lambda: make({on_last("w", "v"): np.zeros(4)}), ValueError, ("parameters", *differ)),
            "rules": (lambda: make(cls=on_last(fs.RMSprop, fs.Adagrad)), ValueError, ("cls", "Adagrad", *differ)),
            "numbers of lanes": (lambda: make(lanes=on_last(8, 4)), ValueError, ("lanes", "8", "4", *differ)),
            "fewer lanes than ranks": (lambda: make(lanes=1), ValueError, ("rank 0: ", "lanes", "1")),
        }  # fmt: skip
    if rank == 0:
        fs.RMSprop(parameters()).save(folder / "there.npz")
    COMM.Barrier()
    unchanged = Unchanged([*memory_of(opt, *params.values(), *other.values(), *good.values()), *memory_of(laned)])
    for name, (action, kind, texts) in cases.items():
        with pytest.raises(kind) as caught:
            action()
        assert all(part in str(caught.value) for part in texts), (name, caught.value)
        if texts[0].startswith("rank "):
            assert str(caught.value).startswith(texts[0]), (name, caught.value)
        unchanged.check()
        assert opt.steps == 1, name
    assert_same(good, spoilt, "gradients")
    opt.step(good)  # it goes on as if nothing had happened
    assert opt.steps == 2


def with_lr(opt: Any, lr: float, grads: Grads) -> None:
    before = opt.lr
    opt.param_groups[0]["lr"] = lr
    try:
        opt.step(grads)
    finally:
        opt.param_groups[0]["lr"] = before


def no_communicator(folder: Path) -> None:
    for comm, kind in ((None, TypeError), (MPI.COMM_NULL, ValueError), (MPI.GROUP_EMPTY, TypeError)):
        with pytest.raises(kind, match="comm"):
            fs.mpi.Sharded(fs.RMSprop, np.zeros(3), comm=comm)


def a_disk_that_fails(folder: Path) -> None:
    """Rank 0 fails between two states. The others do not wait for it, and the old file stays."""
    import resource

    opt, _ = trained(FULLEST[0], 1)
    path = folder / "full.npz"
    opt.save(path)
    before = path.read_bytes()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if COMM.rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match=r"^rank 0: "):
        opt.save(path)
    assert path.read_bytes() == before
    go_on(opt, 1)
    assert opt.steps == 2


def killed(folder: Path) -> None:
    """A rank ends in the middle of a step."""
    params = parameters()
    opt = fs.mpi.Sharded(fs.RMSprop, params, comm=COMM)
    (folder / f"ready {COMM.rank}").touch()
    for step in range(10**9):
        if COMM.rank == COMM.size - 1 and step == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        opt.step(gradients(0), clip_norm=1.0)


# --------------------------------------------------------------------------------------------------------------- costs


class Counting(MPI.Intracomm):
    """A communicator that counts the bytes for other ranks."""

    sent = 0
    small = 0

    def Ialltoallv(self, send: Any, receive: Any) -> Any:  # noqa: N802
        Counting.sent += sum(count for rank, count in enumerate(send[1]) if rank != self.rank)
        return super().Ialltoallv(send, receive)

    def Iallgatherv(self, send: Any, receive: Any) -> Any:  # noqa: N802
        Counting.sent += send[0].nbytes * (self.size - 1)
        return super().Iallgatherv(send, receive)

    def Allgather(self, send: Any, receive: Any) -> Any:  # noqa: N802
        Counting.small += send[0].nbytes
        return super().Allgather(send, receive)


def costs(folder: Path) -> None:
    """States and traffic are what sharding promises: a share of the blocks, and reduce-scatter with all-gather."""
    n, ranks = 100_000, COMM.size
    params = {"w": np.zeros(n, np.float32), "v": np.zeros((10, 3), np.float32)}
    comm = Counting(COMM)
    opt = fs.mpi.Sharded(fs.RMSprop, params, comm=comm)
    whole = sum(p.nbytes for p in params.values())
    held = opt.nbytes
    assert held == sum(array.nbytes for states in opt.state.values() for array in states.values())
    assert COMM.allreduce(held) == whole
    assert opt.parameters == params
    assert abs(held - whole / ranks) <= BLOCK * 4 * 2, held
    grads = {name: np.ones_like(p) for name, p in params.items()}
    Counting.sent = Counting.small = 0
    opt.step(grads)
    ideal = 2 * (ranks - 1) * whole  # all ranks together send each byte of gradient and parameter once
    assert COMM.allreduce(Counting.sent) == ideal
    assert Counting.small < 200
    Counting.sent = 0
    opt.step({name: grad.astype(np.float16) for name, grad in grads.items()})
    assert COMM.allreduce(Counting.sent) == ideal * 3 // 4


def main() -> None:
    scenario, folder = sys.argv[1:]
    try:
        globals()[scenario](Path(folder))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        COMM.Abort(1)


if __name__ == "__main__":
    main()
