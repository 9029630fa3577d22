"""Checkpoints as files: written whole or not at all, and read only if no byte was altered."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Mapping
from io import BufferedIOBase
from typing import Any

from .._run import LoadReport, Run
from ._containers import BLANK, CONTAINERS, Container, Stored
from ._extra import packed, unpacked
from ._state import Restore, checked, description, value_errors, write

_PIECE = 2**20
"""Bytes of a file that are read at once where all of it is read."""
_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_BINARY", "O_NONBLOCK"))
"""Where the system knows them: closed in programs that we start, bytes as they are, and no waiting for a pipe."""
_NO_SYNC = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""How systems say that a folder can't be synced."""
_NOT_OURS = "not a checkpoint of fusedstep"


def save(run: Run, path: str | os.PathLike[str], extra: Any = None) -> None:
    """Write a complete checkpoint of ``run``, or nothing; see ``Optimizer.save``."""
    path = os.fsdecode(path)
    container = _container(path)
    values, arrays = packed(extra)
    with run.core:
        about = description(run) | ({} if values is None else {"extra": values})
        about["groups"], of_groups = packed(about["groups"])
        found = {f"params.{_key(name)}": array for name, array in run.params.items()}
        for name, states in run.state.items():
            found |= {f"state.{_key(name)}.{state}": array for state, array in states.items()}
        for kind, some in (("groups", of_groups), ("extra", arrays)):
            found |= {f"{kind}.{_key(pointer)}": array for pointer, array in some.items()}
        _save(container, path, about, found)


def _save(container: Container, path: str, about: dict[str, Any], arrays: dict[str, Any]) -> None:
    target = os.path.realpath(path)
    directory = os.path.dirname(target)
    temporary = os.path.join(directory, f".fusedstep-{secrets.token_hex(8)}.tmp")
    old = None
    with contextlib.suppress(OSError):
        old = os.stat(target)
    try:
        # What replaces a file is readable by nobody else until it has that file's mode.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600 if old else 0o666)
        with open(descriptor, "wb+") as file:
            try:
                with value_errors(f"{path}: ", (ValueError,)):
                    container.write(file, about, arrays)
            except ImportError as error:
                raise ImportError(f"{path}: {error}", name=error.name) from error
            file.flush()
            size = os.fstat(descriptor).st_size
            place = container.place_of_checksum(file, size)
            checksum = _checksum(file, place, size)
            if checksum is None or checksum[0] != BLANK:
                raise RuntimeError(f"{path}: no place for the checksum in what was written")
            file.seek(place)
            file.write(checksum[1])
            file.flush()
            if old:
                _keep_owner_and_mode(descriptor, old)
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename == temporary:  # a name that the caller does not know
            raise type(error)(error.errno, error.strerror, path) from None
        raise
    _sync_directory(directory)


def _keep_owner_and_mode(descriptor: int, old: os.stat_result) -> None:
    """Give the file the owner, group and mode of the one that it replaces, as far as the system permits it."""
    if not hasattr(os, "fchown"):  # Windows: what lies in a folder has its permissions from there
        return
    now = os.fstat(descriptor)
    for owner, group in ((old.st_uid, -1), (-1, old.st_gid)):
        if (owner, group) not in ((now.st_uid, -1), (-1, now.st_gid)):
            with contextlib.suppress(OSError):
                os.fchown(descriptor, owner, group)
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def load(run: Run, path: str | os.PathLike[str], strict: bool = True) -> tuple[LoadReport, Any]:
    """Restore ``run`` from the file ``path``; see ``Optimizer.load``."""
    with run.core:
        restore, extra, _ = read(run, path, strict)
        write(run, restore)
    return restore.report, extra


def read(run: Run, path: str | os.PathLike[str], strict: bool = True) -> tuple[Restore, Any, str]:
    """Return what loading ``path`` writes, the caller's own data, and the file's checksum."""
    path = os.fsdecode(path)
    container = _container(path)
    with _opened(path) as file, value_errors(f"{path}: ", (ValueError,)):
        before = _version(file)
        checksum, about, arrays = _parsed(container, file)
        values, found = about.pop("extra", None), _by_kind(arrays)
        if of_groups := found.pop("groups"):
            about["groups"] = _unpacked("groups", about.get("groups"), of_groups)
        of_extra = found.pop("extra")
        restore = checked(run, about | found, strict).read()
        extra = _unpacked("extra", values, of_extra)
        if _version(file) != before:
            raise ValueError("the file was changed while it was read")
    return restore, extra, checksum


