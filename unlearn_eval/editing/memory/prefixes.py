"""Training through a frozen model: losses of targets under continuous vectors in the prompt, and plain soft prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearn_eval.editing.adam_rows import AdamRows
from unlearn_eval.models.arguments import accepts
from unlearn_eval.models.out_of_memory import in_batches
from unlearn_eval.models.scoring import pad, positions
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.progress import Progress, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Row:
    """A prompt with a prefix in it, and what should follow.

    Attributes:
        prompt: token ids.
        place: the number of the prompt's tokens before the prefix.
        target: token ids.
        owner: the number of the prefix.
    """

    prompt: tuple[int, ...]
    place: int
    target: tuple[int, ...]
    owner: int


def prefixed_logits(model: PreTrainedModel, rows: Sequence[Row], vectors: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the model says at each row's target, in float32, with gradients to the vectors.

    Args:
        model: a causal language model in eval mode.
        rows: the prompts.
        vectors: (R, L, d) each row's prefix; None for the model without.

    Returns:
        (R, T, V) logits that predict the targets, right-aligned, T the longest; (R, T) those tokens, -1 to their left.
    """
    n = 0 if vectors is None else vectors.shape[1]
    filled = [(*r.prompt[: r.place], *[0] * n, *r.prompt[r.place :], *r.target[:-1]) for r in rows]
    ids, mask = pad(filled, "left", model.device)
    longest = max(len(row.target) for row in rows)
    labels, _ = pad([row.target for row in rows], "left", model.device, filler=-1)
    embedded = model.get_input_embeddings()(ids).detach()
    if vectors is not None:
        first = torch.tensor([ids.shape[1] - len(own) + row.place for own, row in zip(filled, rows, strict=True)])
        columns = (first[:, None] + torch.arange(n)).to(model.device)
        lines = torch.arange(len(rows), device=model.device)[:, None].expand_as(columns)
        embedded = embedded.index_put((lines, columns), vectors.to(embedded))
    options: dict[str, Any] = {"logits_to_keep": longest} if accepts(model, "logits_to_keep") else {}
    options |= positions(model, mask, last=ids.shape[1])
    logits = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False, **options).logits[:, -longest:]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), labels


def target_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) each row's mean −ln p of its target, and whether all of it is most likely; as `prefixed_logits` returns."""
    real = labels >= 0
    logp = logits.log_softmax(-1)
    own = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    missed = (own.detach() < logp.detach().amax(-1)) & real
    return -(own * real).sum(-1) / real.sum(-1), ~missed.any(-1)


def embedding_size(model: PreTrainedModel, ids: Sequence[int]) -> float:
    """The root mean square of the numbers in some tokens' embeddings."""
    with torch.no_grad():
        found = model.get_input_embeddings()(torch.tensor(list(ids), device=model.device))
    return float(found.float().square().mean().sqrt())


@dataclass(frozen=True)
class Trained:
    """Prefixes after their training.

    Attributes:
        prompts: (M, L, d), in float32.
        target_nll: each one's mean −ln p of a target's token, over its rows.
        said: whether all its targets are the most likely answers.
        steps: forward passes over its rows.
    """

    prompts: Tensor
    target_nll: list[float]
    said: list[bool]
    steps: list[int]


def optimise(
    model: PreTrainedModel,
    groups: Sequence[Sequence[Row]],
    initial: Tensor,
    steps: int,
    learning_rate: float,
    stop_loss: float,
    tokens_per_batch: int,
    progress: Progress = no_progress,
) -> Trained:
    """Prefixes under which the model says the targets of each one's rows; the model is as before.

    Args:
        model: a causal language model in eval mode.
        groups: the rows of each prefix; their owner is the group's number.
        initial: (M, L, d) what each starts from.
        steps: forward passes at most; there is one update less.
        learning_rate: of Adam, in units of each prefix's root mean square at the start.
        stop_loss: a prefix is done when its targets are the most likely answers and its loss is below this.
        tokens_per_batch: tokens in one pass.
        progress: told of the steps.

    Raises:
        UserError: a loss is not finite, or one row does not fit the memory.
    """
    found = initial.to(torch.float32).clone()
    n, running = len(found), set(range(len(found)))
    adam = AdamRows(found, learning_rate * found.square().mean((1, 2)).sqrt())
    nlls, said, taken = [0.0] * n, [False] * n, [0] * n
    for step in range(steps):
        rows = sorted((row for i in running for row in groups[i]), key=lambda row: -_cost(row, found.shape[1]))
        gradient = torch.zeros_like(found)
        losses: dict[int, list[float]] = {i: [] for i in running}
        right: dict[int, bool] = dict.fromkeys(running, True)

        def run(batch: Sequence[Row]) -> list[tuple[int, float, bool, Tensor]]:
            owners = torch.tensor([row.owner for row in batch], device=found.device)
            own = found[owners].requires_grad_()
            nll, hit = target_losses(*prefixed_logits(model, batch, own))
            (slope,) = torch.autograd.grad(nll.sum(), own)
            return list(zip(owners.tolist(), nll.tolist(), hit.tolist(), slope, strict=True))

        for batch in in_batches(rows, run, tokens_per_batch, _refused, lambda row: _cost(row, found.shape[1])):
            for i, loss, hit, slope in batch:
                losses[i].append(loss)
                right[i] &= hit
                gradient[i] += slope / len(groups[i])
        for i in sorted(running):
            nlls[i], said[i], taken[i] = sum(losses[i]) / len(losses[i]), right[i], step + 1
            running -= {i} if right[i] and nlls[i] < stop_loss else set()
        progress("prefixes", step + 1, steps)
        if step == steps - 1 or not running:
            break
        open_ = torch.tensor(sorted(running), device=found.device)
        adam.step(gradient[open_], open_)
    bad = [nll for nll in nlls if not nll < float("inf")]
    if bad:
        raise UserError(
            f"{len(bad)} of {n} prefixes have losses that are not finite",
            "load the model in float32 or bfloat16 (--dtype), or set a lower learning_rate",
        )
    progress("prefixes", 1, 1)
    return Trained(found.cpu(), nlls, said, taken)


def _cost(row: Row, n: int) -> int:
    return len(row.prompt) + n + len(row.target)


def _refused(row: Row) -> UserError:
    return UserError(
        f"one prompt of {len(row.prompt)} tokens does not fit the memory",
        "use a smaller type (--dtype bfloat16), a larger device, or shorter questions",
    )
