"""Gradients of some rows: sums and updates have the reference's bits, and no byte of other rows changes.

Other files test formulas. This one tests which rows are found, how they are summed and who updates them: all index
types, strides, orders and duplicates, row shapes, layouts, threads and instruction sets.
"""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import Mirror, Unchanged, difference, memory_of, refused, rows_problem, run_function, solve, threads
from registry import (
    BY_ROWS,
    DECLARED,
    DTYPES,
    FIRST_OF_RULE,
    FULLEST_OF_RULE,
    INDICES,
    ISAS,
    LAYOUTS,
    PER_ROW,
    ROW_SHAPES,
    RULES,
    STEP_OPTIONS,
    STEPS,
    STORAGES,
    THREADS,
    WALKED,
    C,
    Case,
    Shape,
    of_rows,
    ordinary,
)

each_walked = pytest.mark.parametrize("case", [*(case for case in WALKED if case in BY_ROWS), *PER_ROW], ids=str)
ONE_OF_RULE = [*(case for case in FIRST_OF_RULE if case in BY_ROWS), *PER_ROW]
FULLEST_BY_ROWS = (*(case for case in FULLEST_OF_RULE if case in BY_ROWS), *PER_ROW)
STORED_BY_ROWS = [case.as_stored(storage) for case in FULLEST_BY_ROWS for storage in STORAGES]
each_stored = pytest.mark.parametrize(
    "case",
    [case if k % 7 == 0 else pytest.param(case, marks=pytest.mark.slow) for k, case in enumerate(STORED_BY_ROWS)],
    ids=str,
)
each_rule = pytest.mark.parametrize("case", ONE_OF_RULE, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_isa = pytest.mark.parametrize("isa", ISAS)


def of_some_rows(row: Shape) -> Shape:
    """Return the shape of 37 rows, or of 5 long ones."""
    return (5 if row == (1030,) else 37, *row)


# --------------------------------------------------------------------------------------------------------------- bits


@pytest.mark.slow
@each_dtype
@each_walked
def test_every_index_and_row_shape(case: Case, dtype: np.dtype[Any]) -> None:
    """All ways to name rows and all row shapes, of some rows and of one."""
    for k, (name, row) in enumerate(itertools.product(INDICES, ROW_SHAPES)):
        shape = (1, *row) if k % 7 == 6 else of_some_rows(row)
        with fs.use_isa(ISAS[k % len(ISAS)]), threads(THREADS[k // 3 % len(THREADS)]):
            where = f"{case} {dtype} {fs.isa()}, {shape}, {name}"
            run_function(rows_problem(case, dtype, shape, name), where, offset=k % 3)


@pytest.mark.slow
@each_dtype
@each_walked
def test_layouts(case: Case, dtype: np.dtype[Any]) -> None:
    """Parameter, values and states, each in its own layout."""
    for k, (mine, row) in enumerate(itertools.product(LAYOUTS, ((), (5, 7), (130,)))):
        name = tuple(INDICES)[k % len(INDICES)]
        others = [LAYOUTS[(k * step + step) % len(LAYOUTS)] for step in (1, 3, 5, 7)]
        states = (C if state.scalar else layout for state, layout in zip(case.states, others[1:], strict=False))
        with fs.use_isa(ISAS[k % len(ISAS)]), threads(THREADS[k % len(THREADS)]):
            where = f"{case} {dtype} {fs.isa()}, {row} {mine}, values {others[0]}, {name}"
            run_function(rows_problem(case, dtype, (23, *row), name), where, mine, others[0], *states)


@each_stored
def test_arrays_of_16_bits(case: Case) -> None:
    """Every row shape in every storage: sums of widened values, and noise by the place of the element."""
    for k, row in enumerate(ROW_SHAPES):
        name = tuple(INDICES)[k % len(INDICES)]
        mine, others = LAYOUTS[k * 3 % len(LAYOUTS)], LAYOUTS[k * 5 % len(LAYOUTS)]
        layouts = (C, C) if k % 2 else (mine, others)
        states = [C if state.scalar else layouts[k % 2] for state in case.states]
        with fs.use_isa(ISAS[k % len(ISAS)]), threads(THREADS[k % len(THREADS)]):
            where = f"{case} {fs.isa()}, {row}, {name}, {layouts}"
            run_function(rows_problem(case, case.storage.compute, of_some_rows(row), name), where, *layouts, *states)


@pytest.mark.slow
@each_dtype
@each_rule
def test_many_rows_in_threads(case: Case, dtype: np.dtype[Any]) -> None:
    """So many entries that they are split before sorting: spread evenly, all in a few rows, all in one. Each shape with
    every third case: sorting and summing are the same for all rules."""
    shapes: tuple[Shape, ...] = ((40_000,), (1 << 21,), (9_000, 3), (9_000, 20), (1,), (2,))
    for k, shape in enumerate(shapes):
        if (k + ONE_OF_RULE.index(case) + DTYPES.index(dtype)) % 3:
            continue
        rng = np.random.default_rng(k)
        rows = tuple(
            (rng.integers(0, shape[0], 33_000) // divisor).astype(kind)
            for divisor, kind in ((1, np.int32), (1 + shape[0] // 3, np.uint64), (shape[0], np.int64))
        )
        values = of_rows(case, dtype, shape, rows, rng)
        wanted = solve(case, dtype, shape, values, rows)
        for count in THREADS:
            with fs.use_isa(ISAS[count % len(ISAS)]), threads(count):
                run_function(wanted, f"{case} {dtype}, {shape}, {count} threads")


@each_dtype
@each_rule
def test_special_values(case: Case, dtype: np.dtype[Any]) -> None:
    """Sums that overflow, cancel or round, and sums of infinities, NaN and zeros of both signs."""
    about = np.finfo(dtype)
    some = np.array([0.0, -0.0, about.max, -about.max, np.inf, -np.inf, np.nan, about.tiny, 1.0, -1.0, 1 / 3], dtype)
    rng = np.random.default_rng(3)
    for shape in ((50,), (50, 20)):
        rows = tuple(rng.integers(0, 50, 200) for _ in range(STEPS))
        values = of_rows(case, dtype, shape, rows, rng)
        for grad in values.grads:
            grad[...] = rng.choice(some, grad.shape)
        run_function(solve(case, dtype, shape, values, rows), f"{case} {dtype} {shape}")


@each_dtype
@pytest.mark.parametrize("row", [(), (3,), (33,)], ids=str)
def test_adagrad_equals_the_dense_step(row: Shape, dtype: np.dtype[Any]) -> None:
    """Without weight decay, a gradient of 0 changes nothing in Adagrad, so the bits are those of the dense step."""
    rng = np.random.default_rng(4)
    sparse, dense = (np.random.default_rng(5).standard_normal((60, *row)).astype(dtype) for _ in range(2))
    sparse[:7] = dense[:7] = -0.0
    options: dict[str, Any] = {"lr": 0.3, "lr_decay": 0.01}
    by_rows, by_all = fs.Adagrad(sparse, **options), fs.Adagrad(dense, **options)
    for _ in range(6):
        index = rng.integers(0, 60, 50)
        values = rng.standard_normal((50, *row)).astype(dtype)
        grad = np.zeros_like(dense)
        np.add.at(grad, index, values)
        by_rows.step(fs.Rows(index, values))
        by_all.step(grad)
        assert not difference(sparse, dense)
        assert not difference(by_rows.state["0"]["square_sum"], by_all.state["0"]["square_sum"])


@each_dtype
@pytest.mark.parametrize("case", PER_ROW, ids=str)
def test_dense_gradients_row_by_row(case: Case, dtype: np.dtype[Any]) -> None:
    """A number for each row, with a dense gradient: row shapes, layouts, -0, threads, instruction sets."""
    for k, (layout, row) in enumerate(itertools.product(LAYOUTS, ROW_SHAPES)):
        shape = (11, *row)
        values = ordinary(case, dtype, shape, np.random.default_rng(k))
        for array in (values.param, *values.grads):
            array[array < -1] = -0.0
        wanted = solve(case, dtype, shape, values)
        with fs.use_isa(ISAS[k % len(ISAS)]), threads(THREADS[k % len(THREADS)]):
            run_function(wanted, f"{case} {dtype} {fs.isa()}, {shape} {layout}", layout, LAYOUTS[k % len(LAYOUTS)])


def test_what_is_per_row_stays_so() -> None:
    """It can't change, needs a dimension, and survives copies, pickles and checkpoints."""
    with pytest.raises(ValueError, match=r"one dimension.*\(\)"):
        fs.AdagradNorm(np.array(1.0), per="row")
    with pytest.raises(ValueError, match="per 'row'"):
        fs.AdagradNorm(np.ones(3), mean=True)
    w, square_sum = np.ones((3, 2)), np.ones((3, 2))
    with pytest.raises(ValueError, match=r"square_sum.*\(3,\).*\(3, 2\)"):
        fs.adagrad_norm_(w, w.copy(), square_sum, lr=0.1, per="row")
    rng = np.random.default_rng(2)
    runs: list[Any] = [fs.AdagradNorm({"w": np.ones((4, 3))}, per="row", mean=True)]
    rows = fs.Rows(np.array([1, 3, 1]), rng.standard_normal((3, 3)))
    runs[0].step({"w": rows})
    runs += [copy.deepcopy(runs[0]), pickle.loads(pickle.dumps(runs[0]))]
    other = fs.AdagradNorm({"w": np.zeros((4, 3))}, per="row", mean=True)
    other.load_state_dict(runs[0].state_dict())
    for optimizer in (*runs, other):
        assert optimizer.state["w"]["square_sum"].shape == (4,)
        optimizer.step({"w": rows})
        optimizer.step({"w": np.ones((4, 3))})
        assert not difference(optimizer.parameters["w"], runs[0].parameters["w"])
    for key, value in (("per", "array"), ("mean", False)):
        runs[0].param_groups[0][key] = value
        with pytest.raises(ValueError, match=r"after the start|per 'row'"):
            runs[0].step({"w": None})
        runs[0].param_groups[0][key] = {"per": "row", "mean": True}[key]


# ---------------------------------------------------------------------------------------------------------- optimizers


def some_rows(shape: Shape, dtype: np.dtype[Any], rng: np.random.Generator) -> fs.Rows:
    return fs.Rows(rng.integers(0, shape[0], 40), rng.standard_normal((40, *shape[1:])).astype(dtype))


@pytest.mark.slow
@each_rule
def test_in_containers_with_the_options_of_a_step(case: Case) -> None:
    """Rows in nested containers and groups, beside dense gradients and None, and sometimes dense: bits of all arrays,
    the norm, and the values after the step, also in threads with ``verify``. Neighbours differ in type and threads."""
    for k, options in enumerate(STEP_OPTIONS, ONE_OF_RULE.index(case)):
        in_containers(case, DTYPES[k % 2], DTYPES[k % 2], options, k // 2)


@pytest.mark.slow
@each_stored
def test_in_containers_of_16_bits(case: Case) -> None:
    """The same in every storage."""
    options = "all" if case.storage.stochastic else "clip both, each"
    in_containers(case, case.storage.param, case.storage.grad, options, STORED_BY_ROWS.index(case))


def in_containers(case: Case, dtype: Any, grad_dtype: Any, options: str, k: int) -> None:
    chosen = STEP_OPTIONS[options]
    shapes: dict[str, Shape] = {"a.emb": (70, 31), "a.bias": (70,), "b": (6, 5), "c": (4, 2)}
    count, verify = ((1, "never"), (3, "every"))[k % 2]
    rng = np.random.default_rng(6)
    params = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    groups = [{"params": {"a": {"emb": params["a.emb"], "bias": params["a.bias"]}, "b": params["b"]}},
              {"params": {"c": params["c"]}, "lr": 0.5}]  # fmt: skip
    optimizer = case.new(groups, verify=verify)
    mirror = Mirror(case, params, {"c": {"lr": 0.5}})
    for t in range(1, 5):
        dense = {name: rng.standard_normal(shape).astype(grad_dtype) for name, shape in shapes.items()}
        grads: dict[str, Any] = dict(dense)
        if t != 3:
            grads |= {name: some_rows(shape, grad_dtype, rng) for name, shape in shapes.items() if name != "b"}
        if t == 2:
            grads["a.bias"] = fs.Rows(np.zeros(0, np.int32), np.zeros(0, grad_dtype))
        if t == 4:
            grads["c"] = None
        norm = mirror.step(grads, **chosen)
        arrays = [each.values if isinstance(each, fs.Rows) else each for each in grads.values() if each is not None]
        before = [array.copy() for array in arrays]
        with threads(count):
            report = optimizer.step(
                [{"a": {"emb": grads["a.emb"], "bias": grads["a.bias"]}, "b": grads["b"]}, {"c": grads["c"]}],
                **chosen,
            )
        where = f"{case} {dtype} {options}, {count} threads, step {t}"
        mirror.assert_like(optimizer, params, where)
        assert report.grad_norm == norm, where
        for array, given in zip(arrays, before, strict=True):
            assert not difference(array, np.zeros_like(given) if "zero_grads" in chosen else given), where


def test_a_skipped_step_changes_nothing_but_the_values() -> None:
    """An inf in one of two values of a row reaches the sum, and the parameter is named."""
    table = np.ones((5, 3))
    optimizer = fs.RMSprop({"table": table})
    values = np.ones((4, 3))
    values[2, 1] = np.inf
    rows = fs.Rows(np.array([1, 4, 1, 0]), values)
    unchanged = Unchanged(memory_of(optimizer, values))
    with pytest.raises(FloatingPointError, match="'table'"):
        optimizer.step({"table": rows}, nonfinite="raise")
    report = optimizer.step({"table": rows}, nonfinite="skip")
    assert (report.skipped, report.nonfinite) == (True, ("table",))
    unchanged.check()
    optimizer.step({"table": rows}, nonfinite="skip", zero_grads=True)
    assert not values.any()
    assert (table == 1).all()
    big = np.full((2, 3), np.finfo(np.float64).max)
    assert optimizer.step({"table": fs.Rows(np.array([2, 2]), big)}, nonfinite="skip").skipped, "the sum overflows"


def test_verification_notices_a_bit_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a row that should not have changed."""
    true = fs.reference.adagrad_

    def wrong(param: Any, *args: Any, **kwargs: Any) -> None:
        true(param, *args, **kwargs)
        param[3, 1] = np.nextafter(param[3, 1], 9)

    for index in ([3, 1], [1, 2]):
        optimizer = fs.Adagrad(np.ones((5, 2)), verify="every")
        rows = fs.Rows(np.array(index), np.ones((2, 2)))
        optimizer.step(rows)
        with monkeypatch.context() as patched:
            patched.setattr(fs.reference, "adagrad_", wrong)
            with pytest.raises(fs.VerificationError, match=r"at \(3, 1\)"):
                optimizer.step(rows)


def test_an_empty_index_counts_as_an_update() -> None:
    """None does not count."""
    for grad, count in ((fs.Rows(np.zeros(0, int), np.zeros((0, 2))), 1), (None, 0)):
        w = np.ones((3, 2))
        optimizer = fs.Adagrad({"w": w}, lr=1.0, lr_decay=1.0)
        optimizer.step({"w": grad})
        optimizer.step({"w": fs.Rows(np.array([1]), np.ones((1, 2)))})
        assert np.allclose(w[1], 1 - 1 / (1 + count))


# --------------------------------------------------------------------------------------------------------- bad input

ROWS = 6


def good() -> tuple[Any, Any]:
    return np.array([1, 5, 1]), np.ones((3, 4))


BAD_ROWS: dict[str, tuple[Callable[[Any, Any, Any], tuple[Any, Any]], type[Exception], tuple[str, ...]]] = {
    "the number of rows": (lambda i, v, p: (np.array([1, 2, ROWS]), v), IndexError, ("6", "place 2", "'w'")),
    "negative": (lambda i, v, p: (np.array([1, -1, 2], np.int32), v), IndexError, ("-1", "place 1", "< 6", "'w'")),
    "far beyond": (lambda i, v, p: (np.array([2**64 - 1, 0, 2**32], np.uint64), v), IndexError,
                   (str(2**64 - 1), "place 0")),
    "2^32 more": (lambda i, v, p: (np.array([0, 0, 2**32 + 1]), v), IndexError, (str(2**32 + 1), "place 2")),
    "float": (lambda i, v, p: (i.astype(float), v), TypeError, ("float64", "int64", "index", "'w'")),
    "int16": (lambda i, v, p: (i.astype(np.int16), v), TypeError, ("int16", "int64")),
    "foreign byte order": (lambda i, v, p: (i.astype(i.dtype.newbyteorder()), v), TypeError, ("byte order",)),
    "a list": (lambda i, v, p: ([1, 5, 1], v), TypeError, ("list", "numpy.ndarray", "index")),
    "values in a list": (lambda i, v, p: (i, v.tolist()), TypeError, ("list", "numpy.ndarray", "values")),
    "a matrix": (lambda i, v, p: (i[:, None], v), ValueError, ("(3, 1)", "one dimension")),
    "no dimension": (lambda i, v, p: (np.array(1), v), ValueError, ("()", "one dimension")),
    "too few values": (lambda i, v, p: (i, v[:2]), ValueError, ("(2, 4)", "(3, 4)")),
    "values of another row": (lambda i, v, p: (i, v[:, :3]), ValueError, ("(3, 3)", "(3, 4)")),
    "values without rows": (lambda i, v, p: (i, v[:, 0]), ValueError, ("(3,)", "(3, 4)")),
    "values of another type": (lambda i, v, p: (i, v.astype(np.complex128)), TypeError, ("complex128",)),
    "values in the parameter": (lambda i, v, p: (i, p[:3]), ValueError, ("shares memory", "values", "'w'")),
    "an index in the parameter": (lambda i, v, p: (p.view(np.int64)[0, :3], v),
                                  ValueError, ("shares memory", "index", "'w'")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows(name: str) -> None:
    """Raise the error and write nothing, in the optimizer and in the function, beside a good gradient."""
    spoil, error, says = BAD_ROWS[name]
    params = {"first": np.zeros(3), "w": np.zeros((ROWS, 4))}
    optimizer = fs.Adagrad(params)
    index, values = spoil(*good(), params["w"])
    with refused(error, says, memory_of(optimizer)):
        optimizer.step({"first": np.ones(3), "w": fs.Rows(index, values)})
    with refused(error, (), memory_of(optimizer)):
        fs.adagrad_(params["w"], values, optimizer.state["w"]["square_sum"], lr=0.1, rows=index)
    optimizer.step({"first": np.ones(3), "w": fs.Rows(*good())})
    assert optimizer.steps == 1


def test_values_that_are_to_be_zeroed_overlap_nothing() -> None:
    """Refuse values that overlap another gradient, an index or themselves."""
    memory = np.zeros(40)
    values, index = memory[:8].reshape(4, 2), np.arange(4)
    params = {"a": np.ones((9, 2)), "b": np.ones((4, 2))}
    optimizer = fs.Adagrad(params)
    itself = fs.Rows(index, np.broadcast_to(values[:1], (4, 2)))
    for a, b, says in (
        (fs.Rows(index, values), memory[4:12].reshape(4, 2), "share"),
        (fs.Rows(index, values), fs.Rows(memory[:4].view(np.int64), np.ones((4, 2))), "share"),
        (fs.Rows(memory[:4].view(np.int64), values), None, "share"),
        (itself, None, "read-only"),
    ):
        with refused(ValueError, [says], [*params.values(), memory]):
            optimizer.step({"a": a, "b": b}, zero_grads=True)
    optimizer.step({"a": fs.Rows(index, values), "b": fs.Rows(index, values)})
    optimizer.step({"a": itself, "b": None})


@pytest.mark.parametrize("rule", [rule for rule in RULES if not DECLARED[rule]["rows"]])
def test_rules_that_need_every_element(rule: str) -> None:
    """The error says why."""
    optimizer = next(case for case in FIRST_OF_RULE if case.rule == rule).new(np.ones((3, 2)))
    with refused(ValueError, ["gradient of 0"], memory_of(optimizer)):
        optimizer.step(fs.Rows(np.array([1]), np.ones((1, 2))))


def test_a_0d_parameter_has_no_rows() -> None:
    with pytest.raises(ValueError, match="one dimension"):
        fs.Adagrad(np.array(1.0)).step(fs.Rows(np.zeros(1, int), np.ones(1)))


def test_rows_of_no_elements_are_checked_too() -> None:
    """There may be more such rows than memory could hold."""
    param, state = np.zeros((2**31, 0)), np.zeros((2**31, 0))
    fs.adagrad_(param, np.zeros((2, 0)), state, lr=0.1, rows=np.array([2**31 - 1, 0]))
    with pytest.raises(IndexError, match=str(2**31)):
        fs.adagrad_(param, np.zeros((2, 0)), state, lr=0.1, rows=np.array([0, 2**31]))
    with pytest.raises(ValueError, match="2\\^32"):
        fs.Adagrad(np.zeros((2**33, 0))).step(fs.Rows(np.array([0, 1]), np.zeros((2, 0))))


def test_an_index_of_another_library() -> None:
    """Accept anything that offers its memory as index and values."""
    import array

    table = np.zeros((4, 1))
    optimizer = fs.Adagrad(table, lr=1.0, eps=0.0, initial_accumulator_value=12.0)
    optimizer.step(fs.Rows(array.array("q", [2, 0, 2]), memoryview(np.ones((3, 1)))))  # type: ignore[arg-type]
    assert table[:, 0].tolist() == [-1 / 13**0.5, 0.0, -0.5, 0.0]


# ------------------------------------------------------------------------------------------------------------ oracles


def test_repeated_indices_equal_aggregated_ones() -> None:
    """TensorFlow 1.x, tensorflow/python/training/adagrad_test.py: testSparseRepeatedIndices and testSparseBasic."""
    repeated, aggregated = np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]])
    options: dict[str, Any] = {"lr": 3.0, "initial_accumulator_value": 0.1}
    runs = [(fs.Adagrad.like("tf1", repeated, **options), fs.Rows(np.array([1, 1]), np.array([[0.1], [0.1]]))),
            (fs.Adagrad.like("tf1", aggregated, **options), fs.Rows(np.array([1]), np.array([[0.2]])))]  # fmt: skip
    for _ in range(3):
        for optimizer, rows in runs:
            optimizer.step(rows)
        assert not difference(repeated, aggregated)
    table = np.array([[1.0], [2.0], [3.0], [4.0]])
    optimizer = fs.Adagrad.like("tf1", table, **options)
    for _ in range(3):
        optimizer.step(fs.Rows(np.array([0, 2], np.int32), np.array([[0.1], [0.01]])))
    published = [-1.6026098728179932, 2.0, 2.715679168701172, 4.0]  # printed float32 values
    assert np.allclose(table[:, 0], published, rtol=0, atol=2 * 2.0**-22)


def test_row_wise_adagrad_of_fbgemm() -> None:
    """FBGEMM, fbgemm_gpu/docs and its CPU reference of EXACT_ROWWISE_ADAGRAD: m[r] += mean(g[r]^2), then
    w[r] -= lr / (sqrt(m[r]) + eps) g[r], where g[r] is the sum of all gradients of a row."""
    rng = np.random.default_rng(10)
    weights = rng.standard_normal((20, 8))
    ours = weights.copy()
    moments = np.zeros(20)
    optimizer = fs.AdagradNorm({"w": ours}, lr=0.05, eps=1e-8, per="row", mean=True)
    for _ in range(10):
        index, values = rng.integers(0, 20, 30), rng.standard_normal((30, 8))
        optimizer.step({"w": fs.Rows(index, values)})
        for row in set(index.tolist()):
            g = values[index == row].sum(axis=0)
            moments[row] += np.mean(g * g)
            weights[row] -= 0.05 / (np.sqrt(moments[row]) + 1e-8) * g
        assert np.allclose(ours, weights, rtol=1e-12, atol=1e-14)
        assert np.allclose(optimizer.state["w"]["square_sum"], moments, rtol=1e-13)
