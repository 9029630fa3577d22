"""Fuzz Python code that runs in the middle of a call: containers, keys, numbers and exporters that do mischief.

``python tests/fuzz/hostile.py [--seconds N] [--seed N] [--only N]``: each world has an optimizer and gradients. From
``__getitem__``, ``__eq__``, ``__len__``, ``__float__``, ``__dlpack__`` and others, these empty, shorten, swap, resize,
lock and release what the call is reading. A refused call must not change a
byte of parameters and states. A call that succeeds must have the bits of a clean step. The optimizer must work
afterwards, and nothing may crash. Run it with PYTHONMALLOC=debug and MALLOC_PERTURB_=85, or on a build with sanitizers,
to see uses of freed memory.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import dataclasses
import faulthandler
import gc
import numbers
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import fusedstep as fs

Array = np.ndarray[Any, Any]

RULES: tuple[tuple[Any, dict[str, Any]], ...] = (
    *((cls, {}) for cls in fs.Optimizer.__subclasses__()),
    (fs.RMSprop, {"centered": True, "momentum": 0.5}),
    (fs.Adagrad, {"lr_decay": 0.1}),
    (fs.Rprop, {"variant": "irprop+"}),
)
STORAGE: tuple[tuple[Any, dict[str, Any]], ...] = (
    *((np.float32, {}), (np.float64, {})) * 3,
    (np.float32, {"state_dtype": "bfloat16"}),
    (np.float16, {}),
    (ml_dtypes.bfloat16, {"rounding": "nearest"}),
    (ml_dtypes.bfloat16, {"master": True, "state_dtype": "bfloat16"}),
)
SHAPES = ((3,), (2, 5), (), (40, 30), (0,), (5000,))
ERRORS = (ZeroDivisionError, KeyError, AttributeError, IndexError, TypeError, MemoryError, StopIteration, BufferError)
REFUSALS = (*ERRORS, ValueError, RuntimeError, OverflowError, FloatingPointError)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass(eq=False)
class Fields:
    first: Any
    second: Any


class World:
    """An optimizer, the gradients of its next step, and everything that mischief can reach."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.lists: list[list[Any]] = []
        self.dicts: list[dict[Any, Any]] = []
        self.grads: list[Array] = []
        self.resizable: list[Array] = []  # nothing else may refer to their memory, which would dangle
        self.moved: set[int] = set()
        self.deeds: list[str] = []
        self.broken = self.stepped = False
        self.quiet = True
        self.left = rng.choice((1, 1, 2, 5, 20))
        dtype, storage = rng.choice(STORAGE)
        self.params = [np.full(rng.choice(SHAPES), 1.0 + k, dtype) for k in range(rng.choice((1, 2, 3, 6)))]
        self.value = rng.choice((-1.0, 0.5, 3.0))  # of all gradients, so that it does not matter which a call takes
        cls, options = rng.choice(RULES)
        self.tree = self.shape(list(range(len(self.params))))
        unnamed = isinstance(self.tree, list) and not any(isinstance(part, dict | tuple) for part in self.tree)
        grouped = unnamed and len(self.tree) > 1 and rng.random() < 0.6
        if grouped:
            given: Any = [{"params": self.build(part, self.params.__getitem__)} for part in self.tree]
        else:
            given = self.build(self.tree, self.params.__getitem__)
        self.optimizer = cls(given, **options, **storage)
        self.by_rows = rng.random() < 0.2 and np.dtype(dtype).itemsize > 2 and not storage
        self.loss = {"loss": 1.0} if options.get("variant") == "irprop+" else {}
        for _ in range(rng.choice((1, 3))):  # a following step without options is like the last one
            self.clean_step()

    # ------------------------------------------------------------------------------------------------------ containers

    def shape(self, leaves: list[int]) -> Any:
        """Return containers over some leaves: a number, a list, a dict, or a pair with fields."""
        if len(leaves) == 1 and self.rng.random() < 0.6:
            return leaves[0]
        if len(leaves) == 2 and self.rng.random() < 0.5:
            return (self.rng.choice((Pair, Fields)), *leaves)
        cut = self.rng.randrange(len(leaves))
        parts = [self.shape(part) for part in (leaves[:cut], leaves[cut:]) if part]
        if self.rng.random() < 0.5:
            return parts
        return {f"k{k}": part for k, part in enumerate(parts)}

    def build(self, tree: Any, leaf: Callable[[int], Any]) -> Any:
        if isinstance(tree, int):
            return leaf(tree)
        if isinstance(tree, list):
            return [self.build(part, leaf) for part in tree]
        if isinstance(tree, dict):
            return {key: self.build(part, leaf) for key, part in tree.items()}
        kind, *parts = tree
        return kind(*(self.build(part, leaf) for part in parts))

    def gradients(self) -> Any:
        """Return gradients in containers of which some do mischief."""
        return self.of_groups(self.gradient)

    def masks(self) -> tuple[Any, Any]:
        """Return masks in such containers, and in containers that do nothing."""
        moves = [np.array([self.rng.random() < 0.5 for _ in range(p.size)], bool).reshape(p.shape) for p in self.params]
        before, self.lists, self.dicts = (self.lists, self.dicts), [], []
        made = self.of_groups(moves.__getitem__)
        self.lists, self.dicts = before  # out of reach, because each mask is different
        return made, self.clean(self.optimizer, moves)

    def of_groups(self, leaf: Callable[[int], Any]) -> Any:
        if len(self.optimizer.param_groups) == 1:
            return self.hostile(self.tree, leaf)
        made = [self.hostile(part, leaf) for part in self.tree]
        self.lists.append(made)
        return made

    def hostile(self, tree: Any, leaf: Callable[[int], Any]) -> Any:
        if isinstance(tree, int):
            return leaf(tree)
        if isinstance(tree, list):
            made = self.rng.choice((list, HostileList))([self.hostile(part, leaf) for part in tree])
            if isinstance(made, HostileList):
                made.world = self
            self.lists.append(made)
            return made
        if isinstance(tree, dict):
            items: dict[Any, Any] = {}
            for name, part in tree.items():
                key = name
                if self.rng.random() < 0.4:
                    key = HostileKey(name)
                    key.world = self
                items[key] = self.hostile(part, leaf)
            kind = self.rng.randrange(4)
            if kind < 2:
                self.dicts.append(items)
                return HostileMapping(self, items) if kind else items
            made_dict = (HostileDict, collections.OrderedDict)[kind - 2](items)
            made_dict.world = self
            self.dicts.append(made_dict)
            return made_dict
        kind, *parts = tree
        values = [self.hostile(part, leaf) for part in parts]
        if kind is Fields and self.rng.random() < 0.6:
            fields = HostileFields(*values)
            fields.__dict__["world"] = self
            return fields
        return kind(*values)

    def gradient(self, index: int) -> Any:
        array = np.full_like(self.params[index], self.value)
        if self.by_rows and array.ndim:
            rows = np.array(self.rng.sample(range(len(array)), len(array)), np.int64)
            return fs.Rows(self.disguise(rows), self.disguise(array))
        return self.disguise(array)

    def disguise(self, array: Array) -> Any:
        self.grads.append(array)
        kind = self.rng.randrange(6)
        if kind == 0:
            return Exporter(self, array)
        if kind == 1:
            view = array.view(Subclass)
            view.world = self
            return view
        if kind == 2 and array.size and array.ndim and array.dtype != ml_dtypes.bfloat16:  # bfloat16 has no memoryview
            return memoryview(array)
        self.resizable.append(array)
        return array

    # -------------------------------------------------------------------------------------------------------- mischief

    def mischief(self) -> None:
        if self.quiet or self.left <= 0 or self.rng.random() < 0.4:
            return
        self.left -= 1
        with contextlib.suppress(ValueError, RuntimeError) if self.rng.random() < 0.9 else contextlib.nullcontext():
            deed = self.rng.choice(MISCHIEF)
            self.deeds.append(deed.__name__)
            deed(self)
        if self.rng.random() < 0.02:
            gc.collect()
        junk = [np.full(self.rng.choice((3, 10, 1200, 5000)), np.nan) for _ in range(3)]
        del junk

    def some_list(self) -> list[Any]:
        return self.rng.choice(self.lists) if self.lists else []

    def some_dict(self) -> dict[Any, Any]:
        return self.rng.choice(self.dicts) if self.dicts else {}

    # ------------------------------------------------------------------------------------------------------------ steps

    def clean_step(self, optimizer: Any = None, **options: Any) -> Any:
        optimizer = self.optimizer if optimizer is None else optimizer
        grads = [np.full_like(p, self.value) for p in self.params]
        return optimizer.step(self.clean(optimizer, grads), **{**self.loss, **options})

    def clean(self, optimizer: Any, grads: list[Array]) -> Any:
        if len(optimizer.param_groups) > 1:
            return [self.build(part, grads.__getitem__) for part in self.tree]
        return self.build(self.tree, grads.__getitem__)

    def memory(self, optimizer: Any = None) -> list[Array]:
        optimizer = self.optimizer if optimizer is None else optimizer
        return [*optimizer.parameters.values(), *(a for own in optimizer.state.values() for a in own.values())]

    def options(self) -> dict[str, Any]:
        plain: dict[str, Any] = dict.fromkeys(self.loss, 2.0)
        if self.rng.random() < 0.4:
            return plain
        for name, value in (("grad_scale", 2.0), ("clip_norm", 1.5), ("clip_value", 0.75)):
            if self.rng.random() < 0.3:
                plain[name] = value
        if self.rng.random() < 0.3:
            plain["nonfinite"] = "raise"
        if self.rng.random() < 0.3:
            plain["zero_grads"] = True
        return plain

    def disguised(self, options: dict[str, Any]) -> dict[str, Any]:
        given = dict(options)
        for name, value in options.items():
            if type(value) is float and self.rng.random() < 0.5:
                given[name] = HostileNumber(value, self)
        return given


