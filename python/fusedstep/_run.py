"""A run: parameters with their names, groups and states, and the core that updates them.

Optimizers, checkpoints and verification stand on this. None of the parameters are copied.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import repeat
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from . import _core, _storage
from ._hints import did_you_mean
from ._mask import frozen_in, without_frozen
from ._rows import Rows
from ._schema import SCHEMAS, Schema
from ._tree import Leaves, entries, filled, no_params, parse, parse_all, split

Array = NDArray[Any]
Call = Callable[[], object]

_KEPT = ("name", "_defaults", "groups", "members", "trees", "grouped", "masked", "_unnamed")
_COUNTED = ("seed", "steps", "counts", "last_loss")
"""Attributes of a run and of its core that a copy has, too."""


class LoadReport(NamedTuple):
    """The names of parameters in a partial load.

    Attributes
    ----------
    loaded : tuple of str
        Parameters that were loaded, with their states.
    fresh : tuple of str
        The other parameters of this optimizer: they keep their values, and their states start anew.
    unused : tuple of str
        The other parameters of the checkpoint.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> old, new = fs.RMSprop({"w": np.zeros(3)}), fs.RMSprop({"w": np.zeros(3), "b": np.zeros(2)})
    >>> report = new.load_state_dict(old.state_dict(), strict=False)
    >>> report.loaded, report.fresh
    (('w',), ('b',))
    """

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


class StepOptions(NamedTuple):
    """The options of a step, in the core's order."""

    loss: float | None = None
    grad_scale: float | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    zero_grads: bool = False
    nonfinite: str = "propagate"
    clip_norm_each: float | None = None


def in_one_call(calls: Iterable[Call]) -> Call:
    """Return one call into C that makes all these calls: Ctrl-C comes before or after it if they run no Python code."""
    return partial(deque, map(operator.call, calls), 0)


class Members(NamedTuple):
    """The parameters of a group, and what is fixed about them."""

    names: list[str]
    params: tuple[Array, ...]
    begun: dict[str, Any]
    """Arguments that are where states started, and are no options."""
    storage: dict[str, Any]
    """How arrays are stored, as arguments of the core's ``add_group``."""
    mask: Any
    """Which elements are updated: an array of bool, or None for all."""


class Masked(NamedTuple):
    """What a step with a mask takes besides gradients, in the core's order: for each parameter an array or None."""

    frozen: list[Array | None]
    """True where an element stays as it is."""
    zeroed: list[Array | None]
    """The caller's own gradients that are set to 0 after the step, where it gets copies."""


