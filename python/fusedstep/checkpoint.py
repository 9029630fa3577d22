"""Checkpoints and copies: all that a run needs to go on as if it had not stopped.

A checkpoint is a plain dict of names, numbers and arrays, or a file of it. A file is a ``.safetensors`` or an ``.npz``
that any reader of these formats opens, without pickle: arrays called ``params.<name>`` and ``state.<name>.<state>``,
the rest as JSON, and a SHA-256 over all of its other bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import mmap
import os
import secrets
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core

if TYPE_CHECKING:
    from .optimizers import Optimizer, _StateMemory

__all__ = ["FORMAT_VERSION", "load", "load_state_dict", "rebuild", "save", "state_dict", "taken_apart"]

Array = NDArray[Any]

FORMAT_VERSION = 1

_KEYS = ("format_version", "class", "groups", "step", "times", "last_loss", "params", "state")
_LARGEST_COUNT = 2**53
"""Of steps: as far as a double, and the JSON of every language, counts exactly."""


# ------------------------------------------------------------------------------------------------------- as plain dicts


def state_dict(opt: Optimizer) -> dict[str, Any]:
    """Return all that ``opt`` needs to go on, in copies; see ``Optimizer.state_dict``."""
    with opt._plan:
        return {
            **_description(opt),
            "params": {name: np.array(array, order="C") for name, array in _params(opt).items()},
            "state": {
                name: {state: np.array(array, order="C") for state, array in states.items()}
                for name, states in opt.state.items()
            },
        }


def load_state_dict(opt: Optimizer, saved: Mapping[str, Any]) -> None:
    """Bring ``opt`` to where ``saved`` was taken; see ``Optimizer.load_state_dict``."""
    with opt._plan:
        restore = _checked(opt, saved)
        # Copies, so that arrays of ``saved`` may share memory with the live ones.
        _written(opt, restore._replace(arrays=[(live, value.copy()) for live, value in restore.arrays]))


def _params(opt: Optimizer) -> dict[str, Array]:
    return dict(zip(opt._names, opt._arrays, strict=True))


def _description(opt: Optimizer) -> dict[str, Any]:
    """Return the entries of a checkpoint that aren't arrays."""
    if not isinstance(opt.param_groups, list) or len(opt.param_groups) != len(opt._params.groups):
        raise ValueError(
            f"param_groups: expected the list of {len(opt._params.groups)} groups that the optimizer was made with"
        )
    return {
        "format_version": FORMAT_VERSION,
        "class": type(opt).__name__,
        "groups": [
            {"params": list(group.names), **_hyperparameters(opt, index, opt.param_groups[index])}
            for index, group in enumerate(opt._params.groups)
        ],
        "step": opt._plan.steps,
        "times": dict(zip(opt._names, opt._plan.times, strict=True)),
        "last_loss": opt._plan.last_loss,
    }


def _fields(opt: Optimizer) -> dict[str, Any]:
    """Return the hyperparameters of a group, with the default of each."""
    fields = dict(_core.rules()[opt._rule]["fields"])
    fields.pop("loss_increased", None)
    return fields


