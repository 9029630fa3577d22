"""Types for annotations: nested containers of arrays, and the words that arguments accept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Buffer
else:
    Buffer = Any

__all__ = [
    "AttrsInstance",
    "DataclassInstance",
    "Float",
    "Grads",
    "Leaf",
    "MomentumForm",
    "Nonfinite",
    "Params",
    "SupportsDLPack",
    "Tree",
    "Variant",
    "Verify",
]

Float = TypeVar("Float", np.float32, np.float64)
"""The type of the elements: a function takes all of its arrays in the same one."""

MomentumForm: TypeAlias = Literal["torch", "tf"]
Variant: TypeAlias = Literal["rprop-", "rprop+", "irprop-", "irprop-move", "irprop+", "grprop-slr", "grprop-sag"]
Verify: TypeAlias = Literal["never", "first", "every"]
Nonfinite: TypeAlias = Literal["propagate", "skip", "raise"]


class SupportsDLPack(Protocol):
    """An array of another library, which offers its memory by DLPack."""

    def __dlpack__(self, *args: Any, **options: Any) -> Any: ...


class DataclassInstance(Protocol):
    """An instance of a dataclass: a container, whose entries are its fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class AttrsInstance(Protocol):
    """An instance of an attrs class: a container, whose entries are its fields."""

    __attrs_attrs__: ClassVar[Any]


Leaf: TypeAlias = NDArray[Any] | Buffer | SupportsDLPack
"""An array, or an object that offers its memory."""

Tree: TypeAlias = Leaf | Sequence["Tree"] | Mapping[Any, "Tree"] | DataclassInstance | AttrsInstance
"""An array, or containers of arrays: lists, tuples, NamedTuples, mappings, dataclasses and attrs classes."""

Params: TypeAlias = Tree | Sequence[Mapping[str, Any]]
"""What an optimizer updates: a tree, or a list of groups ``{"params": tree, "lr": ..., ...}``."""

Grads: TypeAlias = Leaf | Sequence["Grads"] | Mapping[Any, "Grads"] | DataclassInstance | AttrsInstance | None
"""Gradients: the containers of the parameters, where None leaves a parameter out."""
