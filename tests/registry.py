"""The one registry that drives the tests.

It begins with the rules: one entry each, with its cases, the published numbers that check it, and what its loops must
be made of. Then comes what is the same for all rules: layouts, lengths, values, containers, step options, bad arrays,
bad hyperparameters, overlaps. What the package declares about a rule is read from ``fusedstep._core.rules()``.
"""

from __future__ import annotations

import array as std_array
import collections
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

import attrs
import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

import fusedstep as fs
from fusedstep import _core

Array = NDArray[Any]
Shape = tuple[int, ...]
Options = Mapping[str, Any]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ISAS = tuple(fs.available_isas())
THREADS = (1, 2, 3)
STEPS = 3

DECLARED: dict[str, Any] = _core.rules()
"""What the package says of each rule."""
PROLOGUE = ("weight_decay", "decoupled_weight_decay", "maximize")
"""The options that every rule has, because they concern the gradient."""
OF_CLASS = ("state_dtype", "rounding", "seed", "master", "verify")
"""Arguments of every class that are no options of its rule."""
OF_FUNCTION = ("key", "param_low")
"""Arguments of every function that are for arrays of 16 bits."""
STEP_PROLOGUE = ("grad_scale", "clip_value", "clip_coef")
"""What the reference gets from the options of a step."""

# -------------------------------------------------------------------------------------------------- what an entry holds


@dataclass(frozen=True)
class State:
    """An array of state: its name, and where the class form starts it."""

    name: str
    """What the functions and the reference call it."""
    held_as: str
    """What ``optimizer.state`` calls it."""
    start: float = 0.0
    starts_at: str | None = None
    """The hyperparameter that says so."""
    negative: bool = True
    """Whether it can be negative in an ordinary run."""
    sign: bool = False
    """Whether it is an int8 of -1, 0 or 1; otherwise it has the parameter's type."""
    scalar: bool = False
    """Whether it is one number for the whole array; otherwise it has the parameter's shape."""

    per_row: bool = False
    """Whether it is one number for each row."""

    def shape(self, param: Shape) -> Shape:
        return () if self.scalar else param[:1] if self.per_row else param

    def dtype(self, param: np.dtype[Any]) -> np.dtype[Any]:
        return np.dtype(np.int8) if self.sign else param


@dataclass(frozen=True)
class Storage:
    """How a case's arrays are stored: dtypes, and how those of 16 bits are rounded."""

    param: Any
    grad: Any
    state: Any
    stochastic: bool = False
    master: bool = False

    @property
    def compute(self) -> np.dtype[Any]:
        return np.dtype(np.float64 if self.param == np.float64 else np.float32)

    @property
    def class_options(self) -> dict[str, Any]:
        return {
            "state_dtype": "bfloat16" if np.dtype(self.state) == BFLOAT16 else None,
            "rounding": "stochastic" if self.stochastic else "nearest",
            "master": self.master,
        }

    def state_dtype(self, state: State) -> np.dtype[Any]:
        return (
            np.dtype(np.int8) if state.sign else self.compute if state.scalar or state.per_row else np.dtype(self.state)
        )

    def stored(self, case: Case, values: Values) -> Values:
        """Return values of the compute type as they are stored."""
        with np.errstate(all="ignore"):
            states = {state.name: values.states[state.name].astype(self.state_dtype(state)) for state in case.states}
            param, grads = values.param.astype(self.param), [grad.astype(self.grad) for grad in values.grads]
        if self.master:
            param, states["param_low"] = fs.reference.split_master(values.param)
        return Values(param, states, grads)

    def __repr__(self) -> str:
        types = [np.dtype(each).name for each in (self.param, self.grad, self.state)]
        return " ".join(types + ["stochastic"] * self.stochastic + ["master"] * self.master)


# A parameter with its states by name, its gradient, and the options of the reference.
Member = tuple[Mapping[str, Array], Array, Options]


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
    options: Options
    """Options of the functional form and of the reference."""
    class_options: Options
    reference_takes: frozenset[str]
    at_step: Callable[[int, bool], dict[str, Any]] = _nothing
    """More options of the functional form, at update ``t`` of a parameter, by whether the loss rose."""
    reference_at_step: Callable[[int, bool], dict[str, Any]] = _nothing
    """More options, only of the reference: the functional form can't say what the class does."""
    across: Callable[[list[Member]], list[dict[str, Any]]] = _alone
    """More options of the reference for each parameter of a list, where it depends on the others."""
    needs_loss: bool = False
    has_function: bool = True
    storage: Storage | None = None
    """None: all arrays have the parameter's type, float32 or float64."""

    def as_stored(self, storage: Storage) -> Case:
        """Return the same with arrays that are stored otherwise."""

        def at_step(t: int, rose: bool) -> dict[str, Any]:
            noise = {"key": fs.noise_key(0, t, "0")} if storage.stochastic else {}
            return {**self.at_step(t, rose), **noise}

        return replace(
            self,
            name=f"{self.name}, {storage}",
            class_options={**self.class_options, **storage.class_options},
            at_step=at_step,
            storage=storage,
        )

    @property
    def counts(self) -> bool:
        """Whether the step count is in the formula."""
        return "step" in {**self.at_step(1, False), **self.reference_at_step(1, False)}

    @property
    def apart(self) -> bool:
        """Whether no element's update depends on another element."""
        return self.across is _alone and not any(state.scalar for state in self.states)

    @property
    def function_name(self) -> str:
        return f"{self.rule}_"

    @property
    def cls(self) -> Any:
        return getattr(fs, self.class_name)

    def loss(self, t: int = 1) -> dict[str, float]:
        """Return the loss at a step as an argument, if the case needs it."""
        return {"loss": loss(t)} if self.needs_loss else {}

    def new(self, params: Any, **changed: Any) -> Any:
        """Make an optimizer."""
        return self.cls(params, **{**self.class_options, **changed})

    def call(self, arrays: Mapping[str, Array], t: int = 1, **changed: Any) -> None:
        """Call the functional form: ``arrays`` are ``param``, ``grad`` and the states by name."""
        getattr(fs, self.function_name)(**arrays, **{**self.options, **self.at_step(t, rose(t)), **changed})

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Oracle:
    """A run with numbers that others published, or that were computed by hand. This package makes none of them.

    Only numbers are quoted, from the test or page that ``source`` names.
    """

    source: str
    start: Any
    grads: Any
    """The gradient of each step; or a function of the step's number and the parameter."""
    published: Mapping[int, Any]
    """By step: the parameter, or a dict of arrays by name, states among them."""
    options: Options = field(default_factory=dict)
    like: str = ""
    """Its dialect, where it has one."""
    losses: tuple[float, ...] = ()
    dtypes: tuple[Any, ...] = (np.float64,)
    """float64 where the formula is the question and not the precision."""
    atol: float = 0.0
    rtol: float = 0.0

    def __repr__(self) -> str:
        return self.source


def decimals(n: int) -> float:
    """Return half a unit of the last published decimal, plus our own rounding."""
    return 0.5 * 10.0**-n + 1e-12


@dataclass(frozen=True)
class Loop:
    """What the compiler must make of a loop over a rule's C++ struct, in float and in double."""

    struct: str
    variants: int
    """How many kernels the rule's options choose among; each is there with and without a prologue."""
    arithmetic: str
    """What must be packed instructions, in the words of x86."""
    width: str
    """Of AVX-512's vectors: "half", "full" or "both"."""
    loop: str = "update_loop"
    narrow: bool = False
    """Whether these kernels have loops of their own over bfloat16 streams."""