def _hyperparameters(opt: Optimizer, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters in ``group`` as plain values, checked as when an optimizer is made."""
    where = f"group {index}"
    fields = _fields(opt)
    if missing := [key for key in fields if key not in group]:
        raise ValueError(f"{where}: no {_listed(missing)}")
    values = {key: group[key] for key in fields}
    try:
        _core.check_hyperparameters(opt._rule, values)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {error}") from error
    used = _core.used_states(opt._rule, values)
    for name in opt._params.groups[index].names:
        if lacking := [state for state in used if state not in opt.state[name]]:
            raise ValueError(
                f"{where}: parameter {name!r} has no {_listed(lacking)}, which these hyperparameters need; "
                "make the optimizer with them from the start"
            )
    return {key: _plain(value, fields[key]) for key, value in values.items()}


def _plain(value: Any, default: Any) -> bool | float | str | tuple[float, ...]:
    """Return a hyperparameter as the Python type of its default: exactly, since the kernels compute in double."""
    if isinstance(default, tuple):
        return tuple(map(float, value))
    kind: type[bool | float | str] = type(default)
    return kind(value)


# ------------------------------------------------------------------------------------------- check, and only then write


class _Restore(NamedTuple):
    """All that a checked checkpoint writes."""

    arrays: list[tuple[Array, Array]]
    """Live arrays with their new values."""
    groups: list[dict[str, Any]]
    step: int
    times: list[int]
    last_loss: float | None


def _checked(opt: Optimizer, saved: Any) -> _Restore:
    """Return what loading ``saved`` writes; ValueError if anything in it does not fit ``opt``."""
    if not isinstance(saved, Mapping):
        raise TypeError(f"state dict: expected a mapping, as state_dict() returns, got {type(saved).__name__}")
    version = saved.get("format_version")
    if isinstance(version, bool) or version != FORMAT_VERSION:
        raise ValueError(f"format_version: expected {FORMAT_VERSION}, got {version!r}")
    _check_names("state dict", _KEYS, saved)
    if saved["class"] != type(opt).__name__:
        raise ValueError(f"class: expected {type(opt).__name__}, as this optimizer is, got {saved['class']!r}")
    groups = _checked_groups(opt, saved["groups"])
    arrays = _pairs("params", _params(opt), saved["params"])
    _check_names("state", opt._names, saved["state"])
    for name, states in opt.state.items():
        arrays += _pairs(f"state of {name!r}", states, saved["state"][name])
    _check_names("times", opt._names, saved["times"])
    return _Restore(
        arrays,
        groups,
        _count("step", saved["step"]),
        [_count(f"times of {name!r}", saved["times"][name]) for name in opt._names],
        _loss(saved["last_loss"]),
    )


def _checked_groups(opt: Optimizer, saved: Any) -> list[dict[str, Any]]:
    """Return the hyperparameters for each group of ``opt``: of the saved group with the same parameters."""
    if not isinstance(saved, list | tuple):
        raise ValueError(f"groups: expected a list, got {type(saved).__name__}")
    by_names: dict[frozenset[str], list[Mapping[str, Any]]] = {}
    for index, group in enumerate(saved):
        names = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"group {index}: expected a mapping with a list of names 'params'")
        by_names.setdefault(frozenset(names), []).append(group)
    _check_names("groups", opt._names, dict.fromkeys(name for names in by_names for name in names))
    fields = _fields(opt)
    found = []
    for index, own in enumerate(opt._params.groups):
        matches = by_names.get(frozenset(own.names))
        if not matches:
            raise ValueError(f"groups: expected one of {_listed(own.names)}, as group {index} of this optimizer is")
        group = matches.pop(0)
        _check_names(f"group {index}", ("params", *fields), group)
        found.append(_hyperparameters(opt, index, group))
    if any(by_names.values()):
        raise ValueError(f"groups: expected {len(found)}, as in this optimizer, got {len(saved)}")
    return found


def _pairs(what: str, live: Mapping[str, Array], saved: Any) -> list[tuple[Array, Array]]:
    """Return live arrays with their saved values: the same names, dtypes and shapes."""
    _check_names(what, live, saved)
    for name, array in live.items():
        value = saved[name]
        if not isinstance(value, np.ndarray):
            raise ValueError(f"{what}: {name!r}: expected a numpy.ndarray, got {type(value).__name__}")
        if value.dtype != array.dtype or value.shape != array.shape:
            raise ValueError(
                f"{what}: {name!r}: expected {array.dtype} of shape {array.shape}, as in this optimizer, "
                f"got {value.dtype} of shape {value.shape}"
            )
        if not array.flags.writeable:
            raise ValueError(f"{what}: {name!r}: the array of this optimizer is read-only")
    return [(array, saved[name]) for name, array in live.items()]


def _check_names(what: str, expected: Iterable[str], found: Any) -> None:
    if not isinstance(found, Mapping):
        raise ValueError(f"{what}: expected a mapping, got {type(found).__name__}")
    expected = dict.fromkeys(expected)
    wrong = []
    if missing := [name for name in expected if name not in found]:
        wrong.append(f"{_listed(missing)} missing")
    if unknown := [name for name in found if name not in expected]:
        wrong.append(f"{_listed(unknown)} unknown to this optimizer")
    if wrong:
        raise ValueError(f"{what}: {', '.join(wrong)}")


def _listed(names: list[Any]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _count(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value <= _LARGEST_COUNT:
        raise ValueError(f"{what}: expected a whole number from 0 to 2^53, got {value!r}")
    return int(value)


def _loss(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"last_loss: expected a real number or None, got {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"last_loss: {error}") from error


def _written(opt: Optimizer, restore: _Restore) -> None:
    """Write all of ``restore``, also where Ctrl-C comes in between: then once more from the start."""
    try:
        _write(opt, restore)
    except BaseException:
        _write(opt, restore)
        raise


def _write(opt: Optimizer, restore: _Restore) -> None:
    for live, value in restore.arrays:
        np.copyto(live, value)
    for group, values in zip(opt.param_groups, restore.groups, strict=True):
        group.update(values)
    opt._plan.steps = restore.step
    opt._plan.times = restore.times
    opt._plan.last_loss = restore.last_loss


# ------------------------------------------------------------------------------------------------------------ as files

_BLANK = b"0" * 64
"""What stands in place of the checksum while it is computed."""


@dataclass(frozen=True)
class _Container:
    """A file format: JSON and arrays by name, with room for the 64 digits of a checksum at a known place."""

    write: Callable[[IO[bytes], dict[str, Any], Mapping[str, Array]], None]
    read: Callable[[bytes], tuple[Any, dict[str, Array]]]
    place_of_checksum: Callable[[bytes | mmap.mmap], int]
    """Negative where the content is none of ours."""


def save(opt: Optimizer, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint of ``opt``: the whole of it, or nothing; see ``Optimizer.save``."""
    path = os.fsdecode(path)
    container = _container(path)
    with opt._plan:
        _save(opt, path, container)


def _save(opt: Optimizer, path: str, container: _Container) -> None:
    description = _description(opt)
    arrays = {f"params.{_key(name)}": array for name, array in _params(opt).items()}
    for name, states in opt.state.items():
        arrays |= {f"state.{_key(name)}.{state}": array for state, array in states.items()}
    arrays = {key: np.asarray(array, order="C") for key, array in arrays.items()}  # copies where the order is another

    target = os.path.realpath(path)
    directory = os.path.dirname(target)
    temporary = os.path.join(directory, f".fusedstep-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb+") as file:
            container.write(file, description, arrays)
            file.flush()
            with _mapped(file) as content:
                place = container.place_of_checksum(content)
                if content[place : place + len(_BLANK)] != _BLANK:
                    raise RuntimeError(f"{path}: no place for the checksum in what was written")
                checksum = _checksum(content, place)
            file.seek(place)
            file.write(checksum)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(directory)


def load(opt: Optimizer, path: str | os.PathLike[str]) -> None:
    """Bring ``opt`` to where it was when ``path`` was saved; see ``Optimizer.load``."""
    path = os.fsdecode(path)
    container = _container(path)
    with open(path, "rb") as file:
        content = file.read()
    with opt._plan:
        try:
            restore = _checked(opt, _parsed(container, content))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        _written(opt, restore)


def _container(path: str) -> _Container:
    ending = os.path.splitext(path)[1]
    if ending not in _CONTAINERS:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(_CONTAINERS)}")
    if ending == ".safetensors":
        try:
            import safetensors.numpy  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f'{path}: needs the package safetensors: pip install "fusedstep[checkpoint]"; .npz needs nothing',
                name="safetensors",
            ) from error
    return _CONTAINERS[ending]


