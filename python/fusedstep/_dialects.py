"""Dialects: presets with the formula and the defaults of other frameworks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import _core
from ._hints import did_you_mean


def dialects() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the dialects of each rule as plain data that JSON can hold, in a new copy.

    Returns
    -------
    dict
        ``{rule: {dialect: {"source", "required", "defaults", "fixed"}}}``. ``required`` lists the arguments of
        ``like`` that have no default, ``defaults`` has the others. ``fixed`` has the remaining arguments of the
        optimizer, with the values that make this dialect.

    Examples
    --------
    >>> import fusedstep as fs
    >>> fs.dialects()["rmsprop"]["lasagne"]["defaults"]
    {'lr': 1.0, 'alpha': 0.9, 'eps': 1e-06}
    """
    import json

    found = {rule: {row["name"]: _parts(row) for row in rows} for rule, rows in _core.dialects().items()}
    plain: dict[str, dict[str, dict[str, Any]]] = json.loads(json.dumps(found))
    return plain


def _parts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a dialect from a row of the core's table, where NaN stands for a missing default."""
    takes, values = row["takes"], row["values"]
    required = [key for key in takes if values[key] != values[key]]
    return {
        "source": row["source"],
        "required": required,
        "defaults": {key: values[key] for key in takes if key not in required},
        "fixed": {key: value for key, value in values.items() if key not in (*takes, "loss_increased")},
    }


def dialect_arguments(
    rule: str, class_name: str, name: str, overrides: Mapping[str, Any], groups: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the optimizer's arguments for a dialect, given ``overrides`` for all and arguments of ``groups``."""
    table = {row["name"]: row for row in _core.dialects().get(rule, ())}
    if name not in table:
        known = ", ".join(table) or "none"
        raise ValueError(f"{class_name} has no dialect {name!r}{did_you_mean(name, table)}; it has {known}")
    dialect = _parts(table[name])
    required, defaults, fixed = dialect["required"], dialect["defaults"], dialect["fixed"]
    taken = [*required, *defaults]
    for given in (overrides, *groups):
        for key in given:
            if key not in taken:
                hint = f" (fixed at {fixed[key]!r})" if key in fixed else did_you_mean(key, taken)
                raise TypeError(
                    f"{class_name}.like({name!r}) got an unexpected argument {key!r}{hint}; it takes "
                    f"{', '.join(taken)}, verify"
                )
    every = [{**overrides, **given} for given in groups]
    for key in required:
        if not all(key in given for given in every):
            raise TypeError(
                f"{class_name}.like({name!r}) is missing {key!r}, which has no default in {dialect['source']}"
            )
    return {**fixed, **defaults, **overrides}
