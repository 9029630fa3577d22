"""The file formats: JSON and arrays by name, with room for a checksum."""

from __future__ import annotations

import io
import json
import math
import mmap
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLANK", "CONTAINERS", "Container"]

Array = NDArray[Any]

BLANK = b"0" * 64
"""What stands in place of the checksum while it is computed."""


class Container(NamedTuple):
    """A file format: JSON and arrays by name, with room for the 64 digits of a checksum at a known place."""

    write: Callable[[IO[bytes], dict[str, Any], Mapping[str, Array]], None]
    read: Callable[[bytes], tuple[Any, dict[str, Array]]]
    place_of_checksum: Callable[[bytes | mmap.mmap], int]
    """Negative where the content is none of ours."""


# .npz: the checksum is the comment at the end of the archive; the JSON is an array of bytes.

_JSON = "metadata"


def _write_npz(file: IO[bytes], description: dict[str, Any], arrays: Mapping[str, Array]) -> None:
    text = np.frombuffer(json.dumps(description).encode(), np.uint8)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = BLANK
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
    """Return the array in ``content``, checking its header against the bytes that are there."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another version than 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    size = math.prod(shape) * dtype.itemsize
    if fortran_order or size != len(content) - stream.tell():
        raise ValueError(f"an array of {dtype}, shape {shape} and {len(content) - stream.tell()} bytes")
    return np.ndarray(shape, dtype, content, stream.tell())  # which refuses to take bytes for objects


def _place_in_npz(content: bytes | mmap.mmap) -> int:
    return len(content) - len(BLANK)


# .safetensors: the checksum opens the JSON, which is the one entry of the metadata.

_LENGTH = 8
"""Bytes that hold the length of the header; the header follows."""
_BEFORE_CHECKSUM = b'"__metadata__":{"fusedstep":"{\\"sha256\\":\\"'
"""Occurs once in the header: in names, quotes have a backslash."""


def _write_safetensors(file: IO[bytes], description: dict[str, Any], arrays: Mapping[str, Array]) -> None:
    from safetensors.numpy import save

    text = json.dumps({"sha256": BLANK.decode(), **description}, separators=(",", ":"))
    _check_memory(sum(array.nbytes for array in arrays.values()))
    file.write(save(dict(arrays), {"fusedstep": text}))  # save_file makes temporaries and modes of its own


def _read_safetensors(content: bytes) -> tuple[Any, dict[str, Array]]:
    from safetensors.numpy import load

    header = json.loads(content[_LENGTH : _end_of_header(content)])
    _check_memory(len(content))
    return json.loads(header["__metadata__"]["fusedstep"]), load(content)


def _check_memory(size: int) -> None:
    """Raise MemoryError if there is no memory for the three copies that safetensors makes; it would end the process."""
    np.empty(3 * size + 2**20, np.uint8)


def _place_in_safetensors(content: bytes | mmap.mmap) -> int:
    found = content.find(_BEFORE_CHECKSUM, _LENGTH, _end_of_header(content))
    return found if found < 0 else found + len(_BEFORE_CHECKSUM)


def _end_of_header(content: bytes | mmap.mmap) -> int:
    return min(_LENGTH + int.from_bytes(content[:_LENGTH], "little"), len(content))


CONTAINERS = {
    ".safetensors": Container(_write_safetensors, _read_safetensors, _place_in_safetensors),
    ".npz": Container(_write_npz, _read_npz, _place_in_npz),
}