def _opened(path: str) -> BufferedIOBase:
    """Open a regular file; refuse devices, which may never end, and pipes."""
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise ValueError(f"{path}: {_NOT_OURS}: it is not a regular file")
    return open(descriptor, "rb")


def _version(file: BufferedIOBase) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _container(path: str) -> Container:
    ending = os.path.splitext(path)[1]
    if ending not in CONTAINERS:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(CONTAINERS)}")
    return CONTAINERS[ending]


def _parsed(container: Container, file: BufferedIOBase) -> tuple[str, dict[str, Any], dict[str, Stored]]:
    """Return the checksum, the JSON and the index of a file whose checksum is right."""
    size = os.fstat(file.fileno()).st_size
    place = container.place_of_checksum(file, size)
    if place < 0:
        raise ValueError(_NOT_OURS)
    checksum = _checksum(file, place, size)
    if checksum is None or checksum[0] != checksum[1]:
        raise ValueError("the checksum is wrong: the file was cut, damaged or altered, or is not a checkpoint")
    try:
        about, arrays = container.read_index(file, size)
        return checksum[0].decode(), {key: value for key, value in about.items() if key != "sha256"}, arrays
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # of any kind: whoever made this file knows how to make checksums
        raise ValueError(f"{_NOT_OURS}: {error}") from error


def _unpacked(kind: str, values: Any, pointers: Mapping[str, Stored]) -> Any:
    with value_errors(f"{_NOT_OURS}: {kind}: ", (LookupError, TypeError)):
        return unpacked(values, {pointer: stored.read() for pointer, stored in pointers.items()})


def _by_kind(arrays: Mapping[str, Stored]) -> dict[str, dict[str, Any]]:
    """Return parameters by name, their states by name and name, and what belongs into some JSON by pointer."""
    found: dict[str, dict[str, Any]] = {kind: {} for kind in ("params", "state", "groups", "extra")}
    for key, array in arrays.items():
        kind, _, name = key.partition(".")
        if kind == "state":
            name, _, state = name.rpartition(".")
            found[kind].setdefault(_name(name), {})[state] = array
        elif kind in found:
            found[kind][_name(name)] = array
        else:
            raise ValueError(f"{_NOT_OURS}: unknown array {key!r}")
    found["state"] = {**{name: {} for name in found["params"]}, **found["state"]}
    return found


def _key(name: str) -> str:
    """Return a name in ASCII without control characters, which every container can hold."""
    return name.encode("unicode_escape").decode("ascii")


# What _key() writes for a character. Python only warns of an escape sequence that it does not know.
_ESCAPES = re.compile(r"([^\\]|\\([\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}))*", re.DOTALL)


def _name(key: str) -> str:
    if "\\" not in key and key.isascii():
        return key
    if not _ESCAPES.fullmatch(key):
        raise ValueError(f"{_NOT_OURS}: {key!r} is no name's key")
    with value_errors(f"{_NOT_OURS}: ", (UnicodeError,)):
        return key.encode("ascii").decode("unicode_escape")


def _checksum(file: BufferedIOBase, place: int, size: int) -> tuple[bytes, bytes] | None:
    """Return the 64 bytes at ``place``, and the SHA-256, in 64 digits, of all others; None if those are no digits."""
    file.seek(place)
    found = file.read(len(BLANK))
    if len(found) != len(BLANK) or found.strip(b"0123456789abcdef"):
        return None
    digest = hashlib.sha256()
    piece = bytearray(_PIECE)
    for begin, end in ((0, place), (place + len(BLANK), size)):
        file.seek(begin)
        while begin < end:
            with memoryview(piece) as view, view[: min(_PIECE, end - begin)] as part:
                count = file.readinto(part)
                if not count:
                    return None
                digest.update(part[:count])
            begin += count
    return found, digest.hexdigest().encode()


def _sync_directory(directory: str) -> None:
    """Put the new name on the disk, where the file system and the folder's permissions allow it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
