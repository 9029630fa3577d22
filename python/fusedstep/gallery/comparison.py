"""FOR COMPARISON ONLY: well-known optimizers in plain NumPy, which the gallery draws beside the fused rules.

They are no part of the library: not fused, not checked against a reference, not for training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SGD", "Adadelta", "Adam", "Momentum", "Nesterov"]

Array = NDArray[Any]


class SGD:
    """Gradient descent."""

    def __init__(self, param: Array, lr: float = 1e-2) -> None:
        self.param, self.lr = param, lr

    def step(self, grad: Array) -> None:
        """Update the parameter in place."""
        self.param -= self.lr * grad


class Momentum:
    """Gradient descent with momentum (Polyak 1964)."""

    def __init__(self, param: Array, lr: float = 1e-2, mu: float = 0.9) -> None:
        self.param, self.lr, self.mu = param, lr, mu
        self.buffer = np.zeros_like(param)

    def step(self, grad: Array) -> None:
        """Update the parameter in place."""
        self.buffer[...] = self.mu * self.buffer + grad
        self.param -= self.lr * self.buffer


class Nesterov(Momentum):
    """Momentum that looks ahead (Nesterov 1983, in the form of Sutskever et al. 2013)."""

    def step(self, grad: Array) -> None:
        """Update the parameter in place."""
        self.buffer[...] = self.mu * self.buffer + grad
        self.param -= self.lr * (grad + self.mu * self.buffer)


class Adadelta:
    """Steps in the units of the parameter, by the average of the steps before (Zeiler 2012, arXiv:1212.5701)."""

    def __init__(self, param: Array, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6) -> None:
        self.param, self.lr, self.rho, self.eps = param, lr, rho, eps
        self.square_avg = np.zeros_like(param)
        self.square_delta = np.zeros_like(param)

    def step(self, grad: Array) -> None:
        """Update the parameter in place."""
        self.square_avg[...] = self.rho * self.square_avg + (1 - self.rho) * grad**2
        delta = np.sqrt(self.square_delta + self.eps) / np.sqrt(self.square_avg + self.eps) * grad
        self.square_delta[...] = self.rho * self.square_delta + (1 - self.rho) * delta**2
        self.param -= self.lr * delta


class Adam:
    """RMSprop with momentum, both averages corrected for their start at 0 (Kingma & Ba 2015, arXiv:1412.6980)."""

    def __init__(
        self, param: Array, lr: float = 1e-2, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.param, self.lr, self.betas, self.eps = param, lr, betas, eps
        self.grad_avg = np.zeros_like(param)
        self.square_avg = np.zeros_like(param)
        self.time = 0

    def step(self, grad: Array) -> None:
        """Update the parameter in place."""
        b1, b2 = self.betas
        self.time += 1
        self.grad_avg[...] = b1 * self.grad_avg + (1 - b1) * grad
        self.square_avg[...] = b2 * self.square_avg + (1 - b2) * grad**2
        m = self.grad_avg / (1 - b1**self.time)
        v = self.square_avg / (1 - b2**self.time)
        self.param -= self.lr * m / (np.sqrt(v) + self.eps)
