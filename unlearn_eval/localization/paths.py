"""Path patching: what reaches a place of the residual stream on a direct path, everything else staying as it is.

The subject's tokens are replaced by random ones; then what one head, or one MLP, writes into the stream on the right
subject is put in place of what it wrote, and nothing between it and the receiving place is run again (arXiv
2304.05969). Effects are on the logit difference of true and wrong answer. They are small beside what the stream
carries: float32 tells them apart better than bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn_eval.localization.activations import Activations, activations, answer_metric, tail_metric
from unlearn_eval.localization.base import Fact, Run
from unlearn_eval.localization.sites import ATTENTION, MLP, Unit, written
from unlearn_eval.models.tracing import Tail
from unlearn_eval.utils.errors import UserError

METRIC = "logit_difference"


@dataclass(frozen=True)
class Pair:
    """Some facts on their own subjects and on random ones.

    Attributes:
        facts: the facts.
        rows: their prompts with the random subjects.
        clean, corrupt: what the two gave.
    """

    facts: Sequence[Fact]
    rows: Sequence[tuple[int, ...]]
    clean: Activations
    corrupt: Activations

    @property
    def baseline(self) -> Tensor:
        """(F,): the logit difference on random subjects."""
        return answer_metric(self.corrupt.logits, self.facts, METRIC)

    @property
    def total(self) -> Tensor:
        """(F,): what the random subjects have cost."""
        return answer_metric(self.clean.logits, self.facts, METRIC) - self.baseline


def with_random_subject(fact: Fact, words: Sequence[int], generator: torch.Generator) -> tuple[int, ...]:
    """The fact's prompt with a random token in the place of each of its subject's; none stays as it is."""
    start, stop = fact.subject
    ids = list(fact.prompt_ids)
    for place in range(start, stop):
        others = [word for word in words if word != ids[place]]
        ids[place] = others[int(torch.randint(len(others), (), generator=generator))]
    return tuple(ids)


def pair(run: Run, facts: Sequence[Fact], offset: int) -> Pair:
    """Facts with random subjects, which depend on the seed and on the facts' places from `offset` on."""
    if len(set(run.words)) < 2:
        raise UserError("there are no two words to stand in for a subject", "use a tokenizer that has plain words")
    rows = [with_random_subject(fact, run.words, run.generator(offset + i)) for i, fact in enumerate(facts)]
    clean = activations(run.model, run.sites, [fact.prompt_ids for fact in facts])
    return Pair(facts, rows, clean, activations(run.model, run.sites, rows))


@torch.no_grad()
def head_effects(run: Run, batch: Pair) -> Tensor:
    """(layers, heads): Σ over facts of what a head's output at the last token does to the logits directly.

    Its way is into the residual stream after the last block, through the final norm and the head of the model alone.
    """
    model, found, n = run.model, run.sites, len(batch.facts)
    top = found.parts.n_layers - 1
    tail = Tail(model, found.parts, top, batch.rows, [len(row) - 1 for row in batch.rows])
    end = tail.hidden.clone()
    effects = torch.zeros(top + 1, found.n_heads, dtype=torch.float64)
    owner = torch.arange(n, device=model.device).repeat_interleave(found.n_heads)
    for layer in range(top + 1):
        change = _head_changes(run, batch, layer).flatten(0, 1)  # (F · heads, d)
        hidden = end[owner].clone()
        hidden[:, -1] += change
        values = _values(tail, owner, hidden, batch.facts, run.rows)
        effects[layer] = (values - batch.baseline[owner]).double().view(n, -1).sum(0).cpu()
    return effects


def _head_changes(run: Run, batch: Pair, layer: int) -> Tensor:
    """(F, heads, d): the change of what a layer's attention writes at the last token, from each head's output alone."""
    model, unit, n_heads = run.model, Unit(ATTENTION, layer), run.sites.n_heads
    projection = model.get_submodule(run.sites.output(unit))
    before, after = (given.heads[layer][:, -1] for given in (batch.corrupt, batch.clean))  # (F, heads · d_head)
    head = torch.arange(before.shape[1], device=before.device) // (before.shape[1] // n_heads)
    mine = head[None] == torch.arange(n_heads, device=before.device)[:, None]  # (heads, heads · d_head)
    mixed = after[:, None].where(mine[None], before[:, None])  # (F, heads, heads · d_head)
    plain = written(model, run.sites, unit, projection(before))[:, None]
    return written(model, run.sites, unit, projection(mixed)) - plain


@torch.no_grad()
def mlp_effects(run: Run, batch: Pair, receiver: int) -> Tensor:
    """(receiver,): Σ over facts of what each MLP below block `receiver` does directly through that block's input.

    It is given back at all positions; block `receiver` and those above are run on the changed input.
    """
    model, found, n = run.model, run.sites, len(batch.facts)
    tail = Tail(model, found.parts, receiver - 1, batch.rows, [fact.subject[0] for fact in batch.facts])
    kept = tail.hidden.shape[1]
    effects = torch.zeros(receiver, dtype=torch.float64)
    every = torch.arange(n, device=model.device)
    for layer in range(receiver):
        unit = Unit(MLP, layer)
        after, before = (written(model, found, unit, given.mlp[layer]) for given in (batch.clean, batch.corrupt))
        hidden = tail.hidden + (after - before)[:, -kept:]
        effects[layer] = (_values(tail, every, hidden, batch.facts, run.rows) - batch.baseline).double().sum().cpu()
    return effects


def _values(tail: Tail, owner: Tensor, hidden: Tensor, facts: Sequence[Fact], at_once: int) -> Tensor:
    """(n,): the logit difference when the tail's block gives `hidden` (n, S, d) for row `owner`."""
    found = []
    for start in range(0, len(owner), at_once):
        rows = owner[start : start + at_once]
        own = [facts[i] for i in rows.tolist()]
        found.append(tail_metric(tail.select(rows), hidden[start : start + at_once], own, METRIC))
    return torch.cat(found)
