"""A step or a call like the last one is checked as thoroughly as the first: changes in between are seen.

Each change is made to two optimizers with the same arrays. One has made the same step several times, the other has not.
"""

from __future__ import annotations

import copy
import itertools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import Mirror, Unchanged, difference, make_problem
from registry import CASES, PER_ROW, STORED, Array, Case

SIZES = (16, 3, 5000)
"""Of the parameters: the last one is large enough that steps let other threads run."""


ANEW: dict[str, Any] = {"clip_value": 1e30}
"""Options that change no bit of an ordinary step, which is then made in full."""


class World:
    """An optimizer with the arguments of its steps."""

    def __init__(self, sizes: tuple[int, ...] = SIZES, rule: str = "RMSprop", **options: Any) -> None:
        self.memory = [np.linspace(0.5, 2, 2 * n, dtype=np.float32) for n in sizes]
        self.params = [memory[: len(memory) // 2] for memory in self.memory]
        self.grads: list[Any] = [np.linspace(-1, 1, n, dtype=np.float32) for n in sizes]
        self.opt = getattr(fs, rule)(self.params, lr=0.01, **options)

    @property
    def group(self) -> dict[str, Any]:
        return self.opt.param_groups[0]

    def values(self) -> list[Array]:
        return [*self.memory, *(state for each in self.opt.state.values() for state in each.values())]


def outcome(step: Callable[[], Any]) -> tuple[str, str]:
    try:
        step()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def of_first(change: Callable[[Any], Any]) -> Callable[[World], None]:
    """Return what replaces the first gradient."""
    return lambda world: world.grads.__setitem__(0, change(world.grads[0]))


def changed_in_place(array: Array, attribute: str, value: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since NumPy 2.5
        setattr(array, attribute, value)


class Number(float):
    """A number of a foreign type, whose value is asked for in each step."""

    def __float__(self) -> float:
        return 0.125


def a_state(world: World, name: str) -> Array:
    return next(iter(world.opt.state[name].values()))  # type: ignore[no-any-return]


Change = Callable[[World], Any]
FINE: dict[str, Change] = {
    "moved": lambda world: setattr(world, "grads", [grad.copy() for grad in world.grads]),
    "moved in a tuple": lambda world: setattr(world, "grads", tuple(grad.copy() for grad in world.grads)),
    "strided": of_first(lambda grad: np.repeat(grad, 2)[::2]),
    "reversed": of_first(lambda grad: grad[::-1]),
    "without one": of_first(lambda grad: None),
    "read-only": lambda world: world.grads[0].setflags(write=False),
    "other lr": lambda world: world.group.update(lr=0.5),
    "other lr by the attribute": lambda world: setattr(world.opt, "lr", 0.25),
    "decay": lambda world: world.group.update(weight_decay=0.5),
    "ascent": lambda world: world.group.update(maximize=True),
    "a number of one's own": lambda world: world.group.update(lr=Number(7.0)),
    "reordered dict": lambda world: world.group.update(lr=world.group.pop("lr")),
}
REFUSED: dict[str, Change] = {
    "the last element of a parameter": lambda world: world.grads.__setitem__(0, world.memory[2][4999:5015]),
    "in a parameter": lambda world: world.grads.__setitem__(1, world.params[0][5:8]),
    "in a state": lambda world: world.grads.__setitem__(1, a_state(world, "0")[2:5]),
    "of another type": of_first(lambda grad: grad.astype(">f8")),
    "of other bytes": of_first(lambda grad: grad.astype(">f4")),
    "misaligned": of_first(lambda grad: np.zeros(65, np.uint8)[1:].view(np.float32)),
    "masked": of_first(lambda grad: np.ma.masked_array(grad, mask=False)),
    "longer": of_first(lambda grad: np.zeros(17, np.float32)),
    "of another shape": of_first(lambda grad: grad.reshape(4, 4)),
    "no array": of_first(lambda grad: grad.tolist()),
    "one too few": lambda world: world.grads.pop(),
    "one too many": lambda world: world.grads.append(world.grads[0]),
    "a parameter locked": lambda world: world.params[1].setflags(write=False),
    "a parameter reshaped": lambda world: changed_in_place(world.params[0], "shape", (4, 4)),
    "a parameter of another type": lambda world: changed_in_place(world.params[0], "dtype", np.int32),
    "a state locked": lambda world: a_state(world, "1").setflags(write=False),
    "no number": lambda world: world.group.update(lr=float("nan")),
    "negative": lambda world: world.group.update(lr=-1.0),
    "a text": lambda world: world.group.update(lr="0.1"),
    "an option lost": lambda world: world.group.pop("weight_decay"),
    "an option more": lambda world: world.group.update(learning_rate=0.1),
    "an option renamed": lambda world: world.group.update(learning_rate=world.group.pop("lr")),
    "other members": lambda world: world.group.update(params=tuple(world.params[:1])),
    "another group": lambda world: world.opt.param_groups.__setitem__(0, dict(world.group)),
    "no group": lambda world: world.opt.param_groups.clear(),
}


@pytest.mark.parametrize("sizes", [SIZES, (*SIZES[:2], 30)], ids=["large", "small"])
@pytest.mark.parametrize("change", FINE)
def test_what_may_change(change: str, sizes: tuple[int, ...]) -> None:
    """Steps go on like those of an optimizer that never repeats one, twice after the change."""
    ours, theirs = World(sizes), World(sizes)
    for k in range(7):
        if k == 4:
            FINE[change](ours)
            FINE[change](theirs)
        report = ours.opt.step(ours.grads)
        expected = theirs.opt.step(theirs.grads, **ANEW)
        assert (report.step, report.grad_norm, report.skipped) == (expected.step, None, False)
    for found, right in zip(ours.values(), theirs.values(), strict=True):
        assert not difference(found, right)


@pytest.mark.parametrize("change", REFUSED)
def test_what_may_not(change: str) -> None:
    """Raise the usual error, write nothing, and raise it again at the next try."""
    ours, theirs = World(), World()
    for _ in range(4):
        ours.opt.step(ours.grads)
    theirs.opt.step(theirs.grads, **ANEW)
    REFUSED[change](ours)
    REFUSED[change](theirs)
    before = Unchanged(ours.values())
    error = outcome(lambda: theirs.opt.step(theirs.grads, **ANEW))
    assert error[0] in ("TypeError", "ValueError"), error
    for _ in range(2):
        assert outcome(lambda: ours.opt.step(ours.grads)) == error
    before.check(change)


@pytest.mark.parametrize("case", [*CASES, *PER_ROW, *STORED[::23]], ids=str)
def test_each_rule(case: Case) -> None:
    """Steps with the same gradients, with others at other addresses, without one, and with another lr."""
    made = [make_problem(case, np.dtype(np.float32), shape) for shape in ((4, 4), (7, 3))]
    params = {str(k): problem.values.param.copy() for k, problem in enumerate(made)}
    opt, mirror = case.new(list(params.values())), Mirror(case, params)
    given: dict[str, Any] = {}
    for t in range(1, 9):
        if t % 3 == 1:
            given = {str(k): problem.values.grads[t // 3].copy() for k, problem in enumerate(made)}
        if t == 6:
            given["0"] = None
        if t == 8 and "lr" not in opt._schema.starting:
            opt.lr = 0.02
            mirror.options = {name: {"lr": 0.02} for name in params}
        options = case.loss(t)
        opt.step(list(given.values()), **options)
        mirror.step(given, **options)
    mirror.assert_like(opt, params, str(case))


def test_a_report_that_is_held_stays() -> None:
    world = World()
    held = [world.opt.step(world.grads) for _ in range(5)]
    for _ in range(3):
        world.opt.step(world.grads)
    assert [report.step for report in held] == [1, 2, 3, 4, 5]
    assert world.opt.step(world.grads).step == world.opt.steps == 9


def test_instruction_sets_and_copies() -> None:
    """A step after ``use_isa`` uses that instruction set. Copies are independent."""
    world, other = World(), World()
    for isa in [*fs.available_isas(), *fs.available_isas()]:
        with fs.use_isa(isa):
            world.opt.step(world.grads)
        other.opt.step(other.grads, **ANEW)
    for lr, isa in itertools.product((0.1, 0.2), fs.available_isas()):
        for each, options in ((world, {}), (other, ANEW)):
            each.opt.step(each.grads, **options)
            with fs.use_isa(isa):
                each.opt.lr = lr
                each.opt.step(each.grads, **options)
            each.opt.step(each.grads, **options)
    twin, handle = copy.deepcopy(world.opt), copy.copy(world.opt)
    before = Unchanged(world.values())
    for _ in range(3):
        twin.step(world.grads)
    before.check("the copy has arrays of its own")
    handle.add_param_group({"params": np.zeros(2, np.float32)})
    for _ in range(3):
        world.opt.step([world.grads, np.ones(2, np.float32)])
        other.opt.step(other.grads, **ANEW)
    for found, right in zip(world.memory, other.memory, strict=True):
        assert not difference(found, right)


@pytest.mark.parametrize("verify", ["never", "every"])
def test_another_thread_is_refused(verify: str) -> None:
    """While one thread steps a large array, a step of another thread is refused, or comes before or after it. No step
    comes between a verified step and its snapshot."""
    world = World((2_000_000 if verify == "never" else 50_000,), verify=verify)
    world.opt.step(world.grads)
    outcomes: list[str] = []

    def loop() -> None:
        outcomes.extend(outcome(lambda: world.opt.step(world.grads))[0] for _ in range(20))

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) <= {"", "RuntimeError"}
    assert world.opt.steps == 1 + outcomes.count("")


def test_calls_of_a_function_that_are_written_alike() -> None:
    """Each call does what the reference does, whatever was called before: options by value, names and arrays vary."""
    rng = np.random.default_rng(0)
    for k in range(300):
        dtype = (np.float32, np.float64)[k % 2]
        shape = ((16,), (3, 4), ())[k % 3]
        param, grad, state = (rng.random(shape).astype(dtype) for _ in range(3))
        if k % 7 == 0 and shape:
            param = np.repeat(param, 2, -1)[..., ::2]
        options: dict[str, Any] = {"lr": (0.1, 0.2, rng.random())[k % 5 % 3], "eps": (1e-8, 1e-3)[k % 4 // 2]}
        if k % 11 == 0:
            options |= {"weight_decay": 0.5, "maximize": True}
        expected = [param.copy(), state.copy()]
        fs.reference.rmsprop_(expected[0], grad, expected[1], **options)
        with fs.use_isa(fs.available_isas()[k % len(fs.available_isas())]):
            fs.rmsprop_(param, grad, state, **options)
        assert not difference(param, expected[0]), (k, options)
        assert not difference(state, expected[1]), (k, options)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p, g, v: (p, p, v), lambda p, g, v: (p, g, p), lambda p, g, v: (p, v[1:], v[:-1]),
        lambda p, g, v: (p, g[:-1], v),
        lambda p, g, v: (p, g.astype(">f4"), v), lambda p, g, v: (p, g, np.broadcast_to(v[:1], v.shape)),
        lambda p, g, v: (np.ma.masked_array(p), g, v),
        lambda p, g, v: (p.tolist(), g, v), lambda p, g, v: (p[:15], v[1:], v[:15]),
    ],
)  # fmt: skip
def test_a_call_that_is_written_alike_with_wrong_arrays(wrong: Callable[..., Any]) -> None:
    p, g, v = (np.full(16, x, np.float32) for x in (1, 2, 3))
    call: Callable[..., None] = lambda *arrays: fs.rmsprop_(*arrays, lr=0.1)  # noqa: E731
    for _ in range(3):
        call(p, g, v)
    before = Unchanged([p, g, v])
    with pytest.raises((TypeError, ValueError)):
        fs.rmsprop_(*wrong(p, g, v), lr=0.1)
    with pytest.raises(ValueError, match="temporary"):
        fs.rmsprop_(p.copy(), g, v, lr=0.1)
    before.check()


def test_an_option_that_is_mutable_is_read_in_each_call() -> None:
    p, g, v = (np.full(16, x, np.float32) for x in (1, 2, 3))
    lr = np.array(0.1)
    q, w = p.copy(), v.copy()
    for value in (0.1, 0.1, 0.4, 0.4):
        lr[...] = value
        fs.rmsprop_(p, g, v, lr=lr[()])
        fs.reference.rmsprop_(q, g, w, lr=value)
    etas = [0.5, 1.2]
    d, s = np.full(16, 0.1, np.float32), np.zeros(16, np.int8)
    e, t = d.copy(), s.copy()
    for value in (1.2, 1.2, 1.5, 1.5):
        etas[1] = value
        fs.rprop_(p, g, d, s, etas=etas)  # type: ignore[arg-type]
        fs.reference.rprop_(q, g, e, t, etas=(0.5, value))
    assert not difference(p, q)
    assert not difference(d, e)
