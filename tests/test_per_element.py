"""A number for each element: learning rates and Rprop's step sizes as arrays."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import Mirror, assert_same, difference, memory_of, refused, threads
from registry import (
    BY_ROWS,
    CASES,
    DECLARED,
    DECOUPLED,
    DTYPES,
    FIRST_OF_RULE,
    ISAS,
    LAYOUTS,
    PER_ROW,
    STORED_WALKED,
    WALKED,
    Array,
    C,
    Case,
    Layout,
)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def chooses_one(case: Case) -> bool:
    return "grprop" in str(case.class_options.get("variant"))


ABLE = [case for case in CASES if not chooses_one(case)]


def own(case: Case, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
    """Return arrays for all numbers of a case that may be arrays."""
    fields = DECLARED[case.rule]["fields"]
    made: dict[str, Any] = {}
    for key in (key for key, spec in fields.items() if spec["per_element"]):
        number = case.class_options.get(key, fields[key]["default"])
        if isinstance(number, tuple):
            lo, hi = number[0], min(number[1], 1.0)
            made[key] = tuple(np.asarray(lo + (hi - lo) * rng.uniform(*part, shape)) for part in ((0, 0.5), (0.5, 1)))
        else:
            made[key] = np.asarray(number * rng.uniform(0.1, 1.0, shape), np.float32)
    return made


def run(
    case: Case, shapes: dict[str, tuple[int, ...]], options: dict[str, Any], layouts: dict[str, Layout], **made: Any
) -> None:
    """Make steps with and without options, and with gradients in the same and another layout. Every bit is the
    reference's."""
    rng = np.random.default_rng(3)
    storage = case.storage
    dtype, grad_dtype = (np.dtype(np.float64),) * 2 if storage is None else (np.dtype(storage.param), storage.grad)
    dtype, grad_dtype = made.pop("dtype", dtype), made.pop("grad_dtype", grad_dtype)
    params = {name: layouts[name].make(lambda shape: np.zeros(shape, dtype), shape) for name, shape in shapes.items()}
    for param in params.values():
        param[...] = rng.standard_normal(param.shape)
    groups = [{"params": {name: param}, **options[name]} for name, param in params.items()]
    mirror = Mirror(case, params, options)
    optimizer = case.new(groups, **made)
    mirror.assert_like(optimizer, params, f"{case}, at the start")
    for t in range(1, 5):
        grads = {}
        for name, param in params.items():
            layout = layouts[name] if t % 2 else C
            grads[name] = layout.make(lambda shape: np.zeros(shape, grad_dtype), param.shape)
            grads[name][...] = rng.standard_normal(param.shape)
        step: dict[str, Any] = case.loss(t)
        if t > 2:
            step |= {"clip_norm_each" if t == 3 else "clip_norm": 0.5, "clip_value": 1.0}
        mirror.step(grads, **step)
        optimizer.step([{name: grad} for name, grad in grads.items()], zero_grads=t > 2, **step)
        mirror.assert_like(optimizer, params, f"{case} {dtype} {fs.isa()}, step {t}")
        assert t <= 2 or not any(grad.any() for grad in grads.values())


@each_dtype
@pytest.mark.parametrize(
    ("case", "verify"),
    [*((case, "never") for case in (*ABLE, *PER_ROW)), *((case, "every") for case in FIRST_OF_RULE)],
    ids=str,
)
def test_every_bit_is_the_references(case: Case, dtype: np.dtype[Any], verify: str) -> None:
    """All rules and options, with arrays of the parameter's shape, of rows, of columns and 0-d."""
    rng = np.random.default_rng(1)
    shapes = {"whole": (3, 5), "rows": (4, 3, 2), "columns": (3, 7), "one": (9,), "none": (0, 3)}
    some = {"whole": (3, 5), "rows": (3, 1), "columns": (7,), "one": (), "none": (3,)}
    options = {name: own(case, shape, rng) for name, shape in some.items()}
    layouts = dict(zip(shapes, LAYOUTS, strict=False))
    with fs.use_isa(ISAS[CASES.index(case) % len(ISAS) if case in CASES else 0]):
        run(case, shapes, options, layouts, dtype=dtype, grad_dtype=dtype, verify=verify)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in (*WALKED, *STORED_WALKED) if not chooses_one(case)], ids=str)
