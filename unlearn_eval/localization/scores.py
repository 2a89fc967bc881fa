"""What causal tracing and attribution patching share: settings, batches, and effects by layer and role of a token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearn_eval.localization.activations import embedding_spread, own_columns, subject_noise, width
from unlearn_eval.localization.base import Fact, Ranking, Run, by_score
from unlearn_eval.localization.sites import ATTENTION, Unit
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Positive, Size

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "further tokens",
    "last token",
)


@dataclass(frozen=True)
class NoiseConfig:
    """How subjects are corrupted, and what is looked at.

    Attributes:
        noise: standard deviation of the noise on a subject's embeddings, in standard deviations of the embeddings.
        samples: of noise, for each fact.
        metric: `logit_difference` (true minus wrong answer) or `probability` (of the true answer).
        positions: whether effects of single tokens are measured too, for the table by role; the ranking does not need
            them, and causal tracing is as many times faster without as a fact has tokens.
        heads: whether each attention head is measured too, by what it gives to the output projection (z), at all
            positions together; for the table `head_effects`, not for the ranking. Only where attention is looked at.
    """

    noise: Positive = 3.0
    samples: Size = 3
    metric: str = "logit_difference"
    positions: bool = True
    heads: bool = False

    def __post_init__(self) -> None:
        if self.noise <= 0 or self.samples < 1:
            raise UserError(f"noise {self.noise}, samples {self.samples} do not make sense", "give numbers above 0")


def batches(run: Run, config: NoiseConfig) -> Iterator[tuple[int, Sequence[Fact], Tensor]]:
    """The place of each batch's first fact, its facts, and their noise."""
    scale = config.noise * embedding_spread(run.model, run.facts)
    size = max(1, run.rows // (4 * config.samples))
    for start in range(0, len(run.facts), size):
        facts = run.facts[start : start + size]
        yield start, facts, subject_noise(run, facts, start, config.samples, scale)
        run.progress("facts traced", min(start + size, len(run.facts)), len(run.facts))


def roles(fact: Fact) -> list[str]:
    """The role of each token of a prompt from its subject's first on."""
    n, rest = fact.subject[1] - fact.subject[0], len(fact.prompt_ids) - fact.subject[1]
    inner = [ROLES[0], *[ROLES[1]] * (n - 2)] if n > 1 else []
    after = [ROLES[3], *[ROLES[4]] * (rest - 2)] if rest > 1 else []
    return [*inner, ROLES[2], *after, *([ROLES[5]] if rest else [])]


@dataclass
class Tally:
    """Sums of effects on the metric, over all rows so far.

    Attributes:
        units: what is scored.
        positions: whether effects of single positions are summed too.
        whole: (units,) effects of restoring a unit at all positions.
        by_role: (units, roles) effects of restoring it at one position.
        n_by_role: (roles,) how many positions there were.
        heads: layer -> (heads,) effects of giving back each head's output.
        total: sum of what corruption has cost.
        n: rows.
    """

    units: Sequence[Unit]
    positions: bool = True
    whole: Tensor = field(init=False)
    by_role: Tensor = field(init=False)
    n_by_role: Tensor = field(init=False)
    total: float = 0.0
    n: int = 0
    heads: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.whole = torch.zeros(len(self.units), dtype=torch.float64)
        self.by_role = torch.zeros(len(self.units), len(ROLES), dtype=torch.float64)
        self.n_by_role = torch.zeros(len(ROLES), dtype=torch.float64)

    def begin(self, facts: Sequence[Fact], total: Tensor) -> None:
        """Rows of these facts are coming, of which corruption has cost `total` (R,)."""
        self.n += len(facts)
        self.total += float(total.double().sum())
        for fact in facts:
            for role in roles(fact):
                self.n_by_role[ROLES.index(role)] += 1

    def add(self, index: int, facts: Sequence[Fact], whole: Tensor, effects: Tensor | None) -> None:
        """A unit's effects on rows: restored everywhere (R,), and, if measured, at each of S positions (R, S)."""
        self.whole[index] += whole.double().sum().cpu()
        if effects is None:
            return
        values = effects.double().cpu()
        for i, fact in enumerate(facts):
            for column, role in zip(own_columns(fact, values.shape[1]), roles(fact), strict=True):
                self.by_role[index, ROLES.index(role)] += values[i, column]

    def add_heads(self, layer: int, effects: Tensor) -> None:
        """The effects (R, heads) of a layer's heads on rows."""
        self.heads[layer] = self.heads.get(layer, 0) + effects.double().sum(0).cpu()

    def ranking(self, **notes: Any) -> Ranking:
        """The units by their mean effect when restored everywhere."""
        means = (self.whole / self.n).tolist()
        scores = dict(zip(self.units, means, strict=True))
        about = {"total_effect": self.total / self.n, "n_rows": self.n, **notes}
        whole: dict[str, Any] = {}
        if self.heads:
            table = torch.stack([self.heads[layer] for layer in sorted(self.heads)]) / self.n
            whole["head_effects"] = table.tolist()
            about["heads"] = strongest(table)
        if not self.positions:
            return Ranking(by_score(scores), scores, tables=whole, notes=about)
        tables: dict[str, Any] = {"roles": list(ROLES)}
        for kind in dict.fromkeys(unit.kind for unit in self.units):
            tables[kind] = [
                [float(self.by_role[i, r] / n) if (n := float(self.n_by_role[r])) else None for r in range(len(ROLES))]
                for i, unit in enumerate(self.units)
                if unit.kind == kind
            ]
        return Ranking(by_score(scores), scores, tables={"effects": tables, **whole}, notes=about)


def strongest(effects: Tensor, n: int = 10) -> list[dict[str, Any]]:
    """The heads with the greatest effects, of a table (layers, heads), as JSON."""
    order = effects.flatten().argsort(descending=True, stable=True)[:n].tolist()
    places = [divmod(place, effects.shape[1]) for place in order]
    return [{"layer": layer, "head": head, "effect": float(effects[layer, head])} for layer, head in places]


def check_heads(config: NoiseConfig, kinds: Sequence[str]) -> None:
    """Refuse to look at heads where only MLPs are looked at.

    Raises:
        UserError: naming what does.
    """
    if config.heads and ATTENTION not in kinds:
        raise UserError(
            "this localization looks at MLPs only, and heads are attention's",
            "leave out heads=true, or use causal_tracing or attribution_patching",
        )


def job_table(facts: Sequence[Fact], device: torch.device | str, single: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Every row restored everywhere and at each of its positions: (n,) rows, (n, S) where, and (n,) which position.

    The position is −1 where it is everywhere; without `single` there are no others.
    """
    kept = width(facts)
    rows, where, places = [], [], []
    for i, fact in enumerate(facts):
        own = torch.zeros(kept, dtype=torch.bool)
        own[own_columns(fact, kept).start :] = True
        for column in (-1, *(own_columns(fact, kept) if single else ())):
            rows.append(i)
            where.append(own if column < 0 else torch.arange(kept) == column)
            places.append(column)
    return torch.tensor(rows, device=device), torch.stack(where).to(device), torch.tensor(places, device=device)
