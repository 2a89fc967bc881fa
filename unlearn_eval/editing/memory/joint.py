"""Requests that are optimized together through one change of a projection, until each one's target is said.

WISE's side memories and MEMOIR's residual memory are trained so; they differ in what the change does to the output
(`terms`), and in what else a request must be for it to be done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearn_eval.editing.adam_rows import AdamRows
from unlearn_eval.editing.memory.replacements import Replacements, Row, rows_of
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.edits.memory.store import POSITIONS
from unlearn_eval.models.anatomy import Anatomy
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


CHECK_EVERY = 5  # rounds; a check costs about a third of a round


@dataclass(frozen=True)
class Schedule:
    """How the change is optimized.

    Attributes:
        rate: of Adam; `one_by_one`: of gradient descent.
        steps: rounds over the requests at most; `one_by_one`: steps for each request.
        batch: requests per step.
        contexts: how many of a request's contexts are in each step.
        stop_loss: a request is done when its target is the most likely answer, its loss is below this, and whatever
            else the method asks for holds.
        one_by_one: whether each request is optimized alone, after the ones before it.
        limit: how far a number may move.
        clip: the largest norm of a gradient; None leaves it as it is.
        focus: Divide a target's loss by its tokens that are not yet the most likely, in place of by all. One token of
            twenty has a twentieth of the mean, so a long refusal never begins where something else pulls at its start.
    """

    rate: float
    steps: int
    batch: int
    contexts: int
    stop_loss: float
    one_by_one: bool = False
    limit: float = math.inf
    clip: float | None = None
    focus: bool = False


def schedule_of(
    config: Any, weight: Tensor, limit: float = math.inf, clip: float | None = None, focus: bool = False
) -> Schedule:
    """The schedule of an editor's settings; rates are in units of the weight's root mean square if `relative`."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    unit = float(weight.to(wide).square().mean().sqrt()) if config.relative else 1.0
    return Schedule(
        config.learning_rate * unit,
        config.steps,
        config.batch,
        config.contexts,
        config.stop_loss,
        config.one_by_one,
        limit,
        clip,
        focus,
    )


