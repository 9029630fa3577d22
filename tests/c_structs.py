"""The C ABI's structs of hyperparameters, as ctypes has them, and how the registry's cases fill them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from fusedstep import _core
from registry import Case

FLOAT32, FLOAT64, INT8 = range(3)
DTYPE_CODES = {"f": FLOAT32, "d": FLOAT64, "b": INT8}
MOMENTUM_FORMS = ("torch", "tf")
VARIANTS = ("rprop-", "rprop+", "irprop-", "irprop-move", "irprop+", "grprop-slr", "grprop-sag")
CHOICES = {"momentum_form": MOMENTUM_FORMS, "variant": VARIANTS}

_d, _b = ctypes.c_double, ctypes.c_uint8
_start = ("initial_accumulator_value", _d)
_decay = [("weight_decay", _d), ("decoupled_weight_decay", _b), ("maximize", _b)]
FIELDS: dict[str, list[tuple[str, Any]]] = {
    "rmsprop": [("lr", _d), ("alpha", _d), ("eps", _d), ("eps_inside_sqrt", _b), ("centered", _b), ("momentum", _d),
                ("nesterov", _b), ("momentum_form", _b), ("bias_correction", _b), *_decay, ("initial_square_avg", _d)],
    "adagrad": [("lr", _d), ("eps", _d), ("eps_inside_sqrt", _b), ("lr_decay", _d), *_decay, _start],
    "rprop": [("lr", _d), ("etas", _d * 2), ("step_sizes", _d * 2), ("variant", _b), ("loss_increased", _b), *_decay],
    "proximal_adagrad": [("lr", _d), ("l1", _d), ("l2", _d), *_decay, _start],
    "adagrad_da": [("lr", _d), ("l1", _d), ("l2", _d), *_decay, _start],
    "adagrad_norm": [("lr", _d), ("eps", _d), *_decay, _start],
}  # fmt: skip
RULES = tuple(FIELDS)


def make_struct(name: str, fields: list[tuple[str, Any]]) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": fields})


STRUCTS = {rule: make_struct(rule, [("size", ctypes.c_uint64), *FIELDS[rule]]) for rule in RULES}


def fill(made: Any, values: Mapping[str, Any]) -> Any:
    """Set some values, given as Python writes them."""
    for name, value in values.items():
        if name in ("etas", "step_sizes"):
            getattr(made, name)[:] = value
        else:
            setattr(made, name, CHOICES[name].index(value) if name in CHOICES else value)
    return made


def of_struct(case: Case) -> dict[str, Any]:
    """The options of a functional form, as the struct has them."""
    names = [state.name for state in case.states]
    return {**case.options, **({"centered": True} if "grad_avg" in names else {})}


def at_step(case: Case, now: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``case.at_step``, as the struct has them: that a step is given turns bias correction on."""
    more = {name: value for name, value in now.items() if name != "step"}
    return {**more, "bias_correction": True} if case.rule == "rmsprop" and "step" in now else more


def rule_struct(case: Case, now: Mapping[str, Any]) -> Any:
    """Return the struct of a case, all of it set, without a library."""
    made = STRUCTS[case.rule]()
    made.size = ctypes.sizeof(made)
    defaults = _core.rules()[case.rule]["fields"]
    return fill(made, {**defaults, **of_struct(case), **at_step(case, now)})
