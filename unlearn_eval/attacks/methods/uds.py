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
from typing import Any

import torch
from torch import Tensor

from unlearn_eval.attacks.asking import Row
from unlearn_eval.attacks.base import (
    FULL,
    REFERENCE,
    UNLEARNED,
    Attack,
    Case,
    ItemScore,
    Observation,
    Work,
)
from unlearn_eval.attacks.depth import by_layer, depth_summary, shares
from unlearn_eval.attacks.hidden_states import answer_states, entity_tokens
from unlearn_eval.attacks.summary import Summary
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.scoring import pad, positions
from unlearn_eval.models.tracing import patched

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
        rows = case.rows(loaded, case.items)
        spans = [entity_tokens(row, case.format_for(loaded)) for row in rows]
        plain = answer_log_probs(loaded, rows, spans, case.batch_size)
        for name in sources:
            for layer in range(loaded.blocks.n_layers):
                case.progress(f"layers of the {name} model", layer, loaded.blocks.n_layers)
                own = [state[layer] for state in states[name]]
                after = answer_log_probs(loaded, rows, spans, case.batch_size, layer, own)
                scores = (
                    ItemScore(row.item.id, {VALUE: before - now})
                    for row, before, now in zip(rows, plain, after, strict=True)
                )
                yield Observation(name, layer, tuple(scores))


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """One pass for each layer, and two for states and for what is compared with."""
    return Work(read=n_items * (n_layers + 2))


@torch.no_grad()
def answer_log_probs(
    loaded: LoadedModel,
    rows: Sequence[Row],
    spans: Sequence[slice],
    batch_size: int,
    layer: int | None = None,
    states: Sequence[Tensor] = (),
) -> list[float]:
    """The mean log-probability of each row's span, with a layer's states replaced where its tokens are predicted.

    Args:
        loaded: the model.
        rows: prompts and answers.
        spans: which tokens of each answer.
        batch_size: rows per forward pass.
        layer: the block whose states are replaced; None replaces nothing.
        states: for each row (T, d), of all its answer's tokens.
    """
    model, found = loaded.model, []
    for start in range(0, len(rows), batch_size):
        batch = range(start, min(start + batch_size, len(rows)))
        ids, mask = pad([(*rows[i].prompt_ids, *rows[i].answer_ids[:-1]) for i in batch], "right", model.device)
        options: dict[str, Any] = {"attention_mask": mask, "use_cache": False, **positions(model, mask)}
        if layer is None:
            logits = model(input_ids=ids, **options).logits
        else:
            values, places = _placed(
                [rows[i] for i in batch], [spans[i] for i in batch], [states[i] for i in batch], ids
            )
            with patched(loaded.blocks.block(model, layer), values, places):
                logits = model(input_ids=ids, **options).logits
        for r, i in enumerate(batch):
            first = len(rows[i].prompt_ids) - 1 + spans[i].start
            labels = torch.tensor(rows[i].answer_ids[spans[i]], device=logits.device)
            log_probs = logits[r, first : first + len(labels)].float().log_softmax(-1)
            found.append(float(log_probs.gather(-1, labels[:, None]).mean()))
    return found


def _placed(
    rows: Sequence[Row], spans: Sequence[slice], states: Sequence[Tensor], ids: Tensor
) -> tuple[Tensor, Tensor]:
    """The states of each span where its tokens are predicted, (R, W, d), and where that is, (R, W)."""
    values = torch.zeros((*ids.shape, states[0].shape[-1]), dtype=states[0].dtype)
    places = torch.zeros(ids.shape, dtype=torch.bool)
    for r, (row, span, own) in enumerate(zip(rows, spans, states, strict=True)):
        first = len(row.prompt_ids) - 1
        where = slice(first + span.start, first + span.stop)
        values[r, where], places[r, where] = own[span], True
    return values.to(ids.device), places.to(ids.device)


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
