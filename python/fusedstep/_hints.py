"""Suggest a known name for an unknown one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

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
    # options of a step: torch.nn.utils, Keras
    "max_norm": ("clip_norm",),
    "global_clipnorm": ("clip_norm",),
    "clipnorm": ("clip_norm_each",),
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


def check_choice(what: str, value: object, known: Collection[str]) -> None:
    """Raise ValueError with a suggestion if a value is none of the known ones."""
    if value not in known:
        choices = ", ".join(map(repr, known))
        raise ValueError(f"{what}: expected one of {choices}, got {value!r}{did_you_mean(value, known)}")


def parameters(function: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters of a function or a method, without ``self``, ``*args`` and ``**options``."""
    code = getattr(function, "__wrapped__", function).__code__
    return [name for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if name != "self"]


def check_keywords(function: Callable[..., Any], given: Iterable[str], name: str) -> None:
    """Raise TypeError with a suggestion if one of the ``given`` names is no parameter of the function."""
    known = parameters(function)
    for keyword in given:
        if keyword not in known:
            hint = did_you_mean(keyword, known)
            raise TypeError(f"{name}() got an unexpected keyword argument {keyword!r}{hint}")
