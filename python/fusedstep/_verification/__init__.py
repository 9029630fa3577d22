"""Compare the fused kernels with the NumPy reference, bit for bit."""


class VerificationError(AssertionError):
    """A kernel and the reference differ in a bit.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> opt = fs.RMSprop(np.zeros(3), verify="every")
    >>> try:
    ...     opt.step(np.ones(3)).step
    ... except fs.VerificationError:
    ...     print("a bit differs")
    1
    """
