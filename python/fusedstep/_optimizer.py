"""What all optimizers share: hyperparameters as attributes, steps, groups, checkpoints and copies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypedDict, cast, get_args, overload

from numpy.typing import NDArray

from . import _storage
from ._core import OptimizerCore, StepReport, step_method
from ._dialects import dialect_arguments
from ._hints import check_choice, check_keywords, did_you_mean, elsewhere
from ._run import LoadReport, Run, StepOptions
from ._schema import SCHEMAS, Schema
from ._tree import entries, ungrouped
from .typing import Grads, Nonfinite, PerElement, Verify


class Options(TypedDict, total=False):
    """The hyperparameters that every rule has, except ``lr``."""

    weight_decay: float
    decoupled_weight_decay: bool
    maximize: bool


class _Hyperparameter:
    """One hyperparameter of all groups, as an attribute."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.__doc__ = f"The value of ``{name}`` in all groups; ValueError if they differ."

    def __get__(self, optimizer: Optimizer | None, cls: type[Optimizer]) -> Any:
        return self if optimizer is None else optimizer._run.get(self._name)

    def __set__(self, optimizer: Optimizer, value: PerElement) -> None:  # as type checkers see lr
        optimizer._run.set(self._name, value)


class _Signature:
    """The arguments of a constructor, for ``help`` and ``inspect``, which would look at ``__new__`` first."""

    def __get__(self, optimizer: Optimizer | None, cls: type[Optimizer]) -> Any:
        import inspect

        own = inspect.signature(cls.__init__)
        return own.replace(parameters=list(own.parameters.values())[1:], return_annotation=inspect.Signature.empty)


