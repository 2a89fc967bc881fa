r"""Target values v*: what block z should output at the look-up token so that the model says the target.

MEMIT's objective (2210.07229, equation 16; code kmeng01/memit@80426fd9), for one request with prompts x_j (the
plain one and its contexts), target t and subject prompt s, over δ ∈ ℝᵈ added to h at the look-up token:

    L(δ) = mean_j [ −(1/|t|) Σ_i ln p_δ(t_i | x_j, t_<i) ]
         + kl_weight · KL( p_δ(· | s) ‖ p_0(· | s) )
         + norm_weight · ‖δ‖ / ‖h₀‖²
    v* = h₀ + δ*,  ‖δ‖ ≤ clamp · ‖h₀‖,  h₀ the clean value at the plain prompt

h is the output of block z (MEMIT, EMMET, AlphaEdit) or, at the site `projection`, that of its MLP (ROME). A request
that stands for several (query merging by key) has one δ for all of them: the means run over its members'
prompts, ‖h₀‖ is the members' mean, and each member's v* is its own h₀ + δ*.

All requests are optimized at once: δ is an (N, d) tensor, Adam works element by element, and a request that has
reached `stop_loss` is frozen and leaves the batch, so the result is that of one loop per request.

Differs from the authors' code in that targets are ids throughout, that only the blocks above z are run, only
from the look-up token on, and that the head is applied to target positions only. None of these changes the
result beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from unlearn_eval.editing.adam_rows import AdamRows
from unlearn_eval.editing.locate_then_edit.windows import windows
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.models.anatomy import Anatomy
from unlearn_eval.models.out_of_memory import in_batches
from unlearn_eval.models.tracing import Tail
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.settings import Positive, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.models.memory import Phase

Site = Literal["block", "projection"]


@dataclass(frozen=True)
class TargetValueConfig:
    """How target values are optimized.

    Attributes:
        steps: forward passes at most; there is one update less.
        learning_rate: of Adam.
        kl_weight, norm_weight, clamp: the letters of the objective.
        stop_loss: a request whose loss is below this is done.
        tokens_per_batch: how many tokens (after the look-up tokens, all prompts) are optimized at once; 0 is 256 on a
            CPU, where more are no faster and take more memory, and 4096 on a GPU.
        stop_when_said: a request is also done when every token of its target is the most likely one in all its
            prompts (MPES, 2502.01636).
        bfloat16: compute the passes in bfloat16 (δ, its optimizer and the loss stay in float32).
    """

    steps: Size = 25
    learning_rate: Positive = 0.5
    kl_weight: float = 0.0625
    norm_weight: float = 0.5
    clamp: float = 0.75
    stop_loss: float = 0.05
    tokens_per_batch: int = 0
    stop_when_said: bool = False
    bfloat16: bool = False


@dataclass(frozen=True)
class TargetValues:
    """The outcome of the optimization.

    Attributes:
        values: v* of every member of every request, (M, d), float32 or wider; M = N if nothing is merged.
        clean: h₀, (M, d).
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
    model: PreTrainedModel,
    anatomy: Anatomy,
    layer: int,
    requests: Sequence[EditRequest],
    config: TargetValueConfig,
    progress: Progress = no_progress,
    site: Site = "block",
    window: int = 0,
) -> TargetValues:
    """v* of every request at the output of block `layer`, or of its MLP; the model is only read.

    With a window, a long target has several values: those of each request's `windows`, one after another. Its loss is
    then their mean, its steps are their sum.

    Raises:
        UserError: a loss is not finite (the request is named), or one request alone does not fit the memory.
    """
    parts: list[TargetValues] = []
    done = 0

    total = config.steps * max((len(windows(request, window)) for request in requests), default=1)

    def tick(before: int, step: int, n: int) -> None:
        progress("target values", done * total + (before + step) * n, len(requests) * total)

    with in_bfloat16(model, anatomy, layer, config.bfloat16):
        for batch in _batches(requests, _budget(config, model.device.type)):
            run = partial(_by_window, model, anatomy, layer, config=config, tick=tick, site=site, window=window)
            parts += in_batches(batch, run, len(batch), _alone)  # requests do not depend on each other
            done += len(batch)
    progress("target values", 1, 1)
    found = TargetValues(
        torch.cat([part.values for part in parts]),
        torch.cat([part.clean for part in parts]),
        [loss for part in parts for loss in part.losses],
        [nll for part in parts for nll in part.nlls],
        [steps for part in parts for steps in part.steps],
    )
    bad = next((r.id for r, loss in zip(requests, found.losses, strict=True) if not math.isfinite(loss)), None)
    if bad is not None or not torch.isfinite(found.values).all():
        raise UserError(
            f"the target value of request {bad} is not finite", "load the model in float32 or bfloat16 (--dtype)"
        )
    return found


