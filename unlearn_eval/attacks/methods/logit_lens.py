r"""The logit lens: what each layer would answer if it were the last, full against unlearned.

    s_l = (1/T) Σ_t log softmax(head(norm(h_l,t)))[y_t]

The states are those of each model; norm and head are always the full model's, so that an edit of the head hides
nothing. The gap of a layer is s_l of the full model minus that of the unlearned one, in nats per token: where it is 0,
the layer still holds what it held. With a reference the gaps are weighed as in `uds.py`.

Source: nostalgebraist 2020 (the logit lens); as a measure of unlearning in UDS's comparison (arXiv 2605.24614). Differs
from the latter in nothing known but the items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn_eval.attacks.asking import Row
from unlearn_eval.attacks.base import FULL, REFERENCE, UNLEARNED, Attack, Case, ItemScore, Observation, Work
from unlearn_eval.attacks.depth import by_item_and_layer, by_layer, depth_summary, shares
from unlearn_eval.attacks.hidden_states import answer_states
from unlearn_eval.attacks.summary import Summary
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.tracing import read_out

VALUE, GAP = "log_probability", "gap"


@dataclass(frozen=True)
class Config:
    """The logit lens has no settings."""


def attack(case: Case, config: Config) -> Iterator[Observation]:
    """Every model at every layer."""
    states: dict[str, list[Tensor]] = {}
    rows: dict[str, list[Row]] = {}
    for name in case.names:
        with case.model(name) as loaded:
            rows[name] = case.rows(loaded, case.items)
            states[name] = answer_states(loaded, rows[name], case.batch_size)
    with case.model(FULL) as loaded:
        for name in case.names:
            read = [lens(loaded, own, row.answer_ids) for own, row in zip(states[name], rows[name], strict=True)]
            for layer in range(len(read[0])):
                scores = (
                    ItemScore(row.item.id, {VALUE: own[layer]}) for own, row in zip(read, rows[name], strict=True)
                )
                yield Observation(name, layer, tuple(scores))


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """One pass."""
    return Work(read=n_items)


def lens(loaded: LoadedModel, states: Tensor, answer_ids: Sequence[int]) -> list[float]:
    """The answer's mean log-probability per token, read from the states (L, T, d) of each layer."""
    model = loaded.model
    logits = read_out(model, loaded.blocks, states.to(model.device, model.dtype)).float()
    labels = torch.tensor(answer_ids, device=logits.device).expand(len(states), -1)
    found: list[float] = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0].mean(-1).tolist()
    return found


def gaps(items: ForgetSet, observations: Sequence[Observation]) -> dict[str, dict[str, list[float]]]:
    """By model and item: how far every layer's log-probability of the answer is below the full model's."""
    names = [name for name in (UNLEARNED, REFERENCE) if any(one.model == name for one in observations)]
    full = by_layer(items, observations, FULL, VALUE)
    read = {name: by_layer(items, observations, name, VALUE) for name in names}
    return {
        name: {key: [before - now for before, now in zip(full[key], own[key], strict=True)] for key in own}
        for name, own in read.items()
    }


def derived(items: ForgetSet, observations: Sequence[Observation]) -> list[Observation]:
    """The gap of every layer, and with a reference what each layer adds to the depth."""
    found = gaps(items, observations)
    made = [one for name, own in found.items() for one in by_item_and_layer(name, GAP, own)]
    return made + (shares(found[UNLEARNED], found[REFERENCE]) if REFERENCE in found else [])


def summary(
    items: ForgetSet,
    observations: Sequence[Observation],
    method: Attack,
    has_reference: bool,
    skipped: str | None = None,
) -> Summary:
    """The gaps as drops of log-probability from the full model to the others."""
    found = gaps(items, observations)
    reference = found.get(REFERENCE) if has_reference else None
    empty: dict[str, list[float]] = {item.id: [] for item in items}
    return depth_summary(items, found.get(UNLEARNED, empty), reference, "logit_lens_gap", "logit_lens_depth", skipped)


ATTACK = Attack(
    "logit_lens",
    Config,
    attack,
    work,
    does="reads the answer from every layer, full against unlearned",
    axis="layer",
    summary=summary,
    derived=derived,
)
