r"""The one solver of the locate-then-edit family.

An edit of a linear map W (d_out × d_in) should map keys K (d_in × n) to new values, W K + R, and change little
else. ROME, R-ROME, EMMET, MEMIT and AlphaEdit all minimize ‖ΔK − R‖² against a penalty tr(Δ A Δᵀ) for some
A, and differ only in A and in the slack D (0 for equality, I for least squares):

    Δ = R (D + Kᵀ A⁻¹ K)⁻¹ Kᵀ A⁻¹

    method              A                                 D
    R-ROME              C                                 0, one key at a time
    EMMET               C                                 0 (plus a little, for conditioning)
    MEMIT               λC                                I
    AlphaEdit           L2·I on the null space of C       I, K replaced by its projection
    with a key cache    the same, earlier keys K_p are further columns of K whose residual is 0

For MEMIT (2210.07229, equation 14), Δ = R Kᵀ (λC + K Kᵀ)⁻¹; pushing the inverse through gives the form above,
which needs one n×n system instead of a d×d one once A is factored. That earlier keys with residual 0 are the
cache K_p K_pᵀ of the sequential methods, A ← A + K_p K_pᵀ, follows from the same identity: the update is one
step of recursive least squares, and N steps give what one step with all keys gives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unlearn_eval.utils.errors import UserError

Solve = Callable[[Tensor], Tensor]


def least_squares(
    keys: Tensor, residuals: Tensor, solve: Solve, slack: float = 1.0, past: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The update Δ = U V as its factors U (d_out, n) and V (n, d_in).

    Args:
        keys: K, (d_in, n), float64.
        residuals: R, (d_out, n): what is missing from the values of those keys.
        solve: X ↦ A⁻¹ X for X of shape (d_in, n).
        slack: the diagonal of D: 1 for a penalty, 0 for exact equality.
        past: K_p, (d_in, m): keys of earlier edits, whose values should stay as they are.

    Raises:
        UserError: the keys are linearly dependent and there is no slack, or something is not finite.
    """
    if not (torch.isfinite(keys).all() and torch.isfinite(residuals).all()):
        raise UserError("keys or residuals are not finite", "load the model in float32 or bfloat16 (--dtype)")
    n_past = 0 if past is None else past.shape[1]
    wanted = keys if past is None else torch.cat([past.to(keys), keys], dim=1)  # (d_in, m + n)
    preconditioned = solve(wanted)  # A⁻¹K
    gram = wanted.T @ preconditioned  # KᵀA⁻¹K: (m + n, m + n)
    gram.diagonal().add_(slack)
    factor, failed = torch.linalg.cholesky_ex((gram + gram.T) / 2)
    pivots = factor.diagonal()
    # Below 1e-7 of the largest pivot a key is, to half of float64's digits, a combination of the ones before it.
    if bool(failed) or not torch.isfinite(pivots).all() or pivots.min() < 1e-7 * pivots.max():
        raise UserError(
            f"the {wanted.shape[1]} keys are linearly dependent, so their values cannot all be set",
            "leave out requests that ask nearly the same, merge them (--merge key), or use memit, which compromises",
        )
    return residuals, torch.cholesky_solve(preconditioned.T, factor)[n_past:]


def cholesky_solver(matrix: Tensor) -> Solve:
    """X ↦ matrix⁻¹ X for a symmetric positive definite matrix, factored once.

    Raises:
        UserError: it is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed) or bool((~torch.isfinite(factor)).any()):
        raise UserError(
            "the second moments of the keys are singular",
            "take them of more text (--set keys_per_dimension=20), or of other text (--set text=FILE)",
        )
    return lambda right: torch.cholesky_solve(right, factor)


def check_rank(keys: Tensor, past: Tensor | None, room: int, name: str) -> None:
    """Refuse more keys than there are directions to put values in."""
    n = keys.shape[1] + (0 if past is None else past.shape[1])
    if n > room:
        raise UserError(
            f"{n} keys are too many for {name}: they have only {room} directions",
            "give fewer requests, merge them (--merge key), or use memit, which compromises",
        )
