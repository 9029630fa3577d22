"""Parameters come in nested containers: find the leaves, name them, and keep the shape of the containers."""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MappingView, Set
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ._hints import did_you_mean

_KEEPERS = (dict, list, tuple, OrderedDict, defaultdict)
"""Containers that return the same object each time it is read."""


def is_masked(value: Any) -> bool:
    """Whether it is an array of ``numpy.ma``, which is not imported for this: who has such an array has imported it."""
    return "numpy.ma" in sys.modules and isinstance(value, sys.modules["numpy.ma"].MaskedArray)


class Leaves(NamedTuple):
    """The arrays in the containers of one group.

    The tree is what ``OptimizerCore.set_tree`` takes: a running number for each leaf, a list for a list or a tuple, a
    dict for a mapping, and ``("fields", type or None, {name: child})`` for a NamedTuple, a dataclass or an attrs class.
    """

    tree: Any
    names: list[str]
    arrays: list[Any]
    unnamed: int
    """How many numbers are in use for entries of outermost sequences, which have no other name."""


def entries(params: Any) -> tuple[list[tuple[Any, dict[str, Any]]], bool]:
    """Return members and options of each group of ``params``, and whether it is a list of groups."""
    if isinstance(params, list | tuple) and params and all(isinstance(e, Mapping) for e in params):
        if all("params" in e for e in params):
            return list(map(split, params)), True
        for index, group in enumerate(params):
            if "params" not in group and _has_options(group):
                raise TypeError(no_params(f"params[{index}]", group))
    elif isinstance(params, Mapping) and "params" in params and _has_options(params):
        raise TypeError("params: expected a list of groups, got one group; pass [group]")
    return [(params, {})], False


def split(group: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the members of a group, and its options."""
    return group["params"], {key: value for key, value in group.items() if key != "params"}


def _has_options(group: Mapping[Any, Any]) -> bool:
    """Whether a mapping has values that can be options of a group, but no parameters."""
    return any(isinstance(value, int | float | str) for value in group.values())


def no_params(where: str, group: Mapping[Any, Any]) -> str:
    """Return what is wrong with a group that has no ``params``."""
    hint = next(filter(None, (did_you_mean(key, ["params"]) for key in group)), "")
    return f"{where}: expected a group with 'params', got the keys {', '.join(map(repr, group))}{hint}"


def parse(members: Any, taken: Collection[str] = (), first: int = 0, unnamed: int = 0) -> Leaves:
    """Find the leaves of containers; names in use, the first leaf's number and that of unnamed ones are given."""
    walker = _Walker(taken, first)
    tree = walker.walk(members, "", unnamed)
    unnamed += 1 if isinstance(tree, int) else len(tree) if isinstance(tree, list) else 0
    return Leaves(tree, list(walker.found), list(walker.found.values()), unnamed)


def parse_all(members: Iterable[Any]) -> Iterator[Leaves]:
    """Find the leaves of each group, whose names and numbers continue those before."""
    taken: dict[str, None] = {}
    unnamed = 0
    for each in members:
        leaves = parse(each, taken, len(taken), unnamed)
        taken |= dict.fromkeys(leaves.names)
        unnamed = leaves.unnamed
        yield leaves


class _Walker:
    def __init__(self, taken: Collection[str], first: int) -> None:
        self._taken = taken
        self._first = first
        self.found: dict[str, Any] = {}

    def walk(self, value: Any, path: str, first: int = 0) -> Any:
        """Return the tree of ``value``; entries of a sequence are counted from ``first``."""
        if isinstance(value, Mapping):
            return {key: self._child(value, value.__getitem__, key, f"{path}{key}.") for key in value}
        if names := _field_names(value):
            kind = type(value) if isinstance(value, tuple) else None
            read = lambda name: getattr(value, name)  # noqa: E731
            return "fields", kind, {name: self._child(value, read, name, f"{path}{name}.") for name in names}
        if isinstance(value, list | tuple):
            read = value.__getitem__
            return [self._child(value, read, i, f"{path}{first + i}.") for i in range(len(value))]
        return self._leaf(path.removesuffix(".") or str(first), value)

    def _child(self, container: Any, read: Callable[[Any], Any], key: Any, path: str) -> Any:
        child = read(key)
        before = len(self.found)
        tree = self.walk(child, path)
        if type(container) not in _KEEPERS and (again := read(key)) is not child:
            other = _Walker((), 0)
            other.walk(again, path)
            pairs = zip(list(self.found.values())[before:], other.found.values(), strict=False)
            if not all(_same_memory(a, b) for a, b in pairs):
                kind = type(container).__name__
                raise TypeError(
                    f"params: {path.removesuffix('.')!r} of this {kind} is another array each time it is read, so its "
                    f"updates would be lost; assign to a dict first, as in params = dict(...), and pass the dict"
                )
        return tree

    def _leaf(self, name: str, value: Any) -> int:
        if isinstance(value, Iterator | MappingView | Set):
            raise TypeError(
                f"params: expected a numpy.ndarray, or containers of them (list, tuple, NamedTuple, mapping, "
                f"dataclass, attrs class), got {type(value).__name__}; pass a list or a dict"
            )
        if name in self.found or name in self._taken:
            raise ValueError(f"params: two parameters are called {name!r}; give them different names")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"params: the name {name!r} has a lone surrogate; rename it") from None
        self.found[name] = value
        return self._first + len(self.found) - 1


