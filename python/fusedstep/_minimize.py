"""Minimise a function by one of the rules, as SciPy's ``minimize`` does: with bounds, stops and callbacks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, Unpack, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._adagrad import Adagrad, AdagradOptions
from ._adagrad_norm import AdagradNorm, AdagradNormOptions
from ._hints import check_choice, did_you_mean, parameters
from ._optimizer import Optimizer, Options
from ._rmsprop import RMSprop, RMSpropOptions
from ._rprop import Rprop, RpropOptions
from ._tree import is_masked, parse
from .typing import Method, MinimizeResult, PerElement, Tree, Variant

Array = NDArray[Any]

RULES: dict[str, type[Optimizer]] = {
    **dict.fromkeys(get_args(Variant), Rprop),
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "adagrad-norm": AdagradNorm,
}


class RuleOptions(RpropOptions, RMSpropOptions, AdagradOptions, AdagradNormOptions, total=False):
    """The options of all rules, of which each has some."""

    lr: PerElement


def minimize(
    fun: Callable[..., Any], x0: Tree | ArrayLike, method: Method = "irprop+",
    jac: Literal[True] | Callable[..., Any] = True, args: Any = (), bounds: Any = None,
    callback: Callable[..., object] | None = None,
    maxiter: int = 10_000, xtol: float = 1e-6, gtol: float = 1e-5, ftol: float = 1e-9, patience: int = 50,
    target: float | None = None, **options: Unpack[RuleOptions],
) -> MinimizeResult:  # fmt: skip
    """Minimise a function whose full gradient is known.

    An iteration moves ``x`` by the rule and then evaluates ``fun`` and its gradient ``g`` once. With bounds::

        pg = 0  where x <= lo and g > 0, or x >= hi and g < 0;  else g
        x <- clip(x moved by the rule from pg, lo, hi)

    Where a move was cut short by a bound, Rprop's step size becomes the length of that move.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` returns the loss, a number, and its gradient, in the containers of ``x0``. ``x`` is a copy. If
        ``jac`` is a function, ``fun`` returns the loss only. None instead of an array of the gradient means 0.
    x0 : array_like, or containers of ndarrays
        Where to start: an array of any shape, or containers as in ``Optimizer``. It is only read. ``x`` has its type
        (float64 for integers), and so have gradients, which are cast. It is clipped to the bounds first.
    method : str
        A ``variant`` of ``Rprop``, or ``"rmsprop"``, ``"adagrad"``, ``"adagrad-norm"``.
    jac : True or callable
        True if ``fun`` returns the gradient, too; or ``jac(x, *args)`` returns it.
    args : tuple
        More arguments of ``fun`` and ``jac``.
    bounds : optional
        Closed bounds: SciPy's ``Bounds``, or any object with ``lb`` and ``ub`` that broadcast to ``x0``; or a pair
        ``(lo, hi)`` of numbers for each element, in C order, or one for all. None is no bound. For containers, either
        what all arrays share, or a mapping from names of parameters to one of these.
    callback : callable, optional
        Called after each iteration as ``callback(x)``, or, if its one parameter is called ``intermediate_result``, with
        an object that has ``x``, ``fun``, ``jac`` and ``nit``. It stops the run by raising ``StopIteration``.
    maxiter : int
        Largest number of iterations, ``maxiter >= 0``.
    xtol : float
        Stop when the largest step size is at most ``xtol max(1, max |x|)``, ``xtol >= 0``. Elements that are held at a
        bound do not count. Rules other than Rprop have no step sizes. Their last move is taken instead.
    gtol : float
        Stop when ``max |pg| <= gtol``, ``gtol >= 0``.
    ftol, patience : float, int
        Stop when ``patience`` iterations in a row have not lowered the best loss ``f`` by more than
        ``ftol max(1, |f|)``; ``ftol >= 0``, ``patience >= 1``.
    target : float, optional
        Stop when the loss is at most this.
    **options
        Options of the rule. ``step_sizes`` of Rprop starts at ``(min(1e-6, xtol), 50)``. Weight decay and ``maximize``
        change what is minimised, and are no options here.

    Returns
    -------
    OptimizeResult
        SciPy's if it is installed, else an object with the same attributes: ``x``, the best point; ``fun`` and ``jac``,
        loss and gradient there; ``nit``, ``nfev``, ``njev``, the number of iterations and evaluations; ``status``,
        ``success`` and ``message``, why it stopped; ``x_last``, the last point; ``step_size``, the largest step size.

        =====  ===================================================  =======
        order  stop                                                 status
        =====  ===================================================  =======
        1      the loss is NaN, or the gradient is not finite       3
        2      target reached                                       0
        3      gtol                                                 0
        4      xtol                                                 0
        5      ftol                                                 0
        6      the callback raised StopIteration                    99
        7      maxiter                                              1
        =====  ===================================================  =======

    Raises
    ------
    TypeError, ValueError
        An unknown method or option; no gradient; bounds or a gradient that do not fit ``x0``.

    See Also
    --------
    scipy_method : The same through ``scipy.optimize.minimize``.

    Notes
    -----
    Rprop looks at signs only, so it needs the gradient of all data, and no learning rate that fits the problem. Where a
    Hessian can be learned, quasi-Newton methods as SciPy's L-BFGS-B need far fewer evaluations. Rprop still moves where
    scales differ by orders of magnitude, or the loss is not smooth.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> def rosenbrock(x):
    ...     valley = x[1] - x[0] ** 2
    ...     return 100 * valley**2 + (1 - x[0]) ** 2, np.array([-400 * valley * x[0] - 2 * (1 - x[0]), 200 * valley])
    >>> res = fs.minimize(rosenbrock, [-1.2, 1.0])
    >>> res.x.round(2), res.success
    (array([1., 1.]), True)
    """
    for name, value, least in (("maxiter", maxiter, 0), ("xtol", xtol, 0), ("gtol", gtol, 0), ("ftol", ftol, 0),
                               ("patience", patience, 1)):  # fmt: skip
        if not _is_number(value) or not value >= least:
            raise ValueError(f"{name}: expected a number >= {least}, got {value!r}")
    known = _options(method)
    for name in options:
        if name not in known:
            hint = did_you_mean(name, [*parameters(minimize), *known])
            raise TypeError(
                f"minimize() got an unexpected keyword argument {name!r}{hint}; the options of {method!r} are "
                f"{', '.join(known)}"
            )
    run = _Run(_Objective(fun, jac, args, x0), method, bounds, xtol, ftol, dict(options))
    tell = _caller(callback)
    stopped = False
    while True:
        if math.isnan(run.now.loss) or not all(np.isfinite(g).all() for g in run.now.grads):
            status, message = 3, "the loss is NaN, or the gradient is not finite"
        elif target is not None and run.now.loss <= target:
            status, message = 0, f"the loss is at most target={target}"
        elif max(map(_largest, run.projected)) <= gtol:
            status, message = 0, f"no element of the projected gradient is larger than gtol={gtol}"
        elif run.nit > 0 and run.steps_are_at_most(xtol):
            status, message = 0, f"no step size is larger than xtol={xtol}, relative to max(1, max|x|)"
        elif run.stalled >= patience:
            status, message = 0, f"the best loss has not improved by ftol={ftol} for {patience} iterations"
        elif stopped:
            status, message = 99, "the callback raised StopIteration"
        elif run.nit >= maxiter:
            status, message = 1, f"maxiter={maxiter} iterations are done"
        else:
            run.iterate()
            try:
                tell(run)
            except StopIteration:
                stopped = True
            continue
        filled, best, evaluations = run.objective.filled, run.best, run.nit + 1
        found: MinimizeResult = _result(
            x=filled(best.x), fun=best.loss, jac=filled(best.grads), nit=run.nit, nfev=evaluations, njev=evaluations,
            status=status, success=status == 0, message=message, x_last=filled(run.now.x), step_size=max(run.steps),
        )  # fmt: skip
        return found


def scipy_method(method: Method = "irprop+") -> Callable[..., Any]:
    """Return a rule as a ``method`` for ``scipy.optimize.minimize`` and functions that call it, as ``basinhopping``.

    ``tol`` sets ``xtol``, ``gtol`` and ``ftol``, where ``options`` does not give them. ``options`` are the other
    arguments of ``fusedstep.minimize``, and those of the rule. Unknown ones are ignored with a warning, and so are
    constraints and second derivatives.

    Parameters
    ----------
    method : str
        As in ``fusedstep.minimize``.

    Returns
    -------
    callable
        To be passed as ``method``, together with ``jac``.

    Raises
    ------
    ValueError
        An unknown method; from ``scipy.optimize.minimize``: no ``jac``, or bounds that do not fit.

    Examples
    --------
    >>> import fusedstep as fs
    >>> from scipy.optimize import minimize, rosen, rosen_der
    >>> res = minimize(rosen, [1.3, 0.7, 0.8], jac=rosen_der, method=fs.scipy_method("irprop+"), tol=1e-6)
    >>> res.x.round(2), res.success
    (array([1., 1., 1.]), True)
    """
    _rule(method)
    return partial(_through_scipy, method)


def _through_scipy(
    method: Method, fun: Callable[..., Any], x0: ArrayLike, *,
    jac: Any = None, hess: Any = None, hessp: Any = None, constraints: Any = (), tol: float | None = None,
    **options: Any,
) -> Any:  # fmt: skip
    import warnings

    ignored = {"constraints": constraints, "hess": hess, "hessp": hessp}
    if names := [name for name, value in ignored.items() if value is not None and np.size(value) > 0]:
        warnings.warn(f"{method} takes no notice of {', '.join(names)}", RuntimeWarning, stacklevel=3)
    known = {*parameters(minimize)[4:], *_options(method)}  # the first four come by place
    if unknown := sorted(options.keys() - known):
        hints = ", ".join(f"{name}{did_you_mean(name, known)}" for name in unknown)
        warnings.warn(f"Unknown solver options: {hints}", _scipy_optimize().OptimizeWarning, stacklevel=3)
    tolerances: dict[str, Any] = {} if tol is None else dict.fromkeys(("xtol", "gtol", "ftol"), tol)
    return minimize(fun, x0, method, jac, **{**tolerances, **{k: options[k] for k in options if k in known}})


def _rule(method: str) -> type[Optimizer]:
    check_choice("method", method, RULES)
    return RULES[method]


def _options(method: str) -> list[str]:
    """Return the names of the rule's options, except those that change what is minimised."""
    return [name for name in _rule(method)._schema.arguments if name not in {"variant", *Options.__annotations__}]