def _parsed(container: _Container, content: bytes) -> dict[str, Any]:
    """Return the state dict in a file's content."""
    place = container.place_of_checksum(content)
    if place < 0:
        raise ValueError("not a checkpoint of fusedstep")
    if content[place : place + len(_BLANK)] != _checksum(content, place):
        raise ValueError("the checksum is wrong: the file was cut, damaged or altered")
    try:
        description, arrays = container.read(content)
        return {**{key: value for key, value in description.items() if key != "sha256"}, **_by_name(arrays)}
    except MemoryError:
        raise
    except Exception as error:  # of any kind: it was made by someone who knows how to make checksums
        raise ValueError(f"not a checkpoint of fusedstep: {error}") from error


def _by_name(arrays: dict[str, Array]) -> dict[str, dict[str, Any]]:
    params: dict[str, Array] = {}
    state: dict[str, dict[str, Array]] = {}
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
    """Return the SHA-256, in 64 digits, of all bytes but the 64 at ``place``."""
    with memoryview(content) as view:
        digest = hashlib.sha256(view[:place])
        digest.update(view[place + len(_BLANK) :])
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


# .npz: the checksum is the comment at the end of the archive; the JSON is an array of bytes.

_JSON = "metadata"


def _write_npz(file: IO[bytes], description: dict[str, Any], arrays: Mapping[str, Array]) -> None:
    text = np.frombuffer(json.dumps(description).encode(), np.uint8)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = _BLANK
        for key, array in {_JSON: text, **arrays}.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _read_npz(content: bytes) -> tuple[Any, dict[str, Array]]:
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > len(content):
            raise ValueError("compressed, or members that overlap")
        for member in members:
            arrays[member.filename.removesuffix(".npy")] = _read_npy(archive.read(member))
    return json.loads(arrays.pop(_JSON).tobytes()), arrays