def _field_names(value: Any) -> tuple[str, ...]:
    """Return the names of the fields of a NamedTuple, a dataclass or an attrs class; empty for anything else."""
    kind = type(value)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return tuple(kind._fields)
    if hasattr(kind, "__dlpack__") or isinstance(value, np.ndarray):
        return ()
    if hasattr(kind, "__dataclass_fields__"):
        import dataclasses

        return tuple(field.name for field in dataclasses.fields(value))
    return tuple(field.name for field in getattr(kind, "__attrs_attrs__", ()))


def is_container(value: Any) -> bool:
    """Whether ``value`` holds other values: a mapping, a sequence, or an object with fields."""
    return isinstance(value, Mapping | list | tuple) or bool(_field_names(value))


def _same_memory(a: Any, b: Any) -> bool:
    """Whether two objects are the same array; true for anything but arrays, which is refused elsewhere."""
    a, b = _array(a), _array(b)
    if a is None or b is None:
        return True
    return bool(a.ctypes.data == b.ctypes.data and a.shape == b.shape and a.strides == b.strides)


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(memoryview(value))
    except (TypeError, ValueError, BufferError, RuntimeError):
        return None


def ungrouped(grads: Any, trees: list[Any], leaves: int) -> Any:
    """Return a list of containers, given as such, as a list of ``{"params": ...}``, or as one flat list of leaves."""
    if not isinstance(grads, list | tuple):
        raise TypeError(
            f"grads: expected a list with one entry for each of the {len(trees)} groups, or for each of the {leaves} "
            f"parameters, got {type(grads).__name__}"
        )
    if len(grads) == leaves and not any(map(is_container, grads)):
        flat = iter(grads)
        return [filled(tree, flat) for tree in trees]
    return [grad["params"] if isinstance(grad, Mapping) and set(grad) == {"params"} else grad for grad in grads]


def numbered_names(trees: list[Any]) -> list[str]:
    """Return the names of all leaves as checkpoints of 0.1.0 have them: fields of NamedTuples by number."""
    names: list[str] = []

    def walk(tree: Any, path: str, first: int = 0) -> int:
        """Name the leaves; return how many numbers an outermost tree takes."""
        if isinstance(tree, tuple):
            _, kind, children = tree
            tree = children if kind is None else list(children.values())
        if isinstance(tree, int):
            names.append(path.removesuffix(".") or str(first))
            return 1
        for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree, first):
            walk(child, f"{path}{key}.")
        return len(tree) if isinstance(tree, list) else 0

    unnamed = 0
    for tree in trees:
        unnamed += walk(tree, "", unnamed)
    return names


def filled(tree: Any, leaves: Iterator[Any]) -> Any:
    """Return the containers of a tree with these leaves in them."""
    if isinstance(tree, int):
        return next(leaves)
    if isinstance(tree, dict):
        return {key: filled(child, leaves) for key, child in tree.items()}
    if isinstance(tree, list):
        return [filled(child, leaves) for child in tree]
    _, kind, children = tree
    values = {name: filled(child, leaves) for name, child in children.items()}
    return SimpleNamespace(**values) if kind is None else tuple.__new__(kind, values.values())
