"""Fused in-place Rprop, Adagrad and RMSprop updates for NumPy arrays, bit-for-bit equal to a NumPy reference."""

from . import _interpreter  # noqa: F401  (first: it may refuse)

# isort: split
from . import _core, reference
from ._adadelta import Adadelta, adadelta_
from ._adagrad import Adagrad, adagrad_
from ._adagrad_da import AdagradDA, adagrad_da_
from ._adagrad_norm import AdagradNorm, adagrad_norm_
from ._config import (
    available_isas,
    c_functions,
    get_cmake_dir,
    get_include,
    get_num_threads,
    isa,
    read_environment,
    set_num_threads,
    show_config,
    use_isa,
)
from ._core import StepReport
from ._dialects import dialects
from ._minimize import minimize, scipy_method
from ._optimizer import Optimizer
from ._proximal_adagrad import ProximalAdagrad, proximal_adagrad_
from ._rmsprop import RMSprop, rmsprop_
from ._rows import Rows
from ._rprop import Rprop, rprop_
from ._run import LoadReport
from ._storage import noise_key
from ._verification import VerificationError

__version__: str = _core.version
__all__ = [
    "Adadelta", "Adagrad", "AdagradDA", "AdagradNorm", "LoadReport", "Optimizer", "ProximalAdagrad", "RMSprop", "Rows",
    "Rprop", "StepReport", "VerificationError", "adadelta_", "adagrad_", "adagrad_da_", "adagrad_norm_",
    "available_isas", "c_functions", "dialects", "get_cmake_dir", "get_include", "get_num_threads", "isa", "minimize",
    "noise_key", "proximal_adagrad_", "reference", "rmsprop_", "rprop_", "scipy_method", "set_num_threads",
    "show_config", "use_isa",
]  # fmt: skip

read_environment()
