"""The tables of dialects in README and the guide: ``python tests/dialect_tables.py RULE`` prints one.

They stand between ``<!-- dialects:rmsprop -->`` and ``<!-- /dialects -->``; test_dialects.py compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import fusedstep as fs

Row = tuple[str, Mapping[str, Any], Mapping[str, Any]]
"""The name of a dialect, what ``fs.dialects()`` says of it, and its values."""
Show = Callable[[Row], str]


def number(value: float) -> str:
    return re.sub(r"\.0$|(?<=e-)0|(?<=e)\+", "", repr(value))


def value_of(key: str) -> Show:
    def show(row: Row) -> str:
        _, dialect, values = row
        if key in dialect["required"]:
            return "required"
        value = values[key]
        return ", ".join(map(number, value)) if isinstance(value, list) else number(value)

    return show


def eps_and_root(row: Row) -> str:
    return "inside" if row[2]["eps_inside_sqrt"] else "outside"


def momentum(row: Row) -> str:
    _, dialect, values = row
    if "momentum" not in dialect["defaults"]:
        return "-"
    parts = [values["momentum_form"]]
    if values["momentum"]:
        parts.append(number(values["momentum"]))
    if values["centered"]:
        parts.append("centered")
    return ", ".join(parts)


def weight_decay(row: Row) -> str:
    _, dialect, values = row
    if "weight_decay" not in dialect["defaults"]:
        return "-"
    return "decoupled" if values["decoupled_weight_decay"] else "coupled"


def takes(row: Row) -> str:
    _, dialect, _ = row
    taken = ", ".join(f"`{key}`" for key in (*dialect["required"], *dialect["defaults"]))
    return taken if dialect["fixed"] else "everything"


COLUMNS: dict[str, dict[str, Show]] = {
    "rmsprop": {
        "lr": value_of("lr"),
        "alpha": value_of("alpha"),
        "eps": value_of("eps"),
        "eps and root": eps_and_root,
        "first v": value_of("initial_square_avg"),
        "momentum": momentum,
        "weight decay": weight_decay,
    },
    "adagrad": {
        "lr": value_of("lr"),
        "eps": value_of("eps"),
        "eps and root": eps_and_root,
        "first s": value_of("initial_accumulator_value"),
        "weight decay": weight_decay,
    },
    "rprop": {
        "lr": value_of("lr"),
        "etas": value_of("etas"),
        "step_sizes": value_of("step_sizes"),
        "variant": lambda row: f"`{row[2]['variant']}`",
    },
}


def defaults(row: Row) -> str:
    _, dialect, values = row
    shown = [f"{key} {number(values[key])}" for key in dialect["defaults"] if isinstance(values[key], float)]
    return ", ".join([*(f"{key} required" for key in dialect["required"]), *shown])


OTHERS: dict[str, Show] = {"defaults": defaults, "weight decay": weight_decay}
"""The columns of a rule that has none of its own."""


def markdown(rule: str) -> str:
    """The dialects of a rule as a Markdown table."""
    columns: dict[str, Show] = {
        "dialect": lambda row: f"`{row[0]}`",
        "of": lambda row: str(row[1]["source"]),
        **COLUMNS.get(rule, OTHERS),
        "takes": takes,
    }
    rows = [list(columns), ["---"] * len(columns)]
    for name, dialect in fs.dialects()[rule].items():
        row = (name, dialect, {**dialect["fixed"], **dialect["defaults"]})
        rows.append([show(row) for show in columns.values()])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(markdown(*sys.argv[1:]))
