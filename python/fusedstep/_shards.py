"""How parameters are cut over the ranks of MPI, and what the ranks say to each other.

MPI moves bytes here; every addition is ours, in an order that depends on nothing but the number of summands.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, zip_longest
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from . import _core
from ._tree import entries, parse_all, ungrouped
from ._verification._step import default_floating_point

Array = NDArray[Any]
Flat = Any
"""An array of one dimension, or an iterator over another array that is sliced in its C order."""
Node = tuple[int, int]
"""A part of the tree of lanes: its first lane, and how many it has."""
Segment = tuple[int, int, int]
"""Elements of one parameter: its number, the first one, and the one after the last."""
Travelling = tuple[MPI.Request, Array]
"""What says that all bytes are here, and where they are."""

_BUCKET = 2**24
"""Bytes that a rank has under way at once, about: twice, because the next ones travel while these are worked on."""


# ------------------------------------------------------------------------------------------------------------ agreement


class Peers:
    """The ranks of a communicator: what all must know of each other, and errors that all must raise.

    Every rank calls ``agree`` equally often in the same order. One that fails calls it once more, to say so; the others
    are then told where they call it next. So nobody waits for a rank that has given up.
    """

    _RECORD = np.dtype([("failed", "i8"), ("count", "i8"), ("digest", "V16")])

    def __init__(self, comm: Any) -> None:
        if isinstance(comm, MPI.Comm) and comm == MPI.COMM_NULL:
            raise ValueError("comm: expected a communicator, got MPI.COMM_NULL; only its members make an optimizer")
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm: expected an mpi4py.MPI.Intracomm, as MPI.COMM_WORLD, got {type(comm).__name__}")
        self.comm = comm
        self.rank: int = comm.rank
        self.size: int = comm.size

    def agree(
        self, facts: Mapping[str, Any] | None = None, count: int = 0, error: Exception | None = None
    ) -> list[int]:
        """Return the ``count`` of each rank, once all are here.

        Raises the error of the lowest rank that has one; ValueError if ``facts`` are not the same on all ranks.
        """
        mine = np.zeros(1, self._RECORD)
        mine["failed"], mine["count"] = error is not None, count
        if facts is not None:
            mine["digest"] = hashlib.blake2b(pickle.dumps(facts), digest_size=16).digest()
        records = np.empty(self.size, self._RECORD)
        self.comm.Allgather([mine, MPI.BYTE], [records, MPI.BYTE])
        if records["failed"].any():
            errors = self.comm.allgather(error and (_builtin(error), str(error)))
            rank, (kind, text) = next((rank, each) for rank, each in enumerate(errors) if each)
            raise _told(kind(f"rank {rank}: {text}")) from error
        if (records["digest"] != records["digest"][0]).any():  # perhaps only pickled differently
            for rank, others in enumerate(all_facts := self.comm.allgather(facts)):
                for key in {**all_facts[0], **others}:
                    first, other = (each.get(key, "nothing") for each in (all_facts[0], others))
                    if first != other and repr(first) != repr(other):
                        raise _told(
                            ValueError(f"{key}: {first!r} on rank 0, {other!r} on rank {rank}; all ranks need the same")
                        )
        return [int(each) for each in records["count"]]

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the other ranks of an error that they don't know of, so that all raise it."""
        try:
            yield
        except MPI.Exception:
            raise
        except Exception as error:
            if not hasattr(error, "_told"):
                self.agree(error=error)
            raise


def _told(error: Exception) -> Exception:
    error._told = True  # type: ignore[attr-defined]
    return error


def _builtin(error: Exception) -> type[Exception]:
    """Return the nearest class of an error that every rank has, and that takes a text."""
    kinds = (kind for kind in type(error).__mro__ if issubclass(kind, Exception) and not issubclass(kind, UnicodeError))
    return next(kind for kind in kinds if kind.__module__ == "builtins")


# ------------------------------------------------------------------------------------------------------- the parameters


class Front:
    """The parameters as the caller has them: whole, in containers, with the hyperparameters of groups."""

    def __init__(self, params: Any) -> None:
        groups, self.grouped = entries(params)
        self.options = [own for _, own in groups]
        self.names_of_groups: list[list[str]] = []
        self.arrays: list[Array] = []
        self.trees: list[Any] = []
        self._core = _core.OptimizerCore("traffic")  # the rule that has no state; it makes no step
        for leaves in parse_all(members for members, _ in groups):
            arrays, _ = self._core.add_group(leaves.names, leaves.arrays, {"lr": 0.0, "states": "none"})
            self.names_of_groups.append(leaves.names)
            self.arrays += map(np.asarray, arrays)
            self.trees.append(leaves.tree)
        self.names = [name for names in self.names_of_groups for name in names]
        self._core.set_tree(self.trees if self.grouped else self.trees[0])

    def gradients(self, grads: Any, zero_grads: bool) -> list[Array | None]:
        """Return the gradients by parameter, checked as for a step."""
        given = ungrouped(grads, self.trees, len(self.arrays)) if self.grouped else grads
        found = self._core.gradients(given, zero_grads)
        for name, gradient in zip(self.names, found, strict=True):
            if isinstance(gradient, tuple):
                raise ValueError(
                    f"gradient of parameter {name!r}: expected a dense gradient, got rows, which processes can't share"
                )
        return [None if array is None else np.asarray(array) for array in found]