def _read_npy(content: bytes) -> Array:
    """Return the array in ``content``, whose every claim is held against the bytes that are there."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another version than 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    size = math.prod(shape) * dtype.itemsize
    if fortran_order or size != len(content) - stream.tell():
        raise ValueError(f"an array of {dtype}, shape {shape} and {len(content) - stream.tell()} bytes")
    return np.ndarray(shape, dtype, content, stream.tell())  # which refuses to take bytes for objects


def _place_in_npz(content: bytes | mmap.mmap) -> int:
    return len(content) - len(_BLANK)


# .safetensors: the checksum opens the JSON, which is the one entry of the metadata.

_LENGTH = 8
"""Bytes that hold the length of the header; the header follows."""
_BEFORE_CHECKSUM = b'"__metadata__":{"fusedstep":"{\\"sha256\\":\\"'
"""In the header, and there once alone: in names, quotes have a backslash."""


def _write_safetensors(file: IO[bytes], description: dict[str, Any], arrays: Mapping[str, Array]) -> None:
    from safetensors.numpy import save

    text = json.dumps({"sha256": _BLANK.decode(), **description}, separators=(",", ":"))
    _check_memory(sum(array.nbytes for array in arrays.values()))
    file.write(save(dict(arrays), {"fusedstep": text}))  # save_file makes temporaries and modes of its own


def _read_safetensors(content: bytes) -> tuple[Any, dict[str, Array]]:
    from safetensors.numpy import load

    header = json.loads(content[_LENGTH : _end_of_header(content)])
    _check_memory(len(content))
    return json.loads(header["__metadata__"]["fusedstep"]), load(content)


def _check_memory(size: int) -> None:
    """Raise MemoryError where the memory is missing that safetensors takes, three copies: it would end the process."""
    np.empty(3 * size + 2**20, np.uint8)


def _place_in_safetensors(content: bytes | mmap.mmap) -> int:
    found = content.find(_BEFORE_CHECKSUM, _LENGTH, _end_of_header(content))
    return found if found < 0 else found + len(_BEFORE_CHECKSUM)


def _end_of_header(content: bytes | mmap.mmap) -> int:
    return min(_LENGTH + int.from_bytes(content[:_LENGTH], "little"), len(content))


_CONTAINERS = {
    ".safetensors": _Container(_write_safetensors, _read_safetensors, _place_in_safetensors),
    ".npz": _Container(_write_npz, _read_npz, _place_in_npz),
}


# ------------------------------------------------------------------------------------------------- copies of optimizers


def taken_apart(opt: Optimizer) -> dict[str, Any]:
    """Return all that ``opt`` consists of in a form that ``copy`` and ``pickle`` know, for ``rebuild``.

    Its arrays are the live ones, each once: a copy made together with a model holds the arrays of the new model.
    """
    with opt._plan:
        return {
            "attributes": {key: value for key, value in vars(opt).items() if key not in ("_plan", "state")},
            "state": {name: dict(states) for name, states in opt.state.items()},
            "steps": opt._plan.steps,
            "times": opt._plan.times,
            "last_loss": opt._plan.last_loss,
        }


def rebuild(opt: Optimizer, parts: dict[str, Any], memory: _StateMemory) -> None:
    """Make ``opt``, which is empty yet, of what ``taken_apart`` returned, with its states in ``memory``."""
    vars(opt).update(parts["attributes"])
    values = parts["state"]
    kinds = list(_core.rules()[opt._rule]["states"])
    reserved = {
        (name, kind): memory.reserve(array if value.shape == array.shape else value, value.dtype, 0.0)
        for name, array in _params(opt).items()
        for kind, value in values[name].items()
    }
    made = memory.arrays()
    for (name, kind), number in reserved.items():
        np.copyto(made[number], values[name][kind])
    state = {name: {kind: made[reserved[name, kind]] for kind in values[name]} for name in opt._names}
    opt.state = MappingProxyType({name: MappingProxyType(states) for name, states in state.items()})
    opt._plan = _core.Plan(
        opt._rule,
        opt._names,
        opt._group_of,
        len(opt._params.groups),
        opt._arrays,
        [[state[name].get(kind) for kind in kinds] for name in opt._names],
        opt._params.tree,
    )
    opt._plan.steps = parts["steps"]
    opt._plan.times = parts["times"]
    opt._plan.last_loss = parts["last_loss"]
