"""What units give in a forward pass, clean or corrupted, and what the model thinks of the answer when one is restored.

Rows are padded on the left, so that places counted from the end mean the same in every pass. What stands before a
subject is the same in a clean and in a corrupted pass; S is the number of positions from there on, of the fact that
has most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn_eval.localization.base import Fact, Run
from unlearn_eval.localization.sites import ATTENTION, Sites, Unit
from unlearn_eval.models.arguments import accepts
from unlearn_eval.models.out_of_memory import in_batches
from unlearn_eval.models.scoring import pad, positions
from unlearn_eval.models.tracing import Tail, in_rows, trace
from unlearn_eval.utils.errors import UserError, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METRICS = ("logit_difference", "probability")


@dataclass(frozen=True)
class Activations:
    """What one pass gave; R rows of W positions.

    Attributes:
        blocks: of each layer the block's output, (R, W, d).
        mlp, attention: of each layer what its output projection gave, (R, W, d).
        heads: of each layer what its attention output projection was given, (R, W, heads · d_head).
        logits: at the last position, (R, V).
    """

    blocks: list[Tensor]
    mlp: list[Tensor]
    attention: list[Tensor]
    heads: list[Tensor]
    logits: Tensor

    def output(self, unit: Unit) -> Tensor:
        """What a unit gave, (R, W, d)."""
        return (self.attention if unit.kind == ATTENTION else self.mlp)[unit.layer]


def activations(
    model: PreTrainedModel,
    sites: Sites,
    rows: Sequence[Sequence[int]],
    noise: Tensor | None = None,
    differentiable: bool = False,
) -> Activations:
    """What units give on some rows.

    Args:
        model: in eval mode.
        sites: of it.
        rows: token ids.
        noise: (R, S, d), added to the embeddings of the last S positions.
        differentiable: whether the metric's gradient by any of it will be asked for.
    """
    ids, mask = pad(rows, "left", model.device)
    blocks = [f"{sites.parts.blocks}.{layer}" for layer in range(sites.parts.n_layers)]
    options = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    with (
        torch.set_grad_enabled(differentiable),
        embeddings_with(model, noise, differentiable),
        trace(model, inputs=sites.attention, outputs=[*blocks, *sites.mlp, *sites.attention]) as seen,
        ExitStack() as stack,
    ):
        for name in (*sites.mlp, *sites.attention):  # some models (Falcon) add to an MLP's output in place
            copied = model.get_submodule(name).register_forward_hook(lambda module, given, output: output.clone())
            stack.callback(copied.remove)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **positions(model, mask), **options).logits[
            :, -1
        ]
    return Activations(
        [seen.outputs[name] for name in blocks],
        [seen.outputs[name] for name in sites.mlp],
        [seen.outputs[name] for name in sites.attention],
        [seen.inputs[name] for name in sites.attention],
        logits,
    )


@contextmanager
def embeddings_with(model: PreTrainedModel, noise: Tensor | None, differentiable: bool = False) -> Iterator[None]:
    """Within the block the embeddings of the last S positions are as if `noise` (R, S, d) were added to them."""

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        if noise is not None:
            output = torch.cat([output[:, : -noise.shape[1]], output[:, -noise.shape[1] :] + noise.to(output)], dim=1)
        return output.requires_grad_() if differentiable else output

    handle = model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def width(facts: Sequence[Fact]) -> int:
    """S."""
    return max(len(fact.prompt_ids) - fact.subject[0] for fact in facts)


def own_columns(fact: Fact, kept: int) -> range:
    """Which of the last `kept` positions are a fact's, from its subject's first token on."""
    return range(kept - (len(fact.prompt_ids) - fact.subject[0]), kept)


def answer_metric(logits: Tensor, facts: Sequence[Fact], metric: str) -> Tensor:
    """(n,): how much more the true answer is expected than the wrong one, from logits (n, V), in at least float32.

    `logit_difference` is z_true − z_false, `probability` that of the true answer.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    index = torch.arange(len(facts), device=logits.device)
    true = torch.tensor([fact.true_id for fact in facts], device=logits.device)
    if metric == "probability":
        return logits.softmax(-1)[index, true]
    false = torch.tensor([fact.false_id for fact in facts], device=logits.device)
    return logits[index, true] - logits[index, false]


def tail_metric(tail: Tail, hidden: Tensor, facts: Sequence[Fact], metric: str) -> Tensor:
    """(n,): the metric at the ends of a tail's rows, one for each fact, when its block gives `hidden` (n, S, d).

    For a difference of two logits the head computes only these.
    """
    index = torch.arange(len(facts), device=hidden.device)
    ends = torch.ones_like(index)
    if metric != "logit_difference":
        return answer_metric(tail.logits(hidden, index, ends), facts, metric)
    pairs = torch.tensor([(fact.true_id, fact.false_id) for fact in facts], device=hidden.device)
    logits = tail.logits(hidden, index, ends, pairs)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits[:, 0] - logits[:, 1]


# Corruption by noise ---------------------------------------------------------------------------------------


@torch.no_grad()
def embedding_spread(model: PreTrainedModel, facts: Sequence[Fact]) -> float:
    """The standard deviation of all numbers in the embeddings of the facts' subjects (2202.05262, appendix B.1)."""
    ids = [token for fact in facts for token in fact.prompt_ids[slice(*fact.subject)]]
    embedded = model.get_input_embeddings()(torch.tensor([ids], device=model.device))
    return float(embedded.float().std())


