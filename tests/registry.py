"""The one registry that drives the tests.

Rules with their options, layouts, lengths, values, containers, step options, bad arrays, bad hyperparameters, overlaps.
A new rule, dialect or option is a new entry here; the tests run over all entries.
"""

from __future__ import annotations

import array as std_array
import collections
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

import fusedstep as fs

Array = NDArray[Any]
Shape = tuple[int, ...]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
ISAS = tuple(fs.available_isas())
THREADS = (1, 2, 3)
STEPS = 5

# ------------------------------------------------------------------------------------------------------------ the rules


@dataclass(frozen=True)
class State:
    """An array of state: its name, and where the class form starts it."""

    name: str
    start: float = 0.0
    negative: bool = True
    """Whether it can be negative in an ordinary run."""
    sign: bool = False
    """Whether it is an int8 of -1, 0 or 1; otherwise it has the parameter's type."""
    scalar: bool = False
    """Whether it is one number for the whole array; otherwise it has the parameter's shape."""

    def shape(self, param: Shape) -> Shape:
        return () if self.scalar else param

    def dtype(self, param: np.dtype[Any]) -> np.dtype[Any]:
        return np.dtype(np.int8) if self.sign else param


# A parameter with its states by name, its gradient, and the options of the reference.
Member = tuple[Mapping[str, Array], Array, Mapping[str, Any]]


def _nothing(t: int, rose: bool) -> dict[str, Any]:
    return {}


def _alone(members: list[Member]) -> list[dict[str, Any]]:
    return [{} for _ in members]


@dataclass(frozen=True, eq=False)
class Case:
    """A rule with options: its functional form, its class, and what the reference is called with."""

    name: str
    rule: str
    class_name: str
    states: tuple[State, ...]
    options: Mapping[str, Any]
    """Of the functional form and of the reference."""
    class_options: Mapping[str, Any]
    at_step: Callable[[int, bool], dict[str, Any]] = _nothing
    """More options of the functional form, at update ``t`` of a parameter, by whether the loss rose."""
    reference_at_step: Callable[[int, bool], dict[str, Any]] = _nothing
    """More options of the reference alone: the functional form can't say what the class does."""
    across: Callable[[list[Member]], list[dict[str, Any]]] = _alone
    """More options of the reference for each parameter of a list, where it depends on the others."""
    needs_loss: bool = False

    @property
    def function_name(self) -> str:
        return f"{self.rule}_"

    @property
    def has_function(self) -> bool:
        return self.reference_at_step is _nothing

    @property
    def cls(self) -> Any:
        return getattr(fs, self.class_name)

    def new(self, params: Any, **changed: Any) -> Any:
        """Make an optimizer."""
        return self.cls(params, **{**self.class_options, **changed})

    def call(self, arrays: Mapping[str, Array], t: int = 1, **changed: Any) -> None:
        """Call the functional form: ``arrays`` are ``param``, ``grad`` and the states by name."""
        getattr(fs, self.function_name)(**arrays, **{**self.options, **self.at_step(t, rose(t)), **changed})

    def __repr__(self) -> str:
        return self.name


def loss(t: int) -> float:
    """A loss that rises at even steps and falls at odd ones."""
    return 10.0 + (-1) ** t * t


def rose(t: int) -> bool:
    return t > 1 and loss(t) > loss(t - 1)


def rmsprop(
    name: str,
    *,
    centered: bool = False,
    bias_correction: bool = False,
    initial_square_avg: float = 0.0,
    lr: float = 0.01,
    **options: Any,
) -> Case:
    states = [State("square_avg", initial_square_avg, negative=False)]
    of_class: dict[str, Any] = {}
    if centered:
        states.append(State("grad_avg"))
        of_class["centered"] = True
    if options.get("momentum", 0.0) != 0.0:
        states.append(State("momentum_buffer"))
    if bias_correction:
        of_class["bias_correction"] = True
    if initial_square_avg != 0.0:
        of_class["initial_square_avg"] = initial_square_avg
    return Case(
        name=f"rmsprop-{name}",
        rule="rmsprop",
        class_name="RMSprop",
        states=tuple(states),
        options={"lr": lr, **options},
        class_options={"lr": lr, **options, **of_class},
        at_step=(lambda t, rose: {"step": t}) if bias_correction else _nothing,
    )


def _start(initial_accumulator_value: float, default: float) -> dict[str, float]:
    return {} if initial_accumulator_value == default else {"initial_accumulator_value": initial_accumulator_value}


def adagrad(
    name: str, *, lr_decay: float = 0.0, initial_accumulator_value: float = 0.0, lr: float = 0.01, **options: Any
) -> Case:
    decay = {"lr_decay": lr_decay} if lr_decay != 0.0 else {}
    return Case(
        name=f"adagrad-{name}",
        rule="adagrad",
        class_name="Adagrad",
        states=(State("square_sum", initial_accumulator_value, negative=False),),
        options={"lr": lr, **options},
        class_options={"lr": lr, **options, **decay, **_start(initial_accumulator_value, 0.0)},
        reference_at_step=(lambda t, rose: {**decay, "step": t}) if decay else _nothing,
    )


def proximal_adagrad(name: str, *, initial_accumulator_value: float = 0.1, lr: float = 0.01, **options: Any) -> Case:
    return Case(
        name=f"proximal_adagrad-{name}",
        rule="proximal_adagrad",
        class_name="ProximalAdagrad",
        states=(State("square_sum", initial_accumulator_value, negative=False),),
        options={"lr": lr, **options},
        class_options={"lr": lr, **options, **_start(initial_accumulator_value, 0.1)},
    )


