"""What other frameworks mean by these names: a dialect is a row of a table, its formula and its defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import _core

__all__ = ["Dialect", "dialect_arguments", "dialects", "markdown"]


@dataclass(frozen=True)
class Dialect:
    """One framework's optimizer, in the arguments of ours."""

    name: str
    source: str
    takes: Mapping[str, Any]
    """The arguments that it has, and their defaults there."""
    required: tuple[str, ...]
    """The arguments that it has and that have no default there."""
    fixed: Mapping[str, Any]
    """What its formula says and no argument of it changes."""


def _dialect(name: str, source: str, takes: list[str], values: dict[str, Any]) -> Dialect:
    """Return a row of the library's table, where an argument without a default is NaN."""
    required = tuple(key for key in takes if values[key] != values[key])
    fixed = {key: value for key, value in values.items() if key not in (*takes, "loss_increased")}
    return Dialect(name, source, {key: values[key] for key in takes if key not in required}, required, fixed)


_TABLES = {rule: tuple(_dialect(**row) for row in rows) for rule, rows in _core.dialects().items()}


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
                "fixed": _plain(dialect.fixed),
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
    taken = [*dialect.required, *dialect.takes]
    for given in (overrides, *groups):
        for key in given:
            if key not in taken:
                there = f" ({dialect.fixed[key]!r} there)" if key in dialect.fixed else ""
                raise TypeError(
                    f"{class_name} like {name!r} has no place for {key!r}{there}; it takes {', '.join(taken)}, verify"
                )
    every = [{**overrides, **given} for given in groups]
    for key in dialect.required:
        if not all(key in given for given in every):
            raise TypeError(f"{class_name} like {name!r} needs {key!r}: it has no default ({dialect.source})")
    return {**dialect.fixed, **dialect.takes, **overrides}


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
        values = {**dialect.fixed, **dialect.takes}
        rows.append([show(dialect, values) for show in columns.values()])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