# ------------------------------------------------------------------------------------------------------ what does it


def watched(base: Any, *names: str) -> Any:
    """Return a class whose methods of these names first let the world do mischief."""

    def before(name: str) -> Any:
        def method(self: Any, *arguments: Any) -> Any:
            self.world.mischief()
            return getattr(base, name)(self, *arguments)

        return method

    return type(f"Hostile{base.__name__}", (base,), {"world": None, **{name: before(name) for name in names}})


class Missing(dict[Any, Any]):
    def __missing__(self, key: Any) -> Any:
        raise KeyError(key)


HostileList = watched(list, "__getitem__", "__len__", "__iter__")
HostileDict = watched(Missing, "__getitem__", "__missing__", "__len__")


class HostileMapping(Mapping[Any, Any]):
    def __init__(self, world: World, items: dict[Any, Any]) -> None:
        self.world, self.items_ = world, items

    def __getitem__(self, key: Any) -> Any:
        self.world.mischief()
        found = self.items_[key]
        self.world.mischief()
        return found

    def __iter__(self) -> Iterator[Any]:
        self.world.mischief()
        return iter(self.items_)

    def __len__(self) -> int:
        self.world.mischief()
        return len(self.items_)


class HostileKey(str):
    world: Any
    __slots__ = ("world",)

    def __eq__(self, other: object) -> bool:
        self.world.mischief()
        return str.__eq__(self, str(other))

    def __hash__(self) -> int:
        if hasattr(self, "world"):
            self.world.mischief()
        return str.__hash__(self)


