"""Fuzz the reader of checkpoints, by atheris (libFuzzer for Python) if it is installed, otherwise by plain mutation.

``python tests/fuzz/checkpoint.py [--seconds N] [--seed N]`` changes files of both formats at random. Half of them get a
right checksum again, so that the code behind it is reached. Only ValueError may be raised, with the path in front, and
a refused file must not change the live optimizer.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["fusedstep._checkpoint"]) if atheris else contextlib.nullcontext():
    import fusedstep._checkpoint._files

import numpy as np

import fusedstep as fs

ENDINGS = (".npz", ".safetensors")
BEFORE_CHECKSUM = b'"__metadata__":{"fusedstep":"{\\"sha256\\":\\"'


EXTRAS = (None, {"a": [np.arange(3), None], "b/c": "x"}, np.zeros((0, 2)))
"""The user's own data in each of the seeds."""
OLD = Path(__file__).parents[1] / "data"
"""Files of format version 1."""


def optimizers() -> list[Any]:
    """Return optimizers after a step, with everything that a checkpoint can hold: groups, states of all kinds, empty
    arrays."""
    w, b = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), np.ones(())
    rmsprop = fs.RMSprop({"w": w.copy(), "b": b.copy()}, centered=True, momentum=0.5)
    rmsprop.step({"w": w, "b": b})
    rprop = fs.Rprop([{"params": w.copy()}, {"params": {"x.y": b.copy()}, "lr": 0.5}])
    rprop.step([w, {"x.y": b}], loss=0.25)
    adagrad = fs.Adagrad(np.zeros((0, 2)))
    adagrad.step(np.zeros((0, 2)))
    old = fs.RMSprop({"w": np.zeros((2, 3)), "b": np.zeros(4)}, centered=True)
    return [rmsprop, rprop, adagrad, old]


def everything(optimizer: Any) -> bytes:
    """Return everything that a checkpoint could change."""
    saved = optimizer.state_dict()
    params, state = saved.pop("params"), saved.pop("state")
    arrays = [*params.values(), *(array for states in state.values() for array in states.values())]
    return b"".join(a.tobytes() for a in arrays) + repr(saved).encode()


class Target:
    """One input: a byte that chooses the optimizer, the format, and whether to mend sums and to load a part; then the
    file."""

    def __init__(self, directory: str) -> None:
        self.optimizers = optimizers()
        self.paths = {ending: os.path.join(directory, f"fuzzed{ending}") for ending in ENDINGS}
        self.seeds = []
        for k, optimizer in enumerate(self.optimizers):
            for j, ending in enumerate(ENDINGS):
                if k < len(EXTRAS):
                    optimizer.save(self.paths[ending], EXTRAS[k])
                    content = Path(self.paths[ending]).read_bytes()
                else:
                    content = (OLD / f"rmsprop-centered{ending}").read_bytes()
                self.seeds += [bytes([k + 4 * j + 8 * how]) + content for how in range(4)]
        self.refused = self.loaded = 0

    def __call__(self, data: bytes) -> None:
        if not data:
            return
        optimizer = self.optimizers[data[0] % 4 % len(self.optimizers)]
        ending = ENDINGS[data[0] // 4 % 2]
        content = corrected(data[1:], ending) if data[0] // 8 % 2 else data[1:]
        path = self.paths[ending]
        Path(path).write_bytes(content)
        before = everything(optimizer)
        try:
            optimizer.load(path, strict=data[0] // 16 % 2 == 0)
        except ValueError as error:
            self.refused += 1
            if not str(error).startswith(f"{path}: ") or everything(optimizer) != before:
                raise RuntimeError(f"refused, but not as it should be: {error}") from error
        else:
            self.loaded += 1


def corrected(content: bytes, ending: str) -> bytes:
    """Make the sums right again: those of the members of an archive, and the checkpoint's own."""
    if ending == ".npz":
        content = _with_crcs(content)
        place = len(content) - 64
    else:
        end = 8 + int.from_bytes(content[:8], "little")
        place = content.find(BEFORE_CHECKSUM, 8, end) + len(BEFORE_CHECKSUM)
    if place < len(BEFORE_CHECKSUM):
        return content
    digest = hashlib.sha256(content[:place] + content[place + 64 :]).hexdigest()
    return content[:place] + digest.encode() + content[place + 64 :]


def _with_crcs(content: bytes) -> bytes:
    """Return the archive with right CRC-32 of its members, as far as its directory still leads to them."""
    changed = bytearray(content)
    with contextlib.suppress(Exception), tempfile.TemporaryFile() as file:
        file.write(content)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            directory = archive.start_dir
        for member in members:
            name, extra = struct.unpack_from("<HH", content, member.header_offset + 26)
            start = member.header_offset + 30 + name + extra
            crc = struct.pack("<I", zlib.crc32(content[start : start + member.compress_size]))
            changed[member.header_offset + 14 : member.header_offset + 18] = crc
            name, extra, comment = struct.unpack_from("<HHH", content, directory + 28)
            changed[directory + 16 : directory + 20] = crc
            directory += 46 + name + extra + comment
    return bytes(changed[: len(content)])


def mutated(data: bytes, seeds: list[bytes], rng: random.Random) -> bytes:
    """Change bytes, cut, repeat, or mix with another seed."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, length = rng.randrange(len(made) + 1), rng.choice((1, 2, 4, 8, 64))
        piece = bytes(made[at : at + length])
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in piece[:1]) + piece[1:]
        other = rng.choice(seeds)
        start = rng.randrange(len(other))
        constant = rng.choice((b"\xff" * len(piece), bytes(len(piece)), b"-1", b"9" * 20, b"null", b'"', b"{}", b"NaN"))
        made[at : at + length] = rng.choice(
            (b"", piece * 2, flipped, other[start : start + length], constant, rng.randbytes(len(piece)))
        )
        if not made:
            made = bytearray(data)
    return bytes(made)


def by_mutation(target: Target, seconds: float, seed: int) -> int:
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    runs = 0
    while runs == 0 or time.monotonic() < end:
        target(mutated(rng.choice(target.seeds), target.seeds, rng))
        runs += 1
    return runs


def by_coverage(target: Target, seconds: float, seed: int, directory: str) -> None:
    corpus = Path(directory, "corpus")
    corpus.mkdir()
    for k, content in enumerate(target.seeds):
        (corpus / str(k)).write_bytes(content)
    rng = random.Random(seed)

    def changed(data: bytes, most: int, _: int) -> bytes:
        """Alternate between libFuzzer's own changes and changes that know the structure of a file."""
        if data and rng.random() < 0.5:
            return mutated(data, target.seeds, rng)[:most]
        return bytes(atheris.Mutate(data, most))

    options = [f"-max_total_time={int(seconds)}", f"-seed={seed}", "-max_len=8192", "-timeout=120", str(corpus)]
    atheris.Setup([sys.argv[0], *options], target, custom_mutator=changed)
    atheris.Fuzz()  # does not return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without atheris, even where it is installed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        target = Target(directory)
        for content in target.seeds:
            target(content)
        assert (target.loaded, target.refused) == (len(target.seeds), 0), "the seeds do not load"
        if atheris is None or arguments.plain:
            runs = by_mutation(target, arguments.seconds, arguments.seed)
            print(f"{runs} files: {target.refused} refused, {target.loaded} loaded")
        else:
            by_coverage(target, arguments.seconds, arguments.seed, directory)


if __name__ == "__main__":
    main()