@functools.cache
def takes(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function by name."""
    return inspect.signature(function).parameters


@dataclass(frozen=True, eq=False)
class Entry:
    """All that the tests know about a rule. A new rule is a new entry."""

    rule: str
    class_name: str
    cases: Mapping[str, Options]
    """Options of the class by the name of a case; lr is 0.01 where not given."""
    oracles: tuple[Oracle, ...]
    loops: tuple[Loop, ...]
    bad: Mapping[str, tuple[Bad, ...]] = field(default_factory=dict)
    """Values that are refused, of the options that are this rule's own."""
    signed: frozenset[str] = frozenset()
    """States that are negative in ordinary runs."""
    combined: Options = field(default_factory=dict)
    """Options that every combination has."""
    needs_loss: Callable[[Options], bool] = lambda options: False
    across: Callable[[list[Member]], list[dict[str, Any]]] = _alone
    cases_of_rows: Mapping[str, Options] = field(default_factory=dict)
    """More cases, for parameters of at least one dimension."""

    def missing(self) -> list[str]:
        """Return what is missing of all that makes a rule."""
        places = {
            f"C++: its name in the list of rules (fusedstep._core.rules() has no {self.rule!r})": self.rule in DECLARED,
            f"reference.py: the function {self.rule}_": hasattr(fs.reference, f"{self.rule}_"),
            f"the package: the function fs.{self.rule}_": hasattr(fs, f"{self.rule}_"),
            f"the package: the class fs.{self.class_name}": hasattr(fs, self.class_name),
            "its entry: cases": bool(self.cases),
            "its entry: oracles, numbers that others published or that were worked out by hand": bool(self.oracles),
            "its entry: loops, what its kernels must be vectorised to": any(
                x.loop == "update_loop" for x in self.loops
            ),
        }
        return [what for what, there in places.items() if not there]

    def case(self, name: str, options: Options) -> Case:
        """Make a case from options of the class. The arguments of the function and the reference follow from them."""
        declared = DECLARED[self.rule]
        fields, states, counted = declared["fields"], declared["states"], declared["step"]
        options = {"lr": 0.01, **options}
        value = {**{key: spec["default"] for key, spec in fields.items()}, **options}
        function, reference = takes(getattr(fs, f"{self.rule}_")), takes(getattr(fs.reference, f"{self.rule}_"))
        loss_fields = [key for key, spec in fields.items() if spec["purpose"] == "loss"]
        switches = {state["used_with"] for state in states.values()}
        starts = {state["starts_at"] for state in states.values()}

        of_function, beyond = {}, {}
        for key, given in options.items():
            if fields[key]["purpose"] == "start" or (key in starts and not value["decoupled_weight_decay"]):
                continue
            if key in function:
                of_function[key] = given
            elif key not in switches and not (key == counted and "step" in function):
                beyond[key] = given  # only the class takes it

        def at_step(t: int, rose: bool) -> dict[str, Any]:
            risen = dict.fromkeys(loss_fields, rose) if self.needs_loss(options) else {}
            counts = "step" in function and (counted == "" or bool(counted and value[counted]))
            return {**risen, **({"step": t} if counts else {})}

        def per_row(state: Mapping[str, Any]) -> bool:
            with_ = state["per_row_with"]
            return with_ is not None and value[with_] != fields[with_]["choices"][0]

        return Case(
            name=f"{self.rule}-{name}",
            rule=self.rule,
            class_name=self.class_name,
            states=tuple(
                State(
                    key,
                    state["renamed"] if state["renamed"] and value[state["renamed_with"]] else key,
                    value[state["starts_at"]] if state["starts_at"] else 0.0,
                    state["starts_at"],
                    negative=key in self.signed,
                    sign=state["storage"] == "int8",
                    scalar=state["storage"] == "scalar" and not per_row(state),
                    per_row=per_row(state),
                )
                for key, state in states.items()
                if not state["used_with"] or value[state["used_with"]]
            ),
            options=of_function,
            class_options=options,
            reference_takes=frozenset({*reference, *function}),
            at_step=at_step,
            reference_at_step=(lambda t, rose: {**beyond, "step": t}) if beyond else _nothing,
            across=self.across,
            needs_loss=self.needs_loss(options),
            has_function=not beyond,
        )

    def combinations(self) -> list[Case]:
        """Return each combination of options that choose another kernel or prologue."""
        fields = DECLARED[self.rule]["fields"]
        switches = {state["used_with"] for state in DECLARED[self.rule]["states"].values()}
        choices: dict[str, tuple[Any, ...]] = {}
        for key, spec in fields.items():
            if key in PROLOGUE or spec["purpose"] != "option" or (key in self.combined):
                continue
            if spec["kind"] == "flag":
                choices[key] = (False, True)
            elif spec["kind"] == "choice":
                choices[key] = tuple(spec["choices"])
            elif key in switches:
                choices[key] = (0.0, 0.9)
        found = []
        for values in itertools.product(*choices.values()):
            for before in _PROLOGUES:
                options = {**self.combined, **dict(zip(choices, values, strict=True)), **before}
                try:
                    _core.check_hyperparameters(self.rule, options)
                except ValueError:  # they contradict each other
                    continue
                found.append(self.case(str(options), options))
        return found


def loss(t: int) -> float:
    """Return a loss that rises at even steps and falls at odd ones."""
    return 10.0 + (-1) ** t * t


def rose(t: int) -> bool:
    return t > 1 and loss(t) > loss(t - 1)


DECOUPLED = {"weight_decay": 0.3, "decoupled_weight_decay": True}
_PROLOGUES: tuple[dict[str, Any], ...] = (
    {}, {"weight_decay": 0.1}, DECOUPLED, {"maximize": True}, {"maximize": True, "weight_decay": 0.1},
    {"maximize": True, **DECOUPLED},
)  # fmt: skip

# ------------------------------------------------------------------------------------- hyperparameters that are refused


@dataclass(frozen=True)
class Bad:
    """A value that is refused, with the error."""

    value: Any
    error: type[Exception]


def _bad(values: tuple[Any, ...], error: type[Exception]) -> tuple[Bad, ...]:
    return tuple(Bad(value, error) for value in values)


_NO_NUMBERS: tuple[Any, ...] = (
    True, False, np.True_, "0.1", None, 1j, [0.1], (0.1,), np.array([0.1]), np.array(0.1), Decimal("0.1"), {}, object,
)  # fmt: skip
_NOT_FINITE: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf"), np.float16("-inf"), 10**400, -(10**400),
)  # fmt: skip
_REAL = (*_bad(_NO_NUMBERS, TypeError), *_bad(_NOT_FINITE, ValueError))
NONNEGATIVE = (*_REAL, *_bad((-1e-9, -1, -0.5, np.float32(-2.0)), ValueError))
UNIT = (*NONNEGATIVE, *_bad((1.0 + 1e-12, 2, 1.5), ValueError))


class _LikeBool:
    """Has the name of NumPy's type, and is something else."""

    def __bool__(self) -> bool:
        return True


_LikeBool.__name__ = "bool_"
FLAG = _bad((1, 0, "True", "", None, 1.0, [], np.array([True]), np.int64(1), _LikeBool()), TypeError)
CHOICE = (*_bad((None, 3, True, b"torch", ["torch"]), TypeError), *_bad(("", "Torch", "no such name"), ValueError))
_PAIR = _bad((0.5, None, "ab", (0.5,), (0.5, 1.2, 1.3), (), {0.5: 1, 1.2: 2}, (None, 1.2), (0.5, "1.2"), (True, 1.2),
              (0.5, True)), TypeError)  # fmt: skip
_NO_COUNT = _bad((True, 1.5, 1.0, "1", [1], np.float64(1.0), np.array([1])), TypeError)
_COUNT = (*_NO_COUNT, *_bad((0, -1, np.int64(-3), 2**63, -(2**70)), ValueError))
_KEY = (*_NO_COUNT, *_bad((-1, np.int64(-3), 2**64, -(2**70)), ValueError))
_DECAY = {"lr": NONNEGATIVE, "weight_decay": NONNEGATIVE}

# ------------------------------------------------------------------------------------------------------------ the rules


def same(grad: Any) -> Callable[[int, Array], Array]:
    return lambda t, p: np.array(grad, p.dtype)


def then(first: Any, later: Any) -> Callable[[int, Array], Array]:
    return lambda t, p: np.array(first if t == 1 else later, p.dtype)


_KERAS = "keras-team/keras (Keras 3), keras/src/optimizers/"
_TF = "tensorflow/tensorflow (1.x), tensorflow/python/training/"
_LASAGNE = "Lasagne/Lasagne, lasagne/tests/test_updates.py, whose numbers are Torch7's"
_UP_TO_1 = np.arange(0.1, 1.1, 0.1)
FLT_EPSILON = float(np.finfo(np.float32).eps)
_TF_START, _TF_GRADS = [1.0, 2.0, 3.0, 4.0], np.array([0.1, 0.2, 0.01, 0.2])
_PROXIMAL_GRADS = same([0.1, 0.2, 0.01, 0.02])
_DECAY_ALONE = {"lr": 1.0, "weight_decay": 0.004}


