"""What other frameworks mean by these names: a dialect is a row of a table, its formula and its defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Dialect", "dialect_arguments", "dialects", "markdown"]


@dataclass(frozen=True)
class Dialect:
    """One framework's optimizer, in the arguments of ours. What a row does not name is as in the row ``default``."""

    name: str
    source: str
    takes: Mapping[str, Any]
    """The arguments that it has, and their defaults there."""
    required: tuple[str, ...] = ()
    """The arguments that it has and that have no default there."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """What its formula says and no argument of it changes."""


_TABLES: dict[str, tuple[Dialect, ...]] = {
    "rmsprop": (
        Dialect(
            "default",
            "Hinton, lecture 6e",
            {
                "lr": 0.01,
                "alpha": 0.9,
                "eps": 1e-8,
                "eps_inside_sqrt": False,
                "centered": False,
                "momentum": 0.0,
                "nesterov": False,
                "momentum_form": "torch",
                "bias_correction": False,
                "initial_square_avg": 0.0,
                "weight_decay": 0.0,
                "decoupled_weight_decay": False,
                "maximize": False,
            },
        ),
        Dialect(
            "torch",
            "PyTorch, torch.optim.RMSprop",
            {
                "lr": 0.01,
                "alpha": 0.99,
                "eps": 1e-8,
                "centered": False,
                "momentum": 0.0,
                "weight_decay": 0.0,
                "maximize": False,
            },
        ),
        Dialect(
            "keras",
            "Keras 3, keras.optimizers.RMSprop",
            {"lr": 0.001, "alpha": 0.9, "eps": 1e-7, "centered": False, "momentum": 0.0, "weight_decay": 0.0},
            fixed={"eps_inside_sqrt": True, "momentum_form": "tf", "decoupled_weight_decay": True},
        ),
        Dialect(
            "tf1",
            "TensorFlow 1, tf.train.RMSPropOptimizer",
            {"alpha": 0.9, "eps": 1e-10, "centered": False, "momentum": 0.0},
            required=("lr",),
            fixed={"eps_inside_sqrt": True, "momentum_form": "tf", "initial_square_avg": 1.0},
        ),
        Dialect(
            "optax",
            "optax.rmsprop",
            {
                "alpha": 0.9,
                "eps": 1e-8,
                "centered": False,
                "momentum": 0.0,
                "nesterov": False,
                "bias_correction": False,
                "initial_square_avg": 0.0,
            },
            required=("lr",),
            fixed={"eps_inside_sqrt": True, "momentum_form": "tf"},
        ),
        Dialect(
            "chainer",
            "chainer.optimizers.RMSprop, with the hook WeightDecay",
            {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0},
        ),
        Dialect(
            "lasagne",
            "lasagne.updates.rmsprop",
            {"lr": 1.0, "alpha": 0.9, "eps": 1e-6},
            fixed={"eps_inside_sqrt": True},
        ),
        Dialect(
            "caffe",
            "Caffe, RMSPropSolver",
            {"alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0},
            required=("lr",),
        ),
        Dialect("mlx", "mlx.optimizers.RMSprop", {"alpha": 0.99, "eps": 1e-8}, required=("lr",)),
        Dialect(
            "timm",
            "timm.optim.RMSpropTF",
            {
                "lr": 0.01,
                "alpha": 0.9,
                "eps": 1e-10,
                "centered": False,
                "momentum": 0.0,
                "weight_decay": 0.0,
                "decoupled_weight_decay": False,
            },
            fixed={"eps_inside_sqrt": True, "momentum_form": "tf", "initial_square_avg": 1.0},
        ),
        Dialect(
            "graves",
            "Graves 2013, arXiv:1308.0850",
            {"lr": 1e-4, "alpha": 0.95, "eps": 1e-4, "momentum": 0.9},
            fixed={"eps_inside_sqrt": True, "centered": True, "momentum_form": "tf"},
        ),
    ),
    "adagrad": (
        Dialect(
            "default",
            "Duchi, Hazan & Singer 2011",
            {
                "lr": 0.01,
                "eps": 1e-10,
                "eps_inside_sqrt": False,
                "lr_decay": 0.0,
                "initial_accumulator_value": 0.0,
                "weight_decay": 0.0,
                "decoupled_weight_decay": False,
                "maximize": False,
            },
        ),
        Dialect(
            "torch",
            "PyTorch, torch.optim.Adagrad",
            {
                "lr": 0.01,
                "eps": 1e-10,
                "lr_decay": 0.0,
                "initial_accumulator_value": 0.0,
                "weight_decay": 0.0,
                "maximize": False,
            },
        ),
        Dialect(
            "keras",
            "Keras 3, keras.optimizers.Adagrad",
            {"lr": 0.001, "eps": 1e-7, "initial_accumulator_value": 0.1, "weight_decay": 0.0},
            fixed={"eps_inside_sqrt": True, "decoupled_weight_decay": True},
        ),
        Dialect(
            "optax",
            "optax.adagrad",
            {"eps": 1e-7, "initial_accumulator_value": 0.1},
            required=("lr",),
            fixed={"eps_inside_sqrt": True},
        ),
        Dialect(
            "tf1",
            "TensorFlow 1, tf.train.AdagradOptimizer",
            {"initial_accumulator_value": 0.1},
            required=("lr",),
            fixed={"eps": 0.0},
        ),
        Dialect(
            "lasagne",
            "lasagne.updates.adagrad",
            {"lr": 1.0, "eps": 1e-6},
            fixed={"eps_inside_sqrt": True},
        ),
        Dialect(
            "chainer",
            "chainer.optimizers.AdaGrad, with the hook WeightDecay",
            {"lr": 0.001, "eps": 1e-8, "weight_decay": 0.0},
        ),
        Dialect("caffe", "Caffe, AdaGradSolver", {"eps": 1e-8}, required=("lr",)),
        Dialect("mlx", "mlx.optimizers.Adagrad", {"eps": 1e-8}, required=("lr",)),
        Dialect(
            "deepspeed",
            "deepspeed.ops.adagrad.DeepSpeedCPUAdagrad",
            {"lr": 0.01, "eps": 1e-10, "weight_decay": 0.0},
        ),
    ),
    "rprop": (
        Dialect(
            "default",
            "Riedmiller & Braun 1993",
            {
                "lr": 0.01,
                "etas": (0.5, 1.2),
                "step_sizes": (1e-6, 50.0),
                "variant": "rprop-",
                "weight_decay": 0.0,
                "decoupled_weight_decay": False,
                "maximize": False,
            },
        ),
        Dialect(
            "torch",
            "PyTorch, torch.optim.Rprop",
            {"lr": 0.01, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0), "maximize": False},
            fixed={"variant": "irprop-"},
        ),
        Dialect(
            "shark",
            "Shark, IRpropPlus",
            {"lr": 0.01, "etas": (0.5, 1.2), "step_sizes": (0.0, 1e100)},
            fixed={"variant": "irprop+"},
        ),
        Dialect(
            "encog",
            "Encog, ResilientPropagation",
            {"lr": 0.1, "step_sizes": (1e-6, 50.0)},
            fixed={"etas": (0.5, 1.2), "variant": "rprop+"},
        ),
        Dialect(
            "opencv",
            "OpenCV, cv::ml::ANN_MLP",
            {"lr": 0.1, "etas": (0.5, 1.2), "step_sizes": (2.0**-23, 50.0)},  # FLT_EPSILON
            fixed={"variant": "irprop-move"},
        ),
        Dialect(
            "neuralnet",
            "R, neuralnet::neuralnet",
            {"lr": 0.1, "etas": (0.5, 1.2), "step_sizes": (1e-10, 0.1)},
            fixed={"variant": "rprop+"},
        ),
    ),
}


def _fixed(rule: str, dialect: Dialect) -> dict[str, Any]:
    """Return every argument of ours that ``dialect`` has no place for, with the value that makes its formula."""
    taken = {*dialect.required, *dialect.takes}
    ours = {**_TABLES[rule][0].takes, **dialect.fixed}
    return {key: value for key, value in ours.items() if key not in taken}


def dialects() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the dialects of each rule as plain data: a copy, of what JSON has.

    Returns
    -------
    dict
        ``{rule: {dialect: {"source", "required", "defaults", "fixed"}}}``. ``required`` lists the arguments of
        ``like`` that have no default, ``defaults`` has the others, ``fixed`` the rest of the optimizer's arguments,
        with the values that make this dialect.

    Examples
    --------
    >>> import fusedstep as fs
    >>> fs.dialects()["rmsprop"]["lasagne"]["defaults"]
    {'lr': 1.0, 'alpha': 0.9, 'eps': 1e-06}
    """
    return {
        rule: {
            dialect.name: {
                "source": dialect.source,
                "required": list(dialect.required),
                "defaults": _plain(dialect.takes),
                "fixed": _plain(_fixed(rule, dialect)),
            }
            for dialect in table
        }
        for rule, table in _TABLES.items()
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def dialect_arguments(
    rule: str, class_name: str, name: str, overrides: Mapping[str, Any], groups: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the arguments of the optimizer that speaks the dialect ``name`` of ``rule``.

    ``overrides`` are arguments for all parameters, ``groups`` the arguments that each group of parameters has.
    """
    table = {dialect.name: dialect for dialect in _TABLES.get(rule, ())}
    if name not in table:
        raise ValueError(f"{class_name} has no dialect {name!r}; it has {', '.join(table) or 'none'}")
    dialect = table[name]
    fixed = _fixed(rule, dialect)
    taken = [*dialect.required, *dialect.takes]
    for given in (overrides, *groups):
        for key in given:
            if key not in taken:
                there = f" ({fixed[key]!r} there)" if key in fixed else ""
                raise TypeError(
                    f"{class_name} like {name!r} has no place for {key!r}{there}; it takes {', '.join(taken)}, verify"
                )
    every = [{**overrides, **given} for given in groups]
    for key in dialect.required:
        if not all(key in given for given in every):
            raise TypeError(f"{class_name} like {name!r} needs {key!r}: it has no default ({dialect.source})")
    return {**fixed, **dialect.takes, **overrides}


# ---------------------------------------------------------------------------------------------------- tables to be read


def _number(value: float) -> str:
    return re.sub(r"\.0$|(?<=e-)0|(?<=e)\+", "", repr(value))


def _shown(key: str) -> Callable[[Dialect, Mapping[str, Any]], str]:
    def show(dialect: Dialect, values: Mapping[str, Any]) -> str:
        if key in dialect.required:
            return "required"
        value = values[key]
        return ", ".join(map(_number, value)) if isinstance(value, tuple) else _number(value)

    return show


def _eps_place(dialect: Dialect, values: Mapping[str, Any]) -> str:
    return "inside" if values["eps_inside_sqrt"] else "outside"


def _momentum(dialect: Dialect, values: Mapping[str, Any]) -> str:
    if "momentum" not in dialect.takes:
        return "-"
    parts = [values["momentum_form"]]
    if values["momentum"]:
        parts.append(_number(values["momentum"]))
    if values["centered"]:
        parts.append("centered")
    return ", ".join(parts)


def _weight_decay(dialect: Dialect, values: Mapping[str, Any]) -> str:
    if "weight_decay" not in dialect.takes:
        return "-"
    return "decoupled" if values["decoupled_weight_decay"] else "coupled"


def _variant(dialect: Dialect, values: Mapping[str, Any]) -> str:
    return f"`{values['variant']}`"


def _takes(dialect: Dialect, values: Mapping[str, Any]) -> str:
    taken = (*dialect.required, *dialect.takes)
    return ", ".join(f"`{key}`" for key in taken) if len(taken) < len(values) else "everything"


_COLUMNS: dict[str, dict[str, Callable[[Dialect, Mapping[str, Any]], str]]] = {
    "rmsprop": {
        "lr": _shown("lr"),
        "alpha": _shown("alpha"),
        "eps": _shown("eps"),
        "eps and root": _eps_place,
        "first v": _shown("initial_square_avg"),
        "momentum": _momentum,
        "weight decay": _weight_decay,
    },
    "adagrad": {
        "lr": _shown("lr"),
        "eps": _shown("eps"),
        "eps and root": _eps_place,
        "first s": _shown("initial_accumulator_value"),
        "weight decay": _weight_decay,
    },
    "rprop": {
        "lr": _shown("lr"),
        "etas": _shown("etas"),
        "step_sizes": _shown("step_sizes"),
        "variant": _variant,
    },
}


def markdown(rule: str) -> str:
    """Return the dialects of ``rule`` (``"rmsprop"``, ``"adagrad"``, ``"rprop"``) as a Markdown table.

    The documentation shows it between ``<!-- dialects:rmsprop -->`` and ``<!-- /dialects -->``; a test compares.
    """
    columns: dict[str, Callable[[Dialect, Mapping[str, Any]], str]] = {
        "dialect": lambda dialect, values: f"`{dialect.name}`",
        "of": lambda dialect, values: dialect.source,
        **_COLUMNS[rule],
        "takes": _takes,
    }
    rows = [list(columns), ["---"] * len(columns)]
    for dialect in _TABLES[rule]:
        values = {**_fixed(rule, dialect), **dialect.takes}
        rows.append([show(dialect, values) for show in columns.values()])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
