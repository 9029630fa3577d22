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
from registry import CASES, PER_ROW, STORED, Case, loss

Array = np.ndarray[Any, Any]

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


def moved(world: World) -> None:
    world.grads = [grad.copy() for grad in world.grads]


def moved_in_a_tuple(world: World) -> None:
    world.grads = tuple(grad.copy() for grad in world.grads)  # type: ignore[assignment]


def strided(world: World) -> None:
    world.grads[0] = np.repeat(world.grads[0], 2)[::2]


def reversed_gradient(world: World) -> None:
    world.grads[1] = world.grads[1][::-1]


def without_one(world: World) -> None:
    world.grads[1] = None


def read_only_gradient(world: World) -> None:
    world.grads[0].flags.writeable = False


def other_lr(world: World) -> None:
    world.group["lr"] = 0.5


def other_lr_in_place(world: World) -> None:
    world.opt.lr = 0.25


def decay(world: World) -> None:
    world.group["weight_decay"] = 0.5


def ascent(world: World) -> None:
    world.group["maximize"] = True


class Number(float):
    """A number of a foreign type, whose value is asked for in each step."""

    def __float__(self) -> float:
        return 0.125


def own_number(world: World) -> None:
    world.group["lr"] = Number(7.0)


def reordered_dict(world: World) -> None:
    world.group["lr"] = world.group.pop("lr")


FINE = [
    moved, moved_in_a_tuple, strided, reversed_gradient, without_one, read_only_gradient, other_lr, other_lr_in_place,
    decay, ascent, own_number, reordered_dict,
]  # fmt: skip


def at_an_end_of_a_parameter(world: World) -> None:
    world.grads[0] = world.memory[2][4999:5015]  # its first element is the parameter's last


def in_a_parameter(world: World) -> None:
    world.grads[1] = world.params[0][5:8]


def in_a_state(world: World) -> None:
    world.grads[1] = next(iter(world.opt.state["0"].values()))[2:5]


def of_another_type(world: World) -> None:
    world.grads[0] = world.grads[0].astype(np.float64).astype(">f8")


def of_other_bytes(world: World) -> None:
    world.grads[0] = world.grads[0].astype(">f4")


def misaligned(world: World) -> None:
    world.grads[0] = np.zeros(65, np.uint8)[1:].view(np.float32)


def masked(world: World) -> None:
    world.grads[0] = np.ma.masked_array(world.grads[0], mask=False)


def longer(world: World) -> None:
    world.grads[0] = np.zeros(17, np.float32)


def another_shape(world: World) -> None:
    world.grads[0] = world.grads[0].reshape(4, 4)


def one_too_few(world: World) -> None:
    world.grads.pop()


def one_too_many(world: World) -> None:
    world.grads.append(world.grads[0])


def no_array(world: World) -> None:
    world.grads[0] = world.grads[0].tolist()


def locked_parameter(world: World) -> None:
    world.params[1].flags.writeable = False


def changed_in_place(array: Array, attribute: str, value: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since NumPy 2.5
        setattr(array, attribute, value)


def reshaped_parameter(world: World) -> None:
    changed_in_place(world.params[0], "shape", (4, 4))


def retyped_parameter(world: World) -> None:
    changed_in_place(world.params[0], "dtype", np.int32)


def locked_state(world: World) -> None:
    next(iter(world.opt.state["1"].values())).flags.writeable = False


def not_a_number(world: World) -> None:
    world.group["lr"] = float("nan")


def negative(world: World) -> None:
    world.group["lr"] = -1.0


def text(world: World) -> None:
    world.group["lr"] = "0.1"


def lost_option(world: World) -> None:
    del world.group["weight_decay"]


def further_option(world: World) -> None:
    world.group["learning_rate"] = 0.1


def renamed_option(world: World) -> None:
    world.group["learning_rate"] = world.group.pop("lr")


def other_members(world: World) -> None:
    world.group["params"] = tuple(world.params[:1])


def another_group(world: World) -> None:
    world.opt.param_groups[0] = dict(world.group)


def no_group(world: World) -> None:
    world.opt.param_groups.clear()


REFUSED = [
    at_an_end_of_a_parameter, in_a_parameter, in_a_state, of_another_type, of_other_bytes, misaligned, masked, longer,
    another_shape, one_too_few, one_too_many, no_array, locked_parameter, reshaped_parameter, retyped_parameter,
    locked_state, not_a_number, negative, text, lost_option, further_option, renamed_option, other_members,
    another_group, no_group,
]  # fmt: skip


@pytest.mark.parametrize("sizes", [SIZES, (*SIZES[:2], 30)], ids=["large", "small"])
@pytest.mark.parametrize("change", FINE, ids=lambda change: change.__name__)
def test_what_may_change(change: Callable[[World], None], sizes: tuple[int, ...]) -> None:
    """Steps go on like those of an optimizer that never repeats one, twice after the change."""
    ours, theirs = World(sizes), World(sizes)
    for k in range(7):
        if k == 4:
            change(ours)
            change(theirs)
        report = ours.opt.step(ours.grads)
        expected = theirs.opt.step(theirs.grads, **ANEW)
        assert (report.step, report.grad_norm, report.skipped) == (expected.step, None, False)
    for found, right in zip(ours.values(), theirs.values(), strict=True):
        assert not difference(found, right)


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_may_not(change: Callable[[World], None]) -> None:
    """Raise the usual error, write nothing, and raise it again at the next try."""
    ours, theirs = World(), World()
    for _ in range(4):
        ours.opt.step(ours.grads)
    theirs.opt.step(theirs.grads, **ANEW)
    change(ours)
    change(theirs)
    before = Unchanged(ours.values())
    error = outcome(lambda: theirs.opt.step(theirs.grads, **ANEW))
    assert error[0] in ("TypeError", "ValueError"), error
    for _ in range(2):
        assert outcome(lambda: ours.opt.step(ours.grads)) == error
    before.check(change.__name__)


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
        options = {"loss": loss(t)} if case.needs_loss else {}
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


def test_rprop_only_starts_with_its_lr() -> None:
    world = World(rule="Rprop")
    for _ in range(3):
        world.opt.step(world.grads)
    world.group["lr"] = 0.5
    with pytest.raises(ValueError, match="lr was changed"):
        world.opt.step(world.grads)


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
