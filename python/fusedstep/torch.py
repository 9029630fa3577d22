"""RMSprop, Rprop and Adagrad for PyTorch on the CPU: drop-in for those of ``torch.optim``, one call into C++ per step.

Dense tensors of float32, float64, bfloat16 or float16, of any layout, are updated in place: neither parameters nor
gradients nor states are copied. Adagrad and RMSprop also take sparse gradients, those of
``torch.nn.Embedding(sparse=True)``. Results are bit-for-bit those of the NumPy reference. ``torch.optim`` differs from
it in the last digits, because it rounds once where some formulas round twice. Rprop has no such formula and does not
differ.

All three classes differ from ``torch.optim`` in what they refuse, before anything is written:

- After ``model.double()``, a state that still has the old type: ``TypeError``. Call
  ``optimizer.load_state_dict(optimizer.state_dict())``, which converts the states. torch goes on with the old type.
- A gradient that shares memory with a parameter or a state: ``ValueError``. In torch the result depends on the order of
  the writes.
- A parameter or a state that is a lazy negative, as ``z.conj().imag`` is: ``ValueError``. Gradients may be lazy
  negatives.
- A gradient whose storage was resized: ``ValueError``. torch reads memory that is gone. The storage of a parameter or a
  state can't be resized: ``RuntimeError``.
- Two threads in one optimizer: ``RuntimeError``. In torch, steps are lost.

Beside parameters of bfloat16 and float16 the states are float32, and ``load_state_dict`` keeps them so. torch gives
them the parameter's type and converts what it loads, so that a long sum, or an average with ``alpha`` near 1, stalls.
Each class takes four keywords that torch does not have. Groups may differ in all but ``seed``:

- ``state_dtype=torch.bfloat16``: states of 16 bits, except beside float64.
- ``rounding``: how parameters and states of 16 bits are rounded, ``"nearest"``, as in torch, or ``"stochastic"``.
- ``seed``: the seed of stochastic rounding. The noise depends on the seed, the parameter's name, its count of steps and
  the place of the element. A parameter without a name is named by its number.
- ``master=True``: bfloat16 parameters keep their low halves, as the state ``param_low``. The two together are a float32
  parameter, bit for bit.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any, ClassVar, Self, TypeVar, cast

from numpy.typing import NDArray

try:
    import torch
except ImportError as error:
    raise ImportError(f"{__name__} needs PyTorch: pip install torch", name="torch") from error
from torch import Tensor

from . import _core, _storage
from ._hints import check_keywords
from ._rows import Rows
from ._schema import SCHEMAS
from .typing import Rounding

__all__ = ["Adagrad", "RMSprop", "Rprop"]

Group = dict[str, Any]
Entry = dict[str, Any]
"""The states of one parameter, by torch's names."""


