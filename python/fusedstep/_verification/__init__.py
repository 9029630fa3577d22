"""The fused kernels against the NumPy reference, bit for bit."""

__all__ = ["VerificationError"]


class VerificationError(AssertionError):
    """A kernel and the reference differ in a bit."""
