"""Adam on rows: torch's on each row, and to the last bit what editors did before they shared it."""

import pytest
import torch

from unlearn_eval.editing.adam_rows import AdamRows

ROWS = 3


def numbers(dtype, steps=6):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(ROWS, 4, generator=generator, dtype=dtype)
    return start, torch.randn(steps, ROWS, 4, generator=generator, dtype=dtype)


def torchs(start, gradients, plan, rates, epsilon=1e-8):
    """torch.optim.Adam on each row, which knows nothing of the others."""
    rows = [torch.nn.Parameter(row.clone()) for row in start]
    optimizers = [torch.optim.Adam([row], lr=rate, eps=epsilon) for row, rate in zip(rows, rates, strict=True)]
    for gradient, moved in zip(gradients, plan, strict=True):
        for i in moved:
            rows[i].grad = gradient[i].clone()
            optimizers[i].step()
    return torch.stack([row.data for row in rows])


@pytest.mark.parametrize("epsilon", [1e-8, 1e-12])
def test_each_row_is_moved_as_by_torchs_adam(epsilon):
    start, gradients = numbers(torch.float64)
    # A row with a rate of its own may pause; rows with one rate for all leave for good.
    pausing = [[0, 1, 2], [0, 1, 2], [0, 2], [0, 2], [0, 1, 2], [1]]
    leaving = [[0, 1, 2], [0, 1, 2], [0, 2], [0, 2], [2], [2]]
    for plan, rates in ((pausing, torch.tensor([0.1, 0.2, 0.03]).double()), (leaving, 0.1)):
        ours = start.clone()
        adam = AdamRows(ours, rates, epsilon)
        for gradient, rows in zip(gradients, plan, strict=True):
            adam.step(gradient[rows], torch.tensor(rows))
        each = rates.tolist() if isinstance(rates, torch.Tensor) else [rates] * ROWS
        torch.testing.assert_close(ours, torchs(start, gradients, plan, each, epsilon), atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(12,), (3, 4), (3, 2, 2)])
def test_all_rows_at_once(shape):
    start, gradients = numbers(torch.float64)
    ours, parameter = start.reshape(shape).clone(), torch.nn.Parameter(start.reshape(shape).clone())
    adam, theirs = AdamRows(ours, 0.1), torch.optim.Adam([parameter], lr=0.1)
    for gradient in gradients:
        adam.step(gradient.reshape(shape))
        parameter.grad = gradient.reshape(shape).clone()
        theirs.step()
    torch.testing.assert_close(ours, parameter.data, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_rate_is_what_target_values_had_to_the_last_bit(dtype):
    start, gradients = numbers(dtype)
    ours, values = start.clone(), start.clone()
    adam = AdamRows(ours, 0.1)
    mean, square = torch.zeros_like(values), torch.zeros_like(values)
    for step, gradient in enumerate(gradients, start=1):
        rows = torch.tensor([0, 1, 2] if step < 4 else [0, 2])
        adam.step(gradient[rows], rows)
        mean[rows] = 0.9 * mean[rows] + 0.1 * gradient[rows]
        square[rows] = 0.999 * square[rows] + 0.001 * gradient[rows].square()
        values[rows] -= 0.1 * (mean[rows] / (1 - 0.9**step)) / ((square[rows] / (1 - 0.999**step)).sqrt() + 1e-8)
    assert torch.equal(ours, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_rows_are_what_joint_training_had_to_the_last_bit(dtype):
    start, gradients = numbers(dtype)
    ours, values = start.clone(), start.clone()
    adam = AdamRows(ours, 0.1, epsilon=1e-12)
    mean = square = torch.zeros_like(values)
    for step, gradient in enumerate(gradients, start=1):
        adam.step(gradient)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient.square()
        values -= 0.1 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-12)
    assert torch.equal(ours, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rates_of_rows_are_what_grace_had_to_the_last_bit(dtype):
    start, gradients = numbers(dtype)
    rates = torch.tensor([0.1, 0.2, 0.03], dtype=dtype)
    ours, values = start.clone(), start.clone()
    adam = AdamRows(ours, rates)
    mean, square, steps = torch.zeros_like(values), torch.zeros_like(values), torch.zeros(ROWS, dtype=dtype)
    for step, gradient in enumerate(gradients):
        rows = torch.tensor([0, 2] if step in (2, 3) else [0, 1, 2])
        adam.step(gradient[rows], rows)
        steps[rows] += 1
        n = steps[rows].view(-1, 1)
        mean[rows] = 0.9 * mean[rows] + 0.1 * gradient[rows]
        square[rows] = 0.999 * square[rows] + 0.001 * gradient[rows].square()
        corrected = mean[rows] / (1 - 0.9**n)
        values[rows] -= rates.view(-1, 1)[rows] * corrected / ((square[rows] / (1 - 0.999**n)).sqrt() + 1e-8)
    assert torch.equal(ours, values)
