"""Suggest a known name for an unknown one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

_ELSEWHERE = {
    # hyperparameters: Keras, TensorFlow, optax, MLX, Lasagne, timm, Caffe, Shark, Encog, OpenCV, neuralnet
    "lr": "learning_rate initial_update",
    "alpha": "rho beta2 beta_2 rms_decay decay_rate decay",
    "lr_decay": "learning_rate_decay decay",
    "eps": "epsilon",
    "eps_inside_sqrt": "eps_in_sqrt",
    "initial_square_avg": "initial_scale",
    "initial_accumulator_value": "initial_gradient_squared_accumulator_value",
    "l1": "l1_regularization_strength",
    "l2": "l2_regularization_strength",
    "weight_decay": "wd",
    "decoupled_weight_decay": "decoupled_decay",
    "etas": "eta_minus eta_plus",
    "step_sizes": "min_step max_step",
    # options of a step: torch.nn.utils, Keras
    "clip_norm": "max_norm global_clipnorm",
    "clip_norm_each": "clipnorm",
    # dialects
    "torch": "pytorch",
    "tf1": "tensorflow tensorflow1 tf",
    "optax": "jax",
}
"""Names here, and the words that other frameworks, or other people, use for them."""


def elsewhere(name: str, known: Collection[str]) -> str | None:
    """Return the one of the ``known`` names that another framework calls ``name``."""
    return next((here for here, there in _ELSEWHERE.items() if here in known and name.lower() in there.split()), None)


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
