"""The optimizers: which parameters there are, in which groups, with which hyperparameters and whose state."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from . import _core, _tree, checkpoint, verify
from ._core import StepReport
from .dialects import dialect_arguments

__all__ = ["Adagrad", "AdagradDA", "AdagradNorm", "Optimizer", "ProximalAdagrad", "RMSprop", "Rprop"]

_VERIFY = ("never", "first", "every")


class _StateMemory:
    """Memory for the states of one optimizer, all of them in one piece.

    Pages are touched first by the threads that will update them: what starts at 0 with the first step, the rest when it
    is filled.
    """

    def __init__(self) -> None:
        self._wanted: list[tuple[NDArray[Any], np.dtype[Any], float]] = []

    def reserve(self, param: NDArray[Any], dtype: np.dtype[Any], value: float) -> int:
        """Plan an array in the layout of ``param``; return its number."""
        self._wanted.append((param, dtype, value))
        return len(self._wanted) - 1

    def arrays(self) -> list[NDArray[Any]]:
        """Return the planned arrays, in one allocation."""
        offsets, size = _core.place([param.size * dtype.itemsize for param, dtype, _ in self._wanted])
        memory = _core.allocate(size)
        return [self._array(memory, *wanted, at) for wanted, at in zip(self._wanted, offsets, strict=True)]

    @staticmethod
    def _array(
        memory: NDArray[np.uint8], param: NDArray[Any], dtype: np.dtype[Any], value: float, offset: int
    ) -> NDArray[Any]:
        flat = memory[offset : offset + param.size * dtype.itemsize].view(dtype)
        if value != 0.0:
            _core.fill(flat, value)
        if param.ndim <= 1 and (param.ndim == 0 or param.strides[0] >= 0):
            return flat.reshape(param.shape)
        axes = sorted(range(param.ndim), key=lambda axis: -abs(param.strides[axis]))
        dense = flat.reshape([param.shape[axis] for axis in axes]).transpose(np.argsort(axes))
        return dense[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in param.strides)]


class Optimizer:
    """Update parameters in place, all in one call.

    Parameters
    ----------
    params : ndarray or containers of ndarrays
        An array; a sequence; a mapping of names to arrays; nested dicts, lists and tuples of these; or a list of groups
        ``{"params": ..., "lr": ...}`` with hyperparameters of their own. float32 or float64, any layout; borrowed,
        never copied.
    verify : {"never", "first", "every"}
        The steps beside which the NumPy reference runs: a differing bit raises ``VerificationError``.

    Attributes
    ----------
    param_groups : list of dict
        ``params`` and hyperparameters of each group; these may be changed between steps.
    state : mapping
        ``{parameter name: {state name: ndarray}}``, the live arrays.

    Raises
    ------
    TypeError
        Not an array, wrong dtype or byte order, a hyperparameter that there is none of or of the wrong type.
    ValueError
        Read-only, misaligned or overlapping arrays, a hyperparameter out of range.
    """

    _rule: ClassVar[str]
    _start_only: ClassVar[frozenset[str]]
    """Hyperparameters that say where a state starts and nothing else."""

    _keys: ClassVar[int]
    """How many keys a group has."""

    param_groups: list[dict[str, Any]]
    state: Mapping[str, Mapping[str, NDArray[Any]]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        rule = _core.rules()[cls._rule]
        cls._start_only = frozenset(rule["starts"].values()) - set(rule["fields"])
        cls._keys = 1 + len(cls._hyperparameters())

    def __init__(self, params: Any, defaults: dict[str, Any], verify: str) -> None:
        if verify not in _VERIFY:
            raise ValueError(f"verify: expected one of {', '.join(map(repr, _VERIFY))}, got {verify!r}")
        self._verify = verify
        self._params = _tree.parse(params)
        self.param_groups = []
        names: list[str] = []
        arrays: list[NDArray[Any]] = []
        group_of: list[int] = []
        memory = _StateMemory()
        reserved: list[list[int | None]] = []
        rule = _core.rules()[self._rule]
        all_states, starts = rule["states"], rule["starts"]
        for index, group in enumerate(self._params.groups):
            options = self._checked({**defaults, **group.options})
            used = _core.used_states(self._rule, options)
            label = index if len(self._params.groups) > 1 else -1
            group.arrays = [
                _core.check_parameter(array, name, label) for name, array in zip(group.names, group.arrays, strict=True)
            ]
            for name, array in zip(group.names, group.arrays, strict=True):
                names.append(name)
                arrays.append(array)
                group_of.append(index)
                reserved.append(
                    [
                        memory.reserve(
                            np.empty((), array.dtype) if stored == "scalar" else array,
                            np.dtype(np.int8) if stored == "int8" else array.dtype,
                            options[starts[state]] if state in starts else 0.0,
                        )
                        if state in used
                        else None
                        for state, stored in all_states.items()
                    ]
                )
            kept = {key: value for key, value in options.items() if key not in self._start_only}
            self.param_groups.append({"params": tuple(group.arrays), **kept})
        made = memory.arrays()
        states = [[None if k is None else made[k] for k in own] for own in reserved]
        self.state = MappingProxyType(
            {
                name: MappingProxyType(
                    {state: array for state, array in zip(all_states, own, strict=True) if array is not None}
                )
                for name, own in zip(names, states, strict=True)
            }
        )
        self._names = names
        self._arrays = arrays
        self._group_of = group_of
        self._plan = _core.Plan(
            self._rule, names, group_of, len(self._params.groups), arrays, states, self._params.tree
        )

    @classmethod
    def like(cls, name: str, params: Any, lr: float | None = None, **overrides: Any) -> Self:
        """Return an optimizer with the formula and the defaults of another framework.

        RMSprop, where ``r`` is ``v``, or ``v - m^2`` if centered, and ``u = g / d``::

            d = sqrt(r) + eps                            default, torch, chainer, caffe, mlx
            d = sqrt(r + eps)                            keras, tf1, optax, lasagne, timm, graves
            b <- mu b + u,      p <- p - lr b            default, torch
            b <- mu b + lr u,   p <- p - b               keras, tf1, optax, timm, graves
            v starts at 1                                tf1, timm

        Adagrad::

            d = sqrt(s) + eps                            default, torch, chainer, caffe, mlx, deepspeed; tf1: eps is 0
            d = sqrt(s + eps)                            keras, optax, lasagne
            s starts at 0.1                              keras, optax, tf1

        Weight decay is decoupled in keras, ``p <- (1 - lr wd) p``, and coupled where else there is one, ``g + wd p``;
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
        lr : float, optional
            Step size. The framework's default where not given; needed where it has none.
        **overrides
            Other arguments of this class, as far as the framework has them too, and ``verify``. Groups in ``params``
            may give the same ones.

        Returns
        -------
        Optimizer
            Of this class. It is the framework's arithmetic in exact numbers; floats may differ in the last bits.

        Raises
        ------
        TypeError
            An argument that the framework has no place for, or one missing that has no default there.
        ValueError
            No such dialect; the message lists those that there are. A hyperparameter out of range.

        Notes
        -----
        Other than the original: ``v - m^2`` of centered RMSprop is clamped at 0; Rprop compares signs where PyTorch
        multiplies gradients, whose product may underflow; where a sign flipped and the loss fell, ``shark`` stays, as
        in the paper, and Shark repeats its last move.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs
        >>> fs.RMSprop.like("keras", np.zeros(3), weight_decay=0.004)
        RMSprop(1 parameters of 3 elements; lr=0.001, alpha=0.9, eps=1e-07, ..., decoupled_weight_decay=True, ...)
        """
        if lr is not None:
            overrides["lr"] = lr
        verify = overrides.pop("verify", "never")
        groups = [group.options for group in _tree.parse(params).groups]
        arguments = dialect_arguments(cls._rule, cls.__name__, name, overrides, groups)
        return cls(params, **arguments, verify=verify)

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        known = self._hyperparameters()
        for key in options:
            if key not in known and key not in self._start_only:
                names = ", ".join(sorted({*known, *self._start_only}))
                raise TypeError(f"{type(self).__name__} has no hyperparameter {key!r}; it has {names}")
        _core.check_hyperparameters(self._rule, options)
        return options

    @classmethod
    def _hyperparameters(cls) -> set[str]:
        return set(_core.rules()[cls._rule]["fields"]) - {"loss_increased"}  # that is seen from the loss

    def _check_keys(self, index: int, group: dict[str, Any]) -> None:
        known = {"params", *self._hyperparameters()}
        if unknown := sorted(map(str, set(group) - known)):
            raise TypeError(f"param_groups[{index}]: {type(self).__name__} has no hyperparameter {unknown[0]!r}")
        if missing := sorted(known - set(group)):
            raise ValueError(f"param_groups[{index}]: expected a value for {missing[0]!r}, got none")

    def step(
        self,
        grads: Any,
        *,
        loss: float | None = None,
        grad_scale: float | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        zero_grads: bool = False,
        nonfinite: str = "propagate",
    ) -> StepReport:
        """Update every parameter in place from its gradient, in one call.

        ::

            g <- g / grad_scale;  g <- clip(g, -clip_value, clip_value);  g <- g clip_norm / max(norm, clip_norm)

        then weight decay and the rule; what is not asked for is not computed.

        Parameters
        ----------
        grads : ndarray or containers of ndarrays
            The containers of ``params``, with a gradient of the same shape and dtype for each parameter, or None to
            leave it out. For groups: a list with an entry a group, or one flat list of all gradients.
        loss : float, optional
            The loss at these gradients; needed by Rprop's ``irprop+``, recorded otherwise.
        grad_scale : float, optional
            What the loss was multiplied by, ``grad_scale > 0``.
        clip_norm : float, optional
            Largest norm of all gradients together, ``clip_norm > 0``.
        clip_value : float, optional
            Largest magnitude of an element, ``clip_value > 0``.
        zero_grads : bool
            Whether to set the gradients to 0 in the same pass.
        nonfinite : {"propagate", "skip", "raise"}
            What to do about an inf or a NaN in a gradient: nothing; change no byte and say so in the report; or raise.

        Returns
        -------
        StepReport
            ``step``, ``grad_norm``, ``skipped``, ``nonfinite`` (names of parameters); the norm and the names are None
            where neither ``clip_norm`` nor ``nonfinite`` asked for them.

        Raises
        ------
        TypeError, ValueError
            Bad gradients or options; nothing was written.
        FloatingPointError
            An inf or a NaN, with ``nonfinite="raise"``; nothing was written.
        RuntimeError
            This optimizer is in use in another thread: in a step, or being saved or loaded; nothing was written.
        """
        groups = self.param_groups
        for group in groups:
            if len(group) != self._keys:
                self._check_keys(groups.index(group), group)
        if self._params.grouped:
            grads = _tree.ungrouped(grads, self._params.tree, len(self._names))
        if self._verify != "never":
            return self._verified_step(grads, loss, grad_scale, clip_norm, clip_value, zero_grads, nonfinite)
        return self._plan.step(grads, groups, loss, grad_scale, clip_norm, clip_value, zero_grads, nonfinite)

    def _verified_step(
        self,
        grads: Any,
        loss: float | None,
        grad_scale: float | None,
        clip_norm: float | None,
        clip_value: float | None,
        zero_grads: bool,
        nonfinite: str,
    ) -> StepReport:
        last_loss = self._plan.last_loss
        before = [
            verify.Snapshot(name, array, self.state[name], grad, self.param_groups[group], time + 1)
            for name, array, group, time, grad in zip(
                self._names,
                self._arrays,
                self._group_of,
                self._plan.times,
                self._plan.gradients(grads),
                strict=True,
            )
        ]
        report = self._plan.step(
            grads, self.param_groups, loss, grad_scale, clip_norm, clip_value, zero_grads, nonfinite
        )
        verify.check_step(
            self._rule,
            before,
            report,
            grad_scale=grad_scale,
            clip_norm=clip_norm,
            clip_value=clip_value,
            zero_grads=zero_grads,
            loss_increased=loss is not None and last_loss is not None and loss > last_loss,
        )
        if self._verify == "first":
            self._verify = "never"
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on exactly from here, as a plain dict.

        Returns
        -------
        dict
            ``format_version``; ``class``; ``groups``, a list of the names (``params``) and hyperparameters of each;
            ``params``, ``{name: ndarray}``; ``state``, ``{name: {state name: ndarray}}``; ``step``; ``times``, the
            updates that each parameter had, ``{name: int}``; ``last_loss``. Arrays are copies in C order.

        Raises
        ------
        ValueError
            A hyperparameter in ``param_groups`` with which no step could be made.
        RuntimeError
            This optimizer is in use in another thread.
        """
        return checkpoint.state_dict(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go back to where ``state_dict`` was taken, parameters included, from this or another optimizer.

        All is matched by name, whatever the order, and all is checked before anything is written. Arrays are then
        overwritten in place, whatever their layout: parameters and states stay the same objects.

        Parameters
        ----------
        state_dict : mapping
            As ``state_dict()`` returns it.

        Raises
        ------
        TypeError
            Not a mapping.
        ValueError
            Another format version or class; names, groups, states, shapes or dtypes that are not this optimizer's; a
            hyperparameter out of range; a read-only array. Nothing was written.
        RuntimeError
            This optimizer is in use in another thread. Nothing was written.
        """
        checkpoint.load_state_dict(self, state_dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint to a file: the whole of it, or nothing.

        It is written beside ``path``, synced to the disk, and then takes the place of what was there. A process that is
        killed meanwhile leaves the file that was there before, and may leave a ``.fusedstep-*.tmp`` to be deleted.

        Parameters
        ----------
        path : str or path-like
            Ends in ``.safetensors`` or ``.npz``, which says the format. Neither contains pickled objects.

        Raises
        ------
        ImportError
            ``.safetensors`` without the package; ``pip install "fusedstep[checkpoint]"``.
        OSError
            It could not be written.
        RuntimeError
            This optimizer is in use in another thread.
        ValueError
            Another ending, or a hyperparameter in ``param_groups`` with which no step could be made.
        """
        checkpoint.save(self, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go back to where a file was saved, parameters included, from this or another optimizer.

        See ``load_state_dict``. A run that goes on from here has the bits of one that never stopped.

        Parameters
        ----------
        path : str or path-like
            A file that ``save`` wrote.

        Raises
        ------
        ImportError
            ``.safetensors`` without the package; ``pip install "fusedstep[checkpoint]"``.
        OSError
            It could not be read; FileNotFoundError if there is none.
        RuntimeError
            This optimizer is in use in another thread. Nothing was written.
        ValueError
            Another ending; a file that was cut, damaged or altered, in whichever byte; or one that does not fit this
            optimizer, as in ``load_state_dict``. The message starts with the path. Nothing was written.
        """
        checkpoint.load(self, path)

    def __copy__(self) -> Self:
        """Return a second handle on the same run: parameters, states, counters and hyperparameters are shared.

        States of its own on the same parameters would be two runs that overwrite each other; ``copy.deepcopy`` makes an
        independent run, with parameters of its own.
        """
        handle = type(self).__new__(type(self))
        vars(handle).update(vars(self))
        return handle

    def __getstate__(self) -> dict[str, Any]:
        """Return the parts of which ``copy.deepcopy`` and ``pickle`` make an independent optimizer.

        Parameters are among them, as parts: copied together with the containers that hold them, they stay the same
        objects. Pickles are for sending to another process of the same version; ``save`` is for keeping.
        """
        return checkpoint.taken_apart(self)

    def __setstate__(self, parts: dict[str, Any]) -> None:
        """Make an optimizer of the parts from ``__getstate__``."""
        checkpoint.rebuild(self, parts, _StateMemory())

    def __repr__(self) -> str:
        elements = sum(array.size for array in self._arrays)
        groups = "; ".join(
            ", ".join(f"{key}={value!r}" for key, value in group.items() if key != "params")
            for group in self.param_groups
        )
        return f"{type(self).__name__}({len(self._arrays)} parameters of {elements} elements; {groups})"


class RMSprop(Optimizer):
    """Divide each step by a moving average of the gradient's magnitude.

    ::

        v <- alpha v + (1 - alpha) g^2
        p <- p - lr g / (sqrt(v) + eps)

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float
        Step size, ``lr >= 0``.
    alpha : float
        Decay of the average, ``0 <= alpha <= 1``. PyTorch's default is 0.99.
    eps : float
        Added to the root, or under it, ``eps >= 0``.
    eps_inside_sqrt : bool
        Whether ``eps`` stands under the root (Keras, TensorFlow) or outside (PyTorch).
    centered : bool
        Whether to subtract the square of the average gradient from ``v`` (Graves 2013). Clamped at 0, which PyTorch
        does not do: there a constant gradient ends in NaN.
    momentum : float
        ``mu``, ``0 <= momentum <= 1``.
    nesterov : bool
        Whether the step looks ahead by Nesterov's rule; needs ``momentum > 0``.
    momentum_form : {"torch", "tf"}
        ``b <- mu b + g / d, p <- p - lr b`` or ``b <- mu b + lr g / d, p <- p - b``.
    bias_correction : bool
        Whether the averages are divided by ``1 - alpha^t``, for their start at 0.
    initial_square_avg : float
        Where ``v`` starts, ``>= 0``. TensorFlow 1 starts at 1.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend.
    verify : {"never", "first", "every"}
        The steps beside which the NumPy reference runs.

    References
    ----------
    Hinton, Neural Networks for Machine Learning, lecture 6e. Graves 2013, arXiv:1308.0850.
    """

    _rule = "rmsprop"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        *,
        alpha: float = 0.9,
        eps: float = 1e-8,
        eps_inside_sqrt: bool = False,
        centered: bool = False,
        momentum: float = 0.0,
        nesterov: bool = False,
        momentum_form: str = "torch",
        bias_correction: bool = False,
        initial_square_avg: float = 0.0,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        verify: str = "never",
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "eps_inside_sqrt": eps_inside_sqrt,
            "centered": centered,
            "momentum": momentum,
            "nesterov": nesterov,
            "momentum_form": momentum_form,
            "bias_correction": bias_correction,
            "initial_square_avg": initial_square_avg,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, verify)


class Adagrad(Optimizer):
    """Divide each step by the root of the sum of all squared gradients so far.

    ::

        s <- s + g^2
        p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float
        Step size, ``lr >= 0``.
    eps : float
        Added to the root, or under it, ``eps >= 0``.
    eps_inside_sqrt : bool
        Whether ``eps`` stands under the root (Keras, optax) or outside (PyTorch).
    lr_decay : float
        Decay of the step size with the updates of a parameter, ``lr_decay >= 0``.
    initial_accumulator_value : float
        Where ``s`` starts, ``>= 0``. Keras and TensorFlow start at 0.1.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend.
    verify : {"never", "first", "every"}
        The steps beside which the NumPy reference runs.

    References
    ----------
    Duchi, Hazan & Singer 2011, JMLR 12:2121.
    """

    _rule = "adagrad"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        *,
        eps: float = 1e-10,
        eps_inside_sqrt: bool = False,
        lr_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        verify: str = "never",
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "eps_inside_sqrt": eps_inside_sqrt,
            "lr_decay": lr_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, verify)


class ProximalAdagrad(Optimizer):
    """Take an Adagrad step, then the closest point under L1 and L2 penalties.

    ::

        s <- s + g^2,   a = lr / sqrt(s),   q = p - a g
        p <- sign(q) max(|q| - a l1, 0) / (1 + l2 a)

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float
        Step size, ``lr >= 0``.
    l1 : float
        L1 penalty, ``l1 >= 0``.
    l2 : float
        L2 penalty, ``l2 >= 0``.
    initial_accumulator_value : float
        Where ``s`` starts, ``>= 0``. 0.1 as in TensorFlow.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend.
    verify : {"never", "first", "every"}
        The steps beside which the NumPy reference runs.

    References
    ----------
    Duchi & Singer 2009, JMLR 10:2899 (FOBOS).
    """

    _rule = "proximal_adagrad"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        initial_accumulator_value: float = 0.1,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        verify: str = "never",
    ) -> None:
        defaults = {
            "lr": lr,
            "l1": l1,
            "l2": l2,
            "initial_accumulator_value": initial_accumulator_value,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, verify)


class AdagradDA(Optimizer):
    """Set parameters by dual averaging: from the sum of all gradients, not from where they are.

    ::

        G <- G + g,   s <- s + g^2
        p <- -sign(G) lr max(|G| - l1 t, 0) / (l2 t lr + sqrt(s))

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float
        Step size, ``lr >= 0``.
    l1 : float
        L1 penalty, ``l1 >= 0``.
    l2 : float
        L2 penalty, ``l2 >= 0``.
    initial_accumulator_value : float
        Where ``s`` starts, ``>= 0``. 0.1 as in TensorFlow.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend.
    verify : {"never", "first", "every"}
        The steps beside which the NumPy reference runs.

    References
    ----------
    Duchi, Hazan & Singer 2011, JMLR 12:2121.
    """

    _rule = "adagrad_da"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        initial_accumulator_value: float = 0.1,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        verify: str = "never",
    ) -> None:
        defaults = {
            "lr": lr,
            "l1": l1,
            "l2": l2,
            "initial_accumulator_value": initial_accumulator_value,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, verify)


class AdagradNorm(Optimizer):
    """Divide the step of each array by the root of the sum of all its squared gradient norms.

    ::

        s <- s + ||g||^2
        p <- p - lr g / (sqrt(s) + eps)

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float
        Step size, ``lr >= 0``.
    eps : float
        Added to the root, ``eps >= 0``.
    initial_accumulator_value : float
        Where ``s`` starts, ``>= 0``. The paper's ``b_0^2``.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend.
    verify : {"never", "first", "every"}
        The steps beside which the NumPy reference runs.

    References
    ----------
    Ward, Wu & Bottou 2019, ICML.
    """

    _rule = "adagrad_norm"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        *,
        eps: float = 1e-10,
        initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        verify: str = "never",
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "initial_accumulator_value": initial_accumulator_value,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, verify)


class Rprop(Optimizer):
    """Move each element by a step size of its own, by the sign of its gradient alone: for full batches.

    ::

        D <- clip(D eta+, lo, hi)  where the sign of g is that of the step before
        D <- clip(D eta-, lo, hi)  where it flipped
        p <- p - sign(g) D

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float
        First step size, ``lr >= 0``.
    etas : pair of float
        ``(eta-, eta+)``, ``0 < eta- < 1 < eta+``.
    step_sizes : pair of float
        ``(lo, hi)``, ``0 <= lo <= hi``.
    variant : {"rprop-", "rprop+", "irprop-", "irprop-move", "irprop+", "grprop-slr", "grprop-sag"}
        What happens where the sign flipped, see ``rprop_``. PyTorch's is ``irprop-``; ``irprop+`` needs
        ``step(grads, loss=...)``.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend.
    verify : {"never", "first", "every"}
        The steps beside which the NumPy reference runs.

    References
    ----------
    Riedmiller & Braun 1993. Igel & Hüsken 2000, 2003.
    """

    _rule = "rprop"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        *,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        variant: str = "rprop-",
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        verify: str = "never",
    ) -> None:
        defaults = {
            "lr": lr,
            "etas": etas,
            "step_sizes": step_sizes,
            "variant": variant,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, verify)

    def step_size_stats(self) -> dict[str, StepSizeStats]:
        """Return smallest, largest and mean step size of each parameter: where all are small, training is done.

        An empty parameter has NaN.
        """
        return {name: _step_size_stats(state["step_size"]) for name, state in self.state.items()}


class StepSizeStats(NamedTuple):
    """The smallest, the largest and the mean step size of a parameter."""

    min: float
    max: float
    mean: float


def _step_size_stats(D: NDArray[Any]) -> StepSizeStats:
    if D.size == 0:
        return StepSizeStats(math.nan, math.nan, math.nan)
    return StepSizeStats(float(D.min()), float(D.max()), float(D.mean(dtype=np.float64)))