class _Bound:
    """The parameters with a state, bound to a core. Valid while the memory of all their tensors stays in place."""

    def __init__(
        self, optimizer: _Optimizer, params: list[Tensor], entries: list[Entry | None], options: list[Group]
    ) -> None:
        groups, states = optimizer.param_groups, optimizer._states
        self._params = params
        self._entries = entries
        self._held = (*states, _LOW)
        self._sizes = [len(group["params"]) for group in groups]
        self.members = [i for i, entry in enumerate(entries) if entry]
        mine = [entry for entry in entries if entry]
        counts = [entry["step"] for entry in mine]
        double = any(isinstance(count, Tensor) and count.dtype == torch.float64 for count in counts)
        steps = torch.tensor(list(map(float, counts)), dtype=torch.float64 if double else torch.float32)
        self._steps = steps.numpy()
        """The memory of the states ``step``."""
        self._core = _core.OptimizerCore(optimizer._rule)
        self._core.seed = groups[0]["seed"] if groups else 0
        self._places: list[tuple[str, int]] = []
        """The name and the group of each member."""
        everyone = zip(_names(groups), params, entries, strict=True)
        for k, (group, values) in enumerate(zip(groups, options, strict=True)):
            its = [(name, param, entry) for name, param, entry in islice(everyone, self._sizes[k]) if entry]
            self._core.add_group(
                [name for name, _, _ in its],
                [_array(param, f"parameter {name!r}") for name, param, _ in its],
                values,
                [_state_arrays(name, param, entry, states, group) for name, param, entry in its],
                **_checked_storage(group, groups[0]),
            )
            self._places += [(name, k) for name, _, _ in its]
        self._core.set_tree(list(range(len(mine))))
        self._core.counts = [int(step) for step in steps.tolist()]
        for i, entry in enumerate(mine):
            entry["step"] = steps[i]
        self._values = _values(entries)
        states_in_use = [state for entry in mine for state in _found(entry, self._held) if state is not None]
        self._tensors = [*params, *states_in_use]
        self._seen = self._sight(groups, params, entries)
        self._counted = self._steps.copy()
        self._again: _core.TensorStep | None = None

    def again(self, lock: threading.RLock, groups: list[Group], state: Any) -> _core.TensorStep | None:
        """Return what repeats the last step, if these are its groups and states; None if they can't be compared."""
        if _COMPARED is None:
            return None
        if self._again is None:
            states = [[*_found(entry, self._held), entry["step"]] for entry in filter(None, self._entries)]
            about = (self._params, self._entries, self._sizes, states, self._steps, self._counted)
            self._again = _core.TensorStep(self._core, lock, *about, _COMPARED)
        return self._again if self._again.remember(groups, state) else None

    def is_current(self, groups: list[Group], params: list[Tensor], entries: list[Entry | None]) -> bool:
        """Whether groups, tensors, their memory and the step counts are unchanged."""
        return self._sight(groups, params, entries) == self._seen and self._steps.tobytes() == self._counted.tobytes()

    def _sight(self, groups: list[Group], params: list[Tensor], entries: list[Entry | None]) -> list[Any]:
        """Return what the core relies on: all that is not the same object, or in the same place, was changed."""
        return [
            [
                (len(each["params"]), each["state_dtype"], each["rounding"], each["master"], each["seed"])
                for each in groups
            ],
            *map(id, chain(params, entries, _values(entries))),
            *map(Tensor.data_ptr, self._tensors),
            *map(Tensor.size, self._tensors),
            *map(Tensor.stride, self._tensors),
            *map(operator.attrgetter("dtype"), self._tensors),
        ]

    def step(self, grads: list[Tensor | None], options: list[Group], grad_scale: float | None) -> None:
        """Update the parameters whose gradient is not None; the gradients are those of all parameters."""
        params = self._params
        if len(self.members) < len(params):
            params = [params[i] for i in self.members]
            grads = [grads[i] for i in self.members]
        present = [i for i, grad in enumerate(grads) if grad is not None]
        if not present:
            return
        self._core.step(self._arrays(grads, options), options, None, grad_scale, None, None, False, "propagate", None)
        if len(present) == len(params):
            self._steps += 1
        else:
            self._steps[present] += 1
            params = [params[i] for i in present]
        self._counted[...] = self._steps
        torch.autograd.graph.increment_version(params)

    def _arrays(self, grads: list[Tensor | None], options: list[Group]) -> list[NDArray[Any] | Rows | None]:
        try:
            if all(grad is None or grad.untyped_storage().nbytes() >= grad.nbytes for grad in grads):
                return [None if grad is None else grad.numpy() for grad in grads]
        except (TypeError, RuntimeError):  # not on the CPU, in a graph, lazily negative, sparse
            pass
        return [
            None if grad is None else _gradient(grad, f"gradient of parameter {name!r}", options[group])
            for (name, group), grad in zip(self._places, grads, strict=True)
        ]


