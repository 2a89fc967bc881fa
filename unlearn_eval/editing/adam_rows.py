"""Adam on some rows of a tensor: what editors optimize that give each request a row, and freeze rows that are done."""

from __future__ import annotations

import torch
from torch import Tensor


class AdamRows:
    """Adam (1412.6980, algorithm 1, its usual constants); a row that is left out does not move.

    torch.optim.Adam cannot skip rows of a parameter, and a finished request must not move on its momentum.

    Args:
        values: (n, ...), changed in place.
        rates: the learning rate: one for all rows, which then take their first step together and are left out for
            good, or (n,) one for each row, which then counts its own steps.
        epsilon: added to the root of the second moment.
    """

    def __init__(self, values: Tensor, rates: float | Tensor, epsilon: float = 1e-8) -> None:
        self.values, self.rates, self.epsilon = values, rates, epsilon
        self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)
        self.steps: int | Tensor = 0
        if isinstance(rates, Tensor):
            self.steps = torch.zeros(len(values), dtype=values.dtype, device=values.device)

    def step(self, gradient: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """One step of some rows (all by default) along their gradients (n, ...)."""
        rate, n = self._clock(rows, gradient.ndim)
        self.mean[rows] = 0.9 * self.mean[rows] + 0.1 * gradient
        self.square[rows] = 0.999 * self.square[rows] + 0.001 * gradient.square()
        corrected = self.mean[rows] / (1 - 0.9**n)
        scale = (self.square[rows] / (1 - 0.999**n)).sqrt() + self.epsilon
        self.values[rows] -= rate * corrected / scale

    def _clock(self, rows: Tensor | slice, ndim: int) -> tuple[float | Tensor, int | Tensor]:
        """The learning rates and the number of steps of some rows, to be broadcast over them."""
        if isinstance(self.rates, Tensor) and isinstance(self.steps, Tensor):
            self.steps[rows] += 1
            shape = (-1, *[1] * (ndim - 1))
            return self.rates[rows].view(shape), self.steps[rows].view(shape)
        self.steps += 1
        return self.rates, self.steps
