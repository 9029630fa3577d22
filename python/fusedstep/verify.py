"""The fused kernels against the NumPy reference, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core, reference
from ._core import StepReport

__all__ = ["Snapshot", "VerificationError", "apply_reference", "check_step", "differing"]


class VerificationError(AssertionError):
    """A kernel and the reference differ in a bit."""


def differing(found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where two arrays differ in a bit; any two NaN count as equal."""
    bits = np.dtype(f"u{found.dtype.itemsize}")
    different = np.asarray(found.copy().view(bits) != expected.copy().view(bits))
    return np.asarray(different & ~(np.isnan(found) & np.isnan(expected)), bool)


@contextlib.contextmanager
def default_floating_point() -> Iterator[None]:
    """Compute by IEEE 754's defaults, as the kernels do, whatever rounding mode the caller has set."""
    before = _core.exchange_floating_point(None)
    try:
        yield
    finally:
        _core.exchange_floating_point(before)


class Snapshot:
    """A parameter with its state and gradient, as they were before a step."""

    def __init__(
        self,
        name: str,
        param: NDArray[Any],
        state: Mapping[str, NDArray[Any]],
        grad: NDArray[Any] | None,
        options: Mapping[str, Any],
        time: int,
    ) -> None:
        self.name = name
        self.live = {"param": param, **state}
        self.before = {key: np.copy(array, order="K") for key, array in self.live.items()}
        self.live_grad = grad
        self.grad = None if grad is None else np.copy(grad, order="K")
        self.options = {key: value for key, value in options.items() if key != "params"}
        self.time = time


def reference_arguments(rule: str, options: Mapping[str, Any], time: int, loss_increased: bool) -> dict[str, Any]:
    """Return an optimizer's hyperparameters as the arguments of the reference of ``rule``."""
    arguments = dict(options)
    if rule == "rmsprop":
        del arguments["centered"]
        arguments["step"] = time if arguments.pop("bias_correction") else None
    elif rule in ("adagrad", "adagrad_da"):
        arguments["step"] = time
    elif rule == "rprop":
        arguments["loss_increased"] = loss_increased
    return arguments


def check_step(
    rule: str,
    snapshots: list[Snapshot],
    report: StepReport,
    *,
    grad_scale: float | None,
    clip_norm: float | None,
    clip_value: float | None,
    zero_grads: bool,
    loss_increased: bool,
) -> None:
    """Raise ``VerificationError`` unless the step from ``snapshots`` came out as the reference has it."""
    with default_floating_point():
        clip_coef = 1.0
        if report.grad_norm is not None:
            grads = [snapshot.grad for snapshot in snapshots if snapshot.grad is not None]
            norm = reference.norm(grads, grad_scale=grad_scale, clip_value=clip_value)
            _compare("the norm", np.asarray(report.grad_norm), np.asarray(norm))
            if clip_norm is not None:
                clip_coef = clip_norm / max(norm, clip_norm)
        if not report.skipped:
            prologue = {"grad_scale": grad_scale, "clip_value": clip_value, "clip_coef": clip_coef}
            apply_reference(rule, [s for s in snapshots if s.grad is not None], loss_increased, prologue)
        for snapshot in snapshots:
            for key, array in snapshot.live.items():
                what = "" if key == "param" else f"{key} of "
                _compare(f"{what}parameter {snapshot.name!r}", array, snapshot.before[key])
            if snapshot.grad is not None and snapshot.live_grad is not None:
                expected = np.zeros_like(snapshot.grad) if zero_grads and not report.skipped else snapshot.grad
                _compare(f"the gradient of parameter {snapshot.name!r}", snapshot.live_grad, expected)


def apply_reference(rule: str, snapshots: list[Snapshot], loss_increased: bool, prologue: dict[str, Any]) -> None:
    """Apply the reference to what the snapshots hold."""
    function = getattr(reference, f"{rule}_")
    arguments = [
        reference_arguments(rule, snapshot.options, snapshot.time, loss_increased) | prologue for snapshot in snapshots
    ]
    # GRprop's sum runs over all parameters that follow it.
    asking = [k for k, each in enumerate(arguments) if str(each.get("variant", "")).startswith("grprop")]
    choice = reference.grprop_choice(
        [
            (s.before["param"], s.grad, s.before["step_size"], s.before["prev_sign"], arguments[k])
            for k, s in enumerate(snapshots)
            if k in asking and s.grad is not None
        ]
    )
    for k, chosen in zip(asking, choice, strict=True):
        arguments[k]["chosen"] = chosen
    for snapshot, each in zip(snapshots, arguments, strict=True):
        states = {key: array for key, array in snapshot.before.items() if key != "param"}
        if rule == "rmsprop" and not snapshot.options["centered"]:
            states.pop("grad_avg", None)
        function(snapshot.before["param"], snapshot.grad, **states, **each)


def _compare(what: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    different = differing(found, expected)
    if not different.any():
        return
    index = tuple(int(i) for i in np.argwhere(different)[0])
    raise VerificationError(
        f"{what}: {int(different.sum())} of {different.size} elements differ from the reference, the first at {index}: "
        f"{found[index]!r} in place of {expected[index]!r}"
    )