class _Point(NamedTuple):
    """A point, and what was found there; of each a list of the arrays of all parameters."""

    loss: float
    x: list[Array]
    grads: list[Array]

    def copy(self) -> _Point:
        return _Point(self.loss, [x.copy("K") for x in self.x], [g.copy("K") for g in self.grads])


class _Objective:
    """The function, between the containers of ``x0`` and lists of arrays."""

    def __init__(self, fun: Callable[..., Any], jac: Any, args: Any, x0: Any) -> None:
        if jac is not True and not callable(jac):
            raise ValueError(
                f"jac: expected True (fun returns both loss and gradient) or a function that returns the gradient, "
                f"got {jac!r}; there is no gradient by differences here"
            )
        self._fun = fun
        self._jac: Any = jac
        self._args = args if isinstance(args, tuple) else (args,)
        found = parse(x0)
        if all(map(_is_number, found.arrays)) and (_is_number(x0) or type(x0) in (list, tuple)):
            x0 = np.array(x0)
            found = parse(x0)
        uses = Counter(map(id, found.arrays))
        for name, leaf in zip(found.names, found.arrays, strict=True):
            if _is_number(leaf) or uses[id(leaf)] > 1:
                raise TypeError(
                    f"x0: {name!r}: expected an array of its own, got {leaf!r}; pass np.array(...), one for each"
                )
        self._x0 = x0
        self._leaves = found.arrays
        self.names = found.names
        self.start = [np.array(leaf, order="K", subok=True) for leaf in found.arrays]
        self.start = [x.astype(np.float64) if x.dtype.kind in "biu" else x for x in self.start]

    def filled(self, arrays: list[Array]) -> Any:
        """Return copies of the arrays in the containers of ``x0``."""
        import copy

        copies = {id(leaf): array.copy("K") for leaf, array in zip(self._leaves, arrays, strict=True)}
        return copy.deepcopy(self._x0, copies)

    def __call__(self, x: list[Array]) -> _Point:
        if self._jac is True:
            both = self._fun(self.filled(x), *self._args)
            if not isinstance(both, tuple | list) or len(both) != 2:
                raise TypeError(
                    f"fun: expected a pair (loss, gradient), got {type(both).__name__}; if it returns the loss only, "
                    "pass the function that returns the gradient as jac"
                )
            loss, grads = both
        else:
            loss, grads = self._fun(self.filled(x), *self._args), self._jac(self.filled(x), *self._args)
        if np.size(loss) != 1:
            raise ValueError(f"fun: expected the loss, one number, got an array of shape {np.shape(loss)}")
        try:
            number = float(np.asarray(loss).item())
        except (TypeError, ValueError):
            raise TypeError(f"fun: expected the loss, one real number, got {loss!r} ({type(loss).__name__})") from None
        return _Point(number, x, self._gradients(grads, x))

    def _gradients(self, grads: Any, x: list[Array]) -> list[Array]:
        if isinstance(self._x0, np.ndarray):
            given = {self.names[0]: grads}
        else:
            leaves = parse(grads)
            given = dict(zip(leaves.names, leaves.arrays, strict=True))
        if given.keys() != set(self.names):
            raise ValueError(f"gradient: expected one for each of {self.names}, got those of {list(given)}")
        return [_gradient(given[name], name, p) for name, p in zip(self.names, x, strict=True)]


