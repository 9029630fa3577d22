"""Checkpoints as files: written whole or not at all, and read only if no byte was altered."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import secrets
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .._run import Run
from ._containers import BLANK, CONTAINERS, Container
from ._state import checked, description, write

__all__ = ["load", "save"]


def save(run: Run, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint of ``run``: all of it, or nothing; see ``Optimizer.save``."""
    path = os.fsdecode(path)
    container = _container(path)
    with run.core:
        _save(run, path, container)


def _save(run: Run, path: str, container: Container) -> None:
    about = description(run)
    arrays = {f"params.{_key(name)}": array for name, array in run.params.items()}
    for name, states in run.state.items():
        arrays |= {f"state.{_key(name)}.{state}": array for state, array in states.items()}
    arrays = {key: np.asarray(array, order="C") for key, array in arrays.items()}  # copies where the order is another

    target = os.path.realpath(path)
    directory = os.path.dirname(target)
    temporary = os.path.join(directory, f".fusedstep-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb+") as file:
            container.write(file, about, arrays)
            file.flush()
            with _mapped(file) as content:
                place = container.place_of_checksum(content)
                if content[place : place + len(BLANK)] != BLANK:
                    raise RuntimeError(f"{path}: no place for the checksum in what was written")
                checksum = _checksum(content, place)
            file.seek(place)
            file.write(checksum)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename == temporary:  # a name that the caller does not know
            raise type(error)(error.errno, error.strerror, path) from None
        raise
    _sync_directory(directory)


def load(run: Run, path: str | os.PathLike[str]) -> None:
    """Bring ``run`` to where it was when ``path`` was saved; see ``Optimizer.load``."""
    path = os.fsdecode(path)
    container = _container(path)
    with open(path, "rb") as file:
        content = file.read()
    with run.core:
        try:
            restore = checked(run, _parsed(container, content))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        write(run, restore)


def _container(path: str) -> Container:
    ending = os.path.splitext(path)[1]
    if ending not in CONTAINERS:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(CONTAINERS)}")
    if ending == ".safetensors":
        try:
            import safetensors.numpy  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"{path}: this format needs a package: pip install safetensors; .npz needs none", name="safetensors"
            ) from error
    return CONTAINERS[ending]


def _parsed(container: Container, content: bytes) -> dict[str, Any]:
    """Return the state dict in the content of a file."""
    place = container.place_of_checksum(content)
    if place < 0:
        raise ValueError("not a checkpoint of fusedstep")
    if content[place : place + len(BLANK)] != _checksum(content, place):
        raise ValueError("the checksum is wrong: the file was cut, damaged or altered")
    try:
        about, arrays = container.read(content)
        return {**{key: value for key, value in about.items() if key != "sha256"}, **_by_name(arrays)}
    except MemoryError:
        raise
    except Exception as error:  # of any kind: whoever made this file knows how to make checksums
        raise ValueError(f"not a checkpoint of fusedstep: {error}") from error


def _by_name(arrays: dict[str, NDArray[Any]]) -> dict[str, dict[str, Any]]:
    params: dict[str, NDArray[Any]] = {}
    state: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        kind, _, rest = key.partition(".")
        if kind == "params":
            params[_name(rest)] = array
            state.setdefault(_name(rest), {})
        elif kind == "state":
            name, _, of = rest.rpartition(".")
            state.setdefault(_name(name), {})[of] = array
        else:
            raise ValueError(f"unknown array {key!r}")
    return {"params": params, "state": state}


def _key(name: str) -> str:
    """Return a name in ASCII without control characters, which every container can hold."""
    return name.encode("unicode_escape").decode("ascii")


def _name(key: str) -> str:
    return key.encode("ascii").decode("unicode_escape")


def _checksum(content: bytes | mmap.mmap, place: int) -> bytes:
    """Return the SHA-256, in 64 digits, of all bytes except the 64 at ``place``."""
    # Each view is released here, also by an error: a file that is mapped can't be closed under one.
    with memoryview(content) as view, view[:place] as before, view[place + len(BLANK) :] as after:
        digest = hashlib.sha256(before)
        digest.update(after)
    return digest.hexdigest().encode()


def _mapped(file: IO[bytes]) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        raise


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
