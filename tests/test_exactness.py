"""The functional forms equal the reference bit for bit: any layout, length, instruction set and number of threads.

The full product of rules, types, instruction sets, threads, layouts, lengths and values would take hours. What depends
on the formula runs for all cases. What depends on the walk over arrays runs for two cases of each rule. Both run for
all types and instruction sets, and for the other products that each docstring names.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import (
    Guarded,
    Unchanged,
    assert_same,
    difference,
    make_problem,
    problem,
    problems,
    reference_step,
    run_function,
    solve,
    threads,
)
from registry import (
    CASES,
    COMBINATIONS,
    DECLARED,
    DRAWN,
    DTYPES,
    FIRST_OF_RULE,
    FUNCTIONS,
    ISAS,
    LARGE_SHAPE,
    LAYOUT,
    LAYOUTS,
    MIDDLE_LENGTHS,
    RULES,
    SMALL_SHAPES,
    SPECIAL_LENGTH,
    STEPS,
    STORAGES,
    STORED_WALKED,
    SWITCHES,
    THREADS,
    VALUES,
    WALKED,
    C,
    Case,
    Layout,
    Values,
    broadcast_gradients,
    loss,
    ordinary,
    rose,
    short_lengths,
)

EVERY_2ND = LAYOUT["every 2nd of the last axis"]

each_case = pytest.mark.parametrize("case", FUNCTIONS, ids=str)
each_walked = pytest.mark.parametrize("case", WALKED, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_isa = pytest.mark.parametrize("isa", ISAS)


def offsets(dtype: np.dtype[Any]) -> range:
    return range(64 // dtype.itemsize)


@each_dtype
@each_walked
def test_short_lengths_and_offsets(case: Case, dtype: np.dtype[Any]) -> None:
    """Lengths 0 to two vectors and 1, each at one offset; all offsets within a vector, each at three lengths."""
    pairs = [(n, n % len(offsets(dtype))) for n in short_lengths(dtype)]
    pairs += itertools.product((7, len(offsets(dtype)), 37), offsets(dtype))
    wanted = problems(case, dtype, [n for n, _ in pairs])
    for isa, (n, offset) in itertools.product(ISAS, pairs):
        with fs.use_isa(isa):
            run_function(wanted[n], f"{case} {dtype} {isa}, {n=} {offset=}", offset=offset)


@each_dtype
@pytest.mark.parametrize("case", FIRST_OF_RULE, ids=str)
def test_numbers_of_numpy(case: Case, dtype: np.dtype[Any]) -> None:
    """Derive constants in double, whatever NumPy type a hyperparameter has."""
    fields = DECLARED[case.rule]["fields"]
    takes = {*inspect.signature(getattr(fs, case.function_name)).parameters} & {*fields}
    numbers = {key: fields[key]["default"] for key in takes if fields[key]["kind"] == "real"}
    numbers |= {"lr": 0.01, "weight_decay": 0.1}
    single = {key: np.float32(case.options.get(key, value)) for key, value in numbers.items()}
    same = dataclasses.replace(case, options={**case.options, **single})
    run_function(make_problem(same, dtype, (37,)), f"{case} {dtype}")


@each_dtype
@each_walked
def test_small_shapes_and_layouts(case: Case, dtype: np.dtype[Any]) -> None:
    """All small shapes and layouts, with all arrays in the same layout."""
    for k, (shape, layout) in enumerate(itertools.product(SMALL_SHAPES, LAYOUTS)):
        if shape == () and layout is not C and layout.name != "offset by 1 element":
            continue  # a layout needs axes
        with fs.use_isa(ISAS[k % len(ISAS)]):
            run_function(problem(case, dtype, shape), f"{case} {dtype} {fs.isa()}, {shape} {layout}", layout)


IN_THE_OTHER_ORDER = ("F", "F, first axis reversed", "last axis outermost", "every 2nd of the first axis")


@each_dtype
@each_walked
def test_gradients_and_states_in_the_other_order(case: Case, dtype: np.dtype[Any]) -> None:
    """Matrices of several tiles, and narrow ones, whose gradient, or gradient and states, have another order than the
    parameter."""
    shapes = ((67, 301), (70, 40), (3, 37, 65))
    for k, (shape, name) in enumerate(itertools.product(shapes, IN_THE_OTHER_ORDER)):
        theirs = LAYOUT[name]
        states = (C, theirs)[k % 2]
        with fs.use_isa(ISAS[k % len(ISAS)]), threads(THREADS[k % len(THREADS)]):
            where = f"{case} {dtype} {fs.isa()}, {shape}, gradient {theirs}, states {states}"
            run_function(problem(case, dtype, shape), where, C, theirs, states, states, states, offset=k % 4)


@pytest.mark.slow
@each_dtype
@each_walked
def test_each_array_in_a_layout_of_its_own(case: Case, dtype: np.dtype[Any]) -> None:
    """Each pair of layouts of parameter and gradient, with states in others."""
    shape = (5, 7, 3)
    for (i, mine), (j, theirs) in itertools.product(enumerate(LAYOUTS), repeat=2):
        others = (LAYOUTS[k % len(LAYOUTS)] for k in (i + 2 * j, 2 * i + j, i + j))
        with fs.use_isa(ISAS[(i + j) % len(ISAS)]):
            where = f"{case} {dtype}, {shape}, parameter {mine}, gradient {theirs}"
            run_function(problem(case, dtype, shape), where, mine, theirs, *others)


@each_dtype
@each_walked
def test_middle_lengths_in_threads(case: Case, dtype: np.dtype[Any]) -> None:
    """1,000 and the lengths around which work is cut: dense, beside a cache line, and every second element, in turn;
    with 1, 2 and 3 threads where they can share the work."""
    for k, (n, wanted) in enumerate(problems(case, dtype, MIDDLE_LENGTHS).items()):
        for count in THREADS if n >= 8000 else (THREADS[k % len(THREADS)],):
            layout, offset = ((C, 0), (C, 1), (EVERY_2ND, 0))[(k + count) % 3]
            with fs.use_isa(ISAS[k % len(ISAS)]), threads(count):
                where = f"{case} {dtype} {fs.isa()}, {n=} {layout} {offset=}, {count} threads"
                run_function(wanted, where, layout, offset=offset)


@each_dtype
@each_case
def test_special_values(case: Case, dtype: np.dtype[Any]) -> None:
    """Zeros, subnormals, the largest numbers, infinities and NaN, each in every array: dense at two offsets, every
    second element, and repeated until threads share the work."""
    tiny, short = (problem(case, dtype, (SPECIAL_LENGTH,), kind) for kind in ("tiny", "special"))
    long = problem(case, dtype, (3 * SPECIAL_LENGTH,), "special")
    for isa in ISAS:
        with fs.use_isa(isa):
            run_function(tiny, f"{case} {dtype} {isa}, tiny values")
            for offset in (0, 1):
                run_function(short, f"{case} {dtype} {isa}, special values, {offset=}", offset=offset)
            run_function(short, f"{case} {dtype} {isa}, special values, every 2nd", EVERY_2ND)
            with threads(3):
                run_function(long, f"{case} {dtype} {isa}, special values, 3 threads", offset=1)


def every_sign(case: Case, dtype: np.dtype[Any]) -> Values:
    """Each int8 beside each gradient of zeros, tiny, ordinary and huge numbers, infinities and NaN."""
    about = np.finfo(dtype)
    positive = np.array([0, about.smallest_subnormal, about.tiny, 1e-3, 1, about.max / 2, about.max, np.inf], dtype)
    some = np.concatenate([positive, -positive, [dtype.type(np.nan)]])
    signs = np.arange(-128, 128).astype(np.int8)
    n = signs.size * some.size
    rng = np.random.default_rng(8)
    states = {
        state.name: np.repeat(signs, some.size) if state.sign else rng.uniform(0, 1, state.shape((n,))).astype(dtype)
        for state in case.states
    }
    return Values(rng.standard_normal(n).astype(dtype), states, [np.roll(np.resize(some, n), t) for t in range(STEPS)])


@each_dtype
@pytest.mark.parametrize("case", [case for case in CASES if any(state.sign for state in case.states)], ids=str)
def test_every_int8_as_the_last_sign(case: Case, dtype: np.dtype[Any]) -> None:
    """A ``prev_sign`` other than -1, 0 and 1 counts by its sign, in functions and classes, and each step leaves signs.
    So it does when the loss has risen and ``irprop+`` reverts the last move."""
    values = every_sign(case, dtype)
    n = values.param.size
    wanted = solve(case, dtype, (n,), values)
    as_signs = solve(
        case, dtype, (n,), dataclasses.replace(values, states={k: clipped(v) for k, v in values.states.items()})
    )
    for found, expected in zip(wanted.after, as_signs.after, strict=True):
        assert_same(found, expected, f"{case} {dtype}, the reference")
    assert {*wanted.after[0]["prev_sign"]} <= {-1, 0, 1}
    for isa in ISAS:
        with fs.use_isa(isa):
            for offset, layout in itertools.product((0, 3), (C, EVERY_2ND)):
                run_function(wanted, f"{case} {dtype} {isa}, every int8, {layout} {offset=}", layout, offset=offset)
            for t, grad in enumerate(values.grads, 1):
                before = {"param": values.param, **values.states}
                found, expected = ({name: array.copy() for name, array in before.items()} for _ in range(2))
                case.call({**found, "grad": grad}, t)
                reference_step(case, expected, grad, t, rose(t))
                assert_same(found, expected, f"{case} {dtype} {isa}, every int8 before step {t}")
            param = values.param.copy()
            optimizer = case.new([np.zeros_like(param)])
            saved = optimizer.state_dict()
            saved["params"]["0"], saved["state"]["0"] = param, values.states
            optimizer.load_state_dict(saved)
            for t, grad in enumerate(values.grads, 1):
                optimizer.step([grad], loss=-loss(t) if case.class_options.get("maximize") else loss(t))
            found = {"param": optimizer.param_groups[0]["params"][0], **optimizer.state["0"]}
            assert_same(found, wanted.after[-1], f"{case} {dtype} {isa}, a loaded checkpoint")


each_stored_walked = pytest.mark.parametrize("case", STORED_WALKED, ids=str)


def compute(case: Case) -> np.dtype[Any]:
    assert case.storage is not None
    return case.storage.compute


@pytest.mark.slow
@each_case
def test_storage_and_values(case: Case) -> None:
    """Every storage of every case with ordinary, tiny and special values, and the extremes of 16 bits."""
    for storage, (k, kind) in itertools.product(STORAGES, enumerate(VALUES)):
        stored = case.as_stored(storage)
        wanted = make_problem(stored, storage.compute, (SPECIAL_LENGTH,) if kind != "ordinary" else (203,), kind)
        for isa in ISAS:
            with fs.use_isa(isa):
                run_function(wanted, f"{stored} {isa}, {kind}", offset=k % 2)


@each_stored_walked
def test_storage_and_short_lengths(case: Case) -> None:
    """Lengths 0 to two groups of the widest vectors and 1, each at an offset of its own, and with an instruction set of
    its own in the two cases of a rule."""
    k = STORED_WALKED.index(case) // len(STORAGES)
    for n, wanted in problems(case, compute(case), (*range(35), 63, 64, 65, 100, 129)).items():
        with fs.use_isa(ISAS[(n + k) % len(ISAS)]):
            run_function(wanted, f"{case} {fs.isa()}, {n=}", offset=n % 7)


@pytest.mark.slow
@each_stored_walked
def test_storage_and_layouts(case: Case) -> None:
    """Each layout, with gradient and states in the same one and in others. The noise follows the C order."""
    k = STORED_WALKED.index(case)
    for j, layout in enumerate(LAYOUTS):
        others = (LAYOUTS[(j + 3 * i + k) % len(LAYOUTS)] for i in range(4))
        with fs.use_isa(ISAS[(j + k) % len(ISAS)]):
            where = f"{case} {fs.isa()}, {layout}"
            run_function(problem(case, compute(case), (3, 5, 7)), where, layout)
            run_function(problem(case, compute(case), (40, 33)), f"{where}, others elsewhere", layout, *others)


@pytest.mark.slow
@each_stored_walked
def test_storage_and_threads(case: Case) -> None:
    """Work that threads share; 1 to 4 threads, each dense and in other layouts with neighbouring cases."""
    k = STORED_WALKED.index(case)
    wanted = make_problem(case, compute(case), LARGE_SHAPE)
    for count in (1, 2, 3, 4):
        layout = (C, LAYOUT["F"], LAYOUTS[k % len(LAYOUTS)])[(k + count) % 3]
        with fs.use_isa(ISAS[(k + count) % len(ISAS)]), threads(count):
            run_function(wanted, f"{case} {fs.isa()}, {layout}, {count} threads", layout, compare=(1, STEPS))


def clipped(array: Any) -> Any:
    return np.clip(array, -1, 1) if array.dtype == np.int8 else array


@each_dtype
@each_walked
def test_gradients_that_are_only_read(case: Case, dtype: np.dtype[Any]) -> None:
    """A gradient may be read-only, broadcast from fewer elements, or share its memory with other gradients."""
    rng = np.random.default_rng(5)
    for shape in ((4, 5), (3, 1, 37), (200, 180)):
        values = ordinary(case, dtype, shape, rng)
        choices = broadcast_gradients(shape, lambda small: rng.standard_normal(small).astype(dtype))
        for k, layout in itertools.product(range(len(choices)), (C, LAYOUT["F"])):
            if shape == (200, 180) and k != 2:
                continue
            grads = [choices[(k + t) % len(choices)] for t in range(len(values.grads))]
            values.grads[:] = [grad.copy() for grad in grads]
            where = f"{case} {dtype}, {shape} {layout}, read-only gradients from {k}"
            run_function(solve(case, dtype, shape, values), where, layout, grads=grads)


@each_dtype
@pytest.mark.parametrize("rule", RULES)
def test_every_combination_of_options(rule: str, dtype: np.dtype[Any]) -> None:
    """Each combination of the options that choose a kernel or a prologue."""
    for case in COMBINATIONS:
        if case.rule == rule:
            wanted = problem(case, dtype, (53,))
            for isa in ISAS:
                with fs.use_isa(isa):
                    run_function(wanted, f"{case} {dtype} {isa}")


@each_dtype
@each_case
def test_random_hyperparameters(case: Case, dtype: np.dtype[Any]) -> None:
    """10 random draws of all hyperparameters of a case and of the step count: derived constants have the reference's
    last bit, too."""
    rng = np.random.default_rng(7)
    values = ordinary(case, dtype, (5,), rng)
    takes = case.reference_takes - SWITCHES | {*case.options}
    for _ in range(10):
        options = {**case.options, **{key: draw(rng) for key, draw in DRAWN.items() if key in takes}}
        before = int(10 ** rng.uniform(0, 5))

        def later(t: int, rises: bool, before: int = before) -> dict[str, Any]:
            return case.at_step(t + before, rises)

        drawn = dataclasses.replace(case, options=options, at_step=later)
        run_function(solve(drawn, dtype, (5,), values), f"{options} after {before} steps, {dtype}")


def in_order(axes: tuple[int, ...]) -> Layout:
    """Axes from the outermost to the innermost."""
    back = np.argsort(axes)
    return Layout(f"axes {axes}", lambda new, shape: new(tuple(shape[k] for k in axes)).transpose(back))


@each_dtype
@pytest.mark.parametrize("case", FIRST_OF_RULE, ids=str)
def test_the_order_of_axes_and_many_of_them(case: Case, dtype: np.dtype[Any]) -> None:
    """Orders of four axes for parameter and gradient, and as many axes as NumPy allows."""
    orders = [in_order(axes) for axes in itertools.permutations(range(4))]
    for k, (mine, theirs) in enumerate(itertools.product(orders, repeat=2)):
        if k % 5 == 0:
            where = f"{case} {dtype}, {mine}, gradient {theirs}"
            states = (C if state.scalar else mine for state in case.states)
            run_function(problem(case, dtype, (2, 3, 4, 5)), where, mine, theirs, *states, compare=(1,))
    run_function(problem(case, dtype, (2, 1, 3) + (1,) * 58 + (2, 1, 2)), f"{case} {dtype}, 64 axes")
    run_function(problem(case, dtype, (2,) * 13), f"{case} {dtype}, 13 axes", C, LAYOUT["F"])


# ------------------------------------------------------------------------------------------- that these tests can fail


@pytest.mark.parametrize("case", FIRST_OF_RULE, ids=str)
def test_a_wrong_reference_is_noticed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run fails if the last bit of one element changes, or one step's gradient is negated."""
    true = getattr(fs.reference, case.function_name)

    def one_bit(param: Any, *args: Any, **kwargs: Any) -> None:
        true(param, *args, **kwargs)
        param[-1:] = np.nextafter(param[-1:], np.inf)

    def negated(param: Any, grad: Any, *args: Any, **kwargs: Any) -> None:
        true(param, -grad, *args, **kwargs)

    for wrong, dtype in itertools.product((one_bit, negated), DTYPES):
        monkeypatch.setattr(fs.reference, case.function_name, wrong)
        wanted = make_problem(case, dtype, (37,))
        with pytest.raises(AssertionError, match=r"after step 1: param: \d+ of 37 elements differ"):
            run_function(wanted, "here")