def _square(t: int, p: Array) -> Array:
    """Return the gradient of the sum of (0.1, 0.2, 0.3) x^2."""
    return 2 * np.array([0.1, 0.2, 0.3]) * p


def _line(t: int, p: Array) -> Array:
    """Return the gradient of (4x + 5y)^2."""
    return np.array(2 * (4 * p[0] + 5 * p[1]) * np.array([4.0, 5.0]))


def _tf_rmsprop(alpha: float, momentum: float, eps: float, lr: float, centered: bool) -> Oracle:
    """The closed form for a constant gradient: v_t = a^t + (1 - a^t) g^2 from 1, m_t = (1 - a^t) g,
    u_t = lr g / sqrt(v_t - m_t^2 + eps), b_t = sum of mu^(t-k) u_k, p_t = p_0 - sum of b_k. Centred, the state is
    v_t - m_t^2."""
    published = {}
    u: list[Array] = []
    for t in range(1, 5):
        v, m = alpha**t + (1 - alpha**t) * _TF_GRADS**2, (1 - alpha**t) * _TF_GRADS
        u.append(lr * _TF_GRADS / np.sqrt(v + eps - (m**2 if centered else 0)))
        b = [sum(momentum ** (j - k) * u[k] for k in range(j + 1)) for j in range(t)]
        published[t] = {"param": np.array(_TF_START) - sum(b)}
        published[t] |= {"variance": v - m**2, "grad_avg": m} if centered else {"square_avg": v}
        published[t] |= {"momentum_buffer": b[-1]} if momentum else {}
    options = {"lr": lr, "alpha": alpha, "momentum": momentum, "eps": eps, "centered": centered}
    name = f"{_TF}rmsprop_test.py, testDense, {options}"
    return Oracle(name, _TF_START, same(_TF_GRADS), published, options, "tf1", rtol=1e-14)


RMSPROP = Entry(
    "rmsprop", "RMSprop",
    cases={
        "plain": {},
        "torch": {"alpha": 0.99},
        "eps inside": {"eps_inside_sqrt": True, "eps": 1e-7},
        "start at 1": {"initial_square_avg": 1.0, "eps": 1e-10, "eps_inside_sqrt": True},
        "coupled decay": {"weight_decay": 0.1},
        "decoupled decay": DECOUPLED,
        "maximize, coupled decay": {"maximize": True, "weight_decay": 0.1},
        "centered": {"centered": True},
        "momentum": {"momentum": 0.9},
        "momentum tf": {"momentum": 0.9, "momentum_form": "tf", "eps_inside_sqrt": True},
        "nesterov": {"momentum": 0.9, "nesterov": True, "maximize": True},
        "nesterov tf": {"momentum": 0.8, "nesterov": True, "momentum_form": "tf", **DECOUPLED},
        "bias correction": {"bias_correction": True},
        "graves": {"lr": 1e-4, "alpha": 0.95, "eps": 1e-4, "eps_inside_sqrt": True, "momentum": 0.9,
                   "momentum_form": "tf", "centered": True},
        "everything": {"centered": True, "momentum": 0.9, "nesterov": True, "bias_correction": True, "maximize": True,
                       "weight_decay": 0.01},
        "zeros": {"lr": 0.0, "alpha": 0.0, "eps": 0.0, "initial_square_avg": 1.0},
        "ones": {"lr": 1.0, "alpha": 1.0, "eps": 1.0, "momentum": 1.0},
        "ends of the type": {"lr": 1e38, "eps": 1e-38},
    },
    bad={**_DECAY, "alpha": UNIT, "eps": NONNEGATIVE, "momentum": UNIT, "initial_square_avg": NONNEGATIVE},
    signed=frozenset({"grad_avg", "momentum_buffer"}),
    loops=(Loop("RMSpropRule", 3 * 2 * 2, "add sub mul div sqrt", "half", narrow=True),),
    oracles=(
        Oracle(f"{_KERAS}rmsprop_test.py, test_single_step", _TF_START, same([1.0, 6.0, 7.0, 2.0]),
               {1: [-0.5811, 0.4189, 1.4189, 2.4189]}, {"lr": 0.5}, "keras", atol=decimals(4)),
        Oracle("the documentation of keras.optimizers.RMSprop: x^2/2 from 10", [10.0], lambda t, p: p.copy(),
               {1: [9.683772]}, {"lr": 0.1}, "keras", dtypes=(np.float32,), atol=1e-6),
        Oracle(f"{_KERAS}rmsprop_test.py, test_correctness_with_golden", np.ones(10), then(np.full(10, 0.01), _UP_TO_1),
               {t: np.full(10, x) for t, x in enumerate((0.9967, 0.9933, 0.9908, 0.9885, 0.9864), 1)},
               {"centered": True}, "keras", atol=decimals(4)),
        # The three optimizers of this test make a step each, with decay only: 2 (1 - 0.004)^3. The tolerance is the
        # test's own.
        Oracle(f"{_KERAS}rmsprop_test.py, test_weight_decay", 2.0, same(0.0), {3: 1.9760959}, _DECAY_ALONE, "keras",
               atol=1.5e-6),
        _tf_rmsprop(0.9, 0.0, 1e-3, 0.5, True), _tf_rmsprop(0.9, 0.0, 1e-3, 0.5, False),
        _tf_rmsprop(0.95, 0.0, 1e-5, 0.5, True), _tf_rmsprop(0.95, 0.9, 1e-5, 0.5, True),
        # eps is 1, so that its place under the root shows.
        Oracle(f"{_TF}rmsprop_test.py, testWithoutMomentum", [1.0, 3.0], same([0.1, 0.01]),
               {1: {"param": [1 - 0.2 / 1.901**0.5, 3 - 0.02 / 1.90001**0.5], "square_avg": [0.901, 0.90001]},
                2: {"param": [1 - 0.2 / 1.901**0.5 - 0.2 / 1.8119**0.5, 3 - 0.02 / 1.90001**0.5 - 0.02 / 1.810019**0.5],
                    "square_avg": [0.8119, 0.810019]}},
               {"lr": 2.0, "alpha": 0.9, "eps": 1.0}, "tf1", rtol=1e-14),
        Oracle(f"{_LASAGNE}, with its alpha", np.ones(3), _square,
               {10: [0.83205403985348, 0.83205322744821, 0.83205295664444]}, {"lr": 0.01, "alpha": 0.9, "eps": 1e-6},
               "torch", atol=1e-14),
        # Lasagne's eps is under the root, so it reaches these numbers to 1e-5 only, as its test says.
        Oracle(f"{_LASAGNE}, eps inside", np.ones(3), _square,
               {10: [0.83205403985348, 0.83205322744821, 0.83205295664444]}, {"lr": 0.01}, "lasagne", rtol=1e-5),
    ),
)  # fmt: skip

_TORCH7_ADAGRAD = [0.55373120047759, 0.55373120041518, 0.55373120039438]

