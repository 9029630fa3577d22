"""Run the NumPy reference after a step, and compare every bit."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core, reference
from .._core import StepReport
from .._run import Call, Masked, Run, StepOptions, in_one_call
from . import VerificationError

Array = NDArray[Any]


def differing(found: Array, expected: Array) -> NDArray[np.bool_]:
    """Return where two arrays differ in a bit; any two NaN count as equal."""
    bits = np.dtype(f"u{found.dtype.itemsize}")
    different = np.asarray(found.copy().view(bits) != expected.copy().view(bits))
    return np.asarray(different & ~(np.isnan(found) & np.isnan(expected)), bool)


def first_difference(found: Array, expected: Array) -> str:
    """Return where two arrays first differ in a bit, and both values; empty if they don't."""
    places = np.argwhere(differing(found, expected))
    if len(places) == 0:
        return ""
    index = tuple(map(int, places[0]))
    return f"{index}: {found[index]!r} instead of {expected[index]!r}"


@contextlib.contextmanager
def default_floating_point() -> Iterator[None]:
    """Compute with the IEEE 754 defaults, as the kernels do, whatever rounding mode the caller has set."""
    before = _core.exchange_floating_point(None)
    try:
        yield
    finally:
        _core.exchange_floating_point(before)


class Snapshot:
    """A parameter with its states and its gradient, as they were before a step; where it is frozen, with 0."""

    def __init__(
        self, name: str, live: dict[str, Array], grad: Array | tuple[Array, Array] | None, frozen: Array | None = None
    ) -> None:
        self.name = name
        self.live = live
        self.before = {key: np.copy(array, order="K") for key, array in live.items()}
        shape = live["param"].shape
        kept = {} if frozen is None else {key: a for key, a in self.before.items() if a.shape == shape}
        self._frozen = [(array, frozen, array[frozen]) for array in kept.values()]
        for hidden in ("param", "param_low"):
            if hidden in kept:
                kept[hidden][frozen] = 0
        values, index = grad if isinstance(grad, tuple) else (grad, None)
        self.live_grad = values
        self.grad = None if values is None else np.copy(values, order="K")
        self.rows = None if index is None else np.copy(index)
        self.arguments: dict[str, Any] = {}
        """Those of the reference, except the parameter and the gradient."""

    def restore_frozen(self) -> None:
        """Bring back what a mask leaves as it is, which the reference sees as 0."""
        for array, frozen, values in self._frozen:
            array[frozen] = values

    def summed(self) -> Array:
        """Return the gradient; of rows, the sum of each, in ascending order. There is one."""
        assert self.grad is not None
        return self.grad if self.rows is None else reference.summed(self.before["param"], self.grad, self.rows)[1]


def snapshots_of(
    run: Run, grads: list[Any], loss: float | None, frozen: list[Array | None] | None = None
) -> list[Snapshot]:
    """Return all parameters as they are before a step with these gradients, or values and indices of rows."""
    schema = run.schema
    groups = [group for group, members in zip(run.groups, run.members, strict=True) for _ in members.names]
    functions = reference.gradient, getattr(reference, f"{schema.rule}_")
    takes = {argument for function in functions for argument in inspect.signature(function).parameters}
    found = []
    for name, group, count, key, grad, still in zip(
        run.params, groups, run.core.counts, run.keys(), grads, frozen or [None] * len(grads), strict=True
    ):
        each = Snapshot(name, {"param": run.params[name], **run.state[name]}, grad, still)
        options = {option: group.get(option) for option in schema.options}  # what is missing, the step will name
        asked = {**options, "loss_increased": _worse(group, loss, run.core.last_loss)}
        used = _core.used_states(schema.rule, options)
        each.arguments = {
            **{argument: value for argument, value in asked.items() if argument in takes},
            **{schema.argument.get(state, state): each.before[state] for state in used},
            **({"step": count + 1} if schema.uses_step(options) else {}),
            **({"rows": each.rows} if each.rows is not None else {}),
            "key": key,
            "param_low": each.before.get("param_low"),
        }
        found.append(each)
    return found