def test_a_write_beside_an_array_is_noticed() -> None:
    """The guard bands, the gaps of a slice, the gradient, and whatever should stay unchanged are watched."""
    case, dtype = FIRST_OF_RULE[0], DTYPES[0]
    array = np.zeros((2, 3))
    unchanged = Unchanged([array.T[1:]])
    array[0, 0] = -0.0
    with pytest.raises(AssertionError, match="memory was changed"):
        unchanged.check()
    wanted = problem(case, dtype, (8,))

    def stray(beyond: Any, role: str) -> Any:
        def call(arrays: dict[str, Any], t: int) -> None:
            case.call(arrays, t)
            beyond(arrays[role])

        return call

    def behind(array: Any) -> None:
        np.lib.stride_tricks.as_strided(array, (array.size + 1,))[-1] = 0

    def between(array: Any) -> None:
        np.lib.stride_tricks.as_strided(array, (2 * array.size,), (array.itemsize,))[1] = 0

    def within(array: Any) -> None:
        array[3] = 0

    sliced = EVERY_2ND
    with pytest.raises(AssertionError, match="memory beside square_avg changed"):
        run_function(wanted, "here", call=stray(behind, "square_avg"))
    with pytest.raises(AssertionError, match="memory beside param changed"):
        run_function(wanted, "here", sliced, call=stray(between, "param"))
    with pytest.raises(AssertionError, match="the gradient changed"):
        run_function(wanted, "here", call=stray(within, "grad"))


def test_the_comparison_of_bits() -> None:
    """-0 is not 0, any NaN equals any NaN, a NaN equals no number, types and shapes count."""
    for dtype in DTYPES:
        unsigned = np.dtype(f"u{dtype.itemsize}")
        nan = np.array([np.nan, np.nan], dtype)
        other = (nan.view(unsigned) ^ unsigned.type(5) ^ unsigned.type(2 ** (8 * dtype.itemsize - 1))).view(dtype)
        assert not difference(nan, other)
        assert "2 of 2" in difference(np.zeros(2, dtype), -np.zeros(2, dtype))
        assert "at (1,)" in difference(np.array([1, np.nan], dtype), np.ones(2, dtype))
        assert "1 of 2" in difference(np.array([1, np.inf], dtype), np.array([1, np.nan], dtype))
        assert difference(np.zeros(2, dtype), np.zeros((2, 1), dtype))
    assert difference(np.zeros(2, np.float32), np.zeros(2, np.float64))
    assert not difference(np.zeros((), np.float32), np.zeros((), np.float32))
    assert Guarded((3,), DTYPES[0]).damaged() is False