def memory(
    model: PreTrainedModel,
    anatomy: Anatomy,
    layer: int,
    requests: Sequence[EditRequest],
    config: TargetValueConfig,
    device: str,
    site: Site = "block",
) -> Phase:
    """What the optimization has in memory, on a model without weights.

    Args:
        model, anatomy, layer, requests, config, site: as for `target_values`.
        device: its kind, by which batches are larger.
    """
    return _phase(model, anatomy, layer, tuple(requests), config, device, site)


@lru_cache(maxsize=8)  # the same for every method that optimizes target values there
def _phase(
    model: PreTrainedModel,
    anatomy: Anatomy,
    layer: int,
    requests: tuple[EditRequest, ...],
    config: TargetValueConfig,
    device: str,
    site: Site,
) -> Phase:
    from unlearn_eval.models.memory import Phase, counting

    batch = next(_batches(requests, _budget(config, device)))
    with counting(model) as counted, in_bfloat16(model, anatomy, layer, config.bfloat16):
        problem = Problem(model, anatomy, layer, batch, site, config.bfloat16)
        clean = problem.clean.to(torch.promote_types(problem.clean.dtype, torch.float32))
        delta, reference = clean.new_zeros(len(batch), clean.shape[1]), None
        for _ in range(2):  # in the second step the first one's results are still there
            own = delta.clone().requires_grad_()
            nll, logp, _ = problem.parts(own)
            reference = logp.detach() if reference is None else reference
            loss = objective(problem, own, nll, logp, reference, problem.mean(clean.norm(dim=1)), config)
            torch.autograd.grad(loss.sum(), own)
    return Phase("target values", counted.peak)


def _budget(config: TargetValueConfig, device: str) -> int:
    return config.tokens_per_batch or (256 if device == "cpu" else 4096)


def objective(
    problem: Problem,
    delta: Tensor,
    nll: Tensor,
    logp: Tensor,
    reference: Tensor,
    clean_norm: Tensor,
    config: TargetValueConfig,
) -> Tensor:
    """L of each request, (n,)."""
    kl = problem.mean((logp.exp() * (logp - reference)).sum(-1))  # KL(edited ‖ clean): the code's direction
    penalty: Tensor = delta.norm(dim=1) / clean_norm.square()
    return nll + config.kl_weight * kl + config.norm_weight * penalty


def _alone(request: EditRequest) -> UserError:
    return UserError(
        f"the device's memory is too small to optimize request {request.id} alone",
        "use fewer --contexts, --dtype bfloat16, or a larger device",
    )


def _batches(requests: Sequence[EditRequest], budget: int) -> Iterator[list[EditRequest]]:
    batch: list[EditRequest] = []
    used = 0
    for request in requests:
        cost = sum(len(ids) - lookup + len(part.target_ids) for part in request.parts for ids, lookup in part.rows)
        if batch and used + cost > budget:
            yield batch
            batch, used = [], 0
        batch.append(request)
        used += cost
    if batch:
        yield batch


@dataclass(frozen=True)
class _Held:
    """What an earlier window has changed: of each row, where (R,) and by how much (R, d)."""

    lookups: Tensor
    changes: Tensor

    @classmethod
    def of(cls, parts: Sequence[_Held]) -> _Held:
        """Those of several requests, one after another."""
        return cls(torch.cat([own.lookups for own in parts]), torch.cat([own.changes for own in parts]))


