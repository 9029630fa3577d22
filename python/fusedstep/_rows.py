"""The gradient of a few rows of a parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, final

from . import _core

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Index: TypeAlias = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.uint32] | NDArray[np.uint64]
    """Which rows of a parameter: one dimension, any stride."""


@final
class Rows:
    """The gradient of the rows of a parameter that a batch touched.

    It stands in ``grads`` instead of a dense gradient. Values of the same row are summed first, in the order of the
    index; then each row is updated once. No byte of the other rows changes::

        g[index[k]] += values[k]                   for all k, from g = 0
        p[r], states[r] <- rule(p[r], states[r], g[r])       for the rows r in index

    So averages and weight decay of a row stand still while it is not in the index. The step count, which ``lr_decay``
    and bias correction use, is the parameter's. ``clip_norm``, ``clip_value``, ``grad_scale`` and ``nonfinite`` see the
    sums; ``zero_grads`` sets ``values`` to 0.

    Parameters
    ----------
    index : 1-D ndarray of int32, int64, uint32 or uint64
        Which rows, ``0 <= index < len(param)``, in any order; any stride. Borrowed, only read.
    values : ndarray of shape ``(len(index), *param.shape[1:])``
        The gradient of each, of the dtype that a dense gradient would have; any layout. Borrowed.

    Raises
    ------
    IndexError
        From ``step``: an index beyond the rows, or below 0. Nothing was written.
    TypeError, ValueError
        From ``step``: arrays of another type or shape, that overlap the parameter or its states, or a rule that needs
        every element's gradient (Rprop). Nothing was written.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> table = np.zeros((5, 2))
    >>> opt = fs.Adagrad({"table": table}, lr=0.1)
    >>> opt.step({"table": fs.Rows(np.array([3, 1, 3]), np.ones((3, 2)))}).step
    1
    >>> table[:, 0]
    array([ 0. , -0.1,  0. , -0.1,  0. ])
    """

    __slots__ = ("index", "values")

    index: Index
    values: NDArray[Any]

    def __init__(self, index: Index, values: NDArray[Any]) -> None:
        self.index = index
        self.values = values

    def __repr__(self) -> str:
        return f"Rows(index={self.index!r}, values={self.values!r})"


_core.register_rows(Rows)
