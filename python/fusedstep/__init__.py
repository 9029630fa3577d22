"""Fused in-place Rprop, Adagrad and RMSprop updates for NumPy arrays, equal to a NumPy reference bit for bit."""

from . import _interpreter  # noqa: F401  (first: it may refuse)

# isort: split
from . import _core, reference
from ._config import (
    available_isas,
    get_cmake_dir,
    get_num_threads,
    isa,
    read_environment,
    set_num_threads,
    show_config,
    use_isa,
)
from ._core import StepReport
from .dialects import dialects
from .functional import adagrad_, adagrad_da_, adagrad_norm_, proximal_adagrad_, rmsprop_, rprop_
from .optimizers import Adagrad, AdagradDA, AdagradNorm, ProximalAdagrad, RMSprop, Rprop
from .verify import VerificationError

__version__: str = _core.version
__all__ = [
    "Adagrad",
    "AdagradDA",
    "AdagradNorm",
    "ProximalAdagrad",
    "RMSprop",
    "Rprop",
    "StepReport",
    "VerificationError",
    "adagrad_",
    "adagrad_da_",
    "adagrad_norm_",
    "available_isas",
    "dialects",
    "get_cmake_dir",
    "get_num_threads",
    "isa",
    "proximal_adagrad_",
    "reference",
    "rmsprop_",
    "rprop_",
    "set_num_threads",
    "show_config",
    "use_isa",
]

read_environment()
