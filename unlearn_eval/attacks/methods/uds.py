r"""UDS: how deep unlearning goes, by putting the unlearned model's states into the full one.

    D_l = (1/T) Σ_t [log p_full(y_t) - log p_patched,l(y_t)]
    UDS = Σ_l D1_l · clip(D2_l / D1_l, 0, 1) / Σ_l D1_l      over the layers with D1_l > 0.05

D1 has the states of a model that never knew the item, D2 those of the unlearned model. Where the states of layer l
come from a model that lacks the knowledge, the full model cannot say it (D large); where they come from one that still
holds it behind a refusal, it can (D near 0). 0: everything is still there; 1: as deep as never having known.

States are replaced, in one layer at a time, at the positions that predict the tokens of the fact itself (`entity_span`
of `hidden_states.py` finds it in the answer), teacher-forced.

Source: UDS (arXiv 2605.24614). Differs from it in finding the entity by rule where the authors annotated TOFU's items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn_eval.attacks.asking import Row
from unlearn_eval.attacks.base import FULL, REFERENCE, UNLEARNED, Attack, Case, ItemScore, Observation, Work
from unlearn_eval.attacks.depth import by_layer, depth_summary, shares
from unlearn_eval.attacks.hidden_states import answer_states, entity_tokens
from unlearn_eval.attacks.summary import Summary
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.tracing import Tail, trace

VALUE = "drop"


@dataclass(frozen=True)
class Config:
    """UDS has no settings: its threshold is the paper's."""


def attack(case: Case, config: Config) -> Iterator[Observation]:
    """The drop of every layer, by the unlearned model's states and by the reference's."""
    sources = [name for name in case.names if name != FULL]
    states: dict[str, list[Tensor]] = {}
    for name in sources:
        with case.model(name) as loaded:
            states[name] = answer_states(loaded, case.rows(loaded, case.items), case.batch_size)
    with case.model(FULL) as loaded:
        rows, n_layers = case.rows(loaded, case.items), loaded.blocks.n_layers
        spans = [entity_tokens(row, case.format_for(loaded)) for row in rows]
        drops = {(name, layer): torch.zeros(len(rows)) for name in sources for layer in range(n_layers)}
        for start in range(0, len(rows), case.batch_size):
            case.progress("items", start, len(rows))
            part = slice(start, start + case.batch_size)
            patching = Patching(loaded, rows[part], spans[part])
            for name, layer in drops:
                after = patching.log_probs(layer, [own[layer] for own in states[name][part]])
                drops[name, layer][part] = patching.plain - after
    for (name, layer), found in drops.items():
        scores = (ItemScore(row.item.id, {VALUE: value}) for row, value in zip(rows, found.tolist(), strict=True))
        yield Observation(name, layer, tuple(scores))


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """The blocks above each layer, and two passes for states and for what is compared with."""
    return Work(read=n_items * (n_layers // 2 + 2))


class Patching:
    """Some rows, of which the states that predict their facts are replaced in one layer at a time.

    What stands before a fact is run once, and for each layer only the blocks above it.

    Args:
        loaded: the model.
        rows: prompts and answers.
        spans: which tokens of each answer are the fact.

    Attributes:
        plain: (R,) the mean log-probability of each row's fact, with nothing replaced.
    """

    @torch.no_grad()
    def __init__(self, loaded: LoadedModel, rows: Sequence[Row], spans: Sequence[slice]) -> None:
        model, parts = loaded.model, loaded.blocks
        self._spans = list(spans)
        ids = [(*row.prompt_ids, *row.answer_ids[: span.stop - 1]) for row, span in zip(rows, spans, strict=True)]
        sizes = torch.tensor([span.stop - span.start for span in spans])
        firsts = [len(row) - size for row, size in zip(ids, sizes.tolist(), strict=True)]
        self._tail = Tail(model, parts, 0, ids, firsts)
        self._rows = torch.arange(len(rows)).repeat_interleave(sizes)
        self._back = torch.cat([torch.arange(size, 0, -1) for size in sizes.tolist()])
        labels = [label for row, span in zip(rows, spans, strict=True) for label in row.answer_ids[span]]
        self._labels, self._sizes = torch.tensor(labels), sizes.tolist()
        names = [f"{parts.blocks}.{layer}" for layer in range(parts.n_layers)]
        with trace(model, outputs=names) as seen:
            self.plain = self._read(0, self._tail.hidden)
        self._own = [self._tail.hidden, *(seen.outputs[name][:, -self._width :] for name in names[1:])]

    @property
    def _width(self) -> int:
        return self._tail.hidden.shape[1]

    @torch.no_grad()
    def log_probs(self, layer: int, states: Sequence[Tensor]) -> Tensor:
        """(R,) the mean log-probability of each row's fact, with `layer` handing on other states where it is predicted.

        Args:
            layer: the block whose states are replaced.
            states: for each row (T, d), of all its answer's tokens.
        """
        hidden = self._own[layer].clone()
        for row, (span, own) in enumerate(zip(self._spans, states, strict=True)):
            hidden[row, self._width - (span.stop - span.start) :] = own[span].to(hidden)
        return self._read(layer, hidden)

    def _read(self, layer: int, hidden: Tensor) -> Tensor:
        logits = self._tail.above(layer).logits(hidden, self._rows, self._back).float()
        found = logits.log_softmax(-1).gather(-1, self._labels[:, None].to(logits.device))[:, 0].cpu()
        return torch.stack([own.mean() for own in torch.split(found, self._sizes)])


def derived(items: ForgetSet, observations: Sequence[Observation]) -> list[Observation]:
    """What each layer adds to UDS; nothing without a reference."""
    reference = by_layer(items, observations, REFERENCE, VALUE)
    if not any(reference.values()):
        return []
    return shares(by_layer(items, observations, UNLEARNED, VALUE), reference)


def summary(
    items: ForgetSet,
    observations: Sequence[Observation],
    method: Attack,
    has_reference: bool,
    skipped: str | None = None,
) -> Summary:
    """UDS, and the drop by the unlearned model's states."""
    unlearned = by_layer(items, observations, UNLEARNED, VALUE)
    reference = by_layer(items, observations, REFERENCE, VALUE) if has_reference else None
    return depth_summary(items, unlearned, reference, "patched_drop", "uds", skipped)


ATTACK = Attack(
    "uds",
    Config,
    attack,
    work,
    does="puts the unlearned model's states into the full one, layer by layer",
    axis="layer",
    summary=summary,
    derived=derived,
)