def test_layouts_and_threads(case: Case) -> None:
    """Each layout in each storage, in one of the two cases of a rule, with threads that share the work."""
    rng = np.random.default_rng(2)
    layouts = LAYOUTS[WALKED.index(next(walked for walked in WALKED if case.name.startswith(walked.name))) % 2 :: 2]
    names = [layout.name for layout in layouts]
    shapes = dict.fromkeys(names, (31, 37))
    options = {name: own(case, (31, 37) if k % 2 else (31, 1), rng) for k, name in enumerate(names)}
    for isa, count in zip(itertools.cycle(ISAS), (1, 3), strict=False):
        with fs.use_isa(isa), threads(count):
            run(case, shapes, options, dict(zip(names, layouts, strict=True)))


@pytest.mark.parametrize("case", BY_ROWS, ids=str)
def test_rows_take_their_part(case: Case) -> None:
    """Long and short rows, some named more than once, in a table that is dense or every second row of another."""
    rng = np.random.default_rng(5)
    for k, (width, spread, count) in enumerate(
        ((3, False, 1), (20, False, 2), (20, True, 1), (1030, False, 2)), BY_ROWS.index(case)
    ):
        dtype = DTYPES[k % len(DTYPES)]
        table = np.zeros((14, width), dtype)[::2] if spread else np.zeros((7, width), dtype)
        table[...] = rng.standard_normal(table.shape)
        lr = own(case, table.shape if width < 1000 else (1, width), rng)["lr"]
        mirror = Mirror(case, {"table": table}, {"table": {"lr": lr}})
        optimizer = case.new([{"params": {"table": table}, "lr": lr}])
        with threads(count):
            for t in range(1, 4):
                index = np.array([5, 0, 5, 2], (np.int32, np.uint64)[t % 2])
                rows = fs.Rows(index, rng.standard_normal((4, width)).astype(dtype))
                step = {"clip_norm": 0.5} if t == 3 else {}
                mirror.step({"table": rows}, **step)
                optimizer.step([{"table": rows}], **step)
                mirror.assert_like(optimizer, {"table": table}, f"{case} {width=} {spread=}, step {t}")


@pytest.mark.parametrize("case", [case for case in FIRST_OF_RULE if not chooses_one(case)], ids=str)
def test_with_masks(case: Case) -> None:
    rng = np.random.default_rng(6)
    options = own(case, (4,), rng)
    w = rng.standard_normal((3, 4))
    mirror, mask = Mirror(case, {"w": w}, {"w": options}), np.array([[True], [False], [True]])
    before = w.copy()
    optimizer = case.new([{"params": {"w": w}, **options}])
    for t in range(1, 4):
        grad = rng.standard_normal((3, 4))
        step = case.loss(t)
        mirror.arrays["w"]["param"][1] = 0  # contributes nothing to a sum over all elements
        mirror.step({"w": np.where(mask, grad, 0)}, **step)
        optimizer.step([{"w": grad}], mask=[{"w": mask}], **step)
        assert not difference(w[[0, 2]], mirror.arrays["w"]["param"][[0, 2]])
        assert not difference(w[1], before[1])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("case", [case for case in FIRST_OF_RULE if DECLARED[case.rule]["rows"]], ids=str)
def test_arrays_come_and_go(case: Case, order: Any) -> None:
    """Change between steps on the same gradient: number, array, other values in it, other array, number."""
    rng = np.random.default_rng(7)
    w, g = np.zeros((4, 5), order=order), np.zeros((4, 5), order=order)
    g[...] = rng.standard_normal((4, 5))
    mirror, optimizer = Mirror(case, {"w": w}), case.new({"w": w})
    live = rng.uniform(0, 1, (4, 5))
    for k, lr in enumerate((0.5, live, live, np.array([[0.5], [0.25], [0.125], [0.0]]), 0.25, live)):
        if k == 2:
            live[2, 3] = 2.0
        optimizer.lr = lr
        assert optimizer.lr is lr
        mirror.options["w"] = {"lr": lr.copy() if isinstance(lr, np.ndarray) else lr}
        mirror.step({"w": g})
        optimizer.step({"w": g})
        mirror.assert_like(optimizer, {"w": w}, f"step {k}")


