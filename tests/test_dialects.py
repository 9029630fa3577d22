"""``like``: the formula and the defaults of each framework, by name and as data. Options that a framework lacks are
refused."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import refused
from dialect_tables import markdown
from registry import DECLARED, ENTRIES, FLT_EPSILON, OF_CLASS

ROOT = Path(__file__).parents[1]
TABLES = fs.dialects()
CLASSES = {entry.rule: getattr(fs, entry.class_name) for entry in ENTRIES if entry.rule in TABLES}

ALL = [(rule, name) for rule, table in TABLES.items() for name in table]


def _other(key: str, spec: dict[str, Any]) -> Any:
    """Return a value of an argument that is not its default in any dialect."""
    if spec["kind"] == "flag":
        return True
    if spec["kind"] == "choice":
        return spec["choices"][-1] if key != "variant" else "irprop-move"
    if spec["kind"] == "pair":
        return (0.25, 1.5) if key == "etas" else (0.001, 0.0625)
    return {"lr": 0.0625, "eps": 0.125}.get(key, 0.375)


OTHER = {key: _other(key, spec) for rule in TABLES for key, spec in DECLARED[rule]["fields"].items()}
STARTS = {
    state["starts_at"]: name
    for rule in TABLES
    for name, state in DECLARED[rule]["states"].items()
    if state["starts_at"] and DECLARED[rule]["fields"][state["starts_at"]]["purpose"] == "start"
}


def arguments(cls: type[Any]) -> dict[str, Any]:
    """Return the options of a class, and their defaults."""
    parameters = dict(inspect.signature(cls).parameters)
    return {name: parameters[name].default for name in parameters if name not in ("params", *OF_CLASS)}


def spelled_out(rule: str, name: str) -> dict[str, Any]:
    """Return the arguments that make the class equal to ``like``. If lr is required, it is that of ``OTHER``."""
    dialect = TABLES[rule][name]
    values = {**dialect["fixed"], **dialect["defaults"]}
    values |= {key: OTHER[key] for key in dialect["required"]}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def needed(rule: str, name: str) -> dict[str, Any]:
    return {key: OTHER[key] for key in TABLES[rule][name]["required"]}


def run(opt: Any, param: np.ndarray[Any, Any]) -> list[bytes]:
    """Make five steps with signs that stay, flip and are 0, and losses that rise and fall. Return all bits."""
    rng = np.random.default_rng(5)
    for loss in (5.0, 4.0, 6.0, 3.0, 7.0):
        grad = rng.standard_normal(param.shape) * rng.integers(0, 2, param.shape)
        opt.step(grad.astype(param.dtype), loss=loss)
    return [array.tobytes() for array in (param, *opt.state["0"].values())]


# ------------------------------------------------------------------------------------------------------ the tables


@pytest.mark.parametrize(("rule", "name"), ALL)
def test_each_row_has_every_option_once(rule: str, name: str) -> None:
    """Which ones a framework has, and with which values, stands in the tables of the docs."""
    dialect = TABLES[rule][name]
    taken = [*dialect["required"], *dialect["defaults"]]
    ours = arguments(CLASSES[rule])
    if name == "default":
        assert dialect["defaults"] == {
            key: list(value) if isinstance(value, tuple) else value for key, value in ours.items()
        }
    assert not set(taken) & set(dialect["fixed"])
    assert {*taken, *dialect["fixed"]} == set(ours)
    assert dialect["source"]


def test_what_a_row_does_not_name_is_off() -> None:
    off = ("nesterov", "bias_correction", "maximize", "lr_decay", "weight_decay")
    for rule, name in ALL:
        dialect = TABLES[rule][name]
        values = {**dialect["fixed"], **dialect["defaults"]}
        assert not any(values[key] for key in off if key in values), (rule, name)


def test_tables_are_plain_copies() -> None:
    tables = fs.dialects()
    assert json.loads(json.dumps(tables)) == tables
    tables["rprop"]["torch"]["defaults"]["etas"][0] = 7
    tables["rmsprop"]["torch"]["defaults"]["lr"] = 7
    tables["adagrad"].clear()
    assert fs.dialects() == TABLES
    assert fs.Rprop.like("torch", np.zeros(1)).param_groups[0]["etas"] == (0.5, 1.2)


# ------------------------------------------------------------------------------------------------- what like makes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rule", "name"), ALL)
def test_like_is_the_class_with_these_arguments(rule: str, name: str, dtype: type[Any]) -> None:
    start = np.random.default_rng(3).standard_normal(37).astype(dtype)
    a, b = start.copy(), start.copy()
    alike = CLASSES[rule].like(name, a, **needed(rule, name), verify="every")
    plain = CLASSES[rule](b, **spelled_out(rule, name))
    assert type(alike) is CLASSES[rule]
    without = [{k: v for k, v in opt.param_groups[0].items() if k != "params"} for opt in (alike, plain)]
    assert without[0] == without[1]
    assert run(alike, a) == run(plain, b)
    assert not np.array_equal(a, start)
    assert np.isfinite(a).all()


@pytest.mark.parametrize(("rule", "name"), ALL)
def test_each_argument_can_be_given(rule: str, name: str) -> None:
    dialect = TABLES[rule][name]
    for key in (*dialect["required"], *dialect["defaults"]):
        given = {**needed(rule, name), key: OTHER[key]}
        if key == "nesterov":
            given["momentum"] = 0.5
        if key == "step_sizes":
            given["lr"] = OTHER["lr"]
        a, b = np.full(5, 2.0), np.full(5, 2.0)
        alike = CLASSES[rule].like(name, a, **given)
        if key in STARTS:
            assert (alike.state["0"][STARTS[key]] == OTHER[key]).all()
        else:
            assert alike.param_groups[0][key] == OTHER[key]
        plain = CLASSES[rule](b, **{**spelled_out(rule, name), **given})
        assert run(alike, a) == run(plain, b), key


@pytest.mark.parametrize(("rule", "name"), ALL)
def test_lr_is_the_first_argument_after_params(rule: str, name: str) -> None:
    for opt in (CLASSES[rule].like(name, np.zeros(2), 0.03125), CLASSES[rule].like(name, np.zeros(2), lr=0.03125)):
        assert opt.param_groups[0]["lr"] == 0.03125


@pytest.mark.parametrize(
    ("name", "size", "grad", "limit"),
    [("shark", 3e38, 1, np.finfo(np.float32).max), ("opencv", 1.5 * FLT_EPSILON, -1, FLT_EPSILON)],
)
def test_limits_of_step_sizes_are_those_of_float(name: str, size: float, grad: float, limit: float) -> None:
    p = np.zeros(1, np.float32)
    opt = fs.Rprop.like(name, p)
    opt.state["0"]["step_size"][...] = size
    opt.state["0"]["prev_sign"][...] = 1
    opt.step(np.full(1, grad, np.float32), loss=1.0)
    assert opt.state["0"]["step_size"] == limit
    assert np.isfinite(p).all()


# ----------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("rule", "name"), ALL)
def test_what_has_no_place_is_refused(rule: str, name: str) -> None:
    """As an argument and in a group."""
    dialect, cls = TABLES[rule][name], CLASSES[rule]
    taken = [*dialect["required"], *dialect["defaults"]]
    for key in (*dialect["fixed"], "learning_rate", "params_"):
        given = {key: OTHER.get(key, 1.0)}
        says = [cls.__name__, name, f"unexpected argument '{key}'", f"; it takes {', '.join(taken)}"]
        if key in dialect["fixed"]:
            says.append(repr(spelled_out(rule, name)[key]))
        with refused(TypeError, says):
            cls.like(name, np.zeros(2), **needed(rule, name), **given)
        with refused(TypeError, says):
            cls.like(name, [{"params": np.zeros(2)}, {"params": np.zeros(2), **given}], **needed(rule, name))


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule, name in ALL if TABLES[rule][name]["required"]])
def test_required_stays_required(rule: str, name: str) -> None:
    cls = CLASSES[rule]
    with pytest.raises(TypeError, match=rf"{cls.__name__}.like\('{name}'\) is missing 'lr'"):
        cls.like(name, np.zeros(2))
    with pytest.raises(TypeError, match="'lr'"):
        cls.like(name, [{"params": np.zeros(2), "lr": 0.5}, {"params": np.zeros(2)}])
    opt = cls.like(name, [{"params": np.zeros(2), "lr": 0.5}, {"params": np.zeros(2), "lr": 0.25}])
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.25]
    opt = cls.like(name, [{"params": np.zeros(2), "lr": 0.5}, {"params": np.zeros(2)}], 0.125)
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.125]


@pytest.mark.parametrize(("name", "meant"), [("PyTorch", "torch"), ("tensorflow", "tf1"), ("kreas", "keras"), ("", "")])
def test_unknown_names_are_refused(name: str, meant: str) -> None:
    hint = f" (did you mean {meant!r}?)" if meant else ""
    with refused(ValueError, [f"RMSprop has no dialect {name!r}{hint}; it has {', '.join(TABLES['rmsprop'])}"]):
        fs.RMSprop.like(name, np.zeros(2))
    for rule, cls in CLASSES.items():
        with refused(ValueError, [f"{cls.__name__} has no dialect {name!r}", f"; it has {', '.join(TABLES[rule])}"]):
            cls.like(name, np.zeros(2))
    with refused(ValueError, ["Rprop has no dialect 'keras'"]):
        fs.Rprop.like("keras", np.zeros(2))
    for none in (fs.AdagradDA, fs.AdagradNorm, fs.ProximalAdagrad):
        with refused(ValueError, [f"{none.__name__} has no dialect {name!r}", "; it has none"]):
            none.like(name, np.zeros(2))


# ------------------------------------------------------------------------------------------------ tables in the docs


def shown_tables() -> Iterator[tuple[str, str, str]]:
    """Yield each table in README and docs: the file, the rule, the text."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"^<!-- dialects:(\w+) -->$\n+(.*?)\n*^<!-- /dialects -->$", text, re.M | re.S)
        markers = [len(re.findall(rf"^<!-- {marker}", text, re.M)) for marker in ("dialects:", "/dialects")]
        assert markers == [len(found)] * 2, f"{path}: a stray marker"
        for rule, table in found:
            yield path.name, rule, table


def test_tables_in_the_docs_are_the_data() -> None:
    """The docs have each table, so what a framework has and does is written twice."""
    shown = list(shown_tables())
    assert {rule for _, rule, _ in shown} == {*TABLES}
    for file, rule, table in shown:
        assert table == markdown(rule), f"{file}: put there what tests/dialect_tables.py {rule} prints"


@pytest.mark.parametrize("rule", TABLES)
def test_markdown_shows_every_row(rule: str) -> None:
    header, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in markdown(rule).splitlines()]
    assert [row[0] for row in rows] == [f"`{name}`" for name in TABLES[rule]]
    for row in rows:
        assert len(row) == len(header)
        shown = dict(zip(header, row, strict=True))
        dialect = TABLES[rule][shown["dialect"].strip("`")]
        assert shown["of"] == dialect["source"]
        taken = ", ".join(f"`{key}`" for key in (*dialect["required"], *dialect["defaults"]))
        assert shown["takes"] == (taken if dialect["fixed"] else "everything")
        if dialect["required"]:
            assert shown["lr"] == "required"
        else:
            assert float(shown["lr"]) == dialect["defaults"]["lr"]