ADAGRAD = Entry(
    "adagrad", "Adagrad",
    cases={
        "plain": {},
        "eps inside": {"eps_inside_sqrt": True, "eps": 1e-7, "lr": 0.001, "initial_accumulator_value": 0.1},
        "eps 0": {"eps": 0.0, "initial_accumulator_value": 0.1},
        "coupled decay": {"weight_decay": 0.1},
        "decoupled decay": DECOUPLED,
        "maximize": {"maximize": True},
        "maximize, decoupled decay": {"maximize": True, **DECOUPLED},
        "lr decay": {"lr": 1.0, "lr_decay": 0.1},
        "lr decay, coupled decay": {"lr_decay": 1e-3, "weight_decay": 0.1, "maximize": True},
    },
    bad={**_DECAY, "eps": NONNEGATIVE, "lr_decay": NONNEGATIVE, "initial_accumulator_value": NONNEGATIVE},
    loops=(Loop("AdagradRule", 2, "add sub mul div sqrt", "half", narrow=True),),
    oracles=(
        Oracle(f"{_KERAS}adagrad_test.py, test_single_step", _TF_START, same([1.0, 6.0, 7.0, 2.0]),
               {1: [0.5233, 1.5007, 2.5005, 3.5061]}, {"lr": 0.5}, "keras", atol=decimals(4)),
        Oracle(f"{_KERAS}adagrad_test.py, test_correctness_with_golden", np.ones(10),
               then(np.full(10, 0.01), _UP_TO_1),
               {1: [0.9963] * 10,
                2: [0.9604, 0.9278, 0.9003, 0.8784, 0.8615, 0.8487, 0.8388, 0.8313, 0.8255, 0.8209],
                3: [0.9251, 0.8629, 0.8137, 0.7768, 0.7497, 0.7298, 0.7151, 0.704, 0.6956, 0.6891],
                4: [0.8903, 0.8012, 0.7342, 0.6862, 0.6521, 0.6277, 0.6099, 0.5967, 0.5867, 0.579],
                5: [0.856, 0.7422, 0.6604, 0.6037, 0.5644, 0.5367, 0.5168, 0.5021, 0.491, 0.4825]},
               {"lr": 0.2, "initial_accumulator_value": 0.3, "eps": 1e-6}, "keras", atol=decimals(4)),
        Oracle(f"{_KERAS}adagrad_test.py, test_weight_decay", 2.0, same(0.0), {3: 1.9760959}, _DECAY_ALONE, "keras",
               atol=1.5e-6),
        # Printed float32 values. They hold up to the roundings of three steps, taken as 2 units of numbers from 2 to 4.
        Oracle(f"{_TF}adagrad_test.py, testBasic", _TF_START, same([0.1, 0.1, 0.01, 0.01]),
               {3: [-1.6026098728179932, -0.6026098728179932, 2.715679168701172, 3.715679168701172]},
               {"lr": 3.0, "initial_accumulator_value": 0.1}, "tf1", dtypes=DTYPES, atol=2 * 2.0**-22),
        Oracle(f"{_TF}adagrad_test.py, testSparseStability",
               [0.00872496, -0.106952, 0.110467, 0.226505, -0.0147257, -0.0105945],
               same([-5.91278e-05, 5.31673e-05, -2.5779e-06, 4.29153e-05, -8.4877e-05, -9.48906e-05]),
               {1: [0.00891194, -0.10712013, 0.11047515, 0.22636929, -0.0144573, -0.01029443]}, {"lr": 1.0}, "tf1",
               atol=decimals(8)),
        Oracle(_LASAGNE, np.ones(3), _square, {10: _TORCH7_ADAGRAD}, {"lr": 0.1}, "torch", atol=1e-14),
        Oracle(f"{_LASAGNE}, eps inside", np.ones(3), _square, {10: _TORCH7_ADAGRAD}, {"lr": 0.1}, "lasagne",
               rtol=1e-5),
    ),
)  # fmt: skip

_PENALTIES = {**_DECAY, "l1": NONNEGATIVE, "l2": NONNEGATIVE, "initial_accumulator_value": NONNEGATIVE}

PROXIMAL_ADAGRAD = Entry(
    "proximal_adagrad", "ProximalAdagrad",
    cases={
        "plain": {},
        "l1 and l2, coupled decay": {"l1": 0.3, "l2": 0.2, "weight_decay": 0.1, "initial_accumulator_value": 0.0},
        "l1, decoupled decay": {"lr": 0.1, "l1": 0.5, "maximize": True, **DECOUPLED},
    },
    bad=_PENALTIES,
    combined={"l1": 0.1},
    loops=(Loop("ProximalAdagradRule", 1, "add sub mul div sqrt", "half", narrow=True),),
    # TensorFlow computes in float32: it is off by 8e-7 after ten steps, so its own tolerance is used.
    oracles=(
        *(Oracle(f"{_TF}proximal_adagrad_test.py, {test}", start, _PROXIMAL_GRADS, {steps: published},
                 {"lr": 3.0, "l1": l1, "l2": l2, "initial_accumulator_value": 0.1}, atol=atol, rtol=rtol)
          for test, start, steps, l1, l2, published, atol, rtol in (
              ("testProximalAdagradwithoutRegularization", [0.0] * 4, 3, 0.0, 0.0,
               [-2.60260963, -4.29698515, -0.28432083, -0.56694895], 0.0, 1e-6),
              ("testProximalAdagradwithoutRegularization2", [1.0, 2.0, 4.0, 3.0], 3, 0.0, 0.0,
               [-1.60261, -2.296985, 3.715679, 2.433051], 1e-6, 1e-6),
              ("testProximalAdagradWithL1", [1.0, 2.0, 4.0, 3.0], 10, 0.001, 0.0,
               [-6.663634, -9.190331, 2.959304, 1.029232], 1e-6, 1e-6),
              ("testProximalAdagradWithL1_L2", [1.0, 2.0, 4.0, 3.0], 10, 0.001, 2.0,
               [-0.0495, -0.0995, -0.0045, -0.0095], 0.5e-4, 0.0),
          )),
        Oracle(f"{_TF}proximal_adagrad_test.py, testMinimizeSparseResourceVariable", [1.0, 2.0], _line, {1: [0.0, 1.0]},
               {"lr": 1.0, "initial_accumulator_value": 0.1}, atol=0.01),
    ),
)  # fmt: skip


def _adagrad_da_closed(l1: float, l2: float) -> Oracle:
    """A constant gradient: G = t g, s = k + t g^2; an l1 above the average gradient gives 0."""
    g, k, lr = np.array([0.1, -0.2, 0.01]), 0.1, 3.0
    published = {
        t: -np.sign(g) * lr * np.maximum(t * np.abs(g) - l1 * t, 0) / (l2 * t * lr + np.sqrt(k + t * g**2))
        for t in range(1, 11)
    }
    options = {"lr": lr, "l1": l1, "l2": l2, "initial_accumulator_value": k}
    return Oracle(f"the closed form, {l1=} {l2=}", [1.0, 2.0, 4.0], same(g), published, options, rtol=1e-13, atol=1e-15)


ADAGRAD_DA = Entry(
    "adagrad_da", "AdagradDA",
    cases={
        "plain": {},
        "l1 and l2, maximize": {"l1": 0.3, "l2": 0.2, "maximize": True, "initial_accumulator_value": 0.0},
        "l2, coupled decay": {"lr": 0.1, "l2": 0.5, "weight_decay": 0.3},
    },
    bad=_PENALTIES,
    signed=frozenset({"grad_sum"}),
    combined={"l1": 0.1, "l2": 0.1},
    loops=(Loop("AdagradDARule", 1, "add sub mul div sqrt", "half", narrow=True),),
    oracles=(
        *(Oracle(f"{_TF}adagrad_da_test.py, {test}", start, _PROXIMAL_GRADS, {1: published},
                 {"lr": 3.0, "l1": l1, "l2": l2, "initial_accumulator_value": 0.1}, atol=decimals(6))
          for test, start, l1, l2, published in (
              ("testAdagradDAWithoutRegularizationBasic1", [0.0] * 4, 0.0, 0.0,
               [-0.904534, -1.603567, -0.094821, -0.189358]),
              ("testAdagradDAWithoutRegularizationBasic2", [1.0, 2.0, 4.0, 3.0], 0.0, 0.0,
               [-0.904534, -1.603567, -0.094821, -0.189358]),
              ("testAdagradDAWithL1", [1.0, 2.0, 4.0, 3.0], 0.001, 0.0, [-0.895489, -1.59555, -0.085339, -0.17989]),
              ("testAdagradDAWithL1_L2", [1.0, 2.0, 4.0, 3.0], 0.001, 2.0,
               [-0.046907, -0.093659, -0.004275, -0.009023]),
          )),
        Oracle(f"{_TF}adagrad_da_test.py, testMinimizeSparseResourceVariable", [1.0, 2.0], _line, {1: [-1.0, -1.0]},
               {"lr": 1.0, "initial_accumulator_value": 0.1}, rtol=0.01),
        *(_adagrad_da_closed(l1, l2) for l1, l2 in itertools.product((0.0, 0.05, 0.15), (0.0, 0.5))),
    ),
)  # fmt: skip