class _Run:
    """The parameters, the optimizer that moves them, and what the stops look at; lists have an entry per parameter."""

    def __init__(
        self, objective: _Objective, method: str, bounds: Any, xtol: float, ftol: float, options: dict[str, Any]
    ) -> None:
        x = objective.start
        cls = _rule(method)
        if cls is Rprop:
            options = {"variant": method, "step_sizes": (min(1e-6, xtol), 50.0), **options}
        self.objective = objective
        params = dict(zip(objective.names, x, strict=True))
        self._optimizer: Optimizer = cast(Any, cls)(params, **options)
        self._bounds = _bounds_of_all(bounds, params)
        self._clip(x)
        self._ftol = ftol
        self.nit = 0
        self.steps = [_largest(self._optimizer.lr) if cls is Rprop else 0.0 for _ in x]
        """The largest step size, or the largest move."""
        self.stalled = 0
        """For how many iterations the best loss has not improved."""
        self._evaluate(x)
        self.best = self.now.copy()
        self._reference = self.best.loss

    def iterate(self) -> None:
        """Move by the rule, then evaluate."""
        x = self.now.x
        before = [each.copy("K") for each in x]
        self._optimizer.step(dict(zip(self.objective.names, self.projected, strict=True)), loss=self.now.loss)
        outside = self._clip(x)
        moves = [np.abs(new - old) for new, old in zip(x, before, strict=True)]
        self.nit += 1
        self._evaluate(x)
        if isinstance(self._optimizer, Rprop):
            moves = self._step_sizes(self._optimizer, moves, outside)
        self.steps = [_largest(move) for move in moves]
        if self.now.loss < self.best.loss:
            self.best = self.now.copy()
        loss = self.best.loss
        improved = self._reference - loss > self._ftol * max(1.0, abs(loss))
        self.stalled = 0 if improved else self.stalled + 1
        self._reference = loss if improved else self._reference

    def _step_sizes(self, rprop: Rprop, moves: list[Array], outside: list[Array]) -> list[Array]:
        """Shorten the step sizes of moves that were cut short; return all, 0 for elements that are held at a bound."""
        # Even below the smallest size, which the next step restores: iRprop+ takes back no more than was made.
        smallest = rprop.step_sizes[0]
        sizes = []
        for i, state in enumerate(rprop.state.values()):
            D = state["step_size"]
            np.minimum(D, moves[i], out=D, where=outside[i])
            is_free = self.projected[i] == self.now.grads[i]
            sizes.append(np.where(is_free, np.maximum(D, D.dtype.type(smallest)), D.dtype.type(0)))
        return sizes

    def _evaluate(self, x: list[Array]) -> None:
        self.now = self.objective(x)
        self.projected = [
            np.where(((p <= lo) & (g > 0)) | ((p >= hi) & (g < 0)), g.dtype.type(0), g)
            for p, g, (lo, hi) in zip(x, self.now.grads, self._bounds, strict=True)
        ]

    def _clip(self, x: list[Array]) -> list[Array]:
        """Clip in place; return where that changed something."""
        outside = [(p < lo) | (p > hi) for p, (lo, hi) in zip(x, self._bounds, strict=True)]
        for p, (lo, hi) in zip(x, self._bounds, strict=True):
            np.clip(p, lo, hi, out=p)
        return outside

    def steps_are_at_most(self, xtol: float) -> bool:
        """Compare in the type of each parameter, in which the smallest step size is rounded, too."""
        limit = xtol * max(1.0, *map(_largest, self.now.x))
        return all(step <= x.dtype.type(limit) for step, x in zip(self.steps, self.now.x, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _largest(x: Array) -> float:
    return float(np.max(np.abs(x), initial=0))


def _gradient(grad: Any, name: str, x: Array) -> Array:
    if grad is None:
        return np.zeros_like(x)
    if is_masked(grad):
        raise TypeError(
            f"gradient of parameter {name!r}: expected a numpy.ndarray, got a masked array; pass "
            f"numpy.ma.filled(array, 0)"
        )
    with np.errstate(over="ignore"):  # a gradient that is no longer finite ends the run
        g = np.asarray(grad).astype(x.dtype, casting="same_kind", copy=False)
    if g.shape != x.shape and not g.size == x.size == 1:
        raise ValueError(f"gradient of parameter {name!r}: expected shape {x.shape}, got {g.shape}")
    return g.reshape(x.shape)


def _bounds_of_all(bounds: Any, params: Mapping[str, Array]) -> list[tuple[Array, Array]]:
    if not isinstance(bounds, Mapping):
        bounds = dict.fromkeys(params, bounds)
    for name in bounds:
        if name not in params:
            raise ValueError(f"bounds: no parameter is called {name!r}{did_you_mean(name, params)}")
    return [_bounds(bounds.get(name), name, p) for name, p in params.items()]


def _bounds(bounds: Any, name: str, x: Array) -> tuple[Array, Array]:
    """Return the bounds of a parameter, in its shape and rounded to its type."""
    if bounds is None:
        bounds = (None, None)
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        limits = [np.asarray(limit, np.float64) for limit in (bounds.lb, bounds.ub)]
    else:
        pairs = list(bounds)
        if len(pairs) == 2 and all(np.ndim(end) == 0 for end in pairs):
            pairs = [pairs] * x.size
        if len(pairs) != x.size or any(np.shape(pair) != (2,) for pair in pairs):
            raise ValueError(
                f"bounds of parameter {name!r}: expected a pair (lo, hi), or one for each of the {x.size} elements, "
                f"got {bounds!r}"
            )
        ends = [[default if end is None else end for end in column]
                for default, column in zip((-math.inf, math.inf), zip(*pairs, strict=True), strict=True)]  # fmt: skip
        limits = [np.array(column, np.float64).reshape(x.shape) for column in ends]
    try:
        lo, hi = (np.broadcast_to(limit, x.shape) for limit in limits)
    except ValueError:
        raise ValueError(
            f"bounds of parameter {name!r}: expected shapes that broadcast to {x.shape}, got "
            f"{' and '.join(str(limit.shape) for limit in limits)}"
        ) from None
    if not (lo <= hi).all():
        at = tuple(map(int, np.unravel_index(np.argmin(lo <= hi), x.shape)))
        raise ValueError(f"bounds of parameter {name!r}: expected lo <= hi, got {lo[at]} and {hi[at]} at {at}")
    return lo.astype(x.dtype), hi.astype(x.dtype)


def _caller(callback: Callable[..., object] | None) -> Callable[[_Run], object]:
    """Return what calls the callback in the form that it asks for, as SciPy tells them apart."""
    import inspect

    if callback is None:
        return lambda run: None
    try:
        wants_result = set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except ValueError:  # something built in
        wants_result = False

    def tell(run: _Run) -> object:
        x = run.objective.filled(run.now.x)
        if not wants_result:
            return callback(x)
        jac = run.objective.filled(run.now.grads)
        return callback(intermediate_result=_result(x=x, fun=run.now.loss, jac=jac, nit=run.nit))

    return tell


def _result(**found: Any) -> Any:
    try:
        return _scipy_optimize().OptimizeResult(found)
    except ImportError:
        return SimpleNamespace(**found)


def _scipy_optimize() -> Any:
    import importlib

    return importlib.import_module("scipy.optimize")
