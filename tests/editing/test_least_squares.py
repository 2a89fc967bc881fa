"""The n×n form of the update is the d×d one, for every shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval.editing.locate_then_edit.least_squares import cholesky_solver, least_squares
from unlearn_eval.utils.errors import UserError


def problem(d_in, d_out, n, seed=0, decay=2.0):
    """Keys, residuals and a positive definite C whose eigenvalues fall off over `decay` decades."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = torch.logspace(0, -decay, d_in, dtype=torch.float64)
    samples = normal(3 * d_in + 5, d_in) * spread.sqrt()
    moment = samples.T @ samples / len(samples)
    moment.diagonal().add_(1e-4 * moment.diagonal().mean())
    return normal(d_in, n) * spread.sqrt()[:, None], normal(d_out, n), moment


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("d_in", "d_out", "n"), [(40, 12, 6), (12, 40, 6), (40, 12, 90), (7, 5, 1), (1, 1, 3)])
@pytest.mark.parametrize("preservation", [0.5, 15000.0])
def test_push_through_equals_the_full_solve(d_in, d_out, n, preservation):
    keys, residuals, moment = problem(d_in, d_out, n)
    expected = residuals @ torch.linalg.solve(preservation * moment + keys @ keys.T, keys).T  # R Kᵀ(λC + KKᵀ)⁻¹
    u, v = least_squares(keys, residuals, cholesky_solver(preservation * moment))
    assert u.shape == (d_out, n)
    assert v.shape == (n, d_in)
    assert relative_error(u @ v, expected) < 1e-10  # both lose about (condition number 1e4) × 1e-16


@settings(max_examples=60, deadline=None)
@given(
    d_in=st.integers(1, 30),
    d_out=st.integers(1, 30),
    n=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    exponent=st.floats(-1, 4),
)
def test_push_through_equals_the_full_solve_for_any_shape(d_in, d_out, n, seed, exponent):
    keys, residuals, moment = problem(d_in, d_out, n, seed)
    penalty = 10**exponent * moment
    expected = residuals @ torch.linalg.solve(penalty + keys @ keys.T, keys).T
    u, v = least_squares(keys, residuals, cholesky_solver(penalty))
    assert relative_error(u @ v, expected) < 1e-10


def test_the_update_minimises_what_the_paper_says():
    """The gradient of ‖ΔK − R‖² + tr(Δ λC Δᵀ) is zero at Δ, and is not without the penalty."""
    keys, residuals, moment = problem(20, 8, 30)
    u, v = least_squares(keys, residuals, cholesky_solver(3 * moment))
    delta = u @ v
    gradient = (delta @ keys - residuals) @ keys.T
    assert (gradient + delta @ (3 * moment)).norm() < 1e-10 * gradient.norm()
    assert gradient.norm() > 0.1


def test_no_slack_makes_the_keys_exact():
    keys, residuals, moment = problem(40, 12, 6)
    u, v = least_squares(keys, residuals, cholesky_solver(moment), slack=0.0)
    torch.testing.assert_close(u @ v @ keys, residuals, atol=1e-10, rtol=0)
    # ... and of all such updates it is the smallest in the norm of C: it is orthogonal to the null space of the keys.
    free = torch.eye(40, dtype=torch.float64) - keys @ torch.linalg.pinv(keys)
    assert (u @ v @ moment @ free).norm() < 1e-9


def test_more_slack_moves_the_keys_less():
    keys, residuals, moment = problem(40, 12, 6)
    reached = []
    for slack in (0.0, 1.0, 10.0, 1e4):
        u, v = least_squares(keys, residuals, cholesky_solver(moment), slack=slack)
        reached.append(float((u @ v @ keys).norm() / residuals.norm()))
    assert reached[0] == pytest.approx(1)
    assert reached == sorted(reached, reverse=True)
    assert reached[-1] < 0.01


def test_inputs_are_left_alone():
    keys, residuals, moment = problem(9, 4, 3)
    copies = [x.clone() for x in (keys, residuals, moment)]
    least_squares(keys, residuals, cholesky_solver(moment))
    for tensor, copy in zip((keys, residuals, moment), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_the_solver_wants_a_positive_definite_matrix():
    with pytest.raises(UserError, match="singular"):
        cholesky_solver(torch.zeros(3, 3, dtype=torch.float64))