class HostileFields(Fields):
    def __getattribute__(self, name: str) -> Any:
        world = object.__getattribute__(self, "__dict__").get("world")
        if world is not None:
            world.mischief()
        return object.__getattribute__(self, name)


class HostileNumber:
    """A real number. It is no float, because the value of a float would be read without asking it."""

    def __init__(self, value: Any, world: World) -> None:
        self.value: float = plain(value)
        self.world = world

    def __float__(self) -> float:
        self.world.mischief()
        return self.value

    def __eq__(self, other: object) -> bool:
        self.world.mischief()
        return self.value == plain(other)

    def __hash__(self) -> int:
        return hash(self.value)


numbers.Real.register(HostileNumber)


def plain(number: Any) -> Any:
    return number.value if isinstance(number, HostileNumber) else number


class Subclass(np.ndarray[Any, Any]):
    world: Any = None

    def __array_finalize__(self, of: Any) -> None:
        world = getattr(of, "world", None)
        if world is not None:
            world.mischief()

    def __getattribute__(self, name: str) -> Any:
        if name != "world" and self.world is not None:
            self.world.mischief()
        return super().__getattribute__(name)


class Exporter:
    def __init__(self, world: World, array: Array) -> None:
        self.world, self.array = world, array

    def __dlpack_device__(self) -> Any:
        self.world.mischief()
        return 1, 0

    def __dlpack__(self, **options: Any) -> Any:
        self.world.mischief()
        capsule = self.array.__dlpack__(**options)
        self.world.mischief()
        if self.world.rng.random() < 0.03:
            return self.world.rng.choice((None, 7, self.array))
        return capsule