class Joint:
    """The optimization of one change.

    Args:
        model, parts, layer: where.
        requests: what should be said.
        schedule: how.
        positions: where the change stands, a name of `POSITIONS`.
        delta: what is optimized, in place; zeros to start from.
        random: the generator of batches and contexts.
        name: of the method, for errors and progress.

    Attributes:
        rows: of all requests: (prompt ids, target ids).
        parts: of each row, which part (a request, or one of those it stands for) it belongs to, counted over all.
        problem, columns: the rows to be run again and again, and where the change stands in them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parts: Anatomy,
        layer: int,
        requests: Sequence[EditRequest],
        schedule: Schedule,
        positions: str,
        delta: Tensor,
        random: torch.Generator,
        name: str,
    ) -> None:
        self.requests, self.schedule, self.delta, self.random, self.name = list(requests), schedule, delta, random, name
        self.rows: list[Row] = []
        self.parts: list[int] = []
        self.plain: list[list[int]] = []  # rows of each request's plain prompts, and of its contexts
        self.more: list[list[int]] = []
        n_parts = 0
        for request in requests:
            first = rows_of(request, contexts=False)
            self.plain.append(self._add(first, range(n_parts, n_parts + len(first))))
            contexts: list[Row] = []
            owners: list[int] = []
            for p, part in enumerate(request.parts if schedule.contexts else ()):
                own = [row for row in rows_of(part, contexts=True) if row not in first]
                contexts += [(prompt, request.target_ids) for prompt, _ in own]
                owners += [n_parts + p] * len(own)
            self.more.append(self._add(contexts, owners))
            n_parts += len(request.parts)
        where = POSITIONS[positions]
        self.problem = Replacements(model, parts, layer, self.rows, whole=where.before)
        self.columns = self.problem.columns(where.before, where.after)
        self.nll = [math.inf] * len(self.requests)
        self.said = [False] * len(self.requests)
        self.steps = [0] * len(self.requests)
        self._done: dict[int, bool] = {}
        self._best: tuple[Any, ...] = ()
        self._adam = AdamRows(delta, schedule.rate, epsilon=1e-12)

    def _add(self, rows: Sequence[Row], parts: Sequence[int]) -> list[int]:
        start = len(self.rows)
        self.rows += rows
        self.parts += parts
        return list(range(start, len(self.rows)))

    def terms(self, delta: Tensor, problem: Replacements, rows: list[int]) -> tuple[Tensor, Tensor | None, Tensor]:
        """What the change makes of some rows.

        Args:
            delta: the change as it is, with a gradient if one is wanted.
            problem: that of the rows alone.
            rows: their numbers.

        Returns:
            What is to be added to the projection's output (R, S, d_out); a further loss, or None; and (R,) whether a
            row is as the method wants it, besides saying its target.
        """
        raise NotImplementedError

    @property
    def notes(self) -> dict[str, list[Any]]:
        """How it went, for each request."""
        return {"target_nll": self.nll, "said": self.said, "steps": self.steps}

    def optimise(self, progress: Progress) -> Tensor:
        """The change after which every request is done, or all steps are."""
        everyone, plan = list(range(len(self.requests))), self.schedule
        if plan.one_by_one:
            for i in everyone:
                last = math.inf
                for step in range(plan.steps):
                    loss = self._step([i], update=step < plan.steps - 1)
                    progress(self.name, i * plan.steps + step + 1, len(everyone) * plan.steps)
                    if abs(last - loss) <= 1e-4 and loss <= plan.stop_loss:
                        break
                    last = loss
            self._check(everyone)
            return self.delta
        left = everyone
        for round_ in range(plan.steps):
            order = [left[i] for i in torch.randperm(len(left), generator=self.random).tolist()]
            failed: list[int] = []
            for start in range(0, len(order), plan.batch):
                part = order[start : start + plan.batch]
                self._step(part)
                failed += [i for i in part if not self._done[i]]
            progress(self.name, round_ + 1, plan.steps)
            # What was done may be undone by the steps of the rest, so a request is left out for a few rounds only.
            left = failed if failed and (round_ + 1) % CHECK_EVERY else self._check_all()
            if not left:
                break
        self._check_all()
        if not torch.equal(self.delta, self._best[1]):  # the last steps may have undone what was said before
            self.delta.copy_(self._best[1])
            self._check(everyone)
        return self.delta

    def _check_all(self) -> list[int]:
        """The requests that are not done; the change by which most are done, then said, is remembered.

        Done comes first: a memory that says every target may be awake at every other prompt as well.
        """
        left = self._check(list(range(len(self.requests))))
        score = (-len(left), sum(self.said), -sum(self.nll))
        if not self._best or score > self._best[0]:
            self._best = (score, self.delta.clone())
        return left

    def loss(self, delta: Tensor, requests: list[int], contexts: bool) -> tuple[Tensor, dict[int, Any]]:
        """The loss of some requests, and of each one: its own loss, whether it is said, and whether it is done."""
        rows, owners = [], []
        for j, i in enumerate(requests):
            own = list(self.plain[i])
            if contexts and self.more[i]:
                picks = torch.randperm(len(self.more[i]), generator=self.random)[: self.schedule.contexts].tolist()
                own += [self.more[i][p] for p in picks]
            rows += own
            owners += [j] * len(own)
        problem, columns = self.problem.select(rows), self.columns[rows]
        change, extra, fits = self.terms(delta, problem, rows)
        nll, missed = problem.losses(problem.outputs + columns[..., None] * change)
        index = torch.tensor(owners, device=nll.device)
        shares = (1 / torch.bincount(index).to(nll))[index]
        if self.schedule.focus:
            lengths = nll.new_tensor([len(self.rows[row][1]) for row in rows])
            shares = shares * torch.where(missed > 0, lengths / missed.clamp(min=1), 1.0)
        loss = (nll * shares).sum() / len(requests)
        told = {}
        for j, i in enumerate(requests):
            own_rows = [r for r, owner in enumerate(owners) if owner == j]
            mean = float(nll[own_rows].detach().mean())
            said = not bool(missed[own_rows].any())
            told[i] = (mean, said, said and mean < self.schedule.stop_loss and bool(fits[own_rows].all()))
        return loss if extra is None else loss + extra, told

    def _step(self, requests: list[int], update: bool = True) -> float:
        own = self.delta.clone().requires_grad_()
        loss, told = self.loss(own, requests, contexts=True)
        if not torch.isfinite(loss):
            raise UserError(f"the loss of {self.name} is not finite", "load the model in float32 or bfloat16 (--dtype)")
        self._tell(told, step=True)
        if update:
            (gradient,) = torch.autograd.grad(loss, own)
            self._move(gradient)
        return float(loss.detach())

    def one_step(self) -> None:
        """The first step, whatever its numbers: what it has in memory is what every step has."""
        own = self.delta.clone().requires_grad_()
        n = 1 if self.schedule.one_by_one else min(self.schedule.batch, len(self.requests))
        loss, _ = self.loss(own, list(range(n)), contexts=True)
        self._move(torch.autograd.grad(loss, own)[0])

    def _move(self, gradient: Tensor) -> None:
        clip = self.schedule.clip
        if clip is not None:
            gradient = gradient * (clip / gradient.norm().clamp(min=clip))
        if self.schedule.one_by_one:
            self.delta -= self.schedule.rate * gradient
        else:
            self._adam.step(gradient)
        self.delta.clamp_(-self.schedule.limit, self.schedule.limit)

    @torch.no_grad()
    def _check(self, requests: list[int]) -> list[int]:
        """The requests that are not done, asked on the change as it is."""
        for start in range(0, len(requests), self.schedule.batch):
            self._tell(self.loss(self.delta, requests[start : start + self.schedule.batch], contexts=False)[1])
        return [i for i in requests if not self._done[i]]

    def _tell(self, told: dict[int, Any], step: bool = False) -> None:
        for i, (nll, said, done) in told.items():
            self.nll[i], self.said[i], self._done[i] = nll, said, done
            self.steps[i] += int(step)
