"""The numbers behind each picture, in words."""

from __future__ import annotations

from . import scenes

__all__ = ["condition", "digits", "minibatches", "saddle", "valley", "variants"]


def steps(count: int | None) -> str:
    """Return a number of steps in words; None is one that was not reached."""
    return "not reached" if count is None else f"{count:,} steps"


def minibatches(scene: scenes.Minibatches) -> list[str]:
    """Return how far each optimizer carried the weight, and how fast it still goes."""
    count = len(scene.weights["SGD"]) - 1
    return [
        f"{name}: {scene.moved(name):.3g} away after {count} mini-batches; "
        f"the last ten moved it {scene.drift(name):.3g} learning rates"
        for name in scene.weights
    ]


def saddle(scene: scenes.Saddle) -> list[str]:
    """Return when each optimizer left the saddle."""
    lines = []
    for name in scene.paths:
        far, *_, close = scene.steps_to_leave[name]
        lines.append(
            f"{name}: {scenes.NEAR:g} away after {steps(scene.left(name))} "
            f"({steps(far)} from a start of {scene.offsets[0]:g}, {steps(close)} from {scene.offsets[-1]:g}), "
            f"1 away after {steps(scene.left(name, 1.0))}"
        )
    return lines


def valley(scene: scenes.Valley) -> list[str]:
    """Return each path's arrival, detour, overshoot and step lengths."""
    lines = []
    for name in scene.paths:
        lengths = scene.step_lengths(name)
        lines.append(
            f"{name}: arrived (0.1 from the minimum): {steps(scene.arrived(name))}; path over straight line "
            f"{scene.detour(name):.2f}; overshoot {scene.overshoot(name):.2f}; "
            f"steps 1, 2, 10, 100 are {', '.join(f'{lengths[i - 1]:.2g}' for i in (1, 2, 10, 100))} long"
        )
    return lines


def condition(scene: scenes.Condition) -> list[str]:
    """Return the steps along both directions, the ratio of effective steps and how they shrank."""
    lines = [
        f"{name}: 5% of the distance left along the steep direction after {steps(scene.steps_to(name, 0))}, "
        f"along the flat one after {steps(scene.steps_to(name, 1))}"
        for name in scene.paths
    ]
    return lines + [
        f"{name}: effective steps {scene.ratio(name):,.0f} times as long along the flat direction; "
        f"in steps 10,000 to 100,000 they are {scene.kept(name):.1%} of those in steps 100 to 1,000"
        for name in scene.effective_steps
    ]


def variants(scene: dict[str, scenes.Variant]) -> list[str]:
    """Return when each variant reached the bottom of the valley."""
    return [
        f"{name}: loss below 0.01 after {steps(variant.steps_to(1e-2))}, "
        f"below 0.0001 after {steps(variant.steps_to(1e-4))}"
        for name, variant in scene.items()
    ]


def digits(scene: list[scenes.Training]) -> list[str]:
    """Return the loss and the accuracy that each training came to."""
    return [
        f"{training.rule}, lr {training.lr:g}, {training.batch or 'all'} images a step: loss {training.losses[-1]:.2g} "
        f"after {len(training.losses)} epochs, test accuracy {training.test_accuracy:.1%}"
        for training in scene
    ]