class Run:
    """Everything in an optimizer except its class."""

    def __init__(self, schema: Schema, params: Any, options: Mapping[str, Any], name: str, seed: int = 0) -> None:
        self._begin(schema, name)
        self.core.seed = seed
        self._defaults = {**schema.arguments, **_storage.DEFAULTS, **options}
        groups, self.grouped = entries(params)
        for leaves, (_, own) in zip(parse_all(members for members, _ in groups), groups, strict=True):
            in_one_call(self._adding(leaves, own))()
        if not self.params:
            raise ValueError("params: expected at least one array, got none")
        self._bind()

    def _begin(self, schema: Schema, name: str) -> None:
        self.schema = schema
        self.name = name
        """What error messages and checkpoints call the optimizer."""
        self.core = _core.OptimizerCore(schema.rule)
        """Does the steps. Used as a context manager, it keeps other threads out."""
        self._params: dict[str, Array] = {}
        self._state: dict[str, Mapping[str, Array]] = {}
        self.params = MappingProxyType(self._params)
        self.state = MappingProxyType(self._state)
        """The array, and the states by name, of each parameter. Both are read-only and live."""
        self.groups: list[dict[str, Any]] = []
        """The optimizer's ``param_groups``."""
        self.members: list[Members] = []
        """What is fixed about each group."""
        self.trees: list[Any] = []
        """The containers of each group's parameters."""
        self.grouped = False
        """Whether gradients come in groups."""
        self.starts: list[tuple[dict[str, Any], str, Any]] = []
        """Options of the groups at which states started, where a later change is without effect."""
        self.masked = False
        """Whether a group has a mask."""
        self._unnamed = 0

    # -------------------------------------------------------------------------------------------------------- groups

    def add_group(self, group: Any) -> None:
        """Add a group of parameters; an error leaves everything as it was."""
        if not isinstance(group, Mapping):
            raise TypeError(f"param_group: expected a dict with 'params', got {type(group).__name__}")
        if "params" not in group:
            raise TypeError(no_params("param_group", group))
        self.check_groups()
        members, own = split(group)
        leaves = parse(members, self.params, len(self.params), self._unnamed)
        if not leaves.names:
            raise ValueError("param_group: expected at least one array, got none")
        in_one_call(
            [
                *self._adding(leaves, own),
                partial(setattr, self, "grouped", True),
                partial(self.core.set_tree, self.trees),
                partial(self.core.own, self.groups, True),
            ]
        )()

    def _adding(self, leaves: Leaves, own: dict[str, Any]) -> list[Call]:
        """Check a group; return the calls that add it, of which only the first may fail."""
        mask = own.pop("mask", None)
        for key in own:
            if key not in self._defaults:
                raise TypeError(f"param_groups[{len(self.groups)}]: {self._unknown(key)}")
        options = {**self._defaults, **own}
        storage = _storage.checked(options)
        arguments = {key: options[key] for key in self.schema.arguments}
        place = len(self.groups) or -1
        arrays = [  # what is no array itself may make another one each time
            array if type(array) is np.ndarray else _core.check_parameter(array, name, place, **storage)
            for name, array in zip(leaves.names, leaves.arrays, strict=True)
        ]
        for name, array in zip(leaves.names, arrays, strict=True) if mask is not None else ():
            frozen_in(name, array, [mask])
        states: list[dict[str, Array]] = [{} for _ in arrays]
        group = {"params": tuple(arrays), **{key: options[key] for key in self.schema.options}}
        begun = {key: options[key] for key in self.schema.arguments if key not in self.schema.options}
        calls: list[Call] = [
            partial(self.core.add_group, leaves.names, arrays, arguments, into=states, **storage),
            partial(self._params.update, zip(leaves.names, arrays, strict=True)),
            partial(self._state.update, zip(leaves.names, map(MappingProxyType, states), strict=True)),
            partial(self.trees.append, leaves.tree),
            partial(self.groups.append, group),
            partial(self.members.append, Members(leaves.names, group["params"], begun, storage, mask)),
            partial(self.starts.extend, self._starts_of([group])),
            partial(setattr, self, "masked", self.masked or mask is not None),
            partial(setattr, self, "_unnamed", leaves.unnamed),
        ]
        for key, state in self.schema.starting.items():
            if isinstance(start := arguments[key], np.ndarray):
                live = map(operator.itemgetter(state), states)
                calls.append(partial(deque, map(np.ndarray.__setitem__, live, repeat(...), repeat(start)), 0))
        return calls

    def _bind(self) -> None:
        plain = not (self.grouped or self.masked)
        self.core.set_tree(self.trees if self.grouped else self.trees[0], plain)
        self.core.own(self.groups, False)

    def _unknown(self, key: object) -> str:
        known = [*self.schema.arguments, *_storage.DEFAULTS]
        return f"unknown hyperparameter {key!r}{did_you_mean(key, known)}; {self.name} has {', '.join(sorted(known))}"

    # ----------------------------------------------------------------------------------------------- hyperparameters

    def check_groups(self) -> None:
        """Raise ValueError unless the groups are those that the optimizer was made with."""
        if len(self.groups) != len(self.members):
            raise ValueError(
                f"param_groups: expected the list of {len(self.members)} groups that the optimizer was made with, "
                f"got {len(self.groups)}"
            )
        for index, (group, members) in enumerate(zip(self.groups, self.members, strict=True)):
            if not isinstance(group, dict) or group.get("params") is not members.params:
                raise ValueError(f"param_groups[{index}]: expected the group that the optimizer was made with")

    def checked(self, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the hyperparameters of ``group`` as plain values, checked as in a step of the group ``index``."""
        schema = self.schema
        if missing := [key for key in schema.options if key not in group]:
            raise ValueError(f"expected a value for {missing[0]!r}, got none")
        if unknown := [key for key in group if key not in schema.options and key != "params"]:
            raise TypeError(self._unknown(unknown[0]))
        values = {key: group[key] for key in schema.options}
        self.core.check_options(index, values)
        return {key: schema.plain(key, value) for key, value in values.items()}

    def get(self, key: str) -> Any:
        """Return the value of a hyperparameter that all groups share."""
        self.check_groups()
        values = [group[key] for group in self.groups]
        if not all(_same(value, values[0]) for value in values):
            raise ValueError(
                f"{key}: the groups differ ({', '.join(map(repr, values))}); read param_groups[k][{key!r}]"
            )
        return values[0]

    def set(self, key: str, value: Any) -> None:
        """Set a hyperparameter in all groups, or in none if one of them can't take it."""
        self.check_groups()
        for index, group in enumerate(self.groups):
            changed = {**group, key: value}
            self.checked(index, changed)
            if key in self.schema.starting and not _decays_decoupled(changed):
                raise AttributeError(f"{key}: {self._only_a_start(key)}")
        for group in self.groups:
            group[key] = value

    def _starts_of(self, groups: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str, Any]]:
        """Return the present values of ``schema.starting`` as those that the states started with."""
        return [(group, key, _kept(group[key])) for group in groups for key in self.schema.starting]

    def check_starts(self) -> None:
        """Raise ValueError if a value at which a group's states started was changed."""
        for group, key, value in self.starts:
            now = group.get(key, value)
            if _same(now, value) or _decays_decoupled(group):
                continue
            its = group.get("params")
            index = next(k for k, each in enumerate(self.members) if its is None or each.params is its)
            self.core.check_options(index, {key: now})
            raise ValueError(
                f"param_groups[{index}]: {key} was changed from {value!r} to {now!r}; {self._only_a_start(key)}"
            )

    def _only_a_start(self, key: str) -> str:
        state = self.schema.starting[key]
        return (
            f"{self.name} uses it only to start {state}, so a change has no effect (except with decoupled weight "
            f'decay); change opt.state[name]["{state}"] instead'
        )

    # --------------------------------------------------------------------------------------------------------- steps

    def contained(self, grads: Iterable[Any]) -> Any:
        """Return gradients, or values and index of ``Rows``, in the containers of the parameters."""
        leaves = iter([Rows(grad[1], grad[0]) if isinstance(grad, tuple) else grad for grad in grads])
        trees = [filled(tree, leaves) for tree in self.trees]
        return trees if self.grouped else trees[0]

    def step(self, grads: Any, options: StepOptions, masked: Masked | None = None) -> _core.StepReport:
        """Take a step, in one call into C."""
        return self.core.step(grads, self.groups, *options, *(masked or ()))

    def masked_gradients(self, grads: Any, mask: Any, zero_grads: bool) -> tuple[Any, Masked]:
        """Return gradients with 0 where they are frozen, for norms and GRprop's choice, and what else a step needs."""
        own = self.core.gradients(grads, zero_grads)
        frozen = self._frozen(mask)
        given = list(map(without_frozen, own, frozen))
        pairs = zip(own, given, strict=True)
        copied = [_values(grad) if zero_grads and grad is not copy else None for grad, copy in pairs]
        return self.contained(given), Masked(frozen, copied)

    def _frozen(self, mask: Any) -> list[Array | None]:
        """Return for each parameter where the mask of a step, or of its group, freezes it; None without a mask."""
        given: dict[str, Any] = dict.fromkeys(self.params)
        if mask is not None:
            if self.grouped and (not isinstance(mask, list | tuple) or len(mask) != len(self.trees)):
                raise TypeError(f"mask: expected a list with one entry for each of the {len(self.trees)} groups")
            given = {}
            for leaves in parse_all(mask if self.grouped else [mask]):
                given |= zip(leaves.names, leaves.arrays, strict=True)
            if given.keys() != self.params.keys():
                raise ValueError(f"mask: expected one for each of {list(self.params)}, got those of {list(given)}")
        return [
            frozen_in(name, self.params[name], [each for each in (given[name], group.mask) if each is not None])
            for group in self.members
            for name in group.names
        ]

    def sync_master(self, name: str | None) -> None:
        """Set the low halves of a master parameter, or of all, to 0."""
        masters = {each: i for i, each in enumerate(self._params) if "param_low" in self._state[each]}
        if name is not None and name not in masters:
            raise ValueError(f"sync_master: expected a parameter with master=True, got {name!r}")
        for i in masters.values() if name is None else [masters[name]]:
            self.core.sync_master(i)

    def keys(self) -> list[int | None]:
        """Return the key of each parameter's noise in the next step; None where it is rounded to nearest."""
        counts = iter(self.core.counts)
        return [
            None if group.storage["nearest"] else _core.noise_key(self.core.seed, count + 1, name)
            for group in self.members
            for name, count in zip(group.names, counts, strict=False)
        ]

    # -------------------------------------------------------------------------------------------------------- copies

    def parts(self) -> dict[str, Any]:
        """Return the parts of the run, with its live arrays, for ``from_parts``."""
        with self.core:
            self.check_groups()
            self.core.check_states(written=False)
            return {
                "rule": self.schema.rule,
                "starts": [value for _, _, value in self.starts],
                "state": {name: dict(states) for name, states in self._state.items()},
                "own": {key: getattr(self, key) for key in _KEPT},
                "core": {key: getattr(self.core, key) for key in _COUNTED},
            }

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Self:
        """Make a run from a copy of ``parts()``, with its own states."""
        run = cls.__new__(cls)
        run._begin(SCHEMAS[parts["rule"]], parts["own"]["name"])
        vars(run).update(parts["own"])
        for k, (group, members) in enumerate(zip(run.groups, run.members, strict=True)):
            names, storage = members.names, members.storage
            saved = [parts["state"][name] for name in names]
            options = run._options_with(saved[0] if saved else {}, group)
            group["params"] = tuple(map(_usable, group["params"]))
            run.members[k] = members._replace(params=group["params"])
            arrays, states = run.core.add_group(names, list(group["params"]), options, **storage)
            for live, values in zip(states, saved, strict=True):
                for key, array in live.items():
                    np.copyto(array, values[key])
            run._params.update(zip(names, arrays, strict=True))
            run._state.update(zip(names, map(MappingProxyType, states), strict=True))
        run._bind()
        starts = run._starts_of(run.groups)
        run.starts = [(*start[:2], value) for start, value in zip(starts, parts["starts"], strict=True)]
        for key, value in parts["core"].items():
            setattr(run.core, key, value)
        return run

    def _options_with(self, states: Collection[str], group: Mapping[str, Any]) -> dict[str, Any]:
        """Return hyperparameters that make the core allocate just these states, of the group's shapes."""
        options = {}
        for name, state in self.schema.states.items():
            if (switch := state["per_row_with"]) is not None:
                options[switch] = group[switch]
            if (switch := state["used_with"]) is not None:
                on, off = (True, False) if self.schema.fields[switch]["kind"] == "flag" else (1.0, 0.0)
                options[switch] = on if name in states else off
        return options


def _values(grad: Any) -> Any:
    return grad[0] if isinstance(grad, tuple) else grad


def _usable(array: Array) -> Array:
    """Return an array that was unpickled, or a copy if it lies in memory of a message or file that can't be used."""
    if array.flags.writeable and array.flags.aligned:
        return array
    return np.array(array, order="K", subok=not isinstance(array, np.memmap))  # a copy in memory is no map of a file


def _kept(value: Any) -> Any:
    """Return a value that stays as it is now: of an array, which may be changed, a copy."""
    return value.copy() if isinstance(value, np.ndarray) else value


def _same(a: Any, b: Any) -> bool:
    """Whether two values of a hyperparameter are the same, or equal; either may be, or have, an array."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b or bool(a == b)


def _decays_decoupled(group: Mapping[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay")) and group.get("weight_decay", 0.0) != 0