def test_groups_may_differ() -> None:
    """One group has an array, one a number, one is added later. The attribute tells whether all are the same."""
    params = [np.ones(3), np.ones((2, 3)), np.ones(2)]
    rates = np.array([0.0, 0.1, 1.0])
    opt = fs.Adagrad([{"params": params[:2], "lr": rates}], lr=0.5)
    assert opt.lr is rates
    opt.add_param_group({"params": params[2]})
    opt.step([np.ones(3), np.ones((2, 3)), np.ones(2)])
    np.testing.assert_allclose(params[0], [1.0, 0.9, 0.0], atol=1e-9)
    np.testing.assert_allclose(params[1], [[1.0, 0.9, 0.0]] * 2, atol=1e-9)
    np.testing.assert_allclose(params[2], [0.5, 0.5], atol=1e-9)
    with pytest.raises(ValueError, match="lr: the groups differ"):
        _ = opt.lr
    opt.lr = np.array([0.5])
    opt.param_groups[0]["lr"] = np.array([0.5])
    assert opt.lr == 0.5
    assert "lr=array([0.5])" in repr(opt)
    assert fs.RMSprop.like("tf1", [{"params": params[0], "lr": rates}]).lr is rates


@each_dtype
def test_first_step_sizes_of_rprop(dtype: np.dtype[Any]) -> None:
    """States start at them, also after a reset and where a checkpoint has nothing for a parameter. What starts at 0
    does not move. A later change is refused; only decoupled decay reads them again."""
    first = np.array([0.5, 0.0, 2.0])
    for variant in DECLARED["rprop"]["fields"]["variant"]["choices"]:
        w = np.zeros((2, 3), dtype)
        opt = fs.Rprop([{"params": {"w": w}, "lr": first.copy()}], variant=variant)
        assert (opt.state["w"]["step_size"] == first).all()
        opt.step([{"w": np.full((2, 3), -1, dtype)}], loss=1.0)
        assert variant.startswith("grprop") or (w == first.astype(dtype)).all()
        opt.reset()
        assert (opt.state["w"]["step_size"] == first).all()
        opt.step([{"w": np.full((2, 3), -1, dtype)}], loss=1.0)
        opt.load_state_dict({**opt.state_dict(), "params": {}, "state": {}}, strict=False)
        assert (opt.state["w"]["step_size"] == first).all()
        opt.param_groups[0]["lr"][0] = 0.25
        with pytest.raises(ValueError, match=r"param_groups\[0\]: lr was changed .* uses it only to start step_size"):
            opt.step([{"w": w.copy()}], loss=1.0)


def test_what_chooses_one_of_all_elements_takes_no_arrays() -> None:
    w = np.ones(3)
    for options in ({"step_sizes": (np.zeros(3), 50.0)}, {"lr": np.ones(3), **DECOUPLED}):
        with pytest.raises(ValueError, match=r"of parameter '0': expected a number for .* choose one element"):
            fs.Rprop(w, variant="grprop-slr", **options)


BAD: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"lr": np.ones(4)}, ("lr of parameter 'b' (group 1): expected a shape that broadcasts to (3,), got (4,)",)),
    ({"lr": np.ones((1, 3))}, ("lr of parameter 'b' ", " broadcasts to (3,), got (1, 3)")),
    ({"lr": np.array([1.0, -0.5, 2.0])}, ("lr >= 0, got -0.5; at (1,) of parameter 'b' (group 1)",)),
    ({"lr": np.array([1.0, 1.0, np.nan])}, ("finite number with lr >= 0, got nan; at (2,) of parameter 'b'",)),
    ({"lr": np.array([1.0, 1e300, 1.0])}, ("lr: ", "round to inf in float32", "got 1e+300; at (1,) of parameter 'b'")),
    ({"step_sizes": (np.array([1.0, 3.0, 1.0]), 2.0)}, ("expected (smallest, largest), got (3, 2); at (1,)",)),
    ({"step_sizes": (0.0, np.ones(2))}, ("step_sizes of parameter 'b' ", " broadcasts to (3,), got (2,)")),
]  # fmt: skip


