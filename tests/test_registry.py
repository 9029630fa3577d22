"""That nothing of a rule is forgotten: what must be there for each, and that all say the same about its arguments."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import fusedstep as fs
from conftest import SLOW
from fusedstep import _core
from registry import (
    BAD_CLASS_OPTIONS,
    BAD_FUNCTION_OPTIONS,
    DECLARED,
    DECOUPLED,
    ENTRIES,
    OF_CLASS,
    OF_FUNCTION,
    STEP_PROLOGUE,
    Entry,
)

EMPTY = inspect.Parameter.empty
POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
each_entry = pytest.mark.parametrize("entry", [entry for entry in ENTRIES if not entry.missing()], ids=lambda e: e.rule)


@pytest.mark.parametrize("rule", sorted({*DECLARED, *(entry.rule for entry in ENTRIES)}))
def test_nothing_is_missing(rule: str) -> None:
    """A rule is in the C++ list, has a reference, a function, a class, and an entry with cases, oracles and loops."""
    entries = [entry for entry in ENTRIES if entry.rule == rule]
    assert entries, f"{rule!r} is in fusedstep._core.rules(), but tests/registry.py has no entry for it"
    [entry] = entries
    assert not entry.missing(), f"{rule!r} lacks\n  " + "\n  ".join(entry.missing())


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(function).parameters)
    return {key: each for key, each in found.items() if each.kind is not inspect.Parameter.VAR_KEYWORD}


def defaults(function: Any) -> dict[str, Any]:
    return {key: each.default for key, each in parameters(function).items()}


@each_entry
def test_the_class_has_the_declared_options(entry: Entry) -> None:
    """The arguments of the class are the declared fields, without what it sees for itself, with the same defaults."""
    fields = DECLARED[entry.rule]["fields"]
    found = defaults(getattr(fs, entry.class_name).__init__)
    own = {key: value for key, value in found.items() if key not in ("self", "params", *OF_CLASS)}
    assert own == {key: spec["default"] for key, spec in fields.items() if spec["purpose"] != "loss"}
    assert list(found)[:3] == ["self", "params", "lr"]
    assert found["params"] is EMPTY
    assert [found[key] for key in OF_CLASS] == [None, None, 0, False, "never"]


@each_entry
def test_the_function_has_the_declared_arrays_and_options(entry: Entry) -> None:
    """By place the parameter, its gradient and the states that are always there; by name the other states, and the
    options that no state or step count stands for, with the same defaults, or required."""
    fields, states, counted = (DECLARED[entry.rule][key] for key in ("fields", "states", "step"))
    found = parameters(getattr(fs, f"{entry.rule}_"))
    always = [key for key, state in states.items() if not state["used_with"]]
    assert [key for key, each in found.items() if each.kind is POSITIONAL] == ["param", "grad", *always]
    for key in states:
        assert found[key].default is (EMPTY if key in always else None), key
    assert ("rows" in found) == DECLARED[entry.rule]["rows"]
    assert [found[key].default for key in OF_FUNCTION] == [None, None]
    rest = [key for key in found if key not in ("param", "grad", "step", "rows", *states, *OF_FUNCTION)]
    assert set(rest) <= set(fields), f"{set(rest) - set(fields)}: no option of {entry.rule!r}"
    for key in rest:
        # lr is required, or it only scales decoupled decay.
        allowed = (EMPTY, None) if key == "lr" else (fields[key]["default"],)
        assert found[key].default in allowed, f"{key}: {found[key].default!r}, declared {fields[key]['default']!r}"
    switches = {state["used_with"] for state in states.values()} | {counted}
    for key in set(fields) - set(rest):
        of_class = fields[key]["purpose"] == "start" or key in switches
        assert of_class, f"{entry.rule}_ has no {key!r}, which is an option of the rule"
    if "step" in found:
        assert found["step"].default is (EMPTY if counted == "" else None)
        assert counted is not None


@each_entry
def test_the_reference_takes_what_the_function_takes(entry: Entry) -> None:
    """With the same defaults; what all rules share is in ``gradient``. The rest are options of class or step."""
    function = parameters(getattr(fs, f"{entry.rule}_"))
    reference = parameters(fs.reference.gradient) | parameters(getattr(fs.reference, f"{entry.rule}_"))
    more = [key for key in reference if key not in function]
    for key, each in function.items():
        assert key in reference, f"{entry.rule}_: the reference has no {key}"
        same = (reference[key].default, reference[key].kind) == (each.default, each.kind)
        assert same, f"{entry.rule}_: the function has {each}, the reference {reference[key]}"
    assert set(more) <= {*DECLARED[entry.rule]["fields"], *STEP_PROLOGUE, "step", "chosen"}


@each_entry
def test_every_option_has_values_that_are_refused(entry: Entry) -> None:
    """``bad`` has the rule's own numbers and pairs; flags and choices need no entry."""
    options = {key for key, spec in DECLARED[entry.rule]["fields"].items() if spec["purpose"] != "loss"}
    assert set(BAD_CLASS_OPTIONS[entry.rule]) == options, f"the entry of {entry.rule!r} needs them in `bad`"
    assert set(entry.bad) <= options
    arrays = {"param", "grad", "rows", "param_low", *DECLARED[entry.rule]["states"]}
    takes = set(parameters(getattr(fs, f"{entry.rule}_"))) - arrays
    assert set(BAD_FUNCTION_OPTIONS[entry.rule]) == takes


@each_entry
def test_every_option_and_state_is_in_a_case(entry: Entry) -> None:
    """Each option has another value than its default in some case, so that none goes unused."""
    fields, states = DECLARED[entry.rule]["fields"], DECLARED[entry.rule]["states"]
    cases = (*entry.cases.values(), *entry.cases_of_rows.values())
    changed = {key for options in cases for key, value in options.items()
               if value != fields[key]["default"]}  # fmt: skip
    options = {key for key, spec in fields.items() if spec["purpose"] != "loss" and key != "lr"}
    try:
        _core.check_hyperparameters(entry.rule, DECOUPLED)
    except ValueError:  # the rule refuses it
        options.remove("decoupled_weight_decay")
    assert options <= changed | {"lr"}, f"no case of {entry.rule!r} has {options - changed}"
    assert {state["used_with"] for state in states.values() if state["used_with"]} <= changed


def test_what_is_missing_is_said() -> None:
    """An entry without anything names all that it lacks."""
    lacking = Entry("no_such_rule", "NoSuchRule", {}, (), ()).missing()
    for word in ("C++", "reference.py", "fs.no_such_rule_", "fs.NoSuchRule", "cases", "oracles", "loops"):
        assert any(word in what for what in lacking), word


def test_what_is_slow_exists() -> None:
    """The names in conftest.py are those of files or tests."""
    files = {path.stem: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")}
    for name in SLOW:
        assert name in files or any(f"def {name}(" in text for text in files.values()), name