class Problem:
    """The rows of some requests and their objective; `select` makes it smaller as requests finish.

    Prompts with targets are one batch. The subject prompts of the KL term are another, of one position each; a member
    without subject needs none, since its plain prompt up to the look-up token is the same text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy,
        layer: int,
        requests: Sequence[EditRequest],
        site: Site,
        bfloat16: bool,
        tails: tuple[Tail, Tail | None] | None = None,
        earlier: Sequence[_Held] = (),
    ) -> None:
        self.requests, self.bfloat16 = requests, bfloat16
        self.model, self.anatomy, self.layer, self.site = model, anatomy, layer, site
        rows: list[tuple[int, ...]] = []
        lookups: list[int] = []
        owners: list[int] = []
        plain: list[int] = []  # row of each member's plain prompt
        members: list[int] = []  # owner of each member
        read: list[tuple[int, int, int, float]] = []  # row, position from the end, token, weight
        subjects: list[tuple[int, ...]] = []
        subject_owners: list[int] = []
        kl: list[tuple[int, int]] = []  # row and position from the end, for members without subject
        order: list[tuple[bool, int]] = []  # of each member: has it a subject, and its number among those
        for i, request in enumerate(requests):
            for part in request.parts:
                if part.subject_ids:
                    order.append((True, len(subjects)))
                    subjects.append(part.subject_ids)
                    subject_owners.append(i)
                else:
                    order.append((False, len(kl)))
                    kl.append((len(rows), len(part.prompt_ids) + len(part.target_ids) - 1 - part.lookup))
                plain.append(len(rows))
                members.append(i)
                target = part.target_ids
                for ids, lookup in part.rows:
                    for j, token in enumerate(target):
                        weight = 1 / (len(target) * len(part.rows) * len(request.parts))
                        read.append((len(rows), len(target) - j, token, weight))
                    rows.append((*ids, *target[:-1]))
                    lookups.append(lookup)
                    owners.append(i)
        device = model.device
        if tails is None:
            also = anatomy.projection_name(layer) if site == "projection" else None
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                ends = [len(row) - 1 for row in subjects]
                tails = (
                    Tail(model, anatomy, layer, rows, lookups, also, earlier[0].lookups.tolist() if earlier else None),
                    Tail(model, anatomy, layer, subjects, ends, also) if subjects else None,
                )
            at = torch.tensor(lookups, device=device)
            for held in earlier:
                places = (torch.arange(len(rows), device=device), tails[0].columns - at + held.lookups)
                tails[0].hidden = tails[0].hidden.index_put(places, held.changes, accumulate=True)
        self.tail, self.subject_tail = tails
        self.lookups = torch.tensor(lookups, device=device)
        self.norm = anatomy.post_norm(model, layer) if site == "projection" else None
        self.owners = torch.tensor(owners, device=device)
        self.subject_owners = torch.tensor(subject_owners, dtype=torch.long, device=device)
        read_rows, read_back, read_tokens, read_weights = zip(*read, strict=True)
        self.head_rows = torch.tensor([*read_rows, *(row for row, _ in kl)], device=device)  # where the head is applied
        self.head_back = torch.tensor([*read_back, *(back for _, back in kl)], device=device)
        self.read_tokens = torch.tensor(read_tokens, device=device)
        self.read_owners = self.owners[torch.tensor(read_rows, device=device)]
        self.read_weights = torch.tensor(read_weights, dtype=torch.float64, device=device)
        self.order = torch.tensor([len(kl) * has + number for has, number in order], device=device)
        self.members = torch.tensor(members, device=device)
        self.shares = 1 / torch.tensor([len(r.parts) for r in requests], dtype=torch.float64, device=device)
        self.clean = self.tail.at_lookup()[plain]  # h₀ of every member

    def select(self, kept: Tensor) -> Problem:
        """The same problem for some of the requests only (kept: (n,) booleans); nothing is computed again."""
        subjects = self.subject_tail
        tails = (
            self.tail.select(kept[self.owners].nonzero()[:, 0]),
            subjects.select(kept[self.subject_owners].nonzero()[:, 0])
            if subjects and kept[self.subject_owners].any()
            else None,
        )
        left = [self.requests[i] for i in kept.nonzero()[:, 0].tolist()]
        return Problem(self.model, self.anatomy, self.layer, left, self.site, self.bfloat16, tails)

    def mean(self, of_members: Tensor) -> Tensor:
        """The mean over each request's members of something (M, ...)."""
        total = of_members.new_zeros(len(self.requests), *of_members.shape[1:]).index_add(0, self.members, of_members)
        return total * self.shares.to(total).view(-1, *[1] * (total.ndim - 1))

    def parts(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(target nll, ln p at the subject prompts, is the whole target the most likely): (n,), (M, V), (n,)."""
        logp = self._logp(self.tail, delta[self.owners], self.head_rows, self.head_back)
        logp, kl = logp[: len(self.read_tokens)], logp[len(self.read_tokens) :]
        if self.subject_tail is not None:
            rows = torch.arange(len(self.subject_owners), device=delta.device)
            own = self._logp(self.subject_tail, delta[self.subject_owners], rows, torch.ones_like(rows))
            kl = torch.cat([kl, own])
        own = logp.gather(-1, self.read_tokens[:, None])[:, 0]
        nll = own.new_zeros(len(self.requests))
        nll = nll.index_add(0, self.read_owners, -own * self.read_weights.to(own))
        misses = own.new_zeros(len(self.requests))
        misses = misses.index_add(0, self.read_owners, (own.detach() < logp.detach().amax(-1)).to(own))
        return nll, kl[self.order], misses == 0

    def at_block(self, tail: Tail, change: Tensor) -> Tensor:
        """(R, d) by which the block's output changes at the look-up tokens where the site's changes by `change`."""
        change = change.to(tail.hidden.dtype)
        if self.norm is None:
            return change
        clean = tail.at_lookup()  # of the MLP: the residual stream changes by what its norm makes of that
        moved: Tensor = self.norm(clean + change) - self.norm(clean)
        return moved

    def _logp(self, tail: Tail, change: Tensor, rows: Tensor, back: Tensor) -> Tensor:
        """Log-probabilities (n, V) at some places of a batch whose look-up tokens' values change by `change` (R, d)."""
        change = self.at_block(tail, change)
        places = (torch.arange(len(change), device=change.device), tail.columns)
        moved = tail.hidden.index_put(places, change, accumulate=True)
        with torch.autocast(moved.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = tail.logits(moved, rows, back)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@contextmanager
def in_bfloat16(model: PreTrainedModel, anatomy: Anatomy, layer: int, enabled: bool) -> Iterator[None]:
    """The head and the matrices above block `layer` in bfloat16, so that autocast need not convert them in every pass.

    The head gets a weight of its own: the embeddings, which may share it, stay as they are.
    """
    head = model.get_output_embeddings()
    modules = [module for i in range(layer + 1, anatomy.n_layers) for module in anatomy.block(model, i).modules()]
    found = [
        (module, name, weight)
        for module in [*modules, head]
        for name, weight in module.named_parameters(recurse=False)
        if enabled and weight.ndim == 2 and weight.dtype == torch.float32
    ]
    try:
        for module, name, weight in found:
            setattr(module, name, nn.Parameter(weight.data.bfloat16(), requires_grad=False))
        yield
    finally:
        for module, name, weight in found:
            setattr(module, name, weight)


def _by_window(
    model: PreTrainedModel,
    anatomy: Anatomy,
    layer: int,
    requests: Sequence[EditRequest],
    config: TargetValueConfig,
    tick: Callable[[int, int, int], None],
    site: Site,
    window: int,
) -> TargetValues:
    """The values of all requests' first windows, then of their second ones on top of those, and so on."""
    cut = [windows(request, window) for request in requests]
    held: list[list[_Held]] = [[] for _ in requests]
    found: list[list[TargetValues]] = [[] for _ in requests]
    for i in range(max(map(len, cut))):
        left = [r for r, own in enumerate(cut) if len(own) > i]
        batch = [cut[r][i] for r in left]
        earlier = [_Held.of([held[r][j] for r in left]) for j in range(i)]
        # A window that does not begin at a subject has no text beside the target that should go on as before.
        own = config if not i else replace(config, kl_weight=0.0)
        values, changed = _optimise(model, anatomy, layer, batch, own, partial(tick, i * config.steps), site, earlier)
        n_members, n_rows = 0, 0
        for k, (r, request) in enumerate(zip(left, batch, strict=True)):
            members = slice(n_members, n_members := n_members + len(request.parts))
            rows = slice(n_rows, n_rows := n_rows + sum(len(part.rows) for part in request.parts))
            held[r].append(_Held(changed.lookups[rows], changed.changes[rows]))
            one = [values.losses[k]], [values.nlls[k]], [values.steps[k]]
            found[r].append(TargetValues(values.values[members], values.clean[members], *one))
    return TargetValues(
        torch.cat([values.values for own in found for values in own]),
        torch.cat([values.clean for own in found for values in own]),
        [sum(values.losses[0] for values in own) / len(own) for own in found],
        [sum(values.nlls[0] for values in own) / len(own) for own in found],
        [sum(values.steps[0] for values in own) for own in found],
    )


def _optimise(
    model: PreTrainedModel,
    anatomy: Anatomy,
    layer: int,
    requests: Sequence[EditRequest],
    config: TargetValueConfig,
    tick: Callable[[int, int], None],
    site: Site,
    earlier: Sequence[_Held] = (),
) -> tuple[TargetValues, _Held]:
    problem = whole = Problem(model, anatomy, layer, requests, site, config.bfloat16, earlier=earlier)
    wide = torch.promote_types(problem.clean.dtype, torch.float32)
    clean, owners = problem.clean.to(wide), problem.members
    clean_norm = problem.mean(clean.norm(dim=1))
    limit = config.clamp * clean_norm
    delta = clean.new_zeros(len(requests), clean.shape[1])
    adam = AdamRows(delta, config.learning_rate)
    members = torch.arange(len(requests), device=clean.device)  # the requests that `problem` holds
    live = torch.ones_like(members, dtype=torch.bool)
    losses = torch.zeros(len(requests), dtype=wide, device=clean.device)
    nlls, steps = losses.clone(), torch.zeros_like(members)
    for step in range(config.steps):
        own = delta[members].requires_grad_()
        nll, logp, said = problem.parts(own)
        if step == 0:
            reference = logp.detach()  # δ is 0 in the first pass
        loss = objective(problem, own, nll, logp, reference, clean_norm[members], config)
        running = live[members]
        now = members[running]
        losses[now], nlls[now], steps[now] = loss.detach()[running], nll.detach()[running], step + 1
        tick(step + 1, len(requests))
        running = running & (loss.detach() >= config.stop_loss)
        if config.stop_when_said:
            running = running & ~said
        live[members] = running
        if step == config.steps - 1 or not running.any():
            break
        (gradient,) = torch.autograd.grad(loss[running].sum(), own)
        now = members[running]
        adam.step(gradient[running], now)
        norms = delta[now].norm(dim=1)
        shrink = torch.where(norms > limit[now], limit[now] / norms, torch.ones_like(norms))
        delta[now] = delta[now] * shrink[:, None]
        if len(now) <= 0.75 * len(members):  # enough are done to be worth a smaller batch
            reference = reference[running[problem.members]]
            members = now
            problem = problem.select(running)
    with torch.no_grad():
        changed = _Held(whole.lookups, whole.at_block(whole.tail, delta[whole.owners]))
    return TargetValues(clean + delta[owners], clean, losses.tolist(), nlls.tolist(), steps.tolist()), changed