def _found(entry: Entry, names: Sequence[str]) -> list[Tensor | None]:
    """Return the states of an entry, None for those that the rule does not need."""
    return [next((entry[name] for name in either.split("|") if name in entry), None) for either in names]


_LOW = "param_low"
_INTEGERS = {"prev": torch.int8, _LOW: torch.uint16}


def _compute_type(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype is torch.float64 else torch.float32


def _type_of_states(param: Tensor, group: Group) -> torch.dtype:
    return _compute_type(param) if group["state_dtype"] is None else torch.bfloat16


def _state_arrays(
    name: str, param: Tensor, entry: Entry, states: Sequence[str], group: Group
) -> list[NDArray[Any] | None]:
    arrays: list[NDArray[Any] | None] = []
    names = (*states, _LOW) if group["master"] else states
    for state, tensor in zip(names, _found(entry, names), strict=True):
        what = f"{state.split('|')[0]} of parameter {name!r}"
        expected = _INTEGERS.get(state, _type_of_states(param, group))
        convert = "call optimizer.load_state_dict(optimizer.state_dict()), which converts the states"
        if tensor is not None and tensor.dtype != expected:
            raise TypeError(
                f"{what}: expected {expected}, got {tensor.dtype}; after model.double(), model.float() or a new "
                f"state_dtype, {convert}"
            )
        if tensor is None and state == _LOW:
            raise ValueError(f"{what}: expected a tensor, as master=True needs it, got none; {convert}")
        arrays.append(None if tensor is None else _array(tensor, what, (expected,)))
    return arrays


def _checked_storage(group: Group, first: Group) -> dict[str, Any]:
    """Return how the arrays of a group are stored, as the core takes it."""
    if _storage.checked_seed(group["seed"]) != first["seed"]:
        raise ValueError(f"seed: expected {first['seed']!r}, as in the first group, got {group['seed']!r}")
    if group["rounding"] is None:
        raise ValueError("rounding: expected 'nearest' or 'stochastic', got None")
    state_dtype = "bfloat16" if group["state_dtype"] is torch.bfloat16 else group["state_dtype"]
    return _storage.checked({**group, "state_dtype": state_dtype})


class _AsSaved:
    """Keeps a tensor from ``torch.optim.Optimizer.load_state_dict``, which would convert it to the parameter's type."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _keep_as_saved(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    ids = {each for group in state_dict["param_groups"] for each in group["params"]}
    kept = {
        key: {name: _AsSaved(value) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for key, entry in state_dict["state"].items()
        if key in ids
    }
    return {**state_dict, "state": {**state_dict["state"], **kept}}


def _names(groups: list[Group]) -> list[str]:
    """Return the names of all parameters: running numbers, unless the caller gave names."""
    names: list[str] = []
    for group in groups:
        names += group.get("param_names") or map(str, range(len(names), len(names) + len(group["params"])))
    return names


def _values(entries: list[Entry | None]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, filter(None, entries))))


_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _array(tensor: Tensor, what: str, dtypes: Sequence[torch.dtype] = _FLOATS) -> NDArray[Any]:
    """Return the memory of a tensor as an array."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise ValueError(f"{what}: expected a dense tensor on the CPU, got one of {tensor.layout} on {tensor.device}")
    if tensor.dtype not in dtypes:
        expected = " or ".join(map(str, dtypes)).replace(" or ", ", ", len(dtypes) - 2)
        raise TypeError(f"{what}: expected {expected}, got {tensor.dtype}")
    if tensor.is_neg():
        raise ValueError(f"{what}: expected elements as they are in memory, got a lazy negative; pass .resolve_neg()")
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    needed = (tensor.storage_offset() + reach) * tensor.itemsize if tensor.numel() else 0
    if (there := tensor.untyped_storage().nbytes()) < needed:
        raise ValueError(f"{what}: expected a storage of {needed} bytes, got one that was resized to {there}")
    array: NDArray[Any]
    if tensor.dtype is torch.bfloat16:
        array = tensor.detach().view(torch.uint16).numpy().view(_storage.bfloat16())
    else:
        array = tensor.detach().numpy()
    return array


Method = TypeVar("Method", bound=Callable[..., Any])


def _alone(method: Method) -> Method:
    """Refuse a method while another thread uses the optimizer, and leave it out of compiled code."""

    @torch.compiler.disable
    @functools.wraps(method)
    def alone(self: _Optimizer, *arguments: Any, **options: Any) -> Any:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "this optimizer is in use already, by a step, a save or a load in another thread; give each thread its "
                "own"
            )
        try:
            return method(self, *arguments, **options)
        finally:
            self._lock.release()

    return cast(Method, alone)