ADAGRAD_NORM = Entry(
    "adagrad_norm", "AdagradNorm",
    cases={
        "plain": {},
        "start at 1, coupled decay": {"initial_accumulator_value": 1.0, "weight_decay": 0.1},
        "eps 0, decoupled decay": {"eps": 0.0, "initial_accumulator_value": 1.0, **DECOUPLED},
        "maximize, decoupled decay": {"maximize": True, **DECOUPLED},
    },
    cases_of_rows={
        "per row": {"per": "row"},
        "per row, mean, coupled decay": {"per": "row", "mean": True, "initial_accumulator_value": 0.5,
                                         "weight_decay": 0.1, "maximize": True},
        "per row, decoupled decay": {"per": "row", "mean": True, **DECOUPLED},
    },
    bad={**_DECAY, "eps": NONNEGATIVE, "initial_accumulator_value": NONNEGATIVE},
    loops=(
        Loop("AdagradNormRule", 1, "sub mul div", "half"),
        Loop("AdagradNormRule", 1, "add mul", "full", "reduce_loop"),
    ),
    # b^2 <- b^2 + ||g||^2, x <- x - lr g / b from b = 12: |(3, 4, 0)|^2 = 25, b = 13; |(1, 5, 1)|^2 = 27, b = 14.
    oracles=(
        Oracle("Ward, Wu & Bottou 2019, algorithm 1, by hand", [100.0, 200.0, 300.0],
               then([3.0, 4.0, 0.0], [1.0, 5.0, 1.0]),
               {1: {"param": [58.0, 144.0, 300.0], "square_sum": 169.0},
                2: {"param": [45.0, 79.0, 287.0], "square_sum": 196.0}},
               {"lr": 182.0, "eps": 0.0, "initial_accumulator_value": 144.0}, dtypes=DTYPES),
    ),
)  # fmt: skip


def _grprop_choice(members: list[Member]) -> list[dict[str, Any]]:
    """GRprop's sum runs over all parameters that follow it."""
    defaults = {key: DECLARED["rprop"]["fields"][key]["default"] for key in ("etas", "step_sizes")}
    asking = [k for k, (_, _, options) in enumerate(members) if str(options.get("variant")).startswith("grprop")]
    choice = fs.reference.grprop_choice(
        [(own["param"], g, own["step_size"], own["prev_sign"], {**defaults, **options})
         for own, g, options in (members[k] for k in asking)]
    )  # fmt: skip
    chosen = dict(zip(asking, choice, strict=True))
    return [{"chosen": chosen[k]} if k in chosen else {} for k in range(len(members))]


RPROP_VARIANTS = ("rprop-", "rprop+", "irprop-", "irprop-move", "irprop+", "grprop-slr", "grprop-sag")

# One weight, eight steps; eta- = 1/2, eta+ = 2, limits 1 and 3, first step size 1, p = 8: every number is exact. D is
# the step size after the step, s the sign that is remembered after it.
#
#   step         1     2     3     4     5     6     7     8
#   g           +3    +1    +2    -1    +5    -2     0    -4
#   loss         9     8    8.5   9.5    7     6     6     5        it rises before 3 (no flip) and before 4 (a flip)
#
# The first three steps are the same for all:
#   1  nothing remembered:  D = 1               p = 8 - 1 = 7         s +
#   2  same sign:           D = 2               p = 7 - 2 = 5         s +
#   3  same sign:           D = min(4, 3) = 3   p = 5 - 3 = 2         s +
#
# rprop-        4  flip:    D = 1.5             p = 2 + 1.5 = 3.5     s -      moves all the same
#               5  flip:    D = max(.75, 1) = 1 p = 3.5 - 1 = 2.5     s +
#               6  flip:    D = max(.5, 1) = 1  p = 2.5 + 1 = 3.5     s -
#               7  g = 0:   D = 1               p = 3.5               s 0
#               8  s was 0: D = 1               p = 3.5 + 1 = 4.5     s -
#
# The others forget the sign of a flip, so that step 5 keeps D = 1.5, step 6 is a flip again with D = max(.75, 1) = 1,
# and steps 7 (g = 0) and 8 (s was 0) keep D = 1:
#
# rprop+        4  takes the last move, 3, back:              p = 2 + 3 = 5        5  p = 3.5
#               6  takes the last move, 1.5, back:            p = 3.5 + 1.5 = 5    8  p = 6
# irprop-       4  stays:  p = 2     5  p = 2 - 1.5 = 0.5     6  stays: p = 0.5    8  p = 1.5
# irprop-move   4  moves:  p = 3.5   5  p = 3.5 - 1.5 = 2     6  moves: p = 3      8  p = 4
# irprop+       4  the loss rose: takes the last move back:   p = 5                5  p = 3.5
#               6  the loss fell: stays:                      p = 3.5              8  p = 4.5
BY_HAND_GRADS = (3.0, 1.0, 2.0, -1.0, 5.0, -2.0, 0.0, -4.0)
BY_HAND_LOSSES = (9.0, 8.0, 8.5, 9.5, 7.0, 6.0, 6.0, 5.0)
_FORGETS = ((1.0, 2.0, 3.0, 1.5, 1.5, 1.0, 1.0, 1.0), (1, 1, 1, 0, 1, 0, 0, -1))
BY_HAND = {  # p, D and s after each step
    "rprop-": ((7.0, 5.0, 2.0, 3.5, 2.5, 3.5, 3.5, 4.5), (1.0, 2.0, 3.0, 1.5, 1.0, 1.0, 1.0, 1.0),
               (1, 1, 1, -1, 1, -1, 0, -1)),
    "rprop+": ((7.0, 5.0, 2.0, 5.0, 3.5, 5.0, 5.0, 6.0), *_FORGETS),
    "irprop-": ((7.0, 5.0, 2.0, 2.0, 0.5, 0.5, 0.5, 1.5), *_FORGETS),
    "irprop-move": ((7.0, 5.0, 2.0, 3.5, 2.0, 3.0, 3.0, 4.0), *_FORGETS),
    "irprop+": ((7.0, 5.0, 2.0, 5.0, 3.5, 3.5, 3.5, 4.5), *_FORGETS),
}  # fmt: skip
_MIRRORED = np.array([1.0, -1.0, 1.0, -1.0, 1.0])


def _by_hand_grads(t: int, p: Array) -> Array:
    """Return the gradients of the table, its mirror image, and gradients so small that a product of two of them would
    be 0."""
    tiny = float(np.finfo(p.dtype).tiny)
    return BY_HAND_GRADS[t - 1] * np.array([1.0, -1.0, tiny, -tiny, 2.0**100], p.dtype)


RPROP = Entry(
    "rprop", "Rprop",
    cases={
        **{variant: {"variant": variant} for variant in RPROP_VARIANTS},
        "grprop-slr, coupled decay": {"variant": "grprop-slr", "weight_decay": 0.1, "maximize": True},
        "grprop-sag, decoupled decay": {"variant": "grprop-sag", "step_sizes": (0.0, 1e100), **DECOUPLED},
        "coupled decay": {"weight_decay": 0.1},
        "decoupled decay": {"variant": "irprop-", **DECOUPLED},
        "maximize, coupled decay": {"variant": "irprop+", "maximize": True, "weight_decay": 0.1},
        "wide": {"etas": (0.3, 7.5), "step_sizes": (0.0, 1e100), "variant": "irprop+"},
        "narrow": {"lr": 0.1, "etas": (0.99, 1.01), "step_sizes": (0.02, 0.03), "variant": "rprop+"},
    },
    bad={
        **_DECAY,
        "etas": (*_PAIR, *_bad(((1.2, 0.5), (0.5, 1.0), (1.0, 1.2), (0.0, 1.2), (-0.5, 1.2), (0.5, 0.9),
                                (math.nan, 1.2), (0.5, math.nan), (0.5, math.inf), (-math.inf, 1.2),
                                (0.5, 10**400)), ValueError)),
        "step_sizes": (*_PAIR, *_bad(((50.0, 1e-6), (-1e-6, 50.0), (1e-6, math.inf), (math.nan, 50.0),
                                      (1e-6, math.nan), (-2.0, -1.0), (0, 10**400)), ValueError)),
    },
    loops=(
        # The subtraction is part of a fused multiply-add, where there is one.
        Loop("RpropRule", 4, "mul", "both", narrow=True),
        Loop("GRpropRule", 2, "", "full", "reduce_loop"),  # finds the first of the smallest, in a scalar loop
    ),
    needs_loss=lambda options: options.get("variant") == "irprop+",
    across=_grprop_choice,
    oracles=tuple(
        Oracle(f"Igel & Hüsken 2000, 2003, by hand: {variant}", 8 * _MIRRORED, _by_hand_grads,
               {t: {"param": p * _MIRRORED, "step_size": np.full(5, D), "prev_sign": s * _MIRRORED}
                for t, (p, D, s) in enumerate(zip(*table, strict=True), 1)},
               {"lr": 1.0, "etas": (0.5, 2.0), "step_sizes": (1.0, 3.0), "variant": variant}, losses=BY_HAND_LOSSES,
               dtypes=DTYPES)
        for variant, table in BY_HAND.items()
    ),
)  # fmt: skip

