"""An optimizer follows the reference through any sequence of steps, changes, failures, saves and loads.

``--hypothesis-profile=long`` draws 10,000 runs instead of some hundreds.
"""

from __future__ import annotations

import copy
import math
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import fusedstep as fs
from checks import Mirror, Unchanged, difference, memory_of, threads
from fusedstep import _core
from registry import (
    CASES,
    DECLARED,
    DTYPES,
    ISAS,
    LAYOUTS,
    STEP_OPTIONS,
    Array,
    Case,
    Shape,
    of_kind,
    specials,
)

pytestmark = pytest.mark.slow

# --------------------------------------------------------------------------------------------------------------- values

KINDS = ("ordinary", "ordinary", "tiny", "huge", "special", "any bits", "zero")


def values(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Return numbers of one kind, or ordinary ones mixed with some of another kind."""
    if dtype == np.int8:
        return np.asarray(rng.integers(*((-128, 128) if rng.random() < 0.1 else (-1, 2)), shape), np.int8)
    ordinary = np.asarray(rng.standard_normal(shape), dtype)
    with np.errstate(all="ignore"):
        about = np.finfo(dtype)
        other = {
            "ordinary": ordinary * dtype.type(10) ** rng.integers(-6, 6, shape).astype(dtype),
            "tiny": ordinary * about.tiny,
            "huge": ordinary * about.max,
            "special": rng.choice(specials(dtype), shape),
            "any bits": np.frombuffer(rng.bytes(ordinary.nbytes), dtype).reshape(shape),
            "zero": ordinary * dtype.type(0),
        }[rng.choice(KINDS)]
    return np.asarray(np.where(rng.random(shape) < rng.choice([0.1, 0.5, 1.0]), other, ordinary), dtype)


shapes = st.one_of(
    st.lists(st.integers(0, 7), max_size=4).map(tuple),
    st.integers(0, 70).map(lambda n: (n,)),
    st.sampled_from([(1025,), (9001,), (40, 33), (3, 130), (33_001,)]),
)
seeds = st.integers(0, 2**32 - 1)
isas = st.sampled_from(ISAS)
counts = st.integers(1, 3)

# ----------------------------------------------------------------------------------------------------------- optimizers

CHANGES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(of_kind("real"), st.floats(0, 0.9999)),
    **dict.fromkeys(of_kind("flag"), st.booleans()),
    **{key: st.sampled_from(spec["choices"]) for key, spec in of_kind("choice").items()},
    "lr": st.one_of(st.floats(0, 10), st.sampled_from([0, 1e-320, 1e300])),
    "eps": st.one_of(st.floats(0, 1), st.sampled_from([0, 1e-300, 1e300])),
    "momentum": st.floats(0.001, 1),
    "weight_decay": st.one_of(st.just(0.0), st.floats(0, 1)),
    "etas": st.tuples(st.floats(0.001, 0.999), st.floats(1.001, 1e3)),
    "step_sizes": st.tuples(st.floats(0, 1), st.floats(1, 1e300)),
    "variant": st.sampled_from(["rprop-", "rprop+", "irprop-", "irprop-move", "grprop-slr", "grprop-sag"]),
}
"""What may change between steps, where a case has it."""


def may_change(case: Case) -> list[str]:
    """Leave out options that say where a state starts, whether it exists, or whether the loss or the count matters."""
    declared = DECLARED[case.rule]
    there = {state.name for state in case.states}
    fixed = {declared["step"], "variant" if case.needs_loss else None}
    for name, state in declared["states"].items():
        fixed.add(state["starts_at"])
        if name not in there or declared["fields"].get(state["used_with"], {}).get("kind") == "flag":
            fixed.add(state["used_with"])
        fixed.add(state["per_row_with"])
    return [key for key, spec in declared["fields"].items() if spec["purpose"] == "option" and key not in fixed]


def representable(value: Any, dtype: np.dtype[Any]) -> bool:
    """Whether no number in a hyperparameter becomes infinite or zero in a parameter's type."""
    if isinstance(value, str):
        return True
    with np.errstate(all="ignore"):
        numbers = np.asarray(value, np.float64)
        rounded = numbers.astype(dtype)
    return bool(np.isfinite(rounded).all() and ((rounded == 0) == (numbers == 0)).all())


step_options = st.one_of(
    st.sampled_from(list(STEP_OPTIONS.values())),
    st.fixed_dictionaries(
        {},
        optional={
            "grad_scale": st.floats(1e-3, 1e3),
            "clip_norm": st.floats(1e-3, 1e3),
            "clip_value": st.floats(1e-3, 1e3),
            "zero_grads": st.booleans(),
            "nonfinite": st.sampled_from(["propagate", "skip", "raise"]),
        },
    ),
)
losses = st.floats(allow_nan=True, allow_infinity=True)


class Run(RuleBasedStateMachine):
    """An optimizer, and what it should hold according to the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.saved: list[tuple[Any, Mirror]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(
        case=st.sampled_from(CASES),
        drawn=st.lists(
            st.tuples(shapes, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.integers(0, 2)),
            min_size=1,
            max_size=4,
        ),
        lrs=st.lists(st.floats(0.001, 1), min_size=3, max_size=3),
        seed=seeds,
    )
    def make(self, case: Case, drawn: list[Any], lrs: list[float], seed: int) -> None:
        self.case = case
        rng = np.random.default_rng(seed)
        drawn.sort(key=lambda each: each[-1])  # an optimizer lists its parameters group by group
        self.group_of = {f"p{i}": group for i, (_, _, _, group) in enumerate(drawn)}
        used = sorted({*self.group_of.values()})
        self.group_of = {name: used.index(group) for name, group in self.group_of.items()}
        self.lrs = lrs[: len(used)]
        self.params = {}
        for i, (shape, dtype, layout, _) in enumerate(drawn):
            self.params[f"p{i}"] = layout.make(lambda s, dtype=dtype: np.zeros(s, dtype), shape)
            self.params[f"p{i}"][...] = values(rng, shape, dtype)
        self.opt = self.new(self.params)
        options = {name: {"lr": self.lrs[group]} for name, group in self.group_of.items()}
        self.mirror = Mirror(case, self.params, options)

    def grouped(self, arrays: dict[str, Any]) -> list[dict[str, Any]]:
        return [{n: a for n, a in arrays.items() if self.group_of[n] == k} for k in range(len(self.lrs))]

    def new(self, params: dict[str, Array]) -> Any:
        return self.case.new(
            [{"params": own, "lr": lr} for own, lr in zip(self.grouped(params), self.lrs, strict=True)]
        )

    @rule(options=step_options, absent=st.sets(st.integers(0, 3)), loss=st.none() | losses, seed=seeds,
          layout=st.sampled_from(LAYOUTS), place=st.tuples(isas, counts))  # fmt: skip
    def step(
        self, options: dict[str, Any], absent: set[int], loss: float | None, seed: int, layout: Any, place: Any
    ) -> None:
        isa, count = place
        rng = np.random.default_rng(seed)
        if loss is None and self.case.needs_loss:
            loss = 1.0
        grads: dict[str, Array | None] = {}
        for i, (name, param) in enumerate(self.params.items()):
            if i in absent:
                grads[name] = None
                continue
            grads[name] = layout.make(lambda s, dtype=param.dtype: np.zeros(s, dtype), param.shape)
            grads[name][...] = values(rng, param.shape, param.dtype)  # type: ignore[index]
        present = {name: grad for name, grad in grads.items() if grad is not None}
        before = {name: grad.copy(order="K") for name, grad in present.items()}
        policy = options.get("nonfinite", "propagate")
        bad = tuple(name for name, grad in present.items() if not self.finite(grad, present, options, policy))
        stays = bool(bad) and policy != "propagate"
        memory = Unchanged(memory_of(self.opt)) if stays else None
        norm = None if stays else self.mirror.step(grads, loss=loss, **options)
        with fs.use_isa(isa), threads(count):
            if stays and policy == "raise":
                with pytest.raises(FloatingPointError, match=repr(bad[0])):
                    self.opt.step(self.grouped(grads), loss=loss, **options)
                report = None
            else:
                report = self.opt.step(self.grouped(grads), loss=loss, **options)
        if memory is not None:
            memory.check(policy)
        if report is not None:
            assert (report.step, report.skipped) == (self.mirror.steps, stays)
            assert report.nonfinite is None or sorted(report.nonfinite) == sorted(bad)
            if not stays:
                assert (report.grad_norm is None) == (norm is None)
                assert norm is None or report.grad_norm == norm or (math.isnan(norm) and math.isnan(report.grad_norm))
        zeroed = options.get("zero_grads", False) and not (stays and policy == "raise")
        for name, grad in present.items():
            wanted = np.zeros_like(grad) if zeroed else before[name]
            assert not difference(grad, wanted), name

    def finite(self, grad: Array, present: dict[str, Array], options: dict[str, Any], policy: str) -> bool:
        """Whether all of a gradient is finite, and also its squares if they matter."""
        scaling = {key: options.get(key) for key in ("grad_scale", "clip_value")}
        coef = 1.0
        for option, clipped in (("clip_norm", present.values()), ("clip_norm_each", [grad])):
            if (limit := options.get(option)) is not None and not math.isinf(limit):
                coef = limit / max(fs.reference.norm(clipped, **scaling), limit)
        with np.errstate(all="ignore"):
            unscaled = fs.reference.gradient(grad, grad, grad_scale=options.get("grad_scale"))
            g = fs.reference.gradient(grad, grad, **scaling, clip_coef=coef)
            squares = np.isfinite(g * g) | ~np.isfinite(g)
        squared = policy != "propagate" and not any(state.sign for state in self.case.states)
        return bool(np.isfinite(unscaled).all() and (not squared or squares.all()))

    @rule(data=st.data(), group=st.integers(0, 2))
    def change(self, data: st.DataObject, group: int) -> None:
        own = self.opt.param_groups[group % len(self.lrs)]
        key = data.draw(st.sampled_from(may_change(self.case)))
        changed = {**own, key: data.draw(CHANGES[key])}
        del changed["params"]
        try:
            _core.check_hyperparameters(self.case.rule, changed)
        except ValueError:  # they contradict each other
            return
        if not all(representable(changed[key], param.dtype) for param in self.params.values()):  # the step refuses it
            return
        own[key] = changed[key]
        for name, k in self.group_of.items():
            if k == group % len(self.lrs):
                self.mirror.options[name][key] = own[key]

    @rule(isa=isas, bad=st.sampled_from(["dtype", "shape", "overlap", "alpha", "lr", "grad_scale", "nonfinite"]))
    def fail(self, isa: str, bad: str) -> None:
        """A refused step leaves no trace."""
        grads: dict[str, Any] = {name: np.ones_like(param) for name, param in self.params.items()}
        last = list(grads)[-1]
        options: dict[str, Any] = {"loss": 1.0}
        group = self.opt.param_groups[-1]
        before = dict(group)
        match bad:
            case "dtype":
                grads[last] = grads[last].astype(np.int16)
            case "shape":
                grads[last] = np.ones((*grads[last].shape, 2), grads[last].dtype)
            case "overlap":
                grads[last] = self.params[last]
            case "alpha" | "lr":
                group[bad if bad in group else "lr"] = -1.0
            case "grad_scale":
                options["grad_scale"] = 0.0
            case "nonfinite":
                options["nonfinite"] = "no"
        memory = Unchanged([*memory_of(self.opt), *grads.values()])
        if bad == "overlap" and not self.params[last].size:
            return  # an empty array overlaps nothing
        with pytest.raises((TypeError, ValueError)), fs.use_isa(isa):
            self.opt.step(self.grouped(grads), **options)
        memory.check(bad)
        group.update(before)

    @rule(how=st.sampled_from([".npz", ".safetensors", "dict"]))
    def save(self, how: str) -> None:
        kept: Any = self.folder / f"{len(self.saved)}{how}"
        if how == "dict":
            kept = self.opt.state_dict()
        else:
            self.opt.save(kept)
        self.saved.append((kept, copy.deepcopy(self.mirror)))

    @rule(which=st.integers(0, 9), fresh=st.booleans(), layout=st.sampled_from(LAYOUTS))
    def load(self, which: int, fresh: bool, layout: Any) -> None:
        """Return to what was saved, in the same arrays or in others with another layout."""
        if not self.saved:
            self.save("dict")
        kept, mirror = self.saved[which % len(self.saved)]
        if fresh:
            self.params = {
                name: layout.make(lambda s, dtype=param.dtype: np.ones(s, dtype), param.shape)
                for name, param in self.params.items()
            }
            self.opt = self.new(self.params)
        if isinstance(kept, Path):
            self.opt.load(kept)
        else:
            self.opt.load_state_dict(kept)
        self.mirror = copy.deepcopy(mirror)

    @rule(how=st.sampled_from(["pickle", "deepcopy"]))
    def replace(self, how: str) -> None:
        """Go on with a copy, after dropping the original."""
        together = (self.params, self.opt)
        self.params, self.opt = pickle.loads(pickle.dumps(together)) if how == "pickle" else copy.deepcopy(together)

    @invariant()
    def is_what_the_reference_says(self) -> None:
        if hasattr(self, "opt"):
            self.mirror.assert_like(self.opt, self.params, repr(self.case))


TestRun = Run.TestCase
