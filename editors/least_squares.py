r"""The one solver of the locate-then-edit family.

An edit of a linear map W (d_out × d_in) should map keys K (d_in × n) to new values: W K + R, and change little
else. ROME, R-ROME, EMMET, MEMIT and AlphaEdit all minimise ‖ΔK − R‖² against a penalty tr(Δ A Δᵀ) for some
A, and differ only in A and in the slack D (0 for equality, I for least squares):

    Δ = R (D + Kᵀ A⁻¹ K)⁻¹ Kᵀ A⁻¹

For MEMIT (2210.07229, equation 14), A = λC and D = I, and Δ = R Kᵀ (λC + K Kᵀ)⁻¹; pushing the inverse
through gives the form above, which needs one n×n system instead of a d×d one once A is factored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def least_squares(
    keys: Tensor, residuals: Tensor, solve: Callable[[Tensor], Tensor], slack: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The update Δ = U V as its factors U (d_out, n) and V (n, d_in).

    Args:
        keys: K, (d_in, n), float64.
        residuals: R, (d_out, n): what is missing from the values of those keys.
        solve: X ↦ A⁻¹ X for X of shape (d_in, n).
        slack: the diagonal of D: 1 for a penalty, 0 for exact equality.
    """
    preconditioned = solve(keys)  # A⁻¹K: (d_in, n)
    gram = keys.T @ preconditioned  # KᵀA⁻¹K: (n, n)
    gram.diagonal().add_(slack)
    return residuals, torch.linalg.solve(gram, preconditioned.T)


def cholesky_solver(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """X ↦ matrix⁻¹ X for a symmetric positive definite matrix, factored once."""
    factor = torch.linalg.cholesky(matrix)
    return lambda right: torch.cholesky_solve(right, factor)