class Cut:
    """Which elements of which parameter each rank has: whole blocks of the norm, in the order of all parameters."""

    def __init__(self, sizes: Sequence[int], ranks: int) -> None:
        self.sizes = sizes
        self._first = [0, *accumulate(-(-n // _core.block) for n in sizes)]
        self._bounds = [r * self._first[-1] // ranks for r in range(ranks + 1)]

    def pieces(self, rank: int) -> list[tuple[int, int]]:
        """Return the first element, and the one after the last, that a rank has of each parameter."""

        def place(bound: int, first: int, size: int) -> int:
            return min(max(bound - first, 0) * _core.block, size)

        low, high = self._bounds[rank : rank + 2]
        return [(place(low, *each), place(high, *each)) for each in zip(self._first, self.sizes, strict=False)]


def flat(array: Array) -> Flat:
    """Return what slices the elements of an array in C order: views if it is dense in that order, else copies."""
    return array.reshape(-1) if array.flags.c_contiguous else array.flat


def sum_type(kind: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which values of a type are added, which is the compute type of a parameter of that type."""
    return kind if kind.itemsize > 4 else np.dtype(np.float32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Add as kernels do: by the defaults of IEEE 754, whatever the caller has set, and without warnings."""
    with default_floating_point(), np.errstate(all="ignore"):
        yield


# ------------------------------------------------------------------------------------------------------------ transport


def _halves(node: Node) -> tuple[Node, Node]:
    """Return the two parts of a node: the left one has the largest power of two of lanes that leaves something over."""
    first, n = node
    left = 1 << (n - 1).bit_length() - 1
    return (first, left), (first + left, n - left)


def _within(node: Node, lanes: range) -> list[Node]:
    """Return the largest parts of a node that have no lanes but these."""
    first, n = node
    if first >= lanes.stop or first + n <= lanes.start:
        return []
    if lanes.start <= first and first + n <= lanes.stop:
        return [node]
    return [part for half in _halves(node) for part in _within(half, lanes)]


class Exchange:
    """What travels in a step whose parameters and gradients have certain types, None where there is no gradient."""

    def __init__(
        self, peers: Peers, cut: Cut, params: Sequence[np.dtype[Any]], grads: Sequence[np.dtype[Any] | None],
        lanes: list[range],
    ) -> None:  # fmt: skip
        self._peers = peers
        self._begin = [begin for begin, _ in cut.pieces(peers.rank)]
        self._params = params
        self._grads = grads
        self._sums = [sum_type(kind) for kind in params]
        self._root = (0, lanes[-1].stop)
        self._nodes = [_within(self._root, each) for each in lanes]
        room = max(_BUCKET // peers.size, 2**12)
        by_rank = [list(self._buckets(cut.pieces(rank), room)) for rank in range(peers.size)]
        self._rounds = list(map(list, zip_longest(*by_rank, fillvalue=[])))

    def _buckets(self, pieces: list[tuple[int, int]], room: int) -> Iterator[list[Segment]]:
        """Yield a rank's elements that have a gradient, so many bytes of parameters at once."""
        bucket: list[Segment] = []
        left = room
        for i, (begin, end) in enumerate(pieces):
            while begin < end and self._grads[i] is not None:
                stop = min(end, begin + max(left // self._params[i].itemsize, 1))
                bucket.append((i, begin, stop))
                left -= (stop - begin) * self._params[i].itemsize
                begin = stop
                if left <= 0:
                    yield bucket
                    bucket, left = [], room
        if bucket:
            yield bucket

    def _type_of_sum(self, node: Node, i: int) -> np.dtype[Any]:
        """Return the type in which a node's gradient of a parameter travels: a lone one in its own."""
        lone = self._grads[i]
        return lone if lone is not None and node[1] == 1 else self._sums[i]

    def sum_gradients(self, sums: Mapping[Node, Sequence[Flat]], divisor: int, out: Sequence[Array]) -> None:
        """Add the gradients of all lanes, given this rank's nodes, into this rank's pieces, and divide."""
        me = self._peers.rank

        def parts(segments: list[list[Segment]], rank: int, owner: int) -> Iterator[tuple[Any, ...]]:
            """Yield the node, the elements and the type of what a rank sends to the owner of the elements."""
            for node in self._nodes[rank] if rank != owner else ():
                for i, begin, end in segments[owner]:
                    yield node, i, begin, end, self._type_of_sum(node, i)

        def size(segments: list[list[Segment]], rank: int, owner: int) -> int:
            return sum((end - begin) * kind.itemsize for _, _, begin, end, kind in parts(segments, rank, owner))

        def post(segments: list[list[Segment]]) -> Travelling:
            everyone = range(self._peers.size)
            sent = [size(segments, me, owner) for owner in everyone]
            counts = [size(segments, rank, me) for rank in everyone]
            mine = (part for owner in everyone for part in parts(segments, me, owner))
            message = _packed(sum(sent), ((kind, sums[node][i][begin:end]) for node, i, begin, end, kind in mine))
            received = np.empty(sum(counts), np.uint8)
            request = self._peers.comm.Ialltoallv([message, sent, MPI.BYTE], [received, counts, MPI.BYTE])
            return request, received

        def use(segments: list[list[Segment]], received: Array) -> None:
            mine = segments[me]
            values = {node: [sums[node][i][begin:end] for i, begin, end in mine] for node in self._nodes[me]}
            place = 0
            for rank, nodes in enumerate(self._nodes):
                for node in nodes if rank != me else ():
                    types = [(self._type_of_sum(node, i), end - begin) for i, begin, end in mine]
                    values[node], place = _unpacked(received, place, types)
            for k, (i, begin, end) in enumerate(mine):
                target = out[i][begin - self._begin[i] : end - self._begin[i]]
                total = self._total(self._root, {node: arrays[k] for node, arrays in values.items()}, i, target)
                np.divide(total, divisor, target, dtype=self._sums[i])

        self._in_rounds(post, use)

    def _total(self, node: Node, values: Mapping[Node, Array], i: int, out: Array | None = None) -> Array:
        if node in values:
            return values[node]
        left, right = (self._total(half, values, i) for half in _halves(node))
        return np.asarray(np.add(left, right, out, dtype=self._sums[i]))

    def spread_parameters(self, pieces: Sequence[Array], params: Sequence[Flat]) -> None:
        """Send this rank's pieces to all, and write those of the others into the parameters."""
        me = self._peers.rank

        def post(segments: list[list[Segment]]) -> Travelling:
            counts = [sum((e - b) * self._params[i].itemsize for i, b, e in each) for each in segments]
            own = ((i, begin - self._begin[i], end - self._begin[i]) for i, begin, end in segments[me])
            message = _packed(counts[me], ((self._params[i], pieces[i][begin:end]) for i, begin, end in own))
            received = np.empty(sum(counts), np.uint8)
            request = self._peers.comm.Iallgatherv([message, MPI.BYTE], [received, counts, MPI.BYTE])
            return request, received

        def use(segments: list[list[Segment]], received: Array) -> None:
            place = 0
            for rank, each in enumerate(segments):
                types = [(self._params[i], end - begin) for i, begin, end in each]
                arrays, place = _unpacked(received, place, types)
                for (i, begin, end), array in zip(each, arrays, strict=True) if rank != me else ():
                    params[i][begin:end] = array

        self._in_rounds(post, use)

    def _in_rounds(
        self, post: Callable[[list[list[Segment]]], Travelling], use: Callable[[list[list[Segment]], Array], None]
    ) -> None:
        """Send and receive in rounds; the next one travels while one is used. An error now ends all ranks."""
        if self._peers.size == 1:
            post = _nothing_travels
        try:
            posted = deque(map(post, self._rounds[:1]))
            for k, segments in enumerate(self._rounds):
                request, received = posted.popleft()
                request.Wait()
                posted += map(post, self._rounds[k + 1 : k + 2])
                use(segments, received)
        except BaseException:
            if self._peers.size == 1:
                raise
            traceback.print_exc()  # the others wait for bytes, and can't be told
            self._peers.comm.Abort(1)


def _nothing_travels(segments: list[list[Segment]]) -> Travelling:
    return MPI.Request(), np.empty(0, np.uint8)


def _packed(size: int, parts: Iterable[tuple[np.dtype[Any], Array]]) -> NDArray[np.uint8]:
    """Return the bytes of arrays, each in a type, one behind the other."""
    packed = np.empty(size, np.uint8)
    place = 0
    for kind, array in parts:
        stop = place + array.size * kind.itemsize
        packed[place:stop].view(kind)[...] = array
        place = stop
    return packed


def _unpacked(packed: Array, place: int, types: Iterable[tuple[np.dtype[Any], int]]) -> tuple[list[Array], int]:
    """Return views of arrays of certain types and sizes from a place on, and the place behind them."""
    arrays = []
    for kind, n in types:
        stop = place + n * kind.itemsize
        arrays.append(packed[place:stop].view(kind))
        place = stop
    return arrays, place