def adagrad_da(name: str, *, initial_accumulator_value: float = 0.1, lr: float = 0.01, **options: Any) -> Case:
    return Case(
        name=f"adagrad_da-{name}",
        rule="adagrad_da",
        class_name="AdagradDA",
        states=(State("grad_sum"), State("square_sum", initial_accumulator_value, negative=False)),
        options={"lr": lr, **options},
        class_options={"lr": lr, **options, **_start(initial_accumulator_value, 0.1)},
        at_step=lambda t, rose: {"step": t},
    )


def adagrad_norm(name: str, *, initial_accumulator_value: float = 0.0, lr: float = 0.01, **options: Any) -> Case:
    return Case(
        name=f"adagrad_norm-{name}",
        rule="adagrad_norm",
        class_name="AdagradNorm",
        states=(State("square_sum", initial_accumulator_value, negative=False, scalar=True),),
        options={"lr": lr, **options},
        class_options={"lr": lr, **options, **_start(initial_accumulator_value, 0.0)},
    )


def _grprop_choice(members: list[Member]) -> list[dict[str, Any]]:
    defaults = {"etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)}
    chosen = fs.reference.grprop_choice(
        [(own["param"], g, own["step_size"], own["prev_sign"], {**defaults, **rest}) for own, g, rest in members]
    )
    return [{"chosen": each} for each in chosen]


def rprop(name: str, *, lr: float = 0.01, **options: Any) -> Case:
    variant = options.get("variant", "")
    return Case(
        name=f"rprop-{name}",
        rule="rprop",
        class_name="Rprop",
        states=(State("step_size", lr, negative=False), State("prev_sign", sign=True)),
        options={**({"lr": lr} if options.get("decoupled_weight_decay") else {}), **options},
        class_options={"lr": lr, **options},
        at_step=(lambda t, rose: {"loss_increased": rose}) if variant == "irprop+" else _nothing,
        across=_grprop_choice if variant.startswith("grprop") else _alone,
        needs_loss=variant == "irprop+",
    )


RPROP_VARIANTS = ("rprop-", "rprop+", "irprop-", "irprop-move", "irprop+", "grprop-slr", "grprop-sag")
DECOUPLED = {"weight_decay": 0.3, "decoupled_weight_decay": True}

CASES: tuple[Case, ...] = (
    rmsprop("plain"),
    rmsprop("torch", alpha=0.99),
    rmsprop("eps inside", eps_inside_sqrt=True, eps=1e-7),
    rmsprop("start at 1", initial_square_avg=1.0, eps=1e-10, eps_inside_sqrt=True),
    rmsprop("coupled decay", weight_decay=0.1),
    rmsprop("decoupled decay", **DECOUPLED),
    rmsprop("maximize, coupled decay", maximize=True, weight_decay=0.1),
    rmsprop("centered", centered=True),
    rmsprop("momentum", momentum=0.9),
    rmsprop("momentum tf", momentum=0.9, momentum_form="tf", eps_inside_sqrt=True),
    rmsprop("nesterov", momentum=0.9, nesterov=True, maximize=True),
    rmsprop("nesterov tf", momentum=0.8, nesterov=True, momentum_form="tf", **DECOUPLED),
    rmsprop("bias correction", bias_correction=True),
    rmsprop(
        "graves", lr=1e-4, alpha=0.95, eps=1e-4, eps_inside_sqrt=True, momentum=0.9, momentum_form="tf", centered=True
    ),
    rmsprop(
        "everything", centered=True, momentum=0.9, nesterov=True, bias_correction=True, maximize=True, weight_decay=0.01
    ),
    rmsprop("zeros", lr=0.0, alpha=0.0, eps=0.0),
    rmsprop("ones", lr=1.0, alpha=1.0, eps=1.0, momentum=1.0),
    rmsprop("beyond the type", lr=1e300, eps=1e-300),
    adagrad("plain"),
    adagrad("eps inside", eps_inside_sqrt=True, eps=1e-7, lr=0.001, initial_accumulator_value=0.1),
    adagrad("eps 0", eps=0.0, initial_accumulator_value=0.1),
    adagrad("coupled decay", weight_decay=0.1),
    adagrad("decoupled decay", **DECOUPLED),
    adagrad("maximize", maximize=True),
    adagrad("maximize, decoupled decay", maximize=True, **DECOUPLED),
    adagrad("lr decay", lr=1.0, lr_decay=0.1),
    adagrad("lr decay, coupled decay", lr_decay=1e-3, weight_decay=0.1, maximize=True),
    proximal_adagrad("plain"),
    proximal_adagrad("l1 and l2, coupled decay", l1=0.3, l2=0.2, weight_decay=0.1, initial_accumulator_value=0.0),
    proximal_adagrad("l1, decoupled decay", lr=0.1, l1=0.5, maximize=True, **DECOUPLED),
    adagrad_da("plain"),
    adagrad_da("l1 and l2, maximize", l1=0.3, l2=0.2, maximize=True, initial_accumulator_value=0.0),
    adagrad_da("l2, decoupled decay", lr=0.1, l2=0.5, **DECOUPLED),
    adagrad_norm("plain"),
    adagrad_norm("start at 1, coupled decay", initial_accumulator_value=1.0, weight_decay=0.1),
    adagrad_norm("eps 0, maximize, decoupled decay", eps=0.0, maximize=True, **DECOUPLED),
    *(rprop(variant, variant=variant) for variant in RPROP_VARIANTS),
    rprop("grprop-slr, coupled decay", variant="grprop-slr", weight_decay=0.1, maximize=True),
    rprop("grprop-sag, decoupled decay", variant="grprop-sag", step_sizes=(0.0, 1e100), **DECOUPLED),
    rprop("coupled decay", weight_decay=0.1),
    rprop("decoupled decay", variant="irprop-", **DECOUPLED),
    rprop("maximize, coupled decay", variant="irprop+", maximize=True, weight_decay=0.1),
    rprop("wide", etas=(0.3, 7.5), step_sizes=(0.0, 1e100), variant="irprop+"),
    rprop("narrow", lr=0.1, etas=(0.99, 1.01), step_sizes=(0.02, 0.03), variant="rprop+"),
)

# Each combination of the options that choose another kernel or another prologue.
_PROLOGUES: tuple[dict[str, Any], ...] = (
    {}, {"weight_decay": 0.1}, DECOUPLED, {"maximize": True}, {"maximize": True, "weight_decay": 0.1},
    {"maximize": True, **DECOUPLED},
)  # fmt: skip
COMBINATIONS: tuple[Case, ...] = (
    *(
        rmsprop(
            f"{centered=} {inside=} {bias=} {momentum} {before}",
            centered=centered, eps_inside_sqrt=inside, bias_correction=bias, **momentum, **before,
        )
        for centered, inside, bias in itertools.product((False, True), repeat=3)
        for momentum in (
            {},
            *({"momentum": 0.9, "momentum_form": form, "nesterov": nesterov}
              for form, nesterov in itertools.product(("torch", "tf"), (False, True))),
        )
        for before in _PROLOGUES
    ),
    *(adagrad(f"{inside=} {before}", eps_inside_sqrt=inside, **before)
      for inside in (False, True) for before in _PROLOGUES),
    *(relative(f"{before}", **more, **before)
      for relative, more in ((proximal_adagrad, {"l1": 0.1}), (adagrad_da, {"l1": 0.1, "l2": 0.1}), (adagrad_norm, {}))
      for before in _PROLOGUES),
    *(rprop(f"{variant} {before}", variant=variant, **before)
      for variant in RPROP_VARIANTS for before in _PROLOGUES),
)  # fmt: skip

# Hyperparameters drawn at random, from which constants are derived: in double, and rounded once.
DRAWN: dict[str, Callable[[np.random.Generator], Any]] = {
    "lr": lambda rng: 10.0 ** rng.uniform(-4, 0),
    "alpha": lambda rng: rng.uniform(0, 1),
    "eps": lambda rng: 10.0 ** rng.uniform(-12, 0),
    "momentum": lambda rng: rng.uniform(0, 1),
    "weight_decay": lambda rng: rng.uniform(0, 1),
    "etas": lambda rng: (rng.uniform(0, 1), rng.uniform(1, 2)),
    "step_sizes": lambda rng: (rng.uniform(0, 0.1), rng.uniform(0.1, 1)),
    "l1": lambda rng: rng.uniform(0, 0.1),
    "l2": lambda rng: rng.uniform(0, 0.1),
}

# Those that are something else, and need something else, where they are not 0.
SWITCHES = frozenset({"momentum", "weight_decay"})

RULES = tuple(dict.fromkeys(case.rule for case in CASES))
FIRST_OF_RULE = tuple(next(case for case in CASES if case.rule == rule) for rule in RULES)
# Of each rule the case with the most states: its arrays stand in every role.
FULLEST_OF_RULE = tuple(
    max((case for case in CASES if case.rule == rule and case.has_function), key=lambda case: len(case.states))
    for rule in RULES
)

# --------------------------------------------------------------------------------------------------- shapes and layouts


def short_lengths(dtype: np.dtype[Any]) -> range:
    """0 to two of the longest vectors (512 bit) and 1."""
    return range(2 * (64 // dtype.itemsize) + 2)


# Around the sizes at which the kernels cut their work into blocks and threads begin to pay.
MIDDLE_LENGTHS = (1000, 1023, 1024, 1025, 2047, 2049, 8191, 8192, 8193, 32768, 33001)
LARGE_LENGTH = 100_003
LARGE_SHAPE = (331, 307)

SMALL_SHAPES: tuple[Shape, ...] = (
    (), (0,), (1,), (2,), (9,), (0, 3), (4, 0, 2), (1, 9), (9, 1), (1, 1, 1), (3, 130), (130, 3), (2, 3, 5, 7),
    (1, 4, 1, 6), (40, 33),
)  # fmt: skip

Allocate = Callable[[Shape], Array]


@dataclass(frozen=True)
class Layout:
    """A way in which an array lies in memory: ``make`` gets an allocator of dense C arrays."""

    name: str
    _make: Callable[[Allocate, Shape], Array]

    def make(self, allocate: Allocate, shape: Shape) -> Array:
        if shape == ():
            return self._make(allocate, (1,))[0, ...]
        made = self._make(allocate, shape)
        assert made.shape == shape
        return made

    def __repr__(self) -> str:
        return self.name


def _each_axis(step: slice) -> Callable[[Array], Array]:
    return lambda array: array[(step,) * array.ndim]


C = Layout("C", lambda new, shape: new(shape))
LAYOUTS: tuple[Layout, ...] = (
    C,
    Layout("F", lambda new, shape: new(shape[::-1]).T),
    Layout("last axis outermost", lambda new, shape: np.moveaxis(new((shape[-1], *shape[:-1])), 0, -1)),
    Layout("offset by 1 element", lambda new, shape: new((math.prod(shape) + 1,))[1:].reshape(shape)),
    Layout("every 2nd of the last axis", lambda new, shape: new((*shape[:-1], 2 * shape[-1]))[..., ::2]),
    Layout("every 2nd of the first axis", lambda new, shape: new((2 * shape[0], *shape[1:]))[::2]),
    Layout("every 3rd of each axis", lambda new, s: _each_axis(slice(1, None, 3))(new(tuple(3 * n for n in s)))),
    Layout("rows cut out", lambda new, shape: new((*shape[:-1], shape[-1] + 3))[..., 1:-2]),
    Layout("right half of the columns", lambda new, s: new((*s[:-1], 2 * s[-1]))[..., s[-1]:]),
    Layout("one column of three", lambda new, shape: new((*shape, 3))[..., 1]),
    Layout("reversed", lambda new, shape: _each_axis(slice(None, None, -1))(new(shape))),
    Layout("last axis reversed", lambda new, shape: new(shape)[..., ::-1]),
    Layout("F, first axis reversed", lambda new, shape: new(shape[::-1]).T[::-1]),
    Layout("every 2nd, backwards", lambda new, shape: new((*shape[:-1], 2 * shape[-1]))[..., ::-2]),
)  # fmt: skip
LAYOUT = {layout.name: layout for layout in LAYOUTS}


def _broadcast_shapes(shape: Shape) -> list[Shape]:
    return [(), *((*shape[:k], 1, *shape[k + 1 :]) for k in range(len(shape))), shape[1:]]


def broadcast_gradients(shape: Shape, make: Callable[[Shape], Array]) -> list[Array]:
    """Read-only gradients with strides of 0: all elements one, one along an axis, and a plain read-only one."""
    found = [np.broadcast_to(make(small), shape) for small in _broadcast_shapes(shape)]
    plain = make(shape)
    plain.flags.writeable = False
    return [*found, plain]


# --------------------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class Values:
    """Values to start from, and ``STEPS`` gradients; dense arrays by name."""

    param: Array
    states: dict[str, Array]
    grads: list[Array]


def ordinary(case: Case, dtype: np.dtype[Any], shape: Shape, rng: np.random.Generator) -> Values:
    """Ordinary numbers of very different magnitudes; a few gradients are exactly 0."""

    def draw(shape: Shape) -> Array:
        return np.asarray(rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 1, shape))

    def start(state: State) -> Array:
        own = state.shape(shape)
        if state.sign:
            return np.asarray(rng.integers(-1, 2, own), np.int8)
        return np.asarray(draw(own) if state.negative else np.abs(draw(own)), dtype)

    grads = [np.asarray(draw(shape) * (rng.random(shape) > 0.05), dtype) for _ in range(STEPS)]
    return Values(np.asarray(draw(shape), dtype), {state.name: start(state) for state in case.states}, grads)


def specials(dtype: np.dtype[Any]) -> Array:
    about = np.finfo(dtype)
    values = [
        0.0,
        1.0,
        about.tiny,
        about.smallest_subnormal,
        about.tiny - about.smallest_subnormal,
        about.max,
        math.inf,
    ]
    return np.array([sign * float(value) for value in values for sign in (1, -1)] + [math.nan], dtype)


def special(
    case: Case, dtype: np.dtype[Any], shape: Shape, rng: np.random.Generator, values: Array | None = None
) -> Values:
    """Zeros, subnormals, the largest finite numbers, infinities and NaN, in each array with each in each other.

    A full product of parameter, gradient and first state; further states go through all values beside any two of
    these. Repeated to fill ``shape``, which must be long enough.
    """
    values = specials(dtype) if values is None else values
    n = values.size
    assert math.prod(shape) >= n**3
    i, j, k = (index.reshape(-1) for index in np.indices((n, n, n)))
    states = {}
    for order, state in enumerate(case.states):
        index = k if order == 0 else i + order * j + k
        states[state.name] = np.resize(
            ((index % 3) - 1).astype(np.int8) if state.sign else values[index % n], state.shape(shape)
        )
    grads = [np.resize(values[(j + 4 * t) % n], shape) for t in range(STEPS)]
    return Values(np.resize(values[i], shape), states, grads)


def tiny(case: Case, dtype: np.dtype[Any], shape: Shape, rng: np.random.Generator) -> Values:
    """The same without what swallows all other values: zeros, subnormals and the smallest normal numbers."""
    values = specials(dtype)
    return special(case, dtype, shape, rng, values[np.abs(values) < 0.5])


SPECIAL_LENGTH = 15**3
VALUES: dict[str, Callable[[Case, np.dtype[Any], Shape, np.random.Generator], Values]] = {
    "ordinary": ordinary,
    "special": special,
    "tiny": tiny,
}

# ----------------------------------------------------------------------------------------------------------- containers


@dataclass(frozen=True)
class Container:
    """A way to pass ``len(names)`` parameters, and their gradients."""

    name: str
    names: tuple[str, ...]
    params: Callable[[list[Any]], Any]
    grads: Callable[[list[Any]], Any]


class OwnMapping(Mapping[str, Any]):
    """A mapping that is no dict and makes its items anew."""

    def __init__(self, items: dict[str, Any]) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Any:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def _nested(x: list[Any]) -> Any:
    return {"layers": [{"w": x[0], "b": x[1]}, {"w": x[2], "b": x[3]}], "scale": x[4]}


_NESTED_NAMES = ("layers.0.w", "layers.0.b", "layers.1.w", "layers.1.b", "scale")


def _groups(x: list[Any]) -> Any:
    return [{"params": {"w": x[0], "b": x[1]}}, {"params": [x[2], (x[3],)], "lr": 0.25}, {"params": x[4]}]


_GROUP_NAMES = ("w", "b", "0", "1.0", "2")

CONTAINERS: tuple[Container, ...] = (
    Container("an array", ("0",), lambda x: x[0], lambda x: x[0]),
    Container("a list", ("0", "1", "2"), lambda x: x, lambda x: x),
    Container("a tuple, gradients in a list", ("0", "1", "2"), tuple, list),
    Container("a list, gradients in a tuple", ("0", "1", "2"), list, tuple),
    Container("a dict", ("w", "b"), lambda x: {"w": x[0], "b": x[1]}, lambda x: {"w": x[0], "b": x[1]}),
    Container("a dict, gradients in another order", ("w", "b"), lambda x: {"w": x[0], "b": x[1]},
              lambda x: {"b": x[1], "w": x[0]}),
    Container("other mappings", ("w", "b"), lambda x: collections.OrderedDict(w=x[0], b=x[1]),
              lambda x: MappingProxyType({"w": x[0], "b": x[1]})),
    Container("a mapping of one's own", ("w", "b"), lambda x: OwnMapping({"w": x[0], "b": x[1]}),
              lambda x: OwnMapping({"w": x[0], "b": x[1]})),
    Container("nested", _NESTED_NAMES, _nested, _nested),
    Container("lists in a list", ("0.0", "0.1", "1.0"), lambda x: [[x[0], x[1]], [x[2]]],
              lambda x: [(x[0], x[1]), [x[2]]]),
    Container("an empty container in it", ("a.0", "c"), lambda x: {"a": [x[0]], "b": [], "c": x[1]},
              lambda x: {"a": [x[0]], "b": [], "c": x[1]}),
    Container("numbers as keys", ("0", "7"), lambda x: {0: x[0], 7: x[1]}, lambda x: {0: x[0], 7: x[1]}),
    Container("one group", ("0", "1"), lambda x: [{"params": [x[0], x[1]]}], lambda x: [[x[0], x[1]]]),
    Container("groups, gradients a group", _GROUP_NAMES, _groups,
              lambda x: [{"w": x[0], "b": x[1]}, [x[2], [x[3]]], x[4]]),
    Container("groups, gradients in groups", _GROUP_NAMES, _groups,
              lambda x: [{"params": {"w": x[0], "b": x[1]}}, {"params": [x[2], [x[3]]]}, {"params": x[4]}]),
    Container("groups, gradients in one list", _GROUP_NAMES, _groups, lambda x: x),
)  # fmt: skip


@dataclass(frozen=True)
class BadContainer:
    """Gradients for ``{"layers": [w, b], "scale": s}`` in containers that don't fit."""

    name: str
    grads: Callable[[Array, Array, Array], Any]
    error: type[Exception]
    says: tuple[str, ...]


BAD_CONTAINERS: tuple[BadContainer, ...] = (
    BadContainer("a name is missing", lambda w, b, s: {"layers": [w, b]}, ValueError, ("grads", "scale", "None")),
    BadContainer("a name too many", lambda w, b, s: {"layers": [w, b], "scale": s, "typo": s}, ValueError,
                 ("grads", "typo")),
    BadContainer("a list for a mapping", lambda w, b, s: [[w, b], s], TypeError, ("grads", "mapping", "list")),
    BadContainer("an array for a mapping", lambda w, b, s: w, TypeError, ("grads", "mapping", "ndarray")),
    BadContainer("a dict for a list", lambda w, b, s: {"layers": {"0": w, "1": b}, "scale": s}, TypeError,
                 ("layers", "list", "dict")),
    BadContainer("an array for a list", lambda w, b, s: {"layers": w, "scale": s}, TypeError,
                 ("layers", "list", "ndarray")),
    BadContainer("a short list", lambda w, b, s: {"layers": [w], "scale": s}, ValueError, ("layers", "2", "1")),
    BadContainer("a long list", lambda w, b, s: {"layers": [w, b, s], "scale": s}, ValueError, ("layers", "2", "3")),
    BadContainer("a list for an array", lambda w, b, s: {"layers": [w, b], "scale": [s]}, TypeError,
                 ("scale", "ndarray", "list")),
    BadContainer("None for all", lambda w, b, s: None, TypeError, ("grads", "mapping", "NoneType")),
)  # fmt: skip

# --------------------------------------------------------------------------------------------------------- step options

STEP_OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "grad_scale a power of 2": {"grad_scale": 1024.0},
    "grad_scale 3": {"grad_scale": 3.0},
    "grad_scale large": {"grad_scale": 1e300},
    "grad_scale small": {"grad_scale": 1e-310},
    "clip_norm that clips": {"clip_norm": 0.5},
    "clip_norm below float32": {"clip_norm": 1e-300},
    "clip_norm that does not": {"clip_norm": 1e9},
    "clip_value that clips": {"clip_value": 0.1},
    "clip_value beyond float32": {"clip_value": 1e200},
    "clip_value below float32": {"clip_value": 1e-300},
    "zero_grads": {"zero_grads": True},
    "propagate": {"nonfinite": "propagate"},
    "skip": {"nonfinite": "skip"},
    "raise": {"nonfinite": "raise"},
    "scale and clip both": {"grad_scale": 0.7, "clip_value": 0.4, "clip_norm": 0.3},
    "all": {"grad_scale": 3.0, "clip_value": 0.4, "clip_norm": 0.3, "zero_grads": True, "nonfinite": "skip"},
}

# ---------------------------------------------------------------------------------------------------- bad arrays


@dataclass(frozen=True)
class BadArray:
    """A way to break a good array: what to pass in place of it, the error, and what its message must show."""

    name: str
    make: Callable[[Array], Any]
    error: type[Exception]
    says: Callable[[Array, Any], list[str]]
    """By the good and the bad array."""
    roles: frozenset[str] = frozenset({"param", "grad", "state"})
    """Whose place it is bad in; ``zeroed`` is a gradient that is to be set to 0."""
    fits: Callable[[Array], bool] = field(default=lambda good: True)
    """Whether it is bad for this array."""


WRITTEN = frozenset({"param", "state", "zeroed"})
SHAPED = frozenset({"grad", "state"})


def _no_array(name: str, make: Callable[[Array], Any]) -> BadArray:
    return BadArray(name, make, TypeError, lambda good, bad: ["numpy.ndarray", type(bad).__name__])


def _dtype(name: Any) -> BadArray:
    dtype = np.dtype(name)
    return BadArray(
        f"dtype {dtype}",
        lambda good: np.zeros(good.shape, dtype),
        TypeError,
        lambda good, bad: ["dtype", str(good.dtype), str(bad.dtype)],
        fits=lambda good: good.dtype != dtype,
    )


def _shape(name: str, make: Callable[[Array], Array]) -> BadArray:
    return BadArray(
        f"shape: {name}",
        make,
        ValueError,
        lambda good, bad: ["shape", str(good.shape), str(bad.shape)],
        roles=SHAPED,
        fits=lambda good: good.ndim == 2,
    )


def _read_only(good: Array) -> Array:
    good.flags.writeable = False
    return good


def _misaligned(good: Array) -> Array:
    raw = np.zeros(good.nbytes + 1, np.uint8)
    return raw[1:].view(good.dtype).reshape(good.shape)


def _self_overlapping(strides: Callable[[Array], Shape]) -> Callable[[Array], Array]:
    return lambda good: as_strided(good, strides=strides(good))


_of_own_memory = {
    "error": ValueError,
    "says": lambda good, bad: ["share memory", str(bad.shape), str(bad.strides), "copy"],
    "roles": WRITTEN,
    "fits": lambda good: good.ndim == 2,
}

BAD_ARRAYS: tuple[BadArray, ...] = (
    _no_array("a list", lambda good: good.reshape(-1).tolist()),
    _no_array("a list of the array", lambda good: [good]),
    _no_array("a float", lambda good: 1.0),
    _no_array("a NumPy scalar", lambda good: good.dtype.type(1)),
    _no_array("a string", lambda good: "w"),
    BadArray("bytes", lambda good: bytes(good.nbytes), TypeError,
             lambda good, bad: ["dtype", str(good.dtype), "uint8"]),
    BadArray("a read-only memoryview", lambda good: memoryview(good).toreadonly(), ValueError,
             lambda good, bad: ["read-only", "writeable"], roles=WRITTEN),
    BadArray("integers of the standard library", lambda good: std_array.array("i", [0] * good.size), TypeError,
             lambda good, bad: ["dtype", str(good.dtype), "int32"]),
    BadArray("None", lambda good: None, TypeError, lambda good, bad: ["ndarray", "None"], roles=frozenset({"param"})),
    *map(_dtype, ("f2", "g", "c8", "c16", "i1", "i4", "i8", "u1", "?", "O", "U4", "M8[s]", "f4,f4")),
    BadArray("the other float dtype", lambda good: good.astype({"f": "f8", "d": "f4"}[good.dtype.char]), TypeError,
             lambda good, bad: ["dtype", str(good.dtype), str(bad.dtype)], roles=SHAPED,
             fits=lambda good: good.dtype.kind == "f"),
    BadArray("byte order", lambda good: good.astype(good.dtype.newbyteorder("S")), TypeError,
             lambda good, bad: ["byte order", "native", str(bad.dtype)], fits=lambda good: good.itemsize > 1),
    _shape("one longer", lambda good: np.zeros((good.shape[0] + 1, *good.shape[1:]), good.dtype)),
    _shape("one shorter", lambda good: np.zeros((*good.shape[:-1], good.shape[-1] - 1), good.dtype)),
    _shape("transposed", lambda good: np.zeros(good.shape[::-1], good.dtype)),
    _shape("flat", lambda good: np.zeros(good.size, good.dtype)),
    _shape("an axis too many", lambda good: np.zeros((1, *good.shape), good.dtype)),
    _shape("an axis too few", lambda good: np.zeros(good.shape[1:], good.dtype)),
    _shape("one that would broadcast", lambda good: np.zeros((1, *good.shape[1:]), good.dtype)),
    BadArray("shape: one element in place of a number", lambda good: np.zeros((1,), good.dtype), ValueError,
             lambda good, bad: ["shape", "()", "(1,)"], roles=frozenset({"state"}), fits=lambda good: good.ndim == 0),
    _shape("0-d", lambda good: np.zeros((), good.dtype)),
    _shape("empty", lambda good: np.zeros((0, *good.shape[1:]), good.dtype)),
    BadArray("read-only", _read_only, ValueError, lambda good, bad: ["read-only", "writeable"], roles=WRITTEN),
    BadArray("misaligned", _misaligned, ValueError, lambda good, bad: ["aligned", str(good.dtype)],
             fits=lambda good: good.itemsize > 1),
    BadArray("a stride of 0", _self_overlapping(lambda good: (0, *good.strides[1:])), **_of_own_memory),
    BadArray("strides of 0", _self_overlapping(lambda good: (0,) * good.ndim), **_of_own_memory),
    BadArray("a sliding window", _self_overlapping(lambda good: (good.itemsize, *good.strides[1:])), **_of_own_memory),
    BadArray("a sliding window backwards",
             lambda good: as_strided(good[-1:], good.shape, (-good.itemsize, *good.strides[1:])), **_of_own_memory),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- overlaps


@dataclass(frozen=True)
class Pair:
    """Two views of the same memory, of one shape: ``make`` gets the memory as a vector of 64 elements."""

    name: str
    make: Callable[[Array], tuple[Array, Array]]
    overlap: bool


PAIRS: tuple[Pair, ...] = (
    Pair("the same array", lambda m: (m[:12], m[:12]), True),
    Pair("one behind the other", lambda m: (m[:12], m[12:24]), False),
    Pair("the last element is the first", lambda m: (m[:12], m[11:23]), True),
    Pair("shifted by one element", lambda m: (m[1:13], m[:12]), True),
    Pair("one element, the same", lambda m: (m[5:6], m[5:6]), True),
    Pair("backwards over the same", lambda m: (m[:12], m[11::-1]), True),
    Pair("backwards behind", lambda m: (m[:12], m[23:11:-1]), False),
    Pair("interleaved", lambda m: (m[0:24:2], m[1:25:2]), False),
    Pair("interleaved backwards", lambda m: (m[0:24:2], m[23::-2]), False),
    Pair("interleaved in threes", lambda m: (m[0:36:3], m[2:38:3]), False),
    Pair("even, and even further on", lambda m: (m[0:24:2], m[22:46:2]), True),
    Pair("every 2nd and every 3rd", lambda m: (m[0:24:2], m[1:37:3]), True),
    Pair("every 2nd and every 4th between", lambda m: (m[0:24:2], m[1:49:4]), False),
    Pair("column halves", lambda m: (m.reshape(8, 8)[:, :4], m.reshape(8, 8)[:, 4:]), False),
    Pair("columns that share one", lambda m: (m.reshape(8, 8)[:, :5], m.reshape(8, 8)[:, 3:]), True),
    Pair("even and odd columns", lambda m: (m.reshape(8, 8)[:, ::2], m.reshape(8, 8)[:, 1::2]), False),
    Pair("even and odd rows", lambda m: (m.reshape(8, 8)[::2], m.reshape(8, 8)[1::2]), False),
    Pair("even columns and odd columns backwards", lambda m: (m.reshape(8, 8)[:, ::2], m.reshape(8, 8)[::-1, ::-2]),
         False),
    Pair("transposed over the same", lambda m: (m.reshape(8, 8), m.reshape(8, 8).T), True),
    Pair("upper and lower corner, transposed", lambda m: (m.reshape(8, 8)[:4, 4:], m.reshape(8, 8)[4:, :4].T), False),
    Pair("a row and a column that cross", lambda m: (m.reshape(8, 8)[3], m.reshape(8, 8)[:, 5]), True),
    Pair("a row and a column beside it", lambda m: (m.reshape(8, 8)[3, :5], m.reshape(8, 8)[:5, 6]), False),
    Pair("the diagonal and the one above", lambda m: (m[0:63:9], m[1:64:9]), False),
    Pair("the diagonals of an odd square cross", lambda m: (m[0:49:8], m[6:43:6]), True),
    Pair("empty", lambda m: (m[3:3], m[3:3]), False),
    Pair("checkerboards", lambda m: (m.reshape(4, 4, 4)[::2, ::2, ::2], m.reshape(4, 4, 4)[1::2, ::2, ::2]), False),
    Pair("cubes that meet in a corner", lambda m: (m.reshape(4, 4, 4)[:3, :3, :3], m.reshape(4, 4, 4)[1:, 1:, 1:]),
         True),
)  # fmt: skip

# The same for a parameter or a gradient (floats) and an int8 state: `make` gets 64 bytes an element of the parameter.
BYTE_PAIRS: tuple[tuple[str, Callable[[Array, np.dtype[Any]], tuple[Array, Array]], bool], ...] = (
    ("bytes of the same memory", lambda m, d: (m.view(d)[:8], m.view(np.int8)[:8]), True),
    ("the last byte", lambda m, d: (m.view(d)[:8], m.view(np.int8)[8 * d.itemsize - 1 :][:8]), True),
    ("behind the last byte", lambda m, d: (m.view(d)[:8], m.view(np.int8)[8 * d.itemsize :][:8]), False),
    (
        "bytes in the gaps",
        lambda m, d: (m.view(d)[:16:2], m.view(np.int8)[d.itemsize : 17 * d.itemsize : 2 * d.itemsize]),
        False,
    ),
    (
        "bytes in the gaps, one too far down",
        lambda m, d: (m.view(d)[:16:2], m.view(np.int8)[d.itemsize - 1 : 17 * d.itemsize - 1 : 2 * d.itemsize]),
        True,
    ),
)

# A state of one number beside or in the memory of a parameter or a gradient.
SCALAR_PAIRS: tuple[Pair, ...] = (
    Pair("the first element", lambda m: (m[:12], m[0, ...]), True),
    Pair("the last element", lambda m: (m[:12], m[11, ...]), True),
    Pair("behind the last element", lambda m: (m[:12], m[12, ...]), False),
    Pair("in a gap", lambda m: (m[:24:2], m[3, ...]), False),
    Pair("between gaps", lambda m: (m[:24:2], m[4, ...]), True),
)

# ------------------------------------------------------------------------------------------------------ hyperparameters

_NO_NUMBERS: tuple[Any, ...] = (
    True, False, np.True_, "0.1", None, 1j, [0.1], (0.1,), np.array([0.1]), np.array(0.1), Decimal("0.1"), {}, object,
)  # fmt: skip
_NOT_FINITE: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf"), np.float16("-inf"),
)  # fmt: skip
_NO_FLAGS: tuple[Any, ...] = (1, 0, "True", "", None, 1.0, [], np.array([True]), np.int64(1))
_NO_NAMES: tuple[Any, ...] = (None, 3, True, b"torch", ["torch"])


@dataclass(frozen=True)
class Bad:
    """A value that is refused, with the error."""

    value: Any
    error: type[Exception]


def _bad(values: tuple[Any, ...], error: type[Exception]) -> tuple[Bad, ...]:
    return tuple(Bad(value, error) for value in values)


_REAL = (*_bad(_NO_NUMBERS, TypeError), *_bad(_NOT_FINITE, ValueError))
_NONNEGATIVE = (*_REAL, *_bad((-1e-9, -1, -0.5, np.float32(-2.0)), ValueError))
_UNIT = (*_NONNEGATIVE, *_bad((1.0 + 1e-12, 2, 1.5), ValueError))
_FLAG = _bad(_NO_FLAGS, TypeError)
_PAIR = _bad((0.5, None, "ab", (0.5,), (0.5, 1.2, 1.3), (), {0.5: 1, 1.2: 2}, (None, 1.2), (0.5, "1.2"), (True, 1.2),
              (0.5, True)), TypeError)  # fmt: skip


def _choice(*names: str) -> tuple[Bad, ...]:
    return (*_bad(_NO_NAMES, TypeError), *_bad(names, ValueError))


_ETAS = (
    *_PAIR,
    *_bad(((1.2, 0.5), (0.5, 1.0), (1.0, 1.2), (0.0, 1.2), (-0.5, 1.2), (0.5, 0.9), (math.nan, 1.2), (0.5, math.nan),
           (0.5, math.inf), (-math.inf, 1.2)), ValueError),
)  # fmt: skip
_STEP_SIZES = (
    *_PAIR,
    *_bad(
        ((50.0, 1e-6), (-1e-6, 50.0), (1e-6, math.inf), (math.nan, 50.0), (1e-6, math.nan), (-2.0, -1.0)), ValueError
    ),
)
_COUNT = (
    *_bad((True, 1.5, 1.0, "1", [1], np.float64(1.0), np.array([1])), TypeError),
    *_bad((0, -1, np.int64(-3)), ValueError),
)

_PROLOGUE = {"weight_decay": _NONNEGATIVE, "decoupled_weight_decay": _FLAG, "maximize": _FLAG}
_RMSPROP = {
    "lr": _NONNEGATIVE, "alpha": _UNIT, "eps": _NONNEGATIVE, "eps_inside_sqrt": _FLAG, "momentum": _UNIT,
    "nesterov": _FLAG, "momentum_form": _choice("Torch", "", "keras"), **_PROLOGUE,
}  # fmt: skip
_ADAGRAD = {"lr": _NONNEGATIVE, "eps": _NONNEGATIVE, "eps_inside_sqrt": _FLAG, **_PROLOGUE}
_RPROP = {
    "etas": _ETAS, "step_sizes": _STEP_SIZES, "variant": _choice("RPROP-", "", "irprop", "rprop"), **_PROLOGUE,
}  # fmt: skip

_PROXIMAL = {"lr": _NONNEGATIVE, "l1": _NONNEGATIVE, "l2": _NONNEGATIVE, **_PROLOGUE}
_ADAGRAD_NORM = {"lr": _NONNEGATIVE, "eps": _NONNEGATIVE, **_PROLOGUE}
_START = {"initial_accumulator_value": _NONNEGATIVE}

BAD_FUNCTION_OPTIONS: dict[str, dict[str, tuple[Bad, ...]]] = {
    "rmsprop": {**_RMSPROP, "step": _COUNT},
    "adagrad": _ADAGRAD,
    "proximal_adagrad": _PROXIMAL,
    "adagrad_da": {**_PROXIMAL, "step": (*_COUNT, Bad(None, TypeError))},
    "adagrad_norm": _ADAGRAD_NORM,
    "rprop": {**_RPROP, "loss_increased": _FLAG, "lr": tuple(bad for bad in _NONNEGATIVE if bad.value is not None)},
}
BAD_CLASS_OPTIONS: dict[str, dict[str, tuple[Bad, ...]]] = {
    "rmsprop": {**_RMSPROP, "centered": _FLAG, "bias_correction": _FLAG, "initial_square_avg": _NONNEGATIVE},
    "adagrad": {**_ADAGRAD, "lr_decay": _NONNEGATIVE, **_START},
    "proximal_adagrad": {**_PROXIMAL, **_START},
    "adagrad_da": {**_PROXIMAL, **_START},
    "adagrad_norm": {**_ADAGRAD_NORM, **_START},
    "rprop": {**_RPROP, "lr": _NONNEGATIVE},
}
START_ONLY = frozenset({"initial_square_avg", "initial_accumulator_value"})
CLASS_ONLY = START_ONLY | {"centered", "bias_correction"}

# Each value alone is good: rule, options, what the message must show.
CONFLICTS: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("rmsprop", {"nesterov": True}, ("nesterov", "momentum")),
    ("rmsprop", {"nesterov": True, "momentum": 0.0}, ("nesterov", "momentum", "0")),
    ("rprop", {"step_sizes": (2.0, 1.0)}, ("step_sizes", "2", "1")),
)