class Optimizer:
    """Update parameters in place, all of them in one call.

    This is the base class of ``RMSprop``, ``Adagrad``, ``Rprop`` and the others. It has no rule of its own.

    Every hyperparameter is also an attribute: reading ``opt.lr`` returns the value that all groups share, and assigning
    to it sets all groups. For a single group, change ``opt.param_groups[k]["lr"]``.

    ``lr``, and each of Rprop's ``step_sizes``, may be an array of float16, float32 or float64 that broadcasts to the
    shape of every parameter in its group: **each element has its own**. Constants are computed from it in double and
    rounded once. It is your array: what you write into it counts from the next step on. Such a step takes about as long
    as in NumPy.

    Parameters
    ----------
    params : ndarray or containers of ndarrays
        An array, or nested lists, tuples, NamedTuples, mappings, dataclasses and attrs classes of arrays; or a list of
        groups ``{"params": ..., "lr": ...}`` with hyperparameters of their own. The arrays have float32, float64,
        bfloat16 or float16 elements and any layout; those of 16 bits are updated in float32. They are borrowed, never
        copied. A parameter is named after its path, as in ``"layers.0.w"``.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` instead of ``g``.
    decoupled_weight_decay : bool
        Shrink the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Maximise instead of minimise: ``-g`` instead of ``g``.
    state_dtype : None, "bfloat16" or its dtype
        The type of the states: None for the type that the parameter is updated in; bfloat16 takes half of float32's
        memory. A step uses the new state before it is rounded. Not for float64. Groups may differ in this, ``rounding``
        and ``master``, which are fixed afterwards.
    rounding : {"stochastic", "nearest"}, optional
        How states and parameters of 16 bits are rounded. Stochastically, the default: up or down, right in the mean.
        To nearest, ties to even, a long sum or an average with ``alpha`` near 1 stalls.
    seed : int
        The seed of stochastic rounding, ``0 <= seed < 2**64``. The noise depends on the seed, the parameter's name, its
        count of updates and the place of the element, and on nothing else. Saved in checkpoints.
    master : bool
        Keep the low halves of bfloat16 parameters, as the state ``param_low`` (uint16). Together the two are a float32
        parameter, bit for bit. If you write such a parameter between steps, call ``sync_master``.
    verify : {"never", "first", "every"}
        Which steps to check against the NumPy reference: none, the first, or all. A difference in a single bit raises
        ``VerificationError``.

    Raises
    ------
    TypeError
        Not an array, wrong dtype or byte order, a container that makes its arrays anew, an unknown hyperparameter or
        one of the wrong type.
    ValueError
        Read-only, misaligned or overlapping arrays, a hyperparameter out of range.
    RuntimeError
        From any method: this optimizer is in use in another thread. Nothing was written.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w, b = np.ones((3, 2)), np.ones(2)
    >>> opt = fs.RMSprop([{"params": {"w": w}, "weight_decay": 0.01}, {"params": {"b": b}}], lr=0.1)
    >>> isinstance(opt, fs.Optimizer)
    True
    >>> opt.param_groups[1]["lr"] = 0.05
    >>> opt.step([{"w": 2 * w}, {"b": 2 * b}]).step
    1
    >>> list(opt.state), list(opt.state["w"])
    (['w', 'b'], ['square_avg'])
    """

    _schema: ClassVar[Schema]
    _run: Run
    _verify: Verify
    _again: OptimizerCore | None = None
    """The core, where the next step may be like the last: ``step`` then repeats it without a look at this class."""

    if TYPE_CHECKING:
        lr: _Hyperparameter  # any number is written, and read as one
    else:
        lr: PerElement
    weight_decay: float
    decoupled_weight_decay: bool
    maximize: bool

    def __init_subclass__(cls, rule: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if rule is not None:
            cls._schema = SCHEMAS[rule]
            if _is_ours(cls):
                cls._schema.class_name = cls.__name__
            for name in cls._schema.options:
                setattr(cls, name, _Hyperparameter(name))

    if not TYPE_CHECKING:  # a type checker would take these for permissions
        __signature__ = _Signature()

        def __new__(cls, *args: Any, **options: Any) -> Self:
            """Refuse a class without a rule, and hyperparameters by other names."""
            if not hasattr(cls, "_schema"):
                raise TypeError(
                    f"{cls.__name__} has no update rule; derive it from RMSprop, Adagrad, Rprop or another optimizer"
                )
            if options and _is_ours(cls.__init__):
                check_keywords(cls.__init__, options, cls.__name__)
            return super().__new__(cls)

        def __setattr__(self, name: str, value: Any) -> None:
            """Set an existing attribute; refuse others, which would have no effect on the steps."""
            if name[:1] != "_" and not hasattr(type(self), name):
                options = self._schema.options
                if _is_ours(type(self)) or elsewhere(name, options):
                    raise AttributeError(
                        f"{type(self).__name__} has no attribute {name!r}{did_you_mean(name, options)}; its "
                        f"hyperparameters, which are in param_groups and are attributes, are {', '.join(options)}"
                    )
            super().__setattr__(name, value)

    def _begin(self, arguments: Mapping[str, Any]) -> None:
        """Start with the named arguments of the constructor; ignore unknown ones."""
        check_choice("verify", arguments["verify"], get_args(Verify))
        self._verify = arguments["verify"]
        options = {name: arguments[name] for name in (*self._schema.arguments, *_storage.DEFAULTS)}
        seed = _storage.checked_seed(arguments["seed"])
        self._run = Run(self._schema, arguments["params"], options, type(self).__name__, seed)

    @classmethod
    def like(cls, name: str, params: Any, lr: PerElement | None = None, **overrides: Any) -> Self:
        """Return an optimizer with the formula and the defaults of another framework: a preset, or dialect.

        RMSprop, where ``r`` is ``v``, or the variance if centered, and ``u = g / d``::

            d = sqrt(r) + eps                            default, torch, chainer, caffe, mlx
            d = sqrt(r + eps)                            keras, tf1, optax, lasagne, timm, graves
            b <- mu b + u,      p <- p - lr b            default, torch
            b <- mu b + lr u,   p <- p - b               keras, tf1, optax, timm, graves
            v starts at 1                                tf1, timm

        Adagrad::

            d = sqrt(s) + eps                            default, torch, chainer, caffe, mlx, deepspeed; tf1: eps is 0
            d = sqrt(s + eps)                            keras, optax, lasagne
            s starts at 0.1                              keras, optax, tf1

        Weight decay is decoupled in keras, ``p <- (1 - lr wd) p``. Elsewhere it is coupled, ``g + wd p``, or missing.
        timm has both.

        Rprop, where the sign flipped::

            p <- p - sign(g) D                           default; opencv, which then forgets the sign
            p stays                                      torch
            the last move is taken back                  encog, neuralnet; shark, if the loss rose

        Parameters
        ----------
        name : str
            One of ``fusedstep.dialects()[rule]``, which lists all defaults.
        params
            What to update, see ``Optimizer``.
        lr : float or ndarray, optional
            Step size. The default is that of the framework; where it has none, ``lr`` is needed.
        **overrides
            Other arguments of this class that the framework also has, ``verify``, and how arrays are stored
            (``state_dtype``, ``rounding``, ``seed``, ``master``). Groups in ``params`` may give the
            same ones.

        Returns
        -------
        Optimizer
            An instance of this class. It does the framework's arithmetic in exact numbers; floats may differ in the
            last bits.

        Raises
        ------
        TypeError
            An argument that the framework does not have, or a missing one that has no default there.
        ValueError
            Unknown dialect, or a hyperparameter out of range.

        Notes
        -----
        Three details differ from the original: centered RMSprop keeps the variance itself, where others compute
        ``v - m^2``, which cancels. Rprop compares signs, where PyTorch multiplies gradients, whose product may
        underflow. Where a sign flipped and the loss fell, ``shark`` stays, as in the paper; Shark repeats its move.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs
        >>> fs.RMSprop.like("keras", np.zeros(3), weight_decay=0.004)
        RMSprop(1 parameters of 3 elements; lr=0.001, alpha=0.9, eps=1e-07, ..., decoupled_weight_decay=True, ...)
        """
        if lr is not None:
            overrides["lr"] = lr
        ours = {key: overrides.pop(key) for key in ("verify", "seed", *_storage.DEFAULTS) if key in overrides}
        apart = ("mask", *_storage.DEFAULTS)
        groups = [{key: value for key, value in own.items() if key not in apart} for _, own in entries(params)[0]]
        arguments = dialect_arguments(cls._schema.rule, cls.__name__, name, overrides, groups)
        made: Self = cast(Any, cls)(params, **arguments, **ours)
        return made

    # ---------------------------------------------------------------------------------------------------------- state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameters (``params``) and the hyperparameters of each group, which may be changed between steps."""
        return self._run.groups

    @property
    def parameters(self) -> Mapping[str, NDArray[Any]]:
        """Your arrays, by name; the mapping is read-only."""
        return self._run.params

    @property
    def nbytes(self) -> int:
        """The bytes of all states: what the optimizer needs besides parameters and gradients."""
        return sum(array.nbytes for states in self._run.state.values() for array in states.values())

    @property
    def state(self) -> Mapping[str, Mapping[str, NDArray[Any]]]:
        """The live states: ``{parameter name: {state name: ndarray}}``."""
        self._run.core.show_states()
        return self._run.state

    @property
    def steps(self) -> int:
        """The number of steps taken. Skipped steps do not count."""
        return self._run.core.steps

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add parameters with hyperparameters of their own.

        From then on gradients come in groups, as a list with one entry per group or as one flat list of all gradients,
        also if the optimizer was made without groups. For ``opt = RMSprop({"w": w})`` and
        ``opt.add_param_group({"params": {"b": b}})`` call ``opt.step([{"w": grad_w}, {"b": grad_b}])``.

        Parameters
        ----------
        param_group : dict
            ``params``, and the hyperparameters that differ from those of the constructor. Parameters without names
            continue the numbers of those there are.

        Raises
        ------
        TypeError, ValueError
            As in the constructor; a name in use, or an array that overlaps a parameter. The optimizer is unchanged.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs
        >>> opt = fs.RMSprop(np.zeros(3))
        >>> opt.add_param_group({"params": np.zeros(2), "lr": 0.1})
        >>> list(opt.state)
        ['0', '1']
        """
        self._run.add_group(param_group)

    # ---------------------------------------------------------------------------------------------------------- steps

    @step_method
    def step(
        self, grads: Grads, *,
        loss: float | None = None, grad_scale: float | None = None, clip_norm: float | None = None,
        clip_value: float | None = None, zero_grads: bool = False, nonfinite: Nonfinite = "propagate",
        clip_norm_each: float | None = None, mask: Grads = None,
    ) -> StepReport:  # fmt: skip
        """Update every parameter in place from its gradient, in one call.

        ::

            g <- g / grad_scale;  g <- clip(g, -clip_value, clip_value);  g <- g clip_norm / max(norm, clip_norm)

        Then follow weight decay and the rule. Options you leave out cost nothing.

        Parameters
        ----------
        grads : ndarray or containers of ndarrays
            The containers of ``params``, with a gradient of the same shape and dtype for each parameter, or None to
            skip it. For groups: a list with one entry per group, or one flat list of all gradients.
        loss : float, optional
            The loss at these gradients. Rprop's ``irprop+`` needs it; other rules only record it.
        grad_scale : float, optional
            What the loss was multiplied by, ``grad_scale > 0``.
        clip_norm : float, optional
            Largest norm of all gradients together, ``clip_norm > 0``.
        clip_value : float, optional
            Largest magnitude of an element, ``clip_value > 0``.
        zero_grads : bool
            Also set the gradients to 0, in the same pass.
        nonfinite : {"propagate", "skip", "raise"}
            What to do about an inf or a NaN in a gradient: update anyway; skip the step and say so in the report; or
            raise an error.
        clip_norm_each : float, optional
            Largest norm of each gradient by itself, ``clip_norm_each > 0``; not together with ``clip_norm``. It comes
            after ``clip_value``. ``report.grad_norm`` is still the norm of all gradients together.
        mask : ndarray of bool or containers of them, optional
            The containers of ``params``, with an array for each parameter that broadcasts to its shape, or None.
            **True means update.** Where it is False, the parameter and its states keep every bit, and the gradient
            counts in no norm and in no test for NaN. ``zero_grads`` also sets it to 0. A step with a mask makes copies,
            so it takes longer. A group can have a mask of its own, ``{"params": ..., "mask": array}``, for all of its
            parameters.

        Returns
        -------
        StepReport
            ``step``, ``grad_norm``, ``skipped`` and ``nonfinite`` (names of parameters). The norm and the names are
            None unless ``clip_norm``, ``clip_norm_each`` or ``nonfinite`` asked for them.

        Raises
        ------
        TypeError, ValueError
            Bad gradients, options or groups; nothing was written.
        FloatingPointError
            An inf or a NaN, with ``nonfinite="raise"``; nothing was written.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs
        >>> w, g = np.ones(4), np.full(4, 10.0)
        >>> opt = fs.Adagrad(w, lr=0.5)
        >>> report = opt.step(g, grad_scale=10, clip_norm=1.0, zero_grads=True)
        >>> report.grad_norm, w, g
        (2.0, array([0.5, 0.5, 0.5, 0.5]), array([0., 0., 0., 0.]))
        """
        run = self._run
        given: Any = ungrouped(grads, run.trees, len(run.params)) if run.grouped else grads
        for group, key, value in run.starts:
            if group.get(key) is not value:
                run.check_starts()
        if self._verify == "never" and mask is None and not run.masked:
            if self._again is None:
                self._again = run.core
            return run.core.step(
                given, run.groups, loss, grad_scale, clip_norm, clip_value, zero_grads, nonfinite, clip_norm_each
            )
        options = StepOptions(loss, grad_scale, clip_norm, clip_value, zero_grads, nonfinite, clip_norm_each)
        return self._other_step(given, mask, options)

    def _other_step(self, grads: Any, mask: Any, options: StepOptions) -> StepReport:
        """Do a step beside the reference, or with a mask."""
        run = self._run
        step: Any = Run.step
        if self._verify != "never":
            from ._verification import _step

            step = _step.verified_step
        with run.core:
            masked = None
            if mask is not None or run.masked:
                grads, masked = run.masked_gradients(grads, mask, options.zero_grads)
            report: StepReport = step(run, grads, options, masked)
        if self._verify == "first":
            self._verify = "never"
        return report

    def sync_master(self, name: str | None = None) -> None:
        """Set the low halves of ``master=True`` parameters to 0, after you wrote into their arrays.

        Low halves belong to the values before. A write is not noticed by itself.

        Parameters
        ----------
        name : str, optional
            The parameter; all of them by default.

        Raises
        ------
        ValueError
            A name that is no parameter with ``master=True``.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs, ml_dtypes
        >>> w = np.ones(3, ml_dtypes.bfloat16)
        >>> opt = fs.RMSprop(w, master=True)
        >>> w[...] = 2
        >>> opt.sync_master()
        """
        self._run.sync_master(name)

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly from here, as a plain dict.

        Returns
        -------
        dict
            ``format_version``; ``class``; ``groups``, a list of the names (``params``) and hyperparameters of each;
            ``params``, ``{name: ndarray}``; ``state``, ``{name: {state name: ndarray}}``; ``step``; ``times``, the
            number of updates of each parameter, ``{name: int}``; ``last_loss``; ``seed``. Arrays are copies in
            C order.

        Raises
        ------
        ValueError
            A hyperparameter in ``param_groups`` that a step would refuse.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs
        >>> w = np.zeros(3)
        >>> opt = fs.RMSprop(w)
        >>> kept = opt.state_dict()
        >>> opt.step(np.ones(3)).step
        1
        >>> opt.load_state_dict(kept)
        >>> opt.steps, w
        (0, array([0., 0., 0.]))
        """
        from ._checkpoint import _state

        return _state.state_dict(self._run)

    @overload
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: Literal[True] = True) -> None: ...
    @overload
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: Literal[False]) -> LoadReport: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadReport | None:
        """Restore everything from ``state_dict()`` of this or another optimizer, parameters included.

        Everything is matched by name, in any order, and checked before anything is written. Arrays are then
        overwritten in place, in any layout: parameters and states stay the same objects. If the load is interrupted,
        the optimizer is either unchanged or fully loaded.

        Parameters
        ----------
        state_dict : mapping
            As ``state_dict()`` returns it.
        strict : bool
            If False, load what matches. A parameter is loaded with its states if their names, shapes and dtypes match.
            Otherwise the parameter keeps its values, and its states start anew. Hyperparameters are loaded for groups
            of the same parameter names and states; other groups keep theirs. ``steps`` and the last loss are loaded.

        Returns
        -------
        LoadReport or None
            With ``strict=False``, the names of parameters: ``loaded``, ``fresh`` (others of this optimizer) and
            ``unused`` (others of ``state_dict``).

        Raises
        ------
        TypeError, ValueError
            Not a mapping; an unknown format version or another class; names, groups, states, shapes or dtypes that are
            not this optimizer's, if strict; a hyperparameter out of range; a read-only array. Nothing was written.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs
        >>> old = fs.RMSprop({"w": np.zeros(3), "head": np.zeros(10)})
        >>> new = fs.RMSprop({"w": np.ones(3), "head": np.zeros(7)})
        >>> new.load_state_dict(old.state_dict(), strict=False)
        LoadReport(loaded=('w',), fresh=('head',), unused=('head',))
        """
        from ._checkpoint import _state

        report = _state.load_state_dict(self._run, state_dict, strict)
        return None if strict else report

    def save(self, path: str | os.PathLike[str], extra: Any = None) -> None:
        """Write a complete checkpoint to a file, or nothing.

        The file is written beside ``path`` and synced to the disk. Then it replaces ``path``. If the process is killed
        meanwhile, the old file stays, and a ``.fusedstep-*.tmp`` may be left over. A file that is replaced passes its
        mode on to the new one, and its owner and group if the system permits it.

        Parameters
        ----------
        path : str or path-like
            Ends in ``.safetensors`` or ``.npz``, which selects the format. Neither contains pickled objects.
        extra : optional
            Your own data, which ``load`` returns: None, bools, numbers, strings, NumPy arrays of bools, integers or
            float16 to float64, and dicts and lists of these. Tuples come back as lists.

        Raises
        ------
        ImportError
            ``.safetensors`` without the package; ``pip install safetensors``.
        OSError
            The file could not be written.
        TypeError
            Something in ``extra`` is neither JSON nor an array.
        ValueError
            Another ending; a hyperparameter that a step would refuse; names that are too long for the format.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs, tempfile
        >>> opt = fs.RMSprop(np.zeros(3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     opt.save(f"{folder}/x.npz", extra={"epoch": 3, "order": np.arange(4)})
        ...     opt.load(f"{folder}/x.npz")
        {'epoch': 3, 'order': array([0, 1, 2, 3])}
        """
        from ._checkpoint import _files

        _files.save(self._run, path, extra)

    @overload
    def load(self, path: str | os.PathLike[str], *, strict: Literal[True] = True) -> Any: ...
    @overload
    def load(self, path: str | os.PathLike[str], *, strict: Literal[False]) -> tuple[LoadReport, Any]: ...
    def load(self, path: str | os.PathLike[str], *, strict: bool = True) -> Any:
        """Restore everything from a file that this or another optimizer saved, parameters included.

        See ``load_state_dict``. A run that goes on from here is bit-for-bit identical to an uninterrupted run. Memory
        is needed for the arrays that this optimizer expects, and for ``extra``.

        Parameters
        ----------
        path : str or path-like
            A file that ``save`` wrote, also one of version 0.1.0.
        strict : bool
            If False, load what matches, as in ``load_state_dict``.

        Returns
        -------
        extra
            What ``save`` was given, or None. With ``strict=False``: a tuple of ``LoadReport`` and ``extra``.

        Raises
        ------
        OSError
            It could not be read; FileNotFoundError if it does not exist.
        ValueError
            Another ending; a file that was cut, damaged or altered, in any byte; not a regular file; or one that does
            not fit this optimizer, as in ``load_state_dict``. The message starts with the path. Nothing was written.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np, fusedstep as fs
        >>> w = np.zeros(3)
        >>> opt = fs.RMSprop(w)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "run.npz")
        ...     opt.save(path, extra={"epoch": 3})
        ...     opt.load(path)["epoch"]
        3
        """
        from ._checkpoint import _files

        report, extra = _files.load(self._run, path, strict)
        return extra if strict else (report, extra)

    def reset(self) -> None:
        """Start again from the present parameters: reset states, step count and last loss.

        Parameters, groups and hyperparameters stay as they are. Rprop's step sizes start at the ``lr`` that it began
        with.

        Raises
        ------
        ValueError
            A group that a step would refuse, or a read-only state. Nothing was written.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs
        >>> w = np.ones(3)
        >>> opt = fs.Adagrad(w)
        >>> report = opt.step(np.ones(3))
        >>> opt.reset()
        >>> opt.steps, opt.state["0"]["square_sum"]
        (0, array([0., 0., 0.]))
        """
        from ._checkpoint import _state

        _state.reset(self._run)

    # --------------------------------------------------------------------------------------------------------- copies

    def __copy__(self) -> Self:
        """Return a second handle on the same run: parameters, states, counters and hyperparameters are shared.

        Separate states on the same parameters would make two runs that overwrite each other. ``copy.deepcopy`` makes an
        independent run, with parameters of its own.
        """
        handle = type(self).__new__(type(self))
        vars(handle).update(vars(self))
        return handle

    def __getstate__(self) -> dict[str, Any]:
        """Return the parts from which ``copy.deepcopy`` and ``pickle`` make an independent optimizer.

        The parameters are among them. Copied together with the containers that hold them, they stay the same objects.
        Pickles are for sending to another process of the same version; ``save`` is for keeping.
        """
        return {**vars(self), "_run": self._run.parts(), "_again": None}

    def __setstate__(self, parts: dict[str, Any]) -> None:
        """Restore the parts from ``__getstate__``."""
        vars(self).update({**parts, "_run": Run.from_parts(parts["_run"])})

    def __repr__(self) -> str:
        run = self._run
        elements = sum(array.size for array in run.params.values())
        groups = "; ".join(
            ", ".join(f"{key}={value!r}" for key, value in group.items() if key != "params") for group in run.groups
        )
        return f"{type(self).__name__}({len(run.params)} parameters of {elements} elements; {groups})"


def _is_ours(definition: Any) -> bool:
    """Whether a class or a function is part of this package."""
    return str(definition.__module__).rpartition(".")[0] == __package__
