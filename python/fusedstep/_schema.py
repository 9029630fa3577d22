"""What the core declares about each rule: hyperparameters, states, and when it needs the step count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _core


class Schema:
    """The hyperparameters and states of one rule."""

    class_name: str
    """The name of the rule's own class, which checkpoints of its subclasses have too."""

    def __init__(self, rule: str, declared: Mapping[str, Any]) -> None:
        self.rule = rule
        self.fields: dict[str, Any] = declared["fields"]
        self.states: dict[str, Any] = declared["states"]
        self.step: str | None = declared["step"]
        """None: the formula never uses the step count; empty: always; else the hyperparameter that turns its use on."""
        self.arguments = {name: field["default"] for name, field in self.fields.items() if field["purpose"] != "loss"}
        """The default of each hyperparameter of the constructor."""
        self.options = {
            name: value for name, value in self.arguments.items() if self.fields[name]["purpose"] == "option"
        }
        """The default of each hyperparameter that a group holds: all except where states start."""
        self.argument = {state["renamed"]: name for name, state in self.states.items() if state["renamed"] is not None}
        """What functions call the states that have another name with some options."""
        self.starting = {
            state["starts_at"]: name for name, state in self.states.items() if state["starts_at"] in self.options
        }
        """Options of a group that a state starts at: later changes of them would be without effect."""

    def uses_step(self, options: Mapping[str, Any]) -> bool:
        """Whether the formula has the step count in it, with these options."""
        return self.step is not None and (self.step == "" or bool(options[self.step]))

    def plain(self, name: str, value: Any) -> Any:
        """Return the exact value of an option as a Python object; instead of a number perhaps an array of float64."""
        kind = self.fields[name]["kind"]
        if kind == "pair":
            return tuple(map(_number, value))
        convert: Any = {"real": _number, "flag": bool, "choice": str}[kind]
        return convert(value)


def _number(value: Any) -> Any:
    return np.array(value, np.float64, order="C") if isinstance(value, np.ndarray) else float(value)


SCHEMAS = {rule: Schema(rule, declared) for rule, declared in _core.rules().items()}