# ------------------------------------------------------------------------------------------------------- what is done


def swaps(items: list[Any]) -> None:
    """Replace entries by other arrays with the same numbers; nobody else holds the old ones."""
    for k in range(list.__len__(items)):
        old = list.__getitem__(items, k)
        if type(old) is np.ndarray:
            list.__setitem__(items, k, old.copy())


def swaps_in_dict(world: World) -> None:
    items = world.some_dict()
    for key, old in list(dict.items(items)):
        if type(old) is np.ndarray:
            dict.__setitem__(items, key, old.copy())


def replaces(world: World) -> None:
    items = world.some_list()
    if list.__len__(items):
        wrong = world.rng.choice((np.ones(17), "text", 1j, [], {}, object(), np.ones(3, np.int32)))
        list.__setitem__(items, world.rng.randrange(list.__len__(items)), wrong)


def pops_from_dict(world: World) -> None:
    items = world.some_dict()
    for key in list(dict.keys(items))[:1]:
        dict.pop(items, key)


def resizes_gradient(world: World) -> None:
    if world.resizable:
        array = world.rng.choice(world.resizable)
        array.resize(world.rng.choice(((0,), (1,), (100_000,))), refcheck=False)
        world.resizable.clear()  # or index and values of rows would fit each other again


def resizes_parameter(world: World) -> None:
    index = world.rng.randrange(len(world.params))
    world.moved.add(index)
    world.broken = True
    world.params[index].resize((100_001,), refcheck=False)


def locks_gradient(world: World) -> None:
    if world.grads:
        world.rng.choice(world.grads).setflags(write=False)


def locks_parameter(world: World) -> None:
    world.broken = True
    world.rng.choice(world.params).setflags(write=False)


def breaks_groups(world: World) -> None:
    world.broken = True
    groups = world.optimizer.param_groups
    group = groups[0] if groups else {}
    deeds = (groups.clear, groups.reverse, group.clear, lambda: group.pop("lr", None))
    world.rng.choice((*deeds, lambda: groups.__setitem__(0, dict(groups[0]))))()


def sets_lr_again(world: World) -> None:
    for group in world.optimizer.param_groups:
        if "lr" in group:
            group["lr"] = HostileNumber(group["lr"], world)


def steps_inside(world: World) -> None:
    """Step inside a step: refused while the optimizer is in its step; before that, a step like any other."""
    world.clean_step()
    world.stepped = True


def reads_all(world: World) -> None:
    world.rng.choice(
        (world.optimizer.state_dict, lambda: copy.deepcopy(world.optimizer), lambda: repr(world.optimizer))
    )()


def adds_group(world: World) -> None:
    world.optimizer.add_param_group({"params": np.ones(2)})
    world.broken = True


def raises(world: World) -> None:
    raise world.rng.choice(ERRORS)


def forgets(world: World) -> None:
    for found in (world.lists, world.dicts, world.grads, world.resizable):
        found.clear()


MISCHIEF: tuple[Callable[[World], None], ...] = (
    lambda world: swaps(world.some_list()),
    lambda world: swaps(world.some_list()),
    lambda world: list.clear(world.some_list()),
    lambda world: list.reverse(world.some_list()),
    lambda world: list.append(world.some_list(), np.ones(3)),
    lambda world: list.extend(world.some_list(), ["more"] * 100),
    lambda world: dict.clear(world.some_dict()),
    lambda world: world.some_dict().update({f"more{k}": k for k in range(50)}),
    swaps_in_dict, replaces, pops_from_dict, resizes_gradient, resizes_gradient, resizes_parameter, locks_gradient,
    locks_parameter, breaks_groups, breaks_groups, sets_lr_again, steps_inside, reads_all, adds_group, raises, forgets,
)  # fmt: skip


def same(a: list[Array], b: list[Array]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True)
    )


