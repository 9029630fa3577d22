"""Types for annotations: nested containers of arrays, and the words that arguments accept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import numpy as np

__all__ = [
    "AttrsInstance", "DataclassInstance", "Float", "Gradient", "Grads", "Index", "Leaf", "Method", "MinimizeResult",
    "MomentumForm", "Nonfinite", "Parameter", "Params", "Per", "PerElement", "Rounding", "StateDtype", "SupportsDLPack",
    "Tree", "Variant", "Verify",
]  # fmt: skip

Float = TypeVar("Float", np.float32, np.float64)
"""The type that a function computes in, which its states have, and its other arrays unless they are narrower."""

MomentumForm: TypeAlias = Literal["torch", "tf"]
Variant: TypeAlias = Literal["rprop-", "rprop+", "irprop-", "irprop-move", "irprop+", "grprop-slr", "grprop-sag"]
Method: TypeAlias = Literal[Variant, "rmsprop", "adagrad", "adagrad-norm"]
Per: TypeAlias = Literal["array", "row"]
Verify: TypeAlias = Literal["never", "first", "every"]
Nonfinite: TypeAlias = Literal["propagate", "skip", "raise"]
Rounding: TypeAlias = Literal["nearest", "stochastic"]
StateDtype: TypeAlias = Literal["bfloat16"] | np.dtype[Any] | type[Any] | None
"""``None`` or bfloat16: the word, ``ml_dtypes.bfloat16``, or its dtype."""


class SupportsDLPack(Protocol):
    """An array of another library, which offers its memory by DLPack."""

    def __dlpack__(self, *args: Any, **options: Any) -> Any: ...


class DataclassInstance(Protocol):
    """An instance of a dataclass: a container, whose entries are its fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class AttrsInstance(Protocol):
    """An instance of an attrs class: a container, whose entries are its fields."""

    __attrs_attrs__: ClassVar[Any]


class MinimizeResult(Protocol):
    """What ``minimize`` returns: SciPy's ``OptimizeResult``, or an object with the same attributes."""

    x: Any
    fun: float
    jac: Any
    nit: int
    nfev: int
    njev: int
    status: int
    success: bool
    message: str
    x_last: Any
    step_size: float


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from ._rows import Index, Rows

    Parameter: TypeAlias = NDArray[Float] | NDArray[np.float16]
    """What a function updates. Arrays of bfloat16 have no type of their own: they are ``NDArray[Any]``."""

    Gradient: TypeAlias = NDArray[Float] | NDArray[np.float32] | NDArray[np.float16]
    """What it takes for a gradient: any type that the computation holds exactly."""

    PerElement: TypeAlias = float | NDArray[np.floating[Any]]
    """A number for all elements, or an array with one for each."""

    Leaf: TypeAlias = NDArray[Any] | Buffer | SupportsDLPack
    """An array, or an object that offers its memory."""

    Tree: TypeAlias = Leaf | Sequence["Tree"] | Mapping[Any, "Tree"] | DataclassInstance | AttrsInstance
    """An array, or containers of arrays: lists, tuples, NamedTuples, mappings, dataclasses and attrs classes."""

    Params: TypeAlias = (
        Leaf | Sequence[Tree | Mapping[str, Any]] | Mapping[Any, Tree] | DataclassInstance | AttrsInstance
    )
    """What an optimizer updates: a tree, or a list of groups ``{"params": tree, "lr": ..., ...}``."""

    Grads: TypeAlias = (
        Leaf | Rows | Sequence["Grads"] | Mapping[Any, "Grads"] | DataclassInstance | AttrsInstance | None
    )
    """Gradients: the containers of the parameters, where ``Rows`` are those of some rows, and None leaves one out."""
else:  # what reads annotations at run time can't follow types that contain themselves
    Leaf = Index = PerElement = Tree = Params = Grads = Any
    Parameter = Gradient = list[Float]
