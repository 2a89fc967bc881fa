r"""Target values v*: what block z should output at the look-up token so that the model says the target.

MEMIT's objective (2210.07229, equation 16; code kmeng01/memit@80426fd9), for one request with prompts x_j (the
plain one and its contexts), target t and subject prompt s, over δ ∈ ℝᵈ added to h at the look-up token:

    L(δ) = mean_j [ −(1/|t|) Σ_i ln p_δ(t_i | x_j, t_<i) ]
         + kl_weight · KL( p_δ(· | s) ‖ p_0(· | s) )
         + norm_weight · ‖δ‖ / ‖h₀‖²
    v* = h₀ + δ*,  ‖δ‖ ≤ clamp · ‖h₀‖,  h₀ the clean value at the plain prompt

All requests are optimised at once: δ is an (N, d) tensor, Adam works element by element, and a request that has
reached `stop_loss` is frozen and leaves the batch, so the result is that of one loop per request.

Differs from the authors' code in that targets are ids throughout, that only the blocks above z are run, only
from the look-up token on, and that the head is applied to target positions only. None of these changes the
result beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn_eval.anatomy import Anatomy
from unlearn_eval.editors.base import EditRequest, Progress, no_progress
from unlearn_eval.tracing import Tail


@dataclass(frozen=True)
class TargetValueConfig:
    """How target values are optimised.

    Attributes:
        steps: forward passes at most; there is one update less.
        learning_rate: of Adam.
        kl_weight, norm_weight, clamp: the letters of the objective.
        stop_loss: a request whose loss is below this is done.
        tokens_per_batch: how many tokens (after the look-up tokens, all prompts) are optimised at once.
    """

    steps: int = 25
    learning_rate: float = 0.5
    kl_weight: float = 0.0625
    norm_weight: float = 0.5
    clamp: float = 0.75
    stop_loss: float = 0.05
    tokens_per_batch: int = 4096


@dataclass(frozen=True)
class TargetValues:
    """The outcome of the optimisation.

    Attributes:
        values: v*, (N, d), float32 or wider.
        clean: h₀, (N, d).
        losses: the last loss of each request.
        nlls: its first part, the mean negative log-likelihood of the target.
        steps: forward passes used by each request.
    """

    values: Tensor
    clean: Tensor
    losses: list[float]
    nlls: list[float]
    steps: list[int]


def target_values(
    model: Any,
    anatomy: Anatomy,
    layer: int,
    requests: Sequence[EditRequest],
    config: TargetValueConfig,
    progress: Progress = no_progress,
) -> TargetValues:
    """v* of every request at the output of block `layer`; the model is only read."""
    parts: list[TargetValues] = []
    done = 0

    def tick(step: int, total: int, n: int) -> None:
        progress("target values", done * total + step * n, len(requests) * total)

    for batch in _batches(requests, config.tokens_per_batch):
        parts.append(_optimise(model, anatomy, layer, batch, config, tick))
        done += len(batch)
    progress("target values", 1, 1)
    return TargetValues(
        torch.cat([part.values for part in parts]),
        torch.cat([part.clean for part in parts]),
        [loss for part in parts for loss in part.losses],
        [nll for part in parts for nll in part.nlls],
        [steps for part in parts for steps in part.steps],
    )


def _batches(requests: Sequence[EditRequest], budget: int) -> Iterator[list[EditRequest]]:
    batch: list[EditRequest] = []
    used = 0
    for request in requests:
        cost = sum(len(ids) - lookup + len(request.target_ids) for ids, lookup in request.rows)
        if batch and used + cost > budget:
            yield batch
            batch, used = [], 0
        batch.append(request)
        used += cost
    if batch:
        yield batch


class _Problem:
    """The rows of some requests and their objective; rebuilt, smaller, as requests finish."""

    def __init__(self, model: Any, anatomy: Anatomy, layer: int, requests: list[EditRequest]) -> None:
        self.requests = requests
        rows: list[tuple[int, ...]] = []
        lookups: list[int] = []
        owners: list[int] = []
        self.plain: list[int] = []  # row of each request's plain prompt
        self.kl: list[int] = []  # row of each request's subject prompt
        read: list[tuple[int, int, int, float]] = []  # row, position from the end, token, weight
        for i, request in enumerate(requests):
            self.plain.append(len(rows))
            target = request.target_ids
            for ids, lookup in request.rows:
                for j, token in enumerate(target):
                    weight = 1 / (len(target) * len(request.rows))
                    read.append((len(rows), len(target) - j, token, weight))
                rows.append((*ids, *target[:-1]))
                lookups.append(lookup)
                owners.append(i)
            subject = request.subject_ids or request.prompt_ids[: request.lookup + 1]
            self.kl.append(len(rows))
            rows.append(subject)
            lookups.append(len(subject) - 1)
            owners.append(i)
        device = model.device
        self.tail = Tail(model, anatomy, layer, rows, lookups)
        self.keep = max(len(request.target_ids) for request in requests)
        self.owners = torch.tensor(owners, device=device)
        self.rows = torch.arange(len(rows), device=device)
        columns = list(zip(*read, strict=True))
        self.read_rows, self.read_back, self.read_tokens = (torch.tensor(c, device=device) for c in columns[:3])
        self.read_weights = torch.tensor(columns[3], dtype=torch.float64, device=device)
        self.clean = self.tail.hidden[self.plain, self.tail.columns[self.plain]]

    def parts(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """(target nll, ln p at the subject prompt): (n,), (n, V)."""
        hidden = self.tail.hidden
        moved = hidden.index_put((self.rows, self.tail.columns), delta[self.owners].to(hidden.dtype), accumulate=True)
        logits = self.tail.logits(moved, self.keep)
        wide = torch.promote_types(logits.dtype, torch.float32)
        logp = logits[self.read_rows, self.keep - self.read_back].to(wide).log_softmax(-1)
        own = logp.gather(-1, self.read_tokens[:, None])[:, 0]
        nll = own.new_zeros(len(self.requests))
        nll = nll.index_add(0, self.owners[self.read_rows], -own * self.read_weights.to(wide))
        return nll, logits[self.kl, -1].to(wide).log_softmax(-1)


def _optimise(
    model: Any,
    anatomy: Anatomy,
    layer: int,
    requests: list[EditRequest],
    config: TargetValueConfig,
    tick: Callable[[int, int, int], None],
) -> TargetValues:
    problem = _Problem(model, anatomy, layer, requests)
    wide = torch.promote_types(problem.clean.dtype, torch.float32)
    clean = problem.clean.to(wide)
    limit = config.clamp * clean.norm(dim=1)
    delta = torch.zeros_like(clean)
    mean, square = torch.zeros_like(clean), torch.zeros_like(clean)  # Adam's moments, per request
    members = torch.arange(len(requests), device=clean.device)  # the requests that `problem` holds
    live = torch.ones_like(members, dtype=torch.bool)
    losses = torch.zeros(len(requests), dtype=wide, device=clean.device)
    nlls, steps = losses.clone(), torch.zeros_like(members)
    for step in range(config.steps):
        own = delta[members].requires_grad_()
        nll, logp = problem.parts(own)
        if step == 0:
            reference = logp.detach()  # δ is 0 in the first pass
        kl = (logp.exp() * (logp - reference[members])).sum(-1)  # KL(edited ‖ clean): the code's direction
        penalty = own.norm(dim=1) / clean[members].norm(dim=1).square()
        loss = nll + config.kl_weight * kl + config.norm_weight * penalty
        running = live[members]
        now = members[running]
        losses[now], nlls[now], steps[now] = loss.detach()[running], nll.detach()[running], step + 1
        tick(step + 1, config.steps, len(requests))
        running = running & (loss.detach() >= config.stop_loss)
        live[members] = running
        if step == config.steps - 1 or not running.any():
            break
        (gradient,) = torch.autograd.grad(loss[running].sum(), own)
        now = members[running]
        _adam(delta, mean, square, now, gradient[running], step + 1, config.learning_rate)
        norms = delta[now].norm(dim=1)
        shrink = torch.where(norms > limit[now], limit[now] / norms, torch.ones_like(norms))
        delta[now] = delta[now] * shrink[:, None]
        if len(now) <= 0.75 * len(members):  # enough are done to be worth a smaller batch
            members = now
            problem = _Problem(model, anatomy, layer, [requests[i] for i in now.tolist()])
    return TargetValues(clean + delta, clean, losses.tolist(), nlls.tolist(), steps.tolist())


def _adam(values: Tensor, mean: Tensor, square: Tensor, rows: Tensor, gradient: Tensor, step: int, rate: float) -> None:
    """One step of Adam (1412.6980, algorithm 1, its usual constants) on some rows, in place.

    torch.optim.Adam cannot skip rows, and a finished request must not move on its momentum.
    """
    mean[rows] = 0.9 * mean[rows] + 0.1 * gradient
    square[rows] = 0.999 * square[rows] + 0.001 * gradient.square()
    corrected = mean[rows] / (1 - 0.9**step)
    scale = (square[rows] / (1 - 0.999**step)).sqrt() + 1e-8
    values[rows] -= rate * corrected / scale