def one_step(world: World) -> bool:
    """Make a hostile step, check the result, and return whether it succeeded."""
    optimizer, options = world.optimizer, world.options()
    before = [array.copy() for array in world.memory()]
    states = [array for by_name in optimizer.state.values() for array in by_name.values()]
    live = [*world.params, *states]
    order = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in order] == [id(p) for p in world.params], "parameters in another order"
    expected = copy.deepcopy(optimizer)
    steps = optimizer.state_dict()["step"]
    given = world.disguised(options)
    if world.rng.random() < 0.2:
        given["mask"], options["mask"] = world.masks()
    world.clean_step(expected, **options)
    wanted = world.memory(expected)
    grads = world.gradients()
    if world.rng.random() < 0.2:
        sets_lr_again(world)
    world.quiet = False
    try:
        optimizer.step(grads, **given)
        done = True
    except REFUSALS:
        done = False
    finally:
        world.quiet = True
    del grads
    if world.stepped:
        return done
    for k, array in enumerate(live):
        if k in world.moved:
            continue
        right = (wanted if done else before)[k]
        assert array.tobytes() == right.tobytes(), (
            f"{'done' if done else 'refused'} with {given} after {world.deeds}: array {k} is {array}, not {right}"
        )
    if done:
        assert not world.moved, "a parameter that had moved was updated"
    if not world.broken:
        for group in optimizer.param_groups:
            group["lr"] = plain(group["lr"])
        assert world.clean_step().step == steps + done + 1
        again = world.clean_step(expected) if done else None
        assert again is None or same(world.memory(), world.memory(expected)), "the next step differs"
    return done


def one_function(world: World) -> bool:
    """Call a function whose numbers and exporters move its arrays."""
    n = world.rng.choice((3, 5000))
    arrays = {name: np.full(n, value) for name, value in (("param", 1.0), ("grad", 0.5), ("square_sum", 2.0))}
    before = {name: array.copy() for name, array in arrays.items()}
    wanted = {name: array.copy() for name, array in arrays.items()}
    fs.reference.adagrad_(**wanted, lr=0.25)
    number = HostileNumber(0.25, world)
    given: dict[str, Any] = {name: world.rng.choice((array, Exporter(world, array))) for name, array in arrays.items()}
    world.resizable = [array for array in given.values() if isinstance(array, np.ndarray)]
    world.quiet = False
    try:
        fs.adagrad_(**given, lr=number)
        done = True
    except REFUSALS:
        done = False
    finally:
        world.quiet = True
    for name, array in arrays.items():
        if array.shape == (n,):
            assert array.tobytes() == (wanted if done else before)[name].tobytes(), name
        else:
            assert not done, f"{name} had moved, and was updated"
    return done


def one_construction(world: World) -> bool:
    """Make an optimizer from hostile containers."""
    given = world.gradients()
    before = [array.copy() for array in world.grads]
    live = list(world.grads)
    world.quiet = False
    try:
        made = fs.Adagrad(given)
    except REFUSALS:
        return False
    finally:
        world.quiet = True
        for array, one in zip(live, before, strict=True):
            assert array.shape != one.shape or array.tobytes() == one.tobytes(), "a constructor wrote"
    with contextlib.suppress(*REFUSALS):
        made.step([np.ones(p.shape, p.dtype) for group in made.param_groups for p in group["params"]])
    return True


def run(seed: int, number: int) -> bool:
    rng = random.Random(f"{seed} {number}")
    world = World(rng)
    kind = rng.random()
    if kind < 0.1:
        return one_function(world)
    if kind < 0.2:
        return one_construction(world)
    return one_step(world)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="one world, by its number")
    arguments = parser.parse_args()
    faulthandler.enable()
    end = time.monotonic() + arguments.seconds
    counts = [0, 0]
    number = 0 if arguments.only is None else arguments.only
    while True:
        try:
            counts[run(arguments.seed, number)] += 1
        except BaseException:
            print(f"world {number} of seed {arguments.seed}", file=sys.stderr)
            raise
        number += 1
        if arguments.only is not None or time.monotonic() > end:
            break
    print(f"{sum(counts)} worlds: {counts[0]} calls refused, {counts[1]} done")


if __name__ == "__main__":
    main()