# Options of step(), refused before anything is written.
_POSITIVE = (*(bad for bad in _NONNEGATIVE if bad.value is not None), *_bad((0, 0.0, -0.0), ValueError))
BAD_STEP_OPTIONS: dict[str, tuple[Bad, ...]] = {
    "grad_scale": _POSITIVE,
    "clip_norm": _POSITIVE,
    "clip_value": _POSITIVE,
    "zero_grads": _FLAG,
    "nonfinite": _bad(("", "Skip", "ignore", None, True, 3), ValueError),
    "loss": _bad(tuple(value for value in _NO_NUMBERS if value is not None), TypeError),
}

# Numbers that Python has and a double or a counter has not: rule, name in the functional form, value.
TOO_LARGE: tuple[tuple[str, str, Any], ...] = (
    ("rmsprop", "lr", 10**400), ("rmsprop", "eps", -(10**400)), ("rmsprop", "step", 2**63),
    ("rmsprop", "step", -(2**70)), ("adagrad_da", "step", 10**30),
    ("rprop", "etas", (0.5, 10**400)), ("rprop", "step_sizes", (0, 10**400)),
)  # fmt: skip
TOO_LARGE_IN_CLASS: tuple[tuple[str, str, Any], ...] = (
    ("rmsprop", "lr", 10**400), ("rmsprop", "initial_square_avg", 10**400), ("rprop", "etas", (0.5, 10**400)),
)  # fmt: skip

GOOD_NUMBERS: tuple[Any, ...] = (
    0.25,
    np.float64(0.25),
    np.float32(0.25),
    np.float16(0.25),
    1,
    np.int64(1),
    np.uint8(1),
)