# Adadelta
ADADELTA = Entry(
    "adadelta", "Adadelta",
    cases={
        "plain": {"lr": 1.0},
        "coupled decay": {"weight_decay": 0.1},
        "decoupled decay": DECOUPLED,
        "maximize, coupled decay": {"rho": 0.95, "eps": 1e-7, "maximize": True, "weight_decay": 0.1},
        "zeros": {"lr": 0.0, "rho": 0.0, "eps": 0.0},
        "ones": {"lr": 1.0, "rho": 1.0, "eps": 1.0},
    },
    bad={**_DECAY, "rho": UNIT, "eps": NONNEGATIVE},
    loops=(Loop("AdadeltaRule", 1, "add sub mul div sqrt", "half", narrow=True),),
    oracles=(
        Oracle(f"{_KERAS}adadelta_test.py, test_single_step", _TF_START, same([1.0, 6.0, 7.0, 2.0]),
               {1: [0.9993, 1.9993, 2.9993, 3.9993]}, {"lr": 0.5}, "keras", atol=decimals(4)),
        Oracle(f"{_KERAS}adadelta_test.py, test_correctness_with_golden", np.ones(10),
               then(np.full(10, 0.01), _UP_TO_1),
               {t: np.full(10, x) for t, x in enumerate((0.9978, 0.9947, 0.9915, 0.9882, 0.9849), 1)},
               {"lr": 1.0, "rho": 0.8, "eps": 1e-6}, "keras", atol=decimals(4)),
        Oracle(f"{_KERAS}adadelta_test.py, test_weight_decay", 2.0, same(0.0), {3: 1.9760959}, _DECAY_ALONE, "keras",
               atol=1.5e-6),
        Oracle(_LASAGNE, np.ones(3), _square, {10: [0.95453237704725, 0.9545237471374, 0.95452214847397]},
               {"rho": 0.95}, "torch", atol=1e-14),
    ),
)  # fmt: skip
# End of Adadelta

ENTRIES: tuple[Entry, ...] = (RMSPROP, ADAGRAD, PROXIMAL_ADAGRAD, ADAGRAD_DA, ADAGRAD_NORM, RPROP, ADADELTA)

# ----------------------------------------------------------------------------------------------- what follows from them

# An entry that lacks something fails in test_registry.py, which says what is missing.
_WHOLE = tuple(entry for entry in ENTRIES if not entry.missing())
CASES = tuple(entry.case(name, options) for entry in _WHOLE for name, options in entry.cases.items())
COMBINATIONS = tuple(case for entry in _WHOLE for case in entry.combinations() if case.has_function)

RULES = tuple(entry.rule for entry in _WHOLE)
FIRST_OF_RULE = tuple(next(case for case in CASES if case.rule == rule) for rule in RULES)
# The case with the most states of each rule: its arrays take every role.
FULLEST_OF_RULE = tuple(
    max((case for case in CASES if case.rule == rule and case.has_function), key=lambda case: len(case.states))
    for rule in RULES
)
FUNCTIONS = tuple(case for case in CASES if case.has_function)
# These, and the cases whose formula has the step count or the loss. What an optimizer keeps depends on nothing else.
KEEPING = (
    *FULLEST_OF_RULE,
    *(case for case in CASES if case not in FULLEST_OF_RULE and (case.counts or case.needs_loss)),
)
_BY_STORAGE = {
    frozenset((state.sign, state.scalar) for state in case.states): case
    for case in sorted(FULLEST_OF_RULE, key=lambda case: len(case.states))
}
ONE_OF_STORAGE = tuple(_BY_STORAGE.values())
# The ways to store arrays: first those with loops of their own, then those that are converted.
_F16, _HOW = np.float16, (False, True)
STORAGES = (
    *(Storage(np.float32, grad, BFLOAT16, stochastic) for grad in (np.float32, BFLOAT16) for stochastic in _HOW),
    Storage(np.float32, BFLOAT16, np.float32),
    *(Storage(BFLOAT16, BFLOAT16, BFLOAT16, stochastic, master) for master in (False, True) for stochastic in _HOW),
    *(Storage(BFLOAT16, np.float32, np.float32, stochastic) for stochastic in _HOW),
    Storage(BFLOAT16, _F16, np.float32, master=True),
    *(Storage(_F16, grad, state, stochastic)
      for grad, state in ((_F16, np.float32), (BFLOAT16, BFLOAT16)) for stochastic in _HOW),
    Storage(np.float32, _F16, np.float32),
    *(Storage(np.float64, grad, np.float64) for grad in (np.float32, _F16, BFLOAT16)),
)  # fmt: skip
PER_ROW = tuple(entry.case(name, options) for entry in _WHOLE for name, options in entry.cases_of_rows.items())
BY_ROWS = (*(case for case in FUNCTIONS if DECLARED[case.rule]["rows"]), *PER_ROW)
WALKED = tuple(
    next(case for case in some if case.rule == rule)
    for rule in RULES
    for some in (FULLEST_OF_RULE, [case for case in FUNCTIONS if "weight_decay" in case.options])
)


# All cases in every storage, and the cases that show how arrays are walked.
STORED = tuple(case.as_stored(storage) for case in FUNCTIONS for storage in STORAGES)
STORED_WALKED = tuple(case.as_stored(storage) for case in WALKED for storage in STORAGES)


def of_kind(kind: str) -> dict[str, Any]:
    """Return the fields of a kind, of all rules, by name."""
    return {key: spec for rule in RULES for key, spec in DECLARED[rule]["fields"].items() if spec["kind"] == kind}


# Options that are something else, and need something else, if they are not 0.
SWITCHES = frozenset({"weight_decay"}) | {
    state["used_with"] for rule in RULES for state in DECLARED[rule]["states"].values() if state["used_with"]
}

_TAKEN = {key for rule in RULES for key in takes(getattr(fs, f"{rule}_"))}
# Random hyperparameters, from which constants are derived in double and rounded once.
DRAWN: dict[str, Callable[[np.random.Generator], Any]] = {
    **dict.fromkeys((key for key in of_kind("real") if key in _TAKEN), lambda rng: rng.uniform(0, 1)),
    "lr": lambda rng: 10.0 ** rng.uniform(-4, 0),
    "eps": lambda rng: 10.0 ** rng.uniform(-12, 0),
    "etas": lambda rng: (rng.uniform(0, 1), rng.uniform(1, 2)),
    "step_sizes": lambda rng: (rng.uniform(0, 0.1), rng.uniform(0.1, 1)),
    "l1": lambda rng: rng.uniform(0, 0.1),
    "l2": lambda rng: rng.uniform(0, 0.1),
}


def _bad_of(entry: Entry, keys: Any) -> dict[str, tuple[Bad, ...]]:
    kinds = {key: spec["kind"] for key, spec in DECLARED[entry.rule]["fields"].items()}
    found = {key: {"flag": FLAG, "choice": CHOICE}.get(kinds.get(key, ""), entry.bad.get(key)) for key in keys}
    return {key: bad for key, bad in found.items() if bad is not None}


def _bad_of_function(entry: Entry) -> dict[str, tuple[Bad, ...]]:
    accepted = takes(getattr(fs, f"{entry.rule}_"))
    found = {**_bad_of(entry, accepted), "key": _KEY}
    if "step" in accepted:
        required = accepted["step"].default is inspect.Parameter.empty
        found["step"] = (*_COUNT, Bad(None, TypeError)) if required else _COUNT
    return {
        key: tuple(bad for bad in values if bad.value is not None or accepted[key].default is not None)
        for key, values in found.items()
    }


_BAD_ARRAYS = (
    *_bad((np.array(1), np.array([True]), np.array("0.1"), np.ma.ones(()), np.array(1, np.longdouble)), TypeError),
    *_bad((np.array(-1.0), np.array(math.nan), np.array(-math.inf, np.float16)), ValueError),
)


def _bad_of_class(entry: Entry) -> dict[str, tuple[Bad, ...]]:
    fields = DECLARED[entry.rule]["fields"]
    found = _bad_of(entry, [key for key, spec in fields.items() if spec["purpose"] != "loss"])
    for key, values in found.items():
        if fields[key]["per_element"]:
            arrays = _BAD_ARRAYS
            if fields[key]["kind"] == "pair":
                arrays = tuple(Bad((bad.value, 50.0), bad.error) for bad in arrays)
            found[key] = (*(bad for bad in values if not isinstance(bad.value, np.ndarray)), *arrays)
    return found


