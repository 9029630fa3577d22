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
from .._schema import Schema
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
    """A parameter with its states and its gradient, as they were before a step.

    ``grad`` is a gradient, or the values and the index of one of rows.
    ``count`` is the number of this update of the parameter, ``loss_increased`` whether the loss rose since the last
    step, ``key`` that of the noise, ``frozen`` which elements stay as they are.
    """

    def __init__(
        self, schema: Schema, name: str, param: Array, state: Mapping[str, Array],
        grad: Array | tuple[Array, Array] | None, group: Mapping[str, Any], count: int, loss_increased: bool,
        key: int | None = None, frozen: Array | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.live = {"param": param, **state}
        self.before = {key: np.copy(array, order="K") for key, array in self.live.items()}
        kept = {} if frozen is None else {key: a for key, a in self.before.items() if a.shape == param.shape}
        self._frozen = [(array, frozen, array[frozen]) for array in kept.values()]
        for hidden in ("param", "param_low"):
            if hidden in kept:
                kept[hidden][frozen] = 0
        values, index = grad if isinstance(grad, tuple) else (grad, None)
        self.live_grad = values
        self.grad = None if values is None else np.copy(values, order="K")
        self.rows = None if index is None else np.copy(index)
        self.options = {key: group.get(key) for key in schema.options}  # what is missing, the step will name
        self.count = count
        self.loss_increased = loss_increased
        self.key = key

    def restore_frozen(self) -> None:
        """Bring back what a mask leaves as it is, which the reference sees as 0."""
        for array, frozen, values in self._frozen:
            array[frozen] = values

    def summed(self) -> Array:
        """Return the gradient; of rows, the sum of each, in ascending order. There is one."""
        assert self.grad is not None
        return self.grad if self.rows is None else reference.summed(self.before["param"], self.grad, self.rows)[1]

    def arguments(self, schema: Schema) -> dict[str, Any]:
        """Return the arguments of the reference, except the parameter and the gradient.

        The reference, or ``gradient`` in it, has most options of a group under the same names. A state is an argument
        where the options use it. The step count and the loss are arguments of the rules that ask for them.
        """
        functions = reference.gradient, getattr(reference, f"{schema.rule}_")
        names = {key for function in functions for key in inspect.signature(function).parameters}
        found = {key: value for key, value in self.options.items() if key in names}
        used = _core.used_states(schema.rule, self.options)
        found |= {schema.argument.get(key, key): self.before[key] for key in used}
        found |= {"key": self.key, "param_low": self.before.get("param_low")}
        if schema.uses_step(self.options):
            found["step"] = self.count
        if self.rows is not None:
            found["rows"] = self.rows
        if "loss_increased" in names:
            found["loss_increased"] = self.loss_increased
        return found


def verified_step(run: Run, grads: Any, options: StepOptions, masked: Masked | None = None) -> StepReport:
    """Take a step like ``Run.step``, and raise ``VerificationError`` if a bit differs from the reference.

    If the comparison cannot be made, for want of memory or because of Ctrl-C, the step is taken back.
    """
    run.check_groups()
    core, loss = run.core, options.loss
    before = core.last_loss
    groups = [group for group, names in zip(run.groups, run.names, strict=True) for _ in names]
    found = core.gradients(grads, bool(options.zero_grads))
    frozen, zeroed = masked or ([None] * len(found), [])
    # The step gets these very arrays, because a container may make new ones at each read.
    given = run.contained(found)
    snapshots = [
        Snapshot(
            run.schema, name, array, run.state[name], grad, group, count + 1, _worse(group, loss, before), key, still
        )
        for (name, array), group, count, key, grad, still in zip(
            run.params.items(), groups, core.counts, run.keys(), found, frozen, strict=True
        )
    ]
    saved = [(array, np.copy(array, order="K")) for each in snapshots for array in each.live.values()]
    for each in snapshots:
        if options.zero_grads and each.live_grad is not None and each.grad is not None:
            saved.append((each.live_grad, each.grad))
    saved += [(array, np.copy(array, order="K")) for array in zeroed if array is not None]
    back: list[Call] = [partial(np.ndarray.__setitem__, array, ..., values) for array, values in saved]
    counters = {"steps": core.steps, "counts": core.counts, "last_loss": before}
    back += [partial(setattr, core, name, value) for name, value in counters.items()]
    take_back = in_one_call(back)
    report = run.step(given, options, masked)
    try:
        with default_floating_point():
            _check(run.schema, snapshots, report, options)
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


def _check(schema: Schema, snapshots: list[Snapshot], report: StepReport, options: StepOptions) -> None:
    prologue = {"grad_scale": options.grad_scale, "clip_value": options.clip_value}
    clip_norm, clip_norm_each = options.clip_norm, options.clip_norm_each
    present = [snapshot for snapshot in snapshots if snapshot.grad is not None]
    clip_coefs = [1.0] * len(present)
    if report.grad_norm is not None:
        grads = [reference.widened(each.summed(), reference.compute_type(each.live["param"])) for each in present]
        norm = reference.norm(grads, **prologue)
        _compare("the norm", np.asarray(report.grad_norm), np.asarray(norm))
        if clip_norm is not None and not math.isinf(clip_norm):
            clip_coefs = [clip_norm / max(norm, clip_norm)] * len(present)
        if clip_norm_each is not None and not math.isinf(clip_norm_each):
            norms = [reference.norm([grad], **prologue) for grad in grads]
            clip_coefs = [clip_norm_each / max(own, clip_norm_each) for own in norms]
    if not report.skipped:
        apply_reference(schema, present, [{**prologue, "clip_coef": coef} for coef in clip_coefs])
    for snapshot in snapshots:
        snapshot.restore_frozen()
        for key, array in snapshot.live.items():
            what = "" if key == "param" else f"{key} of "
            _compare(f"{what}parameter {snapshot.name!r}", array, snapshot.before[key])
        if snapshot.grad is not None and snapshot.live_grad is not None:
            expected = np.zeros_like(snapshot.grad) if options.zero_grads else snapshot.grad
            _compare(f"the gradient of parameter {snapshot.name!r}", snapshot.live_grad, expected)


def apply_reference(schema: Schema, snapshots: list[Snapshot], prologues: list[dict[str, Any]]) -> None:
    """Apply the reference to what the snapshots hold; each has a gradient."""
    arguments = [each.arguments(schema) | prologue for each, prologue in zip(snapshots, prologues, strict=True)]
    # GRprop's sum runs over all parameters that follow it.
    asking = [k for k, each in enumerate(arguments) if str(each.get("variant", "")).startswith("grprop")]
    members: list[Any] = []
    for k in asking:
        options = dict(arguments[k])
        states = [options.pop(state) for state in ("step_size", "prev_sign")]
        members.append((snapshots[k].before["param"], snapshots[k].grad, *states, options))
    for k, chosen in zip(asking, reference.grprop_choice(members), strict=True):
        arguments[k]["chosen"] = chosen
    update = getattr(reference, f"{schema.rule}_")
    for snapshot, each in zip(snapshots, arguments, strict=True):
        update(snapshot.before["param"], snapshot.grad, **each)


def _compare(what: str, found: Array, expected: Array) -> None:
    if first := first_difference(found, expected):
        count = int(differing(found, expected).sum())
        raise VerificationError(
            f"{what}: {count} of {found.size} elements differ from the reference, the first at {first}"
        )
