"""One optimizer over many processes: states split over the ranks of MPI, ZeRO stage 1.

Each rank keeps and updates its share of every parameter. MPI moves bytes; every addition is made here, in an order that
is fixed, so that results do not depend on the MPI library.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

try:
    from mpi4py import MPI
except ImportError as error:
    raise ImportError(f"{__name__} needs mpi4py and an MPI: pip install mpi4py mpich", name="mpi4py") from error

from ._checkpoint import _files, _state
from ._core import StepReport
from ._optimizer import Optimizer
from ._run import LoadReport, Run
from ._shards import Cut, Exchange, Front, Node, Peers, flat, quiet, sum_type
from .typing import Grads, Nonfinite, Params

__all__ = ["Sharded"]

Array = NDArray[Any]


class Sharded:
    """An optimizer whose states are split over the ranks of a communicator.

    ::

        g <- mean over ranks, or lanes, of their gradients;   then the rule, each rank on its share;   all get p

    All parameters are cut into blocks of 1,024 elements in C order. Rank ``r`` of ``P`` keeps the states of the blocks
    from ``r B / P`` to ``(r + 1) B / P``, and updates them. Every method that is not said to be local must be called on
    all ranks, with the same arguments except gradients. Meanwhile nothing else may use the communicator.

    Parameters
    ----------
    cls : type
        The rule: ``RMSprop``, ``Adagrad`` or another optimizer of this package.
    params
        What to update, see ``Optimizer``. Each rank has all of them, with the same values; each writes all of its own.
    comm : mpi4py.MPI.Intracomm
        The processes that take part, as in ``MPI.COMM_WORLD``.
    lanes : int, optional
        Into how many micro-batches each batch is cut: a power of two, at least the number of ranks. Each rank adds the
        gradients of its own ones (``opt.lanes``). Results then have the same bits for any number of ranks, as long as
        the gradient of a micro-batch has the same bits wherever it is computed.
    reduce : {"mean", "sum"}
        Whether gradients of ranks or lanes are averaged or added.
    **options
        Hyperparameters of ``cls``.

    Raises
    ------
    TypeError, ValueError
        As in ``Optimizer``, and: not a communicator; parameters, hyperparameters or arguments that differ between
        ranks; lanes that are no power of two or fewer than ranks; hyperparameters that choose one element of all arrays
        (GRprop); arrays as hyperparameters; ``verify``; masks; ``Rows``. If one rank refuses, all raise the error of
        the lowest such rank, and none has written anything. The text starts with the rank: ``"rank 1: gradient of
        ..."``.

    References
    ----------
    Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs, fusedstep.mpi
    >>> from mpi4py import MPI
    >>> w = np.ones(3)
    >>> opt = fs.mpi.Sharded(fs.RMSprop, w, comm=MPI.COMM_WORLD, lr=0.01)
    >>> opt.step(2 * w).step
    1
    >>> w.round(4)
    array([0.9684, 0.9684, 0.9684])
    """

    def __init__(
        self, cls: type[Optimizer], params: Params, *,
        comm: MPI.Intracomm, lanes: int | None = None, reduce: Literal["mean", "sum"] = "mean", **options: Any,
    ) -> None:  # fmt: skip
        self._peers = peers = Peers(comm)
        with peers.telling():
            if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
                raise TypeError(f"cls: expected an optimizer class, as fusedstep.RMSprop, got {cls!r}")
            if reduce not in ("mean", "sum"):
                raise ValueError(f"reduce: expected 'mean' or 'sum', got {reduce!r}")
            if options.get("verify", "never") != "never":
                raise ValueError(f"verify: expected 'never', got {options['verify']!r}; verify in one process")
            self._has_lanes = lanes is not None
            if isinstance(lanes, bool) or not isinstance(lanes, int | np.integer | None):
                raise TypeError(f"lanes: expected an int or None, got {type(lanes).__name__}")
            count = peers.size if lanes is None else int(lanes)
            if lanes is not None and (count < peers.size or count & (count - 1)):
                raise ValueError(
                    f"lanes: expected a power of two, at least the number of ranks ({peers.size}), got {lanes}"
                )
            ranks = range(peers.size)
            self._held = [range(r * count // peers.size, (r + 1) * count // peers.size) for r in ranks]
            self._divisor = count if reduce == "mean" else 1
            self._sums: dict[Node, list[Any]] = {}
            self._types: list[Any] = []  # of the gradients in the lanes
            self._front = front = Front(params)
            if any(own.get("mask") is not None for own in front.options):
                raise ValueError("mask: expected none, got one in a group; elements are masked in one process only")
            for key, value in chain.from_iterable(own.items() for own in (options, *front.options)):
                numbers = value if isinstance(value, tuple | list) else [value]
                if any(isinstance(number, np.ndarray) for number in numbers):
                    raise ValueError(f"{key}: expected a number over several processes, got an array")
            self._cut = Cut([array.size for array in front.arrays], peers.size)
            self._places = self._cut.pieces(peers.rank)
            self._pieces = [flat(array)[begin:end] for array, (begin, end) in self._placed()]
            self._own = _made(cls, front, self._pieces, options)
            self._run = self._own._run
            self._run.core.share([(begin, array.size) for array, (begin, _) in self._placed()], self._gather)
            self._summed = [np.empty(piece.size, sum_type(piece.dtype)) for piece in self._pieces]
            self._exchange: tuple[Any, Exchange | None] = None, None
            own = {"cls": cls.__qualname__, "lanes": lanes, "reduce": reduce, "parameters": front.names_of_groups}
            own |= {key: str(value) for key, value in options.items()}
            peers.agree({**own, **self._hyperparameters(), **_identity(front)})

    def _placed(self) -> Iterator[tuple[Array, tuple[int, int]]]:
        """Yield each whole parameter with the place of this rank's piece."""
        return zip(self._front.arrays, self._places, strict=True)

    def _hyperparameters(self) -> dict[str, Any]:
        return {
            f"param_groups[{k}][{key!r}]": value
            for k, group in enumerate(self.param_groups)
            for key, value in group.items()
            if key != "params"
        }

    def _gather(self, own: Array) -> Array:
        """Return the numbers of all ranks, in their order."""
        counts = self._peers.agree(count=own.size)
        numbers = np.empty(sum(counts))
        if numbers.size:
            self._peers.comm.Allgatherv(own, [numbers, counts])
        return numbers

    # ---------------------------------------------------------------------------------------------------------- state

    @property
    def lanes(self) -> range:
        """The lanes whose gradients this rank adds in each step; empty without lanes."""
        return self._held[self._peers.rank] if self._has_lanes else range(0)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The rank's flat pieces (``params``) and hyperparameters of each group; change these on all ranks alike."""
        return self._own.param_groups

    @property
    def state(self) -> Mapping[str, Mapping[str, Array]]:
        """Live states, this rank's flat pieces, which may be empty: ``{parameter name: {state name: ndarray}}``."""
        return self._own.state

    @property
    def parameters(self) -> MappingProxyType[str, Array]:
        """Your arrays, whole, by name; the mapping is read-only."""
        return MappingProxyType(dict(zip(self._front.names, self._front.arrays, strict=True)))

    @property
    def nbytes(self) -> int:
        """The bytes of this rank's states."""
        return self._own.nbytes

    @property
    def steps(self) -> int:
        """The number of steps taken. Skipped steps do not count."""
        return self._own.steps

    def __getattr__(self, name: str) -> Any:
        """Return the value of a hyperparameter in all groups."""
        if name[:1] != "_" and name in self._run.schema.options:
            return getattr(self._own, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a hyperparameter in all groups. Local: do it on all ranks."""
        if name[:1] == "_":
            super().__setattr__(name, value)
        else:
            setattr(self._own, name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._own!r}, rank {self._peers.rank} of {self._peers.size})"

    # ---------------------------------------------------------------------------------------------------------- steps

    def add(self, lane: int, grads: Grads) -> None:
        """Add the gradients of one lane to the next step. Local.

        Call it once per step for each of ``opt.lanes``, in any order. The gradients are copied. Memory for up to
        ``log2`` of this rank's lanes is needed if they come in order.

        Parameters
        ----------
        lane : int
            The number of the micro-batch, one of ``opt.lanes``.
        grads : ndarray or containers of ndarrays
            Its gradients, as in ``step``.

        Raises
        ------
        TypeError, ValueError
            Bad gradients, as in ``Optimizer.step``; a lane that was added already, is another rank's or does not exist;
            an optimizer without lanes. Nothing was added.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs, fusedstep.mpi
        >>> from mpi4py import MPI
        >>> w = np.ones(3)
        >>> opt = fs.mpi.Sharded(fs.RMSprop, w, comm=MPI.COMM_WORLD, lanes=4)
        >>> for lane in opt.lanes:
        ...     opt.add(lane, np.full(3, float(lane)))
        >>> opt.step(clip_norm=1.0).grad_norm  # of the mean, 1.5
        2.598076211353316
        """
        if not self._has_lanes:
            raise ValueError("add: this optimizer has no lanes; make it with lanes=..., or pass the gradients to step")
        if isinstance(lane, bool) or not isinstance(lane, int | np.integer):
            raise TypeError(f"lane: expected an int, got {type(lane).__name__}")
        if lane not in self.lanes:
            raise ValueError(f"lane: expected one of this rank's, opt.lanes == {self.lanes}, got {lane}")
        if any(first <= lane < first + n for first, n in self._sums):
            raise ValueError(
                f"lane: {lane} was added already; call step, which applies all lanes, before the next batch"
            )
        found = self._front.gradients(grads, False)
        types = [None if array is None else array.dtype for array in found]
        before = self._types if self._sums else types
        for name, kind, other in zip(self._front.names, map(_name, types), map(_name, before), strict=True):
            if kind != other:
                raise ValueError(f"gradient of parameter {name!r}: {kind} in lane {lane}, {other} in those before")
        self._types = types
        first, n = int(lane), 1
        sums: list[Any] = [None if array is None else np.array(array, order="C").reshape(-1) for array in found]
        with quiet():
            while sibling := self._sums.pop((first ^ n, n), None):
                pairs = zip(sums, sibling, self._summed, strict=True)
                sums = [None if a is None else np.add(a, b, dtype=out.dtype) for a, b, out in pairs]
                first, n = min(first, first ^ n), 2 * n
        self._sums[first, n] = sums

    def step(
        self, grads: Grads = None, *,
        loss: float | None = None, grad_scale: float | None = None, clip_norm: float | None = None,
        clip_value: float | None = None, zero_grads: bool = False, nonfinite: Nonfinite = "propagate",
        clip_norm_each: float | None = None,
    ) -> StepReport:  # fmt: skip
        """Update every parameter on all ranks, from the gradients of all.

        Each rank sends every other rank that rank's share of the gradients. The rank adds them in a fixed binary tree
        over rank numbers, or lane numbers, and updates its share. Then all receive the new parameters.

        Parameters
        ----------
        grads : ndarray or containers of ndarrays
            This rank's gradients, as in ``Optimizer.step``; None for the same parameters on all ranks. Omitted with
            lanes, whose gradients were added.
        loss, grad_scale, clip_norm, clip_value, nonfinite, clip_norm_each
            As in ``Optimizer.step``, for the mean or sum of the gradients; the same on all ranks. The mean of the loss
            over the ranks is the caller's to compute.
        zero_grads : bool
            Also set this rank's gradients to 0. Not with lanes, which are copies.

        Returns
        -------
        StepReport
            The same on all ranks.

        Raises
        ------
        TypeError, ValueError, FloatingPointError
            As in ``Optimizer.step``, of any rank; arguments that differ between ranks; a gradient that is None on some
            ranks only; lanes that are missing. Nothing was written on any rank.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs, fusedstep.mpi
        >>> from mpi4py import MPI
        >>> params = {"w": np.ones(3), "b": np.zeros(2)}
        >>> opt = fs.mpi.Sharded(fs.RMSprop, params, comm=MPI.COMM_WORLD)
        >>> opt.step({"w": np.ones(3), "b": None}).step
        1
        """
        options: dict[str, Any] = {
            "loss": loss, "grad_scale": grad_scale, "clip_norm": clip_norm, "clip_value": clip_value,
            "nonfinite": nonfinite, "clip_norm_each": clip_norm_each,
        }  # fmt: skip
        front, peers = self._front, self._peers
        with peers.telling():
            found, sums = self._gradients(grads, zero_grads)
            kinds = self._types if self._has_lanes else [None if array is None else array.dtype for array in found]
            exchange = self._exchange_for(kinds)
            types = {
                f"gradient of parameter {name!r}": _name(kind) for name, kind in zip(front.names, kinds, strict=True)
            }
            peers.agree({**options, "zero_grads": zero_grads, **self._hyperparameters(), **types})
            for array, piece, (begin, end) in self._copies():
                piece[...] = array.flat[begin:end]
            with quiet():
                exchange.sum_gradients(sums, self._divisor, self._summed)
            given = {
                name: None if kind is None else summed
                for name, kind, summed in zip(front.names, kinds, self._summed, strict=True)
            }
            shared = [{name: given[name] for name in names} for names in front.names_of_groups]
            report = self._own.step(shared if front.grouped else shared[0], **options)
        if not report.skipped:
            for array, piece, (begin, end) in self._copies():
                array.flat[begin:end] = piece
            exchange.spread_parameters(self._pieces, [flat(array) for array in front.arrays])
        if zero_grads:
            for gradient in found:
                if gradient is not None:
                    gradient[...] = 0
        self._sums.clear()
        return report

    def _gradients(self, grads: Grads, zero_grads: bool) -> tuple[list[Array | None], dict[Node, list[Any]]]:
        """Return the caller's gradients, and sums by node; without lanes each rank is a lane."""
        rank = self._peers.rank
        if not self._has_lanes:
            found = self._front.gradients(grads, zero_grads)
            return found, {(rank, 1): [None if array is None else flat(array) for array in found]}
        if grads is not None:
            raise ValueError(
                "grads: expected None with lanes; call add(lane, grads) for each of opt.lanes before step()"
            )
        if zero_grads is not False:
            raise ValueError(f"zero_grads: expected False with lanes, got {zero_grads!r}; gradients were copied by add")
        there = {lane for first, n in self._sums for lane in range(first, first + n)}
        if missing := [lane for lane in self.lanes if lane not in there]:
            raise ValueError(
                f"lane: {missing[0]} is missing; call add(lane, grads) for each of opt.lanes, {self.lanes}"
            )
        return [], self._sums

    def _exchange_for(self, types: list[Any]) -> Exchange:
        """Return what is to be sent and received; as in the last step if that had gradients of the same types."""
        names = list(map(_name, types))  # a dtype of float64 equals None
        kept, exchange = self._exchange
        if exchange is None or kept != names:
            params = [piece.dtype for piece in self._pieces]
            exchange = Exchange(self._peers, self._cut, params, types, self._held)
            self._exchange = names, exchange
        return exchange

    def _copies(self) -> Iterator[tuple[Array, Array, tuple[int, int]]]:
        """Yield the parameters of which this rank's piece is a copy, the piece and its place."""
        for (array, place), piece in zip(self._placed(), self._pieces, strict=True):
            if not array.flags.c_contiguous:
                yield array, piece, place

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def save(self, path: str | os.PathLike[str], extra: Any = None) -> None:
        """Write a checkpoint to a file: byte for byte the one that a single process writes.

        Rank 0 writes it, see ``Optimizer.save``, and receives one state after the other. For ``.npz`` it holds one
        state at a time; for ``.safetensors`` it needs memory for all, because that package writes whole files.

        Parameters
        ----------
        path : str or path-like
            Ends in ``.safetensors`` or ``.npz``. Only rank 0 uses it.
        extra : optional
            Your own data, which ``load`` returns on all ranks. Only that of rank 0 is written.

        Raises
        ------
        ImportError, OSError, TypeError, ValueError
            As in ``Optimizer.save``, on all ranks. The file is as before.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs, fusedstep.mpi, tempfile
        >>> from mpi4py import MPI
        >>> opt = fs.mpi.Sharded(fs.RMSprop, np.ones(3), comm=MPI.COMM_WORLD)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     opt.save(f"{folder}/x.npz", extra={"epoch": 3})
        ...     fs.RMSprop(np.ones(3)).load(f"{folder}/x.npz")
        {'epoch': 3}
        """
        peers = self._peers
        wanted: list[Array] = []
        run = self._whole(wanted)
        with peers.telling():
            if peers.rank == 0:
                _files.save(run, path, extra)
                peers.agree()
            else:
                while number := peers.agree()[0]:
                    self._collect(wanted[number - 1])

    @overload
    def load(self, path: str | os.PathLike[str], *, strict: Literal[True] = True) -> Any: ...
    @overload
    def load(self, path: str | os.PathLike[str], *, strict: Literal[False]) -> tuple[LoadReport, Any]: ...
    def load(self, path: str | os.PathLike[str], *, strict: bool = True) -> Any:
        """Go back to where a file was saved, by any number of ranks or by one process.

        Each rank reads the parameters and its own pieces of the states, see ``Optimizer.load``.

        Parameters
        ----------
        path : str or path-like
            The file, which each rank must be able to read.
        strict : bool
            If False, load what matches, as in ``Optimizer.load_state_dict``.

        Returns
        -------
        extra
            What ``save`` was given, or None. With ``strict=False``: a tuple of ``LoadReport`` and ``extra``.

        Raises
        ------
        OSError, ValueError
            As in ``Optimizer.load``, on all ranks; ranks that read different files. Nothing was written.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs, fusedstep.mpi, tempfile
        >>> from mpi4py import MPI
        >>> opt = fs.mpi.Sharded(fs.RMSprop, np.ones(3), comm=MPI.COMM_WORLD)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fs.RMSprop(np.zeros(3)).save(f"{folder}/x.npz", extra={"epoch": 3})
        ...     opt.load(f"{folder}/x.npz")
        {'epoch': 3}
        """
        with self._peers.telling(), self._run.core:
            restore, extra, checksum = _files.read(self._whole([]), path, strict)
            self._peers.agree({"checksum of the file": checksum})
            _state.write(self._run, restore)
            self._sums.clear()
        return extra if strict else (restore.report, extra)

    def _whole(self, pieces: list[Array]) -> Run:
        """Return the run as one process would have it, for checkpoints; collects the states' pieces."""
        whole = Run.__new__(Run)
        vars(whole).update(vars(self._run))
        whole.trees = self._front.trees
        whole.params = self.parameters
        state: dict[str, Mapping[str, Any]] = {}
        for (name, states), (array, (begin, _)) in zip(self._run.state.items(), self._placed(), strict=True):
            own: dict[str, Any] = {}
            state[name] = own
            for key, piece in states.items():
                own[key] = piece  # one number, which all ranks have
                if piece.ndim:
                    pieces.append(piece)
                    gather = partial(self._collect, piece, len(pieces), array.shape)
                    own[key] = _state.Piece(piece, begin, array.shape, gather)
        whole.state = MappingProxyType(state)
        return whole

    def _collect(self, piece: Array, number: int = 0, shape: tuple[int, ...] = ()) -> Array:
        """Send a piece to rank 0, which returns all of the state. Rank 0 says which one, by its number."""
        peers = self._peers
        whole = np.empty(shape, piece.dtype)
        if peers.rank == 0:
            peers.agree(count=number)
        counts = peers.comm.gather(piece.nbytes)
        peers.comm.Gatherv([piece, MPI.BYTE], [whole, counts, MPI.BYTE] if peers.rank == 0 else None)
        return whole


def _made(cls: Any, front: Front, pieces: list[Array], options: dict[str, Any]) -> Optimizer:
    """Return the optimizer of one rank's pieces."""
    named = dict(zip(front.names, pieces, strict=True))
    groups = [
        {**own, "params": {name: named[name] for name in names}}
        for own, names in zip(front.options, front.names_of_groups, strict=True)
    ]
    return cast(Optimizer, cls(groups if front.grouped else groups[0]["params"], **options))


def _identity(front: Front) -> dict[str, Any]:
    """Return what the parameters are, in few bytes."""
    found: dict[str, Any] = {}
    for name, array in zip(front.names, front.arrays, strict=True):
        found[f"shape of parameter {name!r}"] = array.shape
        found[f"dtype of parameter {name!r}"] = str(array.dtype)
        values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        found[f"hash of parameter {name!r}"] = hashlib.blake2b(values.data, digest_size=8).hexdigest()
    return found


def _name(kind: Any) -> str | None:
    return None if kind is None else str(kind)