@pytest.mark.parametrize(("options", "says"), BAD)
def test_bad_arrays(options: dict[str, Any], says: tuple[str, ...]) -> None:
    """Refuse them in the constructor, in an added group, when set, loaded or stepped with; nothing is written."""
    cls: Any = fs.Rprop if "step_sizes" in options else fs.RMSprop
    groups = [{"params": {"a": np.ones(5)}}, {"params": {"b": np.ones(3, np.float32)}}]
    bad = {**groups[1], **options}
    opt, one, changed = cls(groups), cls(groups[:1]), cls(groups)
    [(key, value)] = options.items()
    saved = opt.state_dict()
    saved["groups"][1][key] = value
    changed.param_groups[1][key] = value
    before = getattr(opt, key)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: cls([groups[0], bad]),
        lambda: one.add_param_group(bad),
        lambda: opt.load_state_dict(saved),
        lambda: changed.step([{"a": np.ones(5)}, {"b": np.ones(3, np.float32)}]),
        lambda: changed.state_dict(),
    )
    for call in calls:
        with refused(ValueError, says, memory_of(opt, *memory_of(changed))):
            call()
    assert (opt.steps, getattr(opt, key)) == (0, before)
    assert one.step([{"a": np.zeros(5)}]).step == 1


def test_setting_a_bad_array_changes_no_group() -> None:
    opt = fs.RMSprop([{"params": np.ones(3)}, {"params": np.ones(4)}], lr=0.1)
    with pytest.raises(ValueError, match=r"lr of parameter '1' \(group 1\): expected a shape"):
        opt.lr = np.ones(3)
    assert opt.lr == 0.1
    assert fs.RMSprop(np.ones(3), lr=np.full(3, math.pi)).step(np.ones(3)).step == 1


@pytest.mark.parametrize("ending", ["npz", "safetensors", "dict", "copy", "pickle"])
@pytest.mark.parametrize("case", [case for case in FIRST_OF_RULE if not chooses_one(case)], ids=str)
def test_checkpoints_hold_them(case: Case, ending: str, tmp_path: Path) -> None:
    """A run goes on bit for bit in another optimizer that was made with numbers. The checkpoint has its own copy."""
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    rng = np.random.default_rng(8)
    options = own(case, (3,), rng)
    w, grads = rng.standard_normal((2, 3)), rng.standard_normal((6, 2, 3))
    opt = case.new([{"params": {"w": w}, **options}, {"params": {"b/~": np.ones(2)}}])
    step = case.loss(1)
    other = case.new([{"params": {"w": np.ones((2, 3))}}, {"params": {"b/~": np.zeros(2)}}])
    for g in grads[:3]:
        opt.step([{"w": g}, {"b/~": g[0, :2]}], **step)
    if ending == "dict":
        other.load_state_dict(opt.state_dict())
    elif ending == "copy":
        other = copy.deepcopy(opt)
    elif ending == "pickle":
        other = pickle.loads(pickle.dumps(opt))
    else:
        opt.save(tmp_path / f"run.{ending}", extra={"groups": [np.arange(3)]})
        assert other.load(tmp_path / f"run.{ending}")["groups"][0].tolist() == [0, 1, 2]
    for g in grads[3:]:
        for each in (opt, other):
            each.step([{"w": g}, {"b/~": g[0, :2]}], **step)
        for name in ("w", "b/~"):
            found, expected = ({"param": each.parameters[name], **each.state[name]} for each in (other, opt))
            assert_same(found, expected, name)
    mine = other.param_groups[0]["lr"]
    assert difference(np.asarray(mine, np.float64), options["lr"].astype(np.float64)) == ""
    assert not np.shares_memory(mine, options["lr"])


def test_a_checkpoint_with_numbers_takes_the_arrays_away() -> None:
    opt, other = fs.RMSprop(np.ones(3), lr=np.array([0.1, 0.2, 0.3])), fs.RMSprop(np.ones(3), lr=0.5)
    opt.load_state_dict(other.state_dict())
    assert opt.lr == 0.5
    g = np.array([1.0, -2.0, 3.0])
    opt.step(g)
    other.step(g)
    assert not difference(opt.parameters["0"], other.parameters["0"])


def test_minimize_takes_first_step_sizes() -> None:
    """If scales are known, each element begins with its own step size."""

    def bowl(x: Array) -> tuple[float, Array]:
        y = (x - [1e-3, 1e3]) * [1e3, 1e-3]
        return float(y @ y), 2 * y * [1e3, 1e-3]

    found = fs.minimize(bowl, np.zeros(2), lr=np.array([1e-4, 100.0]), step_sizes=(np.array([1e-12, 1e-6]), 1e3))
    assert found.success
    np.testing.assert_allclose(found.x, [1e-3, 1e3], rtol=1e-2)
