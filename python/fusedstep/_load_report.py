"""What a partial load did."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LoadReport"]


class LoadReport(NamedTuple):
    """The names of parameters in a partial load.

    Attributes
    ----------
    loaded : tuple of str
        Parameters that were loaded, with their states.
    fresh : tuple of str
        The other parameters of this optimizer: they keep their values, and their states start anew.
    unused : tuple of str
        The other parameters of the checkpoint.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> old, new = fs.RMSprop({"w": np.zeros(3)}), fs.RMSprop({"w": np.zeros(3), "b": np.zeros(2)})
    >>> report = new.load_state_dict(old.state_dict(), strict=False)
    >>> report.loaded, report.fresh
    (('w',), ('b',))
    """

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