def _gradient(grad: Tensor, what: str, options: Group) -> NDArray[Any] | Rows:
    """Return the memory of a gradient: as an array, or as rows where it is sparse."""
    if grad.layout is not torch.sparse_coo:
        return _array(grad.resolve_neg(), what)
    if grad.sparse_dim() != 1:
        raise ValueError(f"{what}: expected one sparse dimension, that of the rows, got {grad.sparse_dim()}")
    if options.get("weight_decay"):
        raise RuntimeError(f"{what}: weight_decay would act on the rows of a sparse gradient alone; expected 0")
    values = _array(grad._values().resolve_neg(), what)
    return Rows(grad._indices()[0].numpy(), values)


def _defaults(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments that are defaults of its groups."""
    return {name: value for name, value in arguments.items() if name not in ("self", "params", "__class__")}


def _check_implementation(group: Group) -> None:
    """Check the options that choose among torch's implementations, which this one replaces."""
    for name in ("capturable", "differentiable"):
        if group.get(name):
            raise ValueError(f"{name}: expected False, got {group[name]!r}; it is for graphs of CUDA or autograd")
    for name in ("foreach", "fused"):
        if group.get(name) not in (None, False, True):
            raise TypeError(f"{name}: expected None, False or True, got {group[name]!r}")
    if group.get("foreach") and group.get("fused"):
        raise RuntimeError("foreach, fused: expected one of them to be True at most")


def _compared() -> dict[str, Any] | None:
    """Return what steps in C++ look at in torch; None where it does not show them the memory of tensors."""
    from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if exchange is None:
        return None
    return {
        "exchange": exchange,
        "tensor": Tensor,
        "profiler_enabled": torch._C._autograd._profiler_enabled,
        "increment_version": torch._C._increment_version,
        "pre_hooks": _global_optimizer_pre_hooks,
        "post_hooks": _global_optimizer_post_hooks,
    }


_COMPARED = _compared()


def _hooked(step: Method) -> Method:
    """Run hooks and the profiler around a step, as torch does, unless nothing needs them and it can be repeated."""
    around = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def hooked(self: _Optimizer, *arguments: Any, **options: Any) -> Any:
        own = type(self).step is not _Optimizer.step  # torch runs them around a subclass's
        return (step if own else around)(self, *arguments, **options)

    hooked.hooked = True  # type: ignore[attr-defined]  # torch is not to do so, too
    return cast(Method, _core.step_method(hooked))


class _Optimizer(torch.optim.Optimizer):
    """What the three optimizers have in common."""

    _rule: ClassVar[str]
    _states: ClassVar[tuple[str, ...]]
    """The names of the rule's states in an entry, in the rule's order; "a|b" where there are two for one."""
    _fixed: ClassVar[dict[str, Any]] = {}
    """Hyperparameters of the rule that torch does not have."""

    _step_supports_amp_scaling = True
    _bound: _Bound | None = None
    _again: _core.TensorStep | None = None
    _lock: threading.RLock
    state: Any

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Return an optimizer with a lock of its own, also where it is copied or unpickled."""
        if options and cls.__init__.__module__ == __name__:  # a subclass has arguments of its own
            check_keywords(cls.__init__, options, cls.__name__)
        made: Self = super().__new__(cls)
        made._lock = threading.RLock()
        return made

    __getstate__ = _alone(torch.optim.Optimizer.__getstate__)

    @_hooked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        If a ``GradScaler`` calls it, it divides the gradients by the scale on the fly, and ``param.grad`` stays scaled.
        To look at gradients or to clip them, call ``unscale_`` before, as in torch.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model again, with gradients enabled, and returns the loss.

        Returns
        -------
        object
            What ``closure`` returned.

        Raises
        ------
        TypeError, ValueError
            A gradient that is neither dense nor one of rows, not on the CPU or of another type; parameters that share
            memory; a hyperparameter out of range; an option of torch that does not exist here. Nothing was written.
        RuntimeError
            This optimizer is in use in another thread. Nothing was written.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None or float(found_inf) == 0:
            with torch.no_grad():
                self._update(getattr(self, "grad_scale", None))
        return loss

    @_alone
    def _update(self, grad_scale: Any) -> None:
        for group in self.param_groups:  # these may have changed; the rule's own are checked by the step
            _check_implementation(group)
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [param.grad for param in params]
        entries = [self.state.get(param) for param in params]
        if any(grad is not None and not entry for grad, entry in zip(grads, entries, strict=True)):
            with torch.inference_mode(False):  # states are to be of use outside of it, too
                for group in self.param_groups:
                    for param in group["params"]:
                        if param.grad is not None and not self.state.get(param):
                            self._begin(param, group)
            entries = [self.state.get(param) for param in params]
        options = [self._options(group) for group in self.param_groups]
        bound = self._bound
        if bound is None or not bound.is_current(self.param_groups, params, entries):
            with torch.inference_mode(False):
                bound = self._bound = _Bound(self, params, entries, options)
        bound.step(grads, options, None if grad_scale is None else float(grad_scale))
        self._again = bound.again(self._lock, self.param_groups, self.state)

    def _begin(self, param: Tensor, group: Group) -> None:
        """Give a parameter its states."""
        starts = {**self._starts(group), **({_LOW: 0} if group["master"] else {})}
        kind = _type_of_states(param, group)
        states = {name: torch.full_like(param, at, dtype=_INTEGERS.get(name, kind)) for name, at in starts.items()}
        self.state[param] = {"step": torch.zeros(()), **states}

    def _starts(self, group: Group) -> dict[str, float]:
        """Return the rule's states in a group, and where they start."""
        raise NotImplementedError

    def _options(self, group: Group) -> Group:
        """Return the hyperparameters of a group as the rule takes them."""
        lr = group["lr"]
        if isinstance(lr, Tensor):
            if lr.numel() != 1:
                raise ValueError(f"lr: expected a number or a tensor of one element, got shape {tuple(lr.shape)}")
            lr = lr.item()
        known = SCHEMAS[self._rule].options
        return {**{name: group[name] for name in self.defaults if name in known}, **self._fixed, "lr": lr}

    @_alone
    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters.

        Parameters
        ----------
        param_group : dict
            ``params``, and hyperparameters where they differ from the defaults.

        Raises
        ------
        TypeError, ValueError
            A tensor that is not dense, not on the CPU or of another type, or whose elements share memory; a
            hyperparameter out of range; an option of torch that does not exist here.
        """
        before = len(self.param_groups)
        try:
            super().add_param_group(param_group)
            stored = self._check(self.param_groups[-1], self.param_groups[0])
            params = self.param_groups[-1]["params"]
            names = _names(self.param_groups)
            label = len(self.param_groups) - 1 or -1  # none for the first, which may be the only one
            for name, param in zip(names[len(names) - len(params) :], params, strict=True):
                _core.check_parameter(_array(param, f"parameter {name!r}"), name, label, **stored)
        except BaseException:
            del self.param_groups[before:]
            raise

    def _check(self, group: Group, first: Group) -> dict[str, Any]:
        """Check what a group says; return how its arrays are stored, as the core takes it."""
        _check_implementation(group)
        _core.check_hyperparameters(self._rule, self._options(group))
        stored = _checked_storage(group, first)
        group["state_dtype"] = stored["state_dtype"]  # a str: steps that are repeated compare such values
        return stored

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what ``load_state_dict``, ``copy`` or ``pickle`` pass."""
        self.defaults = {**vars(self), **state}["defaults"]
        for group in state["param_groups"]:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            self._check(group, state["param_groups"][0])
        super().__setstate__(state)
        for group in self.param_groups:
            for param in group["params"]:
                if any(isinstance(value, _AsSaved) for value in self.state.get(param, {}).values()):
                    self.state[param] = self._converted(self.state[param], param, group)
        self._bound = self._again = None

    def _converted(self, entry: Entry, param: Tensor, group: Group) -> Entry:
        """Return states, as somebody saved them, in the types that they have here."""

        def to(dtype: torch.dtype, given: Entry) -> Entry:
            return {
                name: value.to(param.device, dtype) if name not in ("step", *_INTEGERS) else value
                for name, value in given.items()
            }

        as_saved = {name: value.tensor if isinstance(value, _AsSaved) else value for name, value in entry.items()}
        made = to(_type_of_states(param, group), self._from_torch(to(_compute_type(param), as_saved)))
        if group["master"]:
            made.setdefault(_LOW, torch.zeros_like(param, dtype=torch.uint16))
        return made

    @_alone
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of an optimizer of this class or of torch's.

        States become what they are here, float32 or, with ``state_dtype``, bfloat16; torch would convert them to the
        type of a parameter of 16 bits. A state of torch has no low halves: those of ``master=True`` start at 0.

        Parameters
        ----------
        state_dict : dict
            What ``state_dict()`` returned.

        Raises
        ------
        TypeError, ValueError
            Groups of other sizes, or hyperparameters that are out of range or do not exist here. Nothing was changed.
        """
        handle = self.register_load_state_dict_pre_hook(_keep_as_saved)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    @_alone
    def sync_master(self) -> None:
        """Set the low halves of all parameters to 0: call it after you wrote into parameters with ``master=True``.

        Examples
        --------
        >>> import torch
        >>> import fusedstep.torch
        >>> w = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        >>> opt = fusedstep.torch.RMSprop([w], lr=1e-3, master=True)
        >>> w.sum().backward()
        >>> opt.step()
        >>> _ = w.data.fill_(2)
        >>> opt.sync_master()
        >>> opt.state[w]["param_low"].tolist()
        [0, 0, 0]
        """
        for entry in self.state.values():
            if _LOW in entry:
                entry[_LOW].zero_()

    @_alone
    def state_dict(self) -> dict[str, Any]:
        """Return the state in the form of ``torch.optim``."""
        state = self.state
        self.state = state.copy()
        self.state.update({param: self._to_torch(entry) for param, entry in state.items()})
        try:  # so that hooks see it in this form
            state_dict: dict[str, Any] = super().state_dict()
        finally:
            self.state = state
        return state_dict

    @staticmethod
    def _to_torch(entry: Entry) -> Entry:
        """Return the states as torch has them."""
        return entry

    @staticmethod
    def _from_torch(entry: Entry) -> Entry:
        """Return the states as this class has them, from either form."""
        return entry


def _exchanged(entry: Entry, old: str, new: str, state: Tensor) -> Entry:
    """Return an entry with another state in the place of one."""
    return {new if name == old else name: state if name == old else each for name, each in entry.items()}


class RMSprop(_Optimizer):
    """Divide each step by a moving average of the gradient's magnitude.

    ::

        v <- alpha v + (1 - alpha) g^2
        p <- p - lr g / (sqrt(v) + eps)

    As ``torch.optim.RMSprop``, whose ``state_dict`` it loads and which loads its own. Differences:

    - Centred, the state is the ``variance`` itself; torch computes it as ``v - m^2``, which cancels, becomes negative
      where gradients hardly change, and makes the parameter NaN. ``state_dict()`` has torch's ``square_avg``, and
      ``load_state_dict`` takes it.
    - ``alpha`` and ``momentum`` are at most 1, and all numbers finite.

    Parameters
    ----------
    params : iterable of torch.Tensor, of (str, torch.Tensor) or of dict
        What to update: dense, of floating point, on the CPU.
    lr, alpha, eps, weight_decay, momentum, centered, maximize
        As in torch and in ``fusedstep.RMSprop``.
    capturable, foreach, differentiable
        These select among torch's implementations. False, or without effect.
    state_dtype, rounding, seed, master
        How tensors of 16 bits are stored, see this module. torch has none of these.

    Examples
    --------
    >>> import torch
    >>> import fusedstep.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> opt = fusedstep.torch.RMSprop([w], lr=0.5)
    >>> w.sum().backward()
    >>> opt.step()
    >>> w.detach()
    tensor([-4.0000, -4.0000, -4.0000])
    """

    _rule = "rmsprop"
    _states = ("square_avg|variance", "grad_avg", "momentum_buffer")

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0, momentum: float = 0, centered: bool = False, capturable: bool = False,
        foreach: bool | None = None, maximize: bool = False, differentiable: bool = False, *,
        state_dtype: torch.dtype | str | None = None, rounding: Rounding = "nearest", seed: int = 0,
        master: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, _defaults(locals()))

    def _starts(self, group: Group) -> dict[str, float]:
        momentum = ["momentum_buffer"] if group["momentum"] > 0 else []
        averages = ["variance", *momentum, "grad_avg"] if group["centered"] else ["square_avg", *momentum]
        return dict.fromkeys(averages, 0)

    @staticmethod
    def _to_torch(entry: Entry) -> Entry:
        if "variance" not in entry:
            return entry
        wide = torch.promote_types(entry["variance"].dtype, torch.float32)
        variance, mean = entry["variance"].to(wide), entry["grad_avg"].to(wide)
        return _exchanged(entry, "variance", "square_avg", variance + mean * mean)

    @staticmethod
    def _from_torch(entry: Entry) -> Entry:
        if "grad_avg" not in entry or "square_avg" not in entry:
            return entry
        variance = (entry["square_avg"] - entry["grad_avg"] * entry["grad_avg"]).clamp(min=0)
        return _exchanged(entry, "square_avg", "variance", variance)


class Adagrad(_Optimizer):
    """Divide each step by the root of the sum of all squared gradients so far.

    ::

        s <- s + g^2
        p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

    As ``torch.optim.Adagrad``, whose ``state_dict`` it loads and which loads its own, but only for finite
    numbers. Sparse gradients are those of rows: one sparse dimension.

    Parameters
    ----------
    params : iterable of torch.Tensor, of (str, torch.Tensor) or of dict
        What to update: dense, of floating point, on the CPU.
    lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize
        As in torch and in ``fusedstep.Adagrad``.
    foreach, differentiable, fused
        These select among torch's implementations. False, or without effect.
    state_dtype, rounding, seed, master
        How tensors of 16 bits are stored, see this module. torch has none of these.

    Examples
    --------
    >>> import torch
    >>> import fusedstep.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> opt = fusedstep.torch.Adagrad([w], lr=0.5)
    >>> w.sum().backward()
    >>> opt.step()
    >>> w.detach()
    tensor([0.5000, 0.5000, 0.5000])
    """

    _rule = "adagrad"
    _states = ("sum",)

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-2, lr_decay: float = 0, weight_decay: float = 0,
        initial_accumulator_value: float = 0, eps: float = 1e-10, foreach: bool | None = None, *,
        maximize: bool = False, differentiable: bool = False, fused: bool | None = None,
        state_dtype: torch.dtype | str | None = None, rounding: Rounding = "nearest", seed: int = 0,
        master: bool = False,
    ) -> None:  # fmt: skip
        if not 0.0 <= initial_accumulator_value < float("inf"):
            raise ValueError(
                f"initial_accumulator_value: expected a finite number >= 0, got {initial_accumulator_value!r}"
            )
        super().__init__(params, _defaults(locals()))
        for group in self.param_groups:
            for param in group["params"]:
                self._begin(param, group)

    def _starts(self, group: Group) -> dict[str, float]:
        return {"sum": self.defaults["initial_accumulator_value"]}

    def share_memory(self) -> None:
        """Move the states to memory that other processes can share.

        Examples
        --------
        >>> import torch
        >>> import fusedstep.torch
        >>> opt = fusedstep.torch.Adagrad([torch.nn.Parameter(torch.ones(3))])
        >>> opt.share_memory()
        """
        for entry in self.state.values():
            for name in ("sum", _LOW):
                if name in entry:
                    entry[name].share_memory_()


class Rprop(_Optimizer):
    """Move each element by a step size of its own, by the sign of its gradient only: for full batches.

    ::

        D <- clip(D eta+, lo, hi)  where the sign of g is that of the step before
        D <- clip(D eta-, lo, hi)  where it flipped; there p stays, and the sign is forgotten
        p <- p - sign(g) D

    As ``torch.optim.Rprop``, whose ``state_dict`` it loads and which loads its own. Differences:

    - The state ``prev`` holds the sign of the previous gradient, as int8; torch holds that gradient. ``state_dict()``
      has the sign as a number of the parameter's type, from which torch goes on. The magnitude is lost, both ways.
    - Signs are compared. torch looks at the product of both gradients, which may underflow to 0: there ``D`` stops
      growing.
    - A NaN in a gradient makes the parameter NaN, but not ``D``.

    Parameters
    ----------
    params : iterable of torch.Tensor, of (str, torch.Tensor) or of dict
        What to update: dense, of floating point, on the CPU.
    lr, etas, step_sizes, maximize
        As in torch and in ``fusedstep.Rprop``.
    capturable, foreach, differentiable
        These select among torch's implementations. False, or without effect.
    state_dtype, rounding, seed, master
        How tensors of 16 bits are stored, see this module. torch has none of these.

    Examples
    --------
    >>> import torch
    >>> import fusedstep.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> opt = fusedstep.torch.Rprop([w], lr=0.5)
    >>> w.sum().backward()
    >>> opt.step()
    >>> w.detach()
    tensor([0.5000, 0.5000, 0.5000])
    """

    _rule = "rprop"
    _states = ("step_size", "prev")
    _fixed: ClassVar = {"variant": "irprop-"}

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-2, etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50), *,
        capturable: bool = False, foreach: bool | None = None, maximize: bool = False, differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None, rounding: Rounding = "nearest", seed: int = 0,
        master: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, _defaults(locals()))

    def _starts(self, group: Group) -> dict[str, float]:
        return {"prev": 0, "step_size": super()._options(group)["lr"]}

    def _options(self, group: Group) -> Group:
        """Return an ``lr`` other than 0, for which the rule would drop its lower limit; torch always has one."""
        options = super()._options(group)
        return {**options, "lr": options["lr"] or 1.0}

    @staticmethod
    def _to_torch(entry: Entry) -> Entry:
        return {**entry, "prev": entry["prev"].to(entry["step_size"].dtype)} if "prev" in entry else entry

    @staticmethod
    def _from_torch(entry: Entry) -> Entry:
        if "prev" not in entry:
            return entry
        prev = entry["prev"]
        return {**entry, "prev": (prev > 0).to(torch.int8) - (prev < 0).to(torch.int8)}
