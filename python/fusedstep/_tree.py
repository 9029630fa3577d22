"""Parameters come in nested containers: the names of their leaves, and the groups they form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Group", "Params", "parse", "ungrouped"]


@dataclass
class Group:
    names: list[str] = field(default_factory=list)
    arrays: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Params:
    groups: list[Group]
    tree: Any
    """The containers of ``params``, with a running number in place of each leaf; a list of them where grouped."""
    grouped: bool


def parse(params: Any) -> Params:
    """Find the leaves of ``params``: an array, nested containers of arrays, or a list of groups."""
    grouped = (
        isinstance(params, list | tuple)
        and len(params) > 0
        and all(isinstance(item, Mapping) and "params" in item for item in params)
    )
    entries = params if grouped else [{"params": params}]
    groups: list[Group] = []
    trees: list[Any] = []
    names: set[str] = set()
    count = 0  # leaves so far: the next one's number
    unnamed = 0  # entries of the outer sequences so far: groups of sequences are numbered through

    def leaf(group: Group, name: str, value: Any) -> int:
        nonlocal count
        if name in names:
            raise ValueError(f"params: two parameters are called {name!r}; give them different names")
        names.add(name)
        group.names.append(name)
        group.arrays.append(value)
        count += 1
        return count - 1

    def walk(group: Group, value: Any, path: str, first: int = 0) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(group, child, f"{path}{key}.") for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [walk(group, child, f"{path}{first + i}.") for i, child in enumerate(value)]
        return leaf(group, path.removesuffix(".") or str(first), value)

    for entry in entries:
        group = Group(options={key: value for key, value in entry.items() if key != "params"})
        members = entry["params"]
        trees.append(walk(group, members, "", unnamed))
        if not isinstance(members, Mapping):
            unnamed += len(members) if isinstance(members, list | tuple) else 1
        groups.append(group)
    if count == 0:
        raise ValueError("params: expected at least one array, got none")
    return Params(groups, trees if grouped else trees[0], grouped)


def ungrouped(grads: Any, tree: list[Any], leaves: int) -> Any:
    """Return the gradients of grouped parameters as a list with the containers of each group.

    They come as such a list, as a list of ``{"params": ...}``, or as one flat list of all leaves.
    """
    if not isinstance(grads, list | tuple):
        raise TypeError(
            f"grads: expected a list with one entry for each of the {len(tree)} groups, or for each of the {leaves} "
            f"parameters, got {type(grads).__name__}"
        )
    if len(grads) == leaves and not any(isinstance(grad, Mapping | list | tuple) for grad in grads):
        flat = iter(grads)
        return [_filled(group, flat) for group in tree]
    return [grad["params"] if isinstance(grad, Mapping) and set(grad) == {"params"} else grad for grad in grads]


def _filled(tree: Any, leaves: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _filled(child, leaves) for key, child in tree.items()}
    if isinstance(tree, list):
        return [_filled(child, leaves) for child in tree]
    return next(leaves)