def subject_noise(run: Run, facts: Sequence[Fact], offset: int, samples: int, scale: float) -> Tensor:
    """Normal noise (n · samples, S, d) on the subjects' tokens, 0 elsewhere: all samples of a fact, then the next fact.

    Args:
        run: its seed.
        facts: n of them.
        offset: the place of the first among all: a fact's noise does not depend on its batch.
        samples: per fact.
        scale: standard deviation.
    """
    kept, d = width(facts), run.sites.parts.d_model
    noise = torch.zeros(len(facts) * samples, kept, d)
    for i, fact in enumerate(facts):
        n = fact.subject[1] - fact.subject[0]
        start = own_columns(fact, kept).start
        generator = run.generator(offset + i)
        noise[i * samples : (i + 1) * samples, start : start + n] = scale * torch.randn(
            samples, n, d, generator=generator
        )
    return noise.to(run.model.device)


# Restoring -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corrupted:
    """A batch of facts, each corrupted a few times: what a unit of a corrupted row can be made to give again.

    Attributes:
        model, sites: the model, in eval mode.
        facts: of each of R rows its fact.
        own: (R,) the place of that fact among those of `tail` and `clean`.
        tail: above block 0, of each fact uncorrupted, from its subject on.
        clean, corrupt: what the facts gave, and the corrupted rows.
        noise: (R, S, d), as in `activations`.
        metric: as in `answer_metric`.
    """

    model: Any
    sites: Sites
    facts: Sequence[Fact]
    own: Tensor
    tail: Tail
    clean: Activations
    corrupt: Activations
    noise: Tensor
    metric: str

    @classmethod
    def of(cls, run: Run, facts: Sequence[Fact], noise: Tensor, samples: int, metric: str) -> Corrupted:
        """The facts, each as often as it has samples of noise."""
        rows, n = [fact.prompt_ids for fact in facts], range(samples)
        tail = Tail(run.model, run.sites.parts, 0, rows, [fact.subject[0] for fact in facts])
        clean = activations(run.model, run.sites, rows)
        corrupt = activations(run.model, run.sites, [row for row in rows for _ in n], noise)
        own = torch.arange(len(facts), device=run.model.device).repeat_interleave(samples)
        return cls(run.model, run.sites, [fact for fact in facts for _ in n], own, tail, clean, corrupt, noise, metric)

    @property
    def baseline(self) -> Tensor:
        """(R,): the metric of the corrupted rows."""
        return answer_metric(self.corrupt.logits, self.facts, self.metric)

    @property
    def total(self) -> Tensor:
        """(R,): by how much corruption has lowered the metric."""
        return answer_metric(self.clean.logits[self.own], self.facts, self.metric) - self.baseline

    @torch.no_grad()
    def restored(self, unit: Unit, rows: Tensor, where: Tensor, at_once: int = 64, head: int | None = None) -> Tensor:
        """(n,): the metric of corrupted rows in which the unit gives what it gave before, at some positions.

        Only the blocks from the unit's own on are run, on the tail's positions. Where the device's memory is too small,
        half as many rows are run at once.

        Args:
            unit: the unit.
            rows: (n,) which rows.
            where: (n, S) of booleans.
            at_once: rows per pass.
            head: of attention only this head's output, before the output projection; None is the whole unit's.
        """

        def run(part: Sequence[int]) -> Tensor:
            own = slice(part[0], part[-1] + 1)
            return self._restored(unit, rows[own], where[own], head)

        hint = "use --dtype bfloat16 or a larger device"
        found = in_batches(
            range(len(rows)),
            run,
            at_once,
            lambda i: UserError("the device's memory is too small to run one prompt", hint),
        )
        return torch.cat(list(found))

    def _restored(self, unit: Unit, rows: Tensor, where: Tensor, head: int | None) -> Tensor:
        own, kept = self.own[rows], where.shape[1]
        tail = self.tail.above(unit.layer - 1).select(own)
        below = self.corrupt.blocks[max(0, unit.layer - 1)][rows, -tail.hidden.shape[1] :]
        with ExitStack() as stack:
            module = self.model.get_submodule(self.sites.output(unit))
            if head is None:
                stack.callback(
                    module.register_forward_hook(_giving(self.clean.output(unit)[own, -kept:], where)).remove
                )
            else:
                z = self.clean.heads[unit.layer]
                mine = self.sites.of_head(head, z.shape[-1])
                stack.callback(module.register_forward_pre_hook(_given(z[own, -kept:, mine], where, mine)).remove)
            if unit.layer == 0:
                stack.enter_context(embeddings_with(self.model, self.noise[rows]))
            return tail_metric(tail, below, [self.facts[i] for i in rows.tolist()], self.metric)


def _giving(before: Tensor, where: Tensor) -> Any:
    """A hook after which a module gives at its last S positions `before` (n, S, d), where (n, S) says so."""
    n, kept = where.shape

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        apart = in_rows(output, (n, len(output) // n))
        restored = before.where(where[..., None], apart[:, -kept:])
        return torch.cat([apart[:, :-kept], restored], dim=1).view(output.shape)

    return hook


def _given(before: Tensor, where: Tensor, part: slice) -> Any:
    """A hook after which a part of the width of a module's input is `before` (n, S, size), where (n, S) says so."""
    n, kept = where.shape

    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        given = arguments[0].clone()
        apart = in_rows(given, (n, len(given) // n))
        apart[:, -kept:, part] = before.where(where[..., None], apart[:, -kept:, part])
        return (given, *arguments[1:])

    return hook