BAD_FUNCTION_OPTIONS = {entry.rule: _bad_of_function(entry) for entry in _WHOLE}
BAD_CLASS_OPTIONS = {entry.rule: _bad_of_class(entry) for entry in _WHOLE}

# --------------------------------------------------------------------------------------------------- shapes and layouts


def short_lengths(dtype: np.dtype[Any]) -> range:
    """Return 0 to two of the longest vectors (512 bits) and 1."""
    return range(2 * (64 // dtype.itemsize) + 2)


# Lengths around those at which the kernels cut their work into blocks, and at which threads begin to pay.
MIDDLE_LENGTHS = (1000, 1023, 1024, 1025, 2047, 2049, 8191, 8192, 8193, 32768, 33001)
LARGE_SHAPE = (331, 307)

SMALL_SHAPES: tuple[Shape, ...] = (
    (), (0,), (1,), (2,), (9,), (0, 3), (4, 0, 2), (1, 9), (9, 1), (1, 1, 1), (3, 130), (130, 3), (2, 3, 5, 7),
    (1, 4, 1, 6), (40, 33),
)  # fmt: skip

Allocate = Callable[[Shape], Array]


@dataclass(frozen=True)
class Layout:
    """A layout of an array in memory: ``make`` gets an allocator of dense C arrays."""

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


def broadcast_gradients(shape: Shape, make: Callable[[Shape], Array]) -> list[Array]:
    """Return read-only gradients with strides of 0, along all axes and along one, and a plain read-only one."""
    fewer = [(), *((*shape[:k], 1, *shape[k + 1 :]) for k in range(len(shape))), shape[1:]]
    found = [np.broadcast_to(make(small), shape) for small in fewer]
    plain = make(shape)
    plain.flags.writeable = False
    return [*found, plain]


# --------------------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class Values:
    """Starting values and ``STEPS`` gradients: dense arrays by name."""

    param: Array
    states: dict[str, Array]
    grads: list[Array]


def ordinary(
    case: Case, dtype: np.dtype[Any], shape: Shape, rng: np.random.Generator, of_grads: Sequence[Shape] = ()
) -> Values:
    """Return ordinary numbers of very different magnitudes. A few gradients are exactly 0. ``of_grads`` are the shapes
    of the gradients, if they have their own."""

    def draw(shape: Shape) -> Array:
        return np.asarray(np.ldexp(rng.standard_normal(shape), rng.integers(-10, 4, shape)))

    def start(state: State) -> Array:
        own = state.shape(shape)
        if state.sign:
            return np.asarray(rng.integers(-1, 2, own), np.int8)
        return np.asarray(draw(own) if state.negative else np.abs(draw(own)), dtype)

    grads = [np.asarray(draw(own) * (rng.random(own) > 0.05), dtype) for own in of_grads or [shape] * STEPS]
    return Values(np.asarray(draw(shape), dtype), {state.name: start(state) for state in case.states}, grads)


def specials(dtype: np.dtype[Any]) -> Array:
    tiny, smallest, largest = (getattr(np.finfo(dtype), key) for key in ("tiny", "smallest_subnormal", "max"))
    values = [0.0, 1.0, tiny, smallest, tiny - smallest, largest, math.inf]
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
    """Return the same without values that absorb all others: zeros, subnormals and the smallest normal numbers."""
    values = specials(dtype)
    return special(case, dtype, shape, rng, values[np.abs(values) < 0.5])


# Ways to name rows: an index, from the number of rows of a parameter.
INDICES: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "none": lambda rows, rng: np.zeros(0, np.int64),
    "the last": lambda rows, rng: np.array([rows - 1], np.uint32),
    "all in order": lambda rows, rng: np.arange(rows, dtype=np.int32),
    "all backwards, by a negative stride": lambda rows, rng: np.arange(rows, dtype=np.uint64)[::-1],
    "all in any order": lambda rows, rng: rng.permutation(rows).astype(np.int32),
    "some, none twice": lambda rows, rng: rng.permutation(rows)[: (rows + 1) // 2],
    "some, often twice": lambda rows, rng: rng.integers(0, rows, rows + 3).astype(np.uint32),
    "one, many times": lambda rows, rng: np.full(3 * rows, rows // 2, np.uint64),
    "few, many times, every 2nd of an array": lambda rows, rng: rng.integers(0, rows, 6 * rows)[::2] // 4,
    "a broadcast": lambda rows, rng: np.broadcast_to(np.int32(rows // 3), (rows,)),
    "Fibonacci's multiples": lambda rows, rng: np.arange(2 * rows, dtype=np.uint64) * 11400714819323198485 % rows,
}
ROW_SHAPES: tuple[Shape, ...] = ((), (1,), (3,), (15,), (16,), (67,), (2, 3), (5, 1, 4), (1030,), (0,))


def of_rows(
    case: Case, dtype: np.dtype[Any], shape: Shape, rows: tuple[Array, ...], rng: np.random.Generator
) -> Values:
    """Return values whose gradients are those of the rows of each step, a few of them 0 or -0."""
    values = ordinary(case, dtype, shape, rng, [(index.size, *shape[1:]) for index in rows])
    for grad in values.grads:
        grad[rng.random(grad.shape) < 0.05] = -0.0
    values.param[rng.random(shape) < 0.1] = -0.0
    return values


def extremes(case: Case, dtype: np.dtype[Any], shape: Shape, rng: np.random.Generator) -> Values:
    """Return the same with the largest and the smallest numbers of 16 bits."""
    largest, smallest = float(ml_dtypes.finfo(BFLOAT16).max), float(ml_dtypes.finfo(BFLOAT16).smallest_subnormal)
    values = [0.0, 1.0, largest, smallest, 65504.0, 2.0**-24, math.inf]
    return special(case, dtype, shape, rng, np.array([s * x for x in values for s in (1, -1)] + [math.nan], dtype))


SPECIAL_LENGTH = 15**3
VALUES: dict[str, Callable[[Case, np.dtype[Any], Shape, np.random.Generator], Values]] = {
    value.__name__: value for value in (ordinary, special, tiny, extremes)
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


def _pair(x: list[Any]) -> Any:
    return {"w": x[0], "b": x[1]}


def _nested(x: list[Any]) -> Any:
    return {"layers": [_pair(x), _pair(x[2:])], "scale": x[4]}


def _groups(x: list[Any]) -> Any:
    return [{"params": _pair(x)}, {"params": [x[2], (x[3],)], "lr": 0.25}, {"params": x[4]}]


def _list(x: list[Any]) -> Any:
    return x


class Layer(NamedTuple):
    w: Any
    b: Any


@dataclass
class Fields:
    w: Any
    b: Any


_FIELDED = (Layer, Fields, attrs.make_class("Attributes", ["w", "b"]))


def _fields(make: Any, x: list[Any]) -> Any:
    return {"deep": [make(w=x[0], b=x[1])], "top": make(w=x[2], b=make(w=x[3], b=[]))}


def _fields_backwards(make: Any, x: list[Any]) -> Any:
    return {"top": make(b=make(b=[], w=x[3]), w=x[2]), "deep": [make(b=x[1], w=x[0])]}


_FIELD_NAMES = ("deep.0.w", "deep.0.b", "top.w", "top.b.w")
_NESTED_NAMES = ("layers.0.w", "layers.0.b", "layers.1.w", "layers.1.b", "scale")


_GROUP_NAMES = ("w", "b", "0", "1.0", "2")

CONTAINERS: tuple[Container, ...] = (
    Container("an array", ("0",), lambda x: x[0], lambda x: x[0]),
    Container("a list", ("0", "1", "2"), _list, _list),
    Container("a tuple, gradients in a list", ("0", "1", "2"), tuple, list),
    Container("a list, gradients in a tuple", ("0", "1", "2"), list, tuple),
    Container("a dict", ("w", "b"), _pair, _pair),
    Container("a dict, gradients in another order", ("w", "b"), _pair, lambda x: {"b": x[1], "w": x[0]}),
    Container("other mappings", ("w", "b"), lambda x: collections.OrderedDict(_pair(x)),
              lambda x: MappingProxyType(_pair(x))),
    Container("a mapping of one's own", ("w", "b"), lambda x: OwnMapping(_pair(x)), lambda x: OwnMapping(_pair(x))),
    Container("nested", _NESTED_NAMES, _nested, _nested),
    Container("lists in a list", ("0.0", "0.1", "1.0"), lambda x: [[x[0], x[1]], [x[2]]],
              lambda x: [(x[0], x[1]), [x[2]]]),
    Container("an empty container in it", ("a.0", "c"), lambda x: {"a": [x[0]], "b": [], "c": x[1]},
              lambda x: {"a": [x[0]], "b": [], "c": x[1]}),
    Container("numbers as keys", ("0", "7"), lambda x: {0: x[0], 7: x[1]}, lambda x: {0: x[0], 7: x[1]}),
    Container("one group", ("0", "1"), lambda x: [{"params": [x[0], x[1]]}], lambda x: [[x[0], x[1]]]),
    Container("groups, gradients a group", _GROUP_NAMES, _groups, lambda x: [_pair(x), [x[2], [x[3]]], x[4]]),
    Container("groups, gradients in groups", _GROUP_NAMES, _groups,
              lambda x: [{"params": _pair(x)}, {"params": [x[2], [x[3]]]}, {"params": x[4]}]),
    Container("groups, gradients in one list", _GROUP_NAMES, _groups, _list),
    *(Container(f"{make.__name__}, nested", _FIELD_NAMES, functools.partial(_fields, make),
                functools.partial(_fields_backwards, make)) for make in _FIELDED),
    *(Container(f"{make.__name__} in a group", ("w", "b"), lambda x, make=make: [{"params": make(*x)}],
                lambda x, make=make: [make(*x)]) for make in _FIELDED),
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
    "clip_norm_each that clips some": {"clip_norm_each": 2.0},
    "clip_norm_each that does not": {"clip_norm_each": math.inf},
    "clip both, each": {"grad_scale": 0.7, "clip_value": 0.4, "clip_norm_each": 0.3, "nonfinite": "skip"},
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
    """A way to break a good array: what to pass instead, the error, and what its message must show."""

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


def _dtype(name: Any, **where: Any) -> BadArray:
    dtype = np.dtype(name)
    return BadArray(
        f"dtype {dtype}",
        lambda good: np.zeros(good.shape, dtype),
        TypeError,
        lambda good, bad: ["dtype", str(good.dtype), str(bad.dtype)],
        **{"fits": lambda good: good.dtype != dtype, **where},
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


class Quantity(np.ndarray[Any, Any]):
    """An array whose arithmetic is more than that of its numbers."""

    def __array_ufunc__(self, *args: Any, **options: Any) -> Any:
        raise TypeError


BAD_ARRAYS: tuple[BadArray, ...] = (
    _no_array("arithmetic of its own", lambda good: good.view(Quantity)),
    _no_array("a list", lambda good: good.reshape(-1).tolist()),
    _no_array("a list of the array", lambda good: [good]),
    _no_array("a float", lambda good: 1.0),
    _no_array("a NumPy scalar", lambda good: good.dtype.type(1)),
    _no_array("a string", lambda good: "w"),
    _no_array("an int", lambda good: 1),
    _no_array("any object", lambda good: object()),
    _no_array("a class", lambda good: type(good)),
    BadArray("bytes", lambda good: bytes(good.nbytes), TypeError,
             lambda good, bad: ["dtype", str(good.dtype), "uint8"]),
    BadArray("a read-only memoryview", lambda good: memoryview(good).toreadonly(), ValueError,
             lambda good, bad: ["read-only", "writeable"], roles=WRITTEN),
    BadArray("integers of the standard library", lambda good: std_array.array("i", [0] * good.size), TypeError,
             lambda good, bad: ["dtype", str(good.dtype), "int32"]),
    BadArray("None", lambda good: None, TypeError, lambda good, bad: ["ndarray", "None"], roles=frozenset({"param"})),
    *map(_dtype, ("g", "c8", "c16", "i1", "i4", "i8", "u1", "?", "O", "U4", "M8[s]", "f4,f4")),
    _dtype("f2", roles=frozenset({"state"}), fits=lambda good: good.dtype.kind == "f"),
    _dtype("f4", roles=frozenset({"state"}), fits=lambda good: good.dtype == np.float64),
    _dtype("f8", roles=SHAPED, fits=lambda good: good.dtype == np.float32),
    BadArray("byte order", lambda good: good.astype(good.dtype.newbyteorder("S")), TypeError,
             lambda good, bad: ["byte order", "native", str(bad.dtype)], fits=lambda good: good.itemsize > 1),
    _shape("one longer", lambda good: np.zeros((good.shape[0] + 1, *good.shape[1:]), good.dtype)),
    _shape("one shorter", lambda good: np.zeros((*good.shape[:-1], good.shape[-1] - 1), good.dtype)),
    _shape("transposed", lambda good: np.zeros(good.shape[::-1], good.dtype)),
    _shape("flat", lambda good: np.zeros(good.size, good.dtype)),
    _shape("an axis too many", lambda good: np.zeros((1, *good.shape), good.dtype)),
    _shape("an axis too few", lambda good: np.zeros(good.shape[1:], good.dtype)),
    _shape("one that would broadcast", lambda good: np.zeros((1, *good.shape[1:]), good.dtype)),
    BadArray("shape: one element instead of a number", lambda good: np.zeros((1,), good.dtype), ValueError,
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

# The second view is an int8 state, in the memory or the gaps of an array of floats.
BYTE_PAIRS: tuple[Pair, ...] = (
    Pair("bytes of the same memory", lambda m: (m[:8], m.view(np.int8)[:8]), True),
    Pair("the last byte", lambda m: (m[:8], m.view(np.int8)[8 * m.itemsize - 1 :][:8]), True),
    Pair("behind the last byte", lambda m: (m[:8], m.view(np.int8)[8 * m.itemsize :][:8]), False),
    Pair("bytes in the gaps", lambda m: (m[:16:2], m.view(np.int8)[m.itemsize :: 2 * m.itemsize][:8]), False),
    Pair("bytes in the gaps, one too far down",
         lambda m: (m[:16:2], m.view(np.int8)[m.itemsize - 1 :: 2 * m.itemsize][:8]), True),
)  # fmt: skip

# The second view is a state of one number.
SCALAR_PAIRS: tuple[Pair, ...] = (
    Pair("the first element", lambda m: (m[:12], m[0, ...]), True),
    Pair("the last element", lambda m: (m[:12], m[11, ...]), True),
    Pair("behind the last element", lambda m: (m[:12], m[12, ...]), False),
    Pair("in a gap", lambda m: (m[:24:2], m[3, ...]), False),
    Pair("between gaps", lambda m: (m[:24:2], m[4, ...]), True),
)

# -------------------------------------------------------------------------------- options that are refused, continued

# Each value is valid by itself: rule, options, and what the message must show.
CONFLICTS: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("rmsprop", {"nesterov": True}, ("nesterov", "momentum")),
    ("rmsprop", {"bias_correction": True, "alpha": 1.0}, ("correction", "alpha")),  # 1 - alpha^t would be 0
    ("rmsprop", {"nesterov": True, "momentum": 0.0}, ("nesterov", "momentum", "0")),
    ("rprop", {"step_sizes": (2.0, 1.0)}, ("step_sizes", "2", "1")),
)

# Options of step() that are refused before anything is written.
_POSITIVE = (*(bad for bad in NONNEGATIVE if bad.value is not None), *_bad((0, 0.0, -0.0), ValueError))
BAD_STEP_OPTIONS: dict[str, tuple[Bad, ...]] = {
    "grad_scale": _POSITIVE,
    "clip_norm": tuple(bad for bad in _POSITIVE if bad.value != math.inf),
    "clip_norm_each": tuple(bad for bad in _POSITIVE if bad.value != math.inf),
    "clip_value": _POSITIVE,
    "zero_grads": FLAG,
    "nonfinite": _bad(("", "Skip", "ignore", None, True, 3), ValueError),
    "loss": _bad(tuple(value for value in _NO_NUMBERS if value is not None), TypeError),
}

GOOD_NUMBERS: tuple[Any, ...] = (
    0.25,
    np.float64(0.25),
    np.float32(0.25),
    np.float16(0.25),
    1,
    np.int64(1),
    np.uint8(1),
)
