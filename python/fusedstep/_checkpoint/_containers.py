"""The file formats: JSON and arrays by name, with room for a checksum.

What is read from a file is first its index: names, types, shapes and places of the arrays. The arrays are read later,
and only those that are wanted, so that a file can't ask for more memory than its reader expects.
"""

from __future__ import annotations

import functools
import io
import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from io import BufferedIOBase
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._storage import bfloat16

Array = NDArray[Any]

BLANK = b"0" * 64
"""What stands instead of the checksum while it is computed."""

LARGEST_HEADER = 100_000_000
"""Bytes of JSON, which is also what safetensors allows a header."""
_LARGEST_DIRECTORY = 2**28
"""Bytes that an archive's directory may have: over a million arrays."""


class Stored:
    """An array in a file, not read yet."""

    __slots__ = ("_file", "_offset", "dtype", "shape")

    def __init__(self, file: BufferedIOBase, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        if dtype.kind not in "biuf":
            raise ValueError(f"an array of {dtype}")
        self._file = file
        self._offset = offset
        self.dtype = dtype
        self.shape = shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Array:
        """Return the array, in memory of its own."""
        return self.read_part(0, math.prod(self.shape)).reshape(self.shape)

    def read_part(self, begin: int, end: int) -> Array:
        """Return some elements in C order, in memory of their own."""
        size = self.dtype.itemsize
        return _read(self._file, self._offset + begin * size, (end - begin) * size).view(self.dtype)


class Container(NamedTuple):
    """A file format: JSON and arrays by name, with room for the 64 digits of a checksum at a known place."""

    write: Callable[[BufferedIOBase, dict[str, Any], Mapping[str, Array]], None]
    """ValueError if the format can't hold it; ImportError if a package is missing."""
    read_index: Callable[[BufferedIOBase, int], tuple[Any, dict[str, Stored]]]
    """Read the JSON and the index of a file of the given size; any error if the content is not ours."""
    place_of_checksum: Callable[[BufferedIOBase, int], int]
    """Negative where the content is not ours."""


def _read(file: BufferedIOBase, offset: int, size: int) -> NDArray[np.uint8]:
    content = np.empty(size, np.uint8)
    file.seek(offset)
    if file.readinto(content.data) != size:
        raise ValueError("the file ends too early")
    return content


def _check_size(what: str, size: int, largest: int) -> None:
    if size > largest:
        raise ValueError(f"{what} is too large: more than {largest:,} bytes; use shorter names, and arrays for numbers")


# .npz: the checksum is the comment at the end of the archive; the JSON is an array of bytes.

_JSON = "metadata"
_NARROW = "bfloat16"
"""Where the JSON lists arrays of that type."""
_LONGEST_NAME = 2**16 - 1
_SMALL = 2**16
"""Arrays up to this many bytes are written in one piece, which is faster."""
_LOCAL = struct.Struct("<26x2H")
"""What stands before a member: at its end, the lengths of the name and of the extra field, which follow."""
_MAGIC = b"\x93NUMPY\x01\x00"


def _write_npz(file: BufferedIOBase, description: dict[str, Any], arrays: Mapping[str, Array]) -> None:
    # NumPy's format has no bfloat16: the bits are stored as uint16, and the JSON says so.
    narrow = [key for key, array in arrays.items() if array.dtype.name == "bfloat16"]
    arrays = {**arrays, **{key: arrays[key].view(np.uint16) for key in narrow}}
    description = {**description, _NARROW: narrow} if narrow else description
    text = np.frombuffer(json.dumps(description).encode(), np.uint8)
    _check_size("the JSON", text.nbytes, LARGEST_HEADER)
    for key in arrays:
        if len(key) + len(".npy") > _LONGEST_NAME:
            raise ValueError(
                f"the name {key[:40]!r}... has {len(key):,} bytes, more than an .npz can hold "
                f"({_LONGEST_NAME - len('.npy'):,}); use a shorter one, or .safetensors"
            )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = BLANK
        for key, array in {_JSON: text, **arrays}.items():
            array = np.asarray(array, order="C")
            header = _npy_header(array.dtype, array.shape)
            member = zipfile.ZipInfo(f"{key}.npy")
            if array.nbytes <= _SMALL:
                archive.writestr(member, header + array.tobytes())
                continue
            with archive.open(member, "w", force_zip64=True) as stream:
                stream.write(header)
                stream.write(array.reshape(-1).view(np.uint8).data)
        directory = archive.start_dir
    _check_size("the directory of the archive", file.tell() - directory, _LARGEST_DIRECTORY)


@functools.lru_cache(1000)
def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, about)
    return stream.getvalue()


