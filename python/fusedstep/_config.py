"""What the extension was built with, what this machine has, and what is in use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from . import _core
from ._storage import whole


class Config(dict[str, Any]):
    """Facts by name; shown as a table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(
            f"{name:<{width}}  {', '.join(value) if isinstance(value, list) else value}" for name, value in self.items()
        )

    __repr__ = __str__


def isa() -> str:
    """Return the name of the instruction set whose kernels are in use.

    Examples
    --------
    >>> import fusedstep as fs
    >>> fs.isa() in fs.available_isas()
    True
    """
    return _core.isa()


def available_isas() -> list[str]:
    """Return the instruction sets that were compiled and that this machine has, the baseline first.

    Examples
    --------
    >>> import fusedstep as fs
    >>> fs.available_isas()[0]
    'baseline'
    """
    return _core.available_isas()


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Use the kernels of one instruction set within a ``with`` block, in all threads.

    Parameters
    ----------
    name : str
        One of ``available_isas()``.

    Raises
    ------
    ValueError
        This machine has no such instruction set; the message lists those that it has.

    Examples
    --------
    >>> import fusedstep as fs
    >>> with fs.use_isa("baseline"):
    ...     fs.isa()
    'baseline'
    """
    before = _core.isa()
    _force(name)
    try:
        yield
    finally:
        _core.force_isa(before)


def _force(name: str) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"instruction set: expected one of {', '.join(available_isas())}, got {name!r}")
    _core.force_isa(name)


def get_num_threads() -> int:
    """Return how many threads a large step may use, including the calling one.

    What ``set_num_threads`` said; else ``FUSEDSTEP_NUM_THREADS``; else the least of the processors that the process
    may run on, the CPU quota of its control group, rounded up, and the first number of ``OMP_NUM_THREADS``. These are
    read at the first large step, and again after a fork.

    Examples
    --------
    >>> import fusedstep as fs
    >>> fs.get_num_threads() >= 1
    True
    """
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Set how many threads a large step may use, including the calling one.

    Parameters
    ----------
    n : int
        From 1 to 256. Results are bit-for-bit identical for any number.

    Raises
    ------
    TypeError
        Not a whole number.
    ValueError
        Out of range.

    Examples
    --------
    >>> import fusedstep as fs
    >>> before = fs.get_num_threads()
    >>> fs.set_num_threads(2)
    >>> fs.get_num_threads()
    2
    >>> fs.set_num_threads(before)
    """
    _core.set_num_threads(whole("num_threads", n, 1, 256))


def show_config() -> Config:
    """Return version, compiler and flags, the instruction sets compiled, found and chosen, and the threads.

    Examples
    --------
    >>> import fusedstep as fs
    >>> list(fs.show_config())[:2]
    ['version', 'compiler']
    """
    return Config(
        {
            "version": _core.version,
            "compiler": _core.compiler,
            "kernel flags": _core.flags,
            "instruction sets compiled": _core.compiled_isas(),
            "instruction sets found": _core.available_isas(),
            "instruction set in use": _core.isa(),
            "threads": _core.num_threads(),
        }
    )


def get_cmake_dir() -> str:
    """Return the folder of the CMake package of the C++ library in this installation, for ``fusedstep_DIR``.

    Examples
    --------
    >>> import os, fusedstep as fs
    >>> os.path.basename(fs.get_cmake_dir())
    'fusedstep'
    """
    return os.path.join(_installed(), "lib", "cmake", "fusedstep")


def get_include() -> str:
    """Return the folder of ``fusedstep/fusedstep.hpp`` and ``fusedstep/fusedstep.h``, for a compiler's ``-I``.

    Examples
    --------
    >>> import os, fusedstep as fs
    >>> os.path.basename(fs.get_include())
    'include'
    """
    return os.path.join(_installed(), "include")


def c_functions() -> dict[str, int]:
    """Return the addresses of the functions that ``fusedstep/fusedstep.h`` declares, by name.

    For code that calls C without a linker: numba, cffi, ctypes, LLVM. They stay valid until the process ends.

    Examples
    --------
    >>> import ctypes, fusedstep as fs
    >>> version = ctypes.CFUNCTYPE(ctypes.c_char_p)(fs.c_functions()["fusedstep_version"])
    >>> version().decode() == fs.__version__
    True
    """
    return _core.c_functions()


def _installed() -> str:
    # Beside the extension: in an editable install the Python files are elsewhere.
    return os.path.dirname(_core.__file__)


def read_environment() -> None:
    """Follow ``FUSEDSTEP_ISA`` and ``FUSEDSTEP_NUM_THREADS``; ValueError if that is impossible."""
    if wanted := os.environ.get("FUSEDSTEP_ISA"):
        try:
            _force(wanted)
        except ValueError as error:
            raise ValueError(f"FUSEDSTEP_ISA: {str(error).removeprefix('isa: ')}") from None
    _core.default_num_threads()