def verified_step(run: Run, grads: Any, options: StepOptions, masked: Masked | None = None) -> StepReport:
    """Take a step and compare it with the reference; take it back if memory runs out or Ctrl-C comes meanwhile."""
    run.check_groups()
    core = run.core
    found = core.gradients(grads, bool(options.zero_grads))
    frozen, zeroed = masked or (None, [])
    # The step gets these very arrays, because a container may make new ones at each read.
    given = run.contained(found)
    snapshots = snapshots_of(run, found, options.loss, frozen)
    saved = [(array, np.copy(array, order="K")) for each in snapshots for array in each.live.values()]
    for each in snapshots:
        if options.zero_grads and each.live_grad is not None and each.grad is not None:
            saved.append((each.live_grad, each.grad))
    saved += [(array, np.copy(array, order="K")) for array in zeroed if array is not None]
    back: list[Call] = [partial(np.ndarray.__setitem__, array, ..., values) for array, values in saved]
    counters = {"steps": core.steps, "counts": core.counts, "last_loss": core.last_loss}
    back += [partial(setattr, core, name, value) for name, value in counters.items()]
    take_back = in_one_call(back)
    report = run.step(given, options, masked)
    try:
        with default_floating_point():
            _check(run.schema.rule, snapshots, report, options)
    except VerificationError:
        raise
    except BaseException:
        take_back()
        raise
    return report


def _worse(group: Mapping[str, Any], loss: float | None, before: float | None) -> bool:
    """Return whether the loss rose, or the objective fell in a group that maximises it."""
    if loss is None or before is None:
        return False
    return loss < before if group.get("maximize") else loss > before


def _check(rule: str, snapshots: list[Snapshot], report: StepReport, options: StepOptions) -> None:
    present = [snapshot for snapshot in snapshots if snapshot.grad is not None]
    norm, prologues = prologues_of(present, options)
    if norm is not None:
        _compare("the norm", np.asarray(report.grad_norm), np.asarray(norm))
    if not report.skipped:
        apply_reference(rule, present, prologues)
    for snapshot in snapshots:
        snapshot.restore_frozen()
        for key, array in snapshot.live.items():
            what = "" if key == "param" else f"{key} of "
            _compare(f"{what}parameter {snapshot.name!r}", array, snapshot.before[key])
        if snapshot.grad is not None and snapshot.live_grad is not None:
            expected = np.zeros_like(snapshot.grad) if options.zero_grads else snapshot.grad
            _compare(f"the gradient of parameter {snapshot.name!r}", snapshot.live_grad, expected)


def prologues_of(present: list[Snapshot], options: StepOptions) -> tuple[float | None, list[dict[str, Any]]]:
    """Return the norm of all gradients, if a step asks for it, and what it does to each gradient before the rule."""
    prologue = {"grad_scale": options.grad_scale, "clip_value": options.clip_value}
    clip_norm, clip_norm_each = options.clip_norm, options.clip_norm_each
    if clip_norm is None and clip_norm_each is None and options.nonfinite == "propagate":
        return None, [prologue] * len(present)
    grads = [reference.widened(each.summed(), reference.compute_type(each.live["param"])) for each in present]
    norm = reference.norm(grads, **prologue)
    limit = clip_norm if clip_norm_each is None else clip_norm_each
    norms = [norm if clip_norm_each is None else reference.norm([grad], **prologue) for grad in grads]
    if limit is None or math.isinf(limit):
        return norm, [prologue] * len(present)
    return norm, [{**prologue, "clip_coef": limit / max(own, limit)} for own in norms]


def apply_reference(rule: str, snapshots: list[Snapshot], prologues: list[dict[str, Any]]) -> None:
    """Apply the reference to what the snapshots hold; each has a gradient."""
    arguments = [each.arguments | prologue for each, prologue in zip(snapshots, prologues, strict=True)]
    # GRprop's sum runs over all parameters that follow it.
    asking = [k for k, each in enumerate(arguments) if str(each.get("variant", "")).startswith("grprop")]
    members: list[Any] = []
    for k in asking:
        options = dict(arguments[k])
        states = [options.pop(state) for state in ("step_size", "prev_sign")]
        members.append((snapshots[k].before["param"], snapshots[k].grad, *states, options))
    for k, chosen in zip(asking, reference.grprop_choice(members), strict=True):
        arguments[k]["chosen"] = chosen
    update = getattr(reference, f"{rule}_")
    for snapshot, each in zip(snapshots, arguments, strict=True):
        update(snapshot.before["param"], snapshot.grad, **each)


def _compare(what: str, found: Array, expected: Array) -> None:
    if first := first_difference(found, expected):
        count = int(differing(found, expected).sum())
        raise VerificationError(
            f"{what}: {count} of {found.size} elements differ from the reference, the first at {first}"
        )