class _Limited:
    """A file for ``zipfile``, which believes an archive that claims a huge directory."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(min(size, _LARGEST_DIRECTORY + 1) if size >= 0 else _LARGEST_DIRECTORY + 1)
        if len(content) > _LARGEST_DIRECTORY:
            raise ValueError("an archive with a huge directory")
        return content


def _index_npz(file: BufferedIOBase, size: int) -> tuple[Any, dict[str, Stored]]:
    with zipfile.ZipFile(_Limited(file)) as archive:
        members = archive.infolist()
    found: dict[str, Stored] = {}
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or member.file_size > size:
            raise ValueError(f"{member.filename!r} is compressed, encrypted, or no member of this archive")
        key = member.filename.removesuffix(".npy")
        if key in found:
            raise ValueError(f"two members are called {key!r}")
        found[key] = _stored(file, member, size)
    text = found.pop(_JSON)
    if text.dtype != np.uint8 or text.nbytes > LARGEST_HEADER:
        raise ValueError("JSON of another type or size")
    about = json.loads(text.read().tobytes())
    for key in about.pop(_NARROW, ()):
        if found[key].dtype != np.uint16:
            raise ValueError(f"{key!r}: bfloat16 stored as {found[key].dtype}")
        found[key].dtype = bfloat16()
    return about, found


def _stored(file: BufferedIOBase, member: zipfile.ZipInfo, size: int) -> Stored:
    """Return the array in a member, checking its header against the bytes that are there."""
    file.seek(member.header_offset)
    name, extra = _LOCAL.unpack(file.read(_LOCAL.size))
    begin = member.header_offset + _LOCAL.size + name + extra
    file.seek(begin)
    start = file.read(len(_MAGIC) + 2)
    if not start.startswith(_MAGIC):
        raise ValueError(f"{member.filename!r} is no array of version 1.0")
    length = start[len(_MAGIC) :]
    header = file.read(int.from_bytes(length, "little"))
    shape, dtype = _parsed_header(length + header)
    end = begin + len(start) + len(header)
    stored = Stored(file, end, dtype, shape)
    there = member.file_size - (end - begin)
    if min(shape, default=0) < 0 or stored.nbytes != there or end + there > size:
        raise ValueError(f"{member.filename!r}: an array of {dtype}, shape {shape} and {there} bytes")
    return stored


@functools.lru_cache(1000)
def _parsed_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    if fortran_order:
        raise ValueError("an array in Fortran order")
    return tuple(map(int, shape)), dtype


# .safetensors: the checksum opens the JSON, which is the one entry of the metadata.

_LENGTH = 8
"""Bytes that hold the length of the header; the header follows."""
_BEFORE_CHECKSUM = b'"__metadata__":{"fusedstep":"{\\"sha256\\":\\"'
"""Occurs once in the header: in names, quotes have a backslash."""
_TYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


def _write_safetensors(file: BufferedIOBase, description: dict[str, Any], arrays: Mapping[str, Array]) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save
    except ImportError as error:
        needed = "to write this format needs a package: pip install safetensors; .npz needs none"
        raise ImportError(needed, name="safetensors") from error
    text = json.dumps({"sha256": BLANK.decode(), **description}, separators=(",", ":"))
    # MemoryError if the three copies that safetensors makes do not fit, which would kill the process.
    np.empty(3 * sum(array.nbytes for array in arrays.values()) + 2**20, np.uint8)
    ordered = {key: np.asarray(array, order="C") for key, array in arrays.items()}
    try:
        content = save(ordered, {"fusedstep": text})  # save_file makes temporaries and modes of its own
    except SafetensorError as error:  # newer ones say it themselves
        if "header too large" in str(error):
            _check_size("the header", LARGEST_HEADER + 1, LARGEST_HEADER)
        raise
    _check_size("the header", int.from_bytes(content[:_LENGTH], "little"), LARGEST_HEADER)
    file.write(content)


def _index_safetensors(file: BufferedIOBase, size: int) -> tuple[Any, dict[str, Stored]]:
    content = _header(file, size)
    header = json.loads(content)
    text = header.pop("__metadata__")["fusedstep"]
    begin = _LENGTH + len(content)
    found: dict[str, Stored] = {}
    spans = []
    for key, entry in header.items():
        shape = entry["shape"]
        start, end = entry["data_offsets"]
        if any(type(number) is not int or number < 0 for number in (*shape, start, end)):
            raise ValueError(f"{key!r}: a shape or a place that is not of whole numbers")
        found[key] = Stored(file, begin + start, np.dtype(_TYPES[entry["dtype"]]), tuple(shape))
        if entry["dtype"] == "BF16":
            found[key].dtype = bfloat16()
        if found[key].nbytes != end - start:
            raise ValueError(f"{key!r}: {end - start} bytes for {found[key].nbytes}")
        spans.append((start, end))
    at = 0
    for start, end in sorted(spans):
        if start != at:
            raise ValueError("holes between arrays, or arrays that overlap")
        at = end
    if begin + at != size:
        raise ValueError(f"{size - begin} bytes of arrays, not the {at} in the header")
    return json.loads(text), found


def _place_in_safetensors(file: BufferedIOBase, size: int) -> int:
    found = _header(file, size).find(_BEFORE_CHECKSUM)
    return found if found < 0 else _LENGTH + found + len(_BEFORE_CHECKSUM)


def _header(file: BufferedIOBase, size: int) -> bytes:
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH), "little")
    return file.read(length) if length <= min(size - _LENGTH, LARGEST_HEADER) else b""


CONTAINERS = {
    ".safetensors": Container(_write_safetensors, _index_safetensors, _place_in_safetensors),
    ".npz": Container(_write_npz, _index_npz, lambda file, size: size - len(BLANK)),
}
