"""Suggest a known name for an unknown one."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["did_you_mean", "elsewhere"]

_ELSEWHERE: dict[str, tuple[str, ...]] = {
    # hyperparameters: Keras, TensorFlow, optax, MLX, Lasagne, timm, Caffe, Shark, Encog, OpenCV, neuralnet
    "learning_rate": ("lr",),
    "learning_rate_decay": ("lr_decay",),
    "rho": ("alpha",),
    "beta2": ("alpha",),
    "beta_2": ("alpha",),
    "rms_decay": ("alpha",),
    "decay_rate": ("alpha",),
    "decay": ("alpha", "lr_decay"),
    "epsilon": ("eps",),
    "eps_in_sqrt": ("eps_inside_sqrt",),
    "initial_scale": ("initial_square_avg",),
    "initial_gradient_squared_accumulator_value": ("initial_accumulator_value",),
    "l1_regularization_strength": ("l1",),
    "l2_regularization_strength": ("l2",),
    "wd": ("weight_decay",),
    "decoupled_decay": ("decoupled_weight_decay",),
    "eta_minus": ("etas",),
    "eta_plus": ("etas",),
    "min_step": ("step_sizes",),
    "max_step": ("step_sizes",),
    "initial_update": ("lr",),
    # dialects
    "pytorch": ("torch",),
    "tensorflow": ("tf1",),
    "tensorflow1": ("tf1",),
    "tf": ("tf1",),
    "jax": ("optax",),
}
"""Names that other frameworks, or other people, use, and what they are called here."""


def elsewhere(name: str, known: Collection[str]) -> str | None:
    """Return the one of the ``known`` names that another framework calls ``name``."""
    return next((here for here in _ELSEWHERE.get(name.lower(), ()) if here in known), None)


def did_you_mean(name: object, known: Collection[str]) -> str:
    """Return ``" (did you mean 'lr'?)"``, or nothing if no known name is close."""
    import difflib

    if not isinstance(name, str):
        return ""
    meant = elsewhere(name, known) or next(iter(difflib.get_close_matches(name.lower(), known, 1)), None)
    return f" (did you mean {meant!r}?)" if meant else ""
