"""Contamination: of all lawful requests those that hurt facts which nobody asked to forget.

Victims are drawn from the other facts, and requests are chosen among the rest, which share no subject and no question
with them: the `n` whose keys are most like the victims', and the `n` whose gradients raise the victims' loss most. The
edit's own method with its settings then forgets these on the model before unlearning, and as many that are drawn at
random. Levels are the two ways to choose; the worst of them is chosen on the victims on which it is reported.

Source: ROKA (arXiv 2603.00436), which describes the attack; the search for requests is ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unlearn_eval.attacks.base import FULL, UNDER_ATTACK, UNLEARNED, Attack, Case, Observation, Work
from unlearn_eval.attacks.folds import apart
from unlearn_eval.attacks.summary import Cell, MetricSpec, Summary, Table, summarized
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.data.recast import NEAREST
from unlearn_eval.editing.editor import OTHERS, get_editor
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.requests.build import build_requests
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editing.requests.targets import make_targets
from unlearn_eval.editing.similarity import harms, key_similarities, nearest, places
from unlearn_eval.edits.base import applied
from unlearn_eval.metrics import paired_comparison
from unlearn_eval.metrics.robustness import Score
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.settings import Size, as_texts, configure

KEYS, GRADIENTS, DRAWN = "keys", "gradients", "drawn"
AT_RANDOM = "random_requests"  # the condition of the control
RETAINED = (DRAWN, NEAREST)
FILES = ("folder", "masks", "components")  # settings that name files, or where an earlier edit was made


@dataclass(frozen=True)
class Config:
    """Settings of contamination.

    Attributes:
        n: requests; 0 is as many as the edit forgot.
        n_victims: facts that are to be hurt.
        n_candidates: facts among which requests are chosen.
        n_random: how often as many requests are drawn at random.
        retain: of methods that are trained, which facts are retained: `drawn`, or those `nearest` to the requests.
        n_retain: how many.
        seed: of the victims and of what is drawn.
    """

    n: int = 0
    n_victims: Size = 12
    n_candidates: Size = 100
    n_random: Size = 3
    retain: str = DRAWN
    n_retain: Size = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.retain not in RETAINED:
            raise unknown_name("way to retain", self.retain, RETAINED)


def about(case: Case, config: Config) -> Case:
    """The case of the victims, with the candidates as other facts.

    Raises:
        UserError: too few facts.
    """
    check(case.items, case.others, config)
    assert case.others is not None
    generator = random.Random(config.seed)
    drawn = generator.sample(range(len(case.others)), len(case.others))
    items = case.others.items
    victims = ForgetSet(case.others.name, tuple(items[i] for i in sorted(drawn[: config.n_victims])))
    rest = ForgetSet(case.others.name, tuple(items[i] for i in sorted(drawn[config.n_victims :])))
    free = apart(victims, rest)
    n = config.n or len(case.items)
    if free is None or len(free) < n:
        raise UserError(
            f"{0 if free is None else len(free)} facts have nothing in common with the victims, and {n} are requested",
            "give --retain a larger set, or --set n or n_victims smaller",
        )
    return replace(case, items=victims, others=free.sample(config.n_candidates, config.seed))


def check(items: ForgetSet, others: ForgetSet | None, config: Config) -> None:
    """Refuse too few other facts.

    Raises:
        UserError: there are fewer than victims and requests.
    """
    needed = config.n_victims + (config.n or len(items))
    if others is None or len(others) < needed:
        raise UserError(
            f"contaminate needs {needed} other facts, and there are {0 if others is None else len(others)}",
            "give --retain SET, or --set n_victims=4",
        )


def attack(case: Case, config: Config) -> Iterator[Observation]:
    """The victims before any edit, with the edit as it is, and after chosen and drawn requests."""
    if case.edit is None:
        case.skipped["no edit"] = "requests are made as those of the edit, and there is none"
        return
    for name in (FULL, UNLEARNED):
        with case.model(name) as loaded:
            yield case.observed(loaded, case.rows(loaded, case.items), name, None)
    assert case.others is not None
    with case.model(FULL) as loaded:
        rows, maker = case.rows(loaded, case.items), _Maker(case, config, loaded)
        n = min(config.n or int(case.edit.info.requests.n or 1), len(case.others))
        chosen = maker.worst(n)
        drawn = [random.Random(f"{config.seed}/{i}").sample(range(len(case.others)), n) for i in range(config.n_random)]
        case.notes += [f"{at}: {', '.join(case.others.items[i].id for i in own)}" for at, own in chosen.items()]
        tried = [(at, UNDER_ATTACK, 0, own) for at, own in chosen.items()]
        tried += [(DRAWN, AT_RANDOM, i, own) for i, own in enumerate(drawn)]
        for done, (at, condition, seed, own) in enumerate(tried):
            case.progress("requests", done, len(tried))
            with applied(maker.edit(own), loaded.model):
                observation = case.observed(loaded, rows, UNLEARNED, at, condition=condition, seed=seed)
            yield observation


class _Maker:
    """Chooses requests among the candidates, and forgets them as the case's edit was made."""

    def __init__(self, case: Case, config: Config, loaded: LoadedModel) -> None:
        info = case.edit.info
        self.case, self.config, self.loaded = case, config, loaded
        self.method = get_editor(info.editor)
        stored = {key: value for key, value in as_texts(info.config).items() if key.partition(".")[0] not in FILES}
        known = {key: text for key, text in stored.items() if key.partition(".")[0] in self.method.settings}
        self.settings = configure(self.method.Config, known)
        self.prompt_format = case.format_for(loaded)
        self.contexts = list(info.requests.contexts or ())
        target = str(info.requests.target or "")
        self.target = Recipe.target if not target or target.endswith((".json", ".jsonl")) else target
        changed = {*getattr(case.edit, "factors", ()), *getattr(case.edit, "tensors", ())}
        self.names = places(loaded.model, {name.removesuffix(".weight") for name in changed})
        self.candidates = self._requests(case.others.items if case.others else ())

    def _requests(self, items: Sequence[ForgetItem]) -> list[EditRequest]:
        targets = make_targets(
            self.target, items, random.Random(self.config.seed), self.loaded, self.prompt_format, seed=self.config.seed
        )
        texts = [own.target for own in targets]
        return build_requests(items, texts, self.prompt_format, self.contexts, self.loaded.max_length)

    def worst(self, n: int) -> dict[str, list[int]]:
        """The places of the `n` candidates that should hurt the victims most, by each way to choose."""
        model, items = self.loaded.model, self.case.items.items
        victims = build_requests(items, [item.answer for item in items], self.prompt_format)
        alike = key_similarities(model, victims, self.candidates, self.names).mean(0)
        found = {KEYS: alike, GRADIENTS: harms(model, victims, self.candidates, self.names)}
        return {at: [int(i) for i in own.argsort(descending=True, stable=True)[:n]] for at, own in found.items()}

    def edit(self, places_: Sequence[int]) -> Any:
        """The edit of some candidates."""
        requests = [self.candidates[i] for i in places_]
        free = [i for i in range(len(self.candidates)) if i not in set(places_)]
        generator = random.Random(self.config.seed)
        more: dict[str, Any] = {"prompt_format": self.prompt_format}
        if self.method.trained and free:
            rest = [self.candidates[i] for i in free]
            n = min(self.config.n_retain, len(rest))
            near = self.config.retain != DRAWN
            kept = (
                nearest(self.loaded.model, requests, rest, n, self.names)
                if near
                else generator.sample(range(len(rest)), n)
            )
            more["retain"] = [replace(rest[i], target_ids=rest[i].answer_ids) for i in kept]
        if OTHERS in self.method.uses:
            more["others"] = [self.candidates[i].prompt_ids for i in free]
        return self.method.edit(self.loaded.model, self.loaded.tokenizer, requests, self.settings, generator, **more)


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """Every edit, as one of 25 steps on each request; gradients; the victims after each."""
    n = config.n or n_items
    edits = 2 + config.n_random
    return Work(25 * edits * n + config.n_candidates, (2 + edits) * config.n_victims, config.n_candidates)


def summary(
    items: ForgetSet,
    observations: Sequence[Observation],
    method: Attack,
    has_reference: bool,
    skipped: str | None = None,
) -> Summary:
    """What is left of the victims, and how much more the worst requests take than random ones, by a paired test."""
    table = Table(items, observations)
    levels = table.levels()
    worst = min(
        levels, key=lambda at: [table.mean((UNLEARNED, UNDER_ATTACK, at), name) for name in VALUES], default=None
    )
    hit: Cell = (UNLEARNED, UNDER_ATTACK, worst if levels else KEYS)
    control: Cell = (UNLEARNED, AT_RANDOM, DRAWN)
    wanted: dict[str, MetricSpec] = {}
    for name in VALUES:
        cells: Mapping[str, Cell] = {
            f"victims_unedited_{name}": (FULL, UNDER_ATTACK, None),
            f"victims_{name}": (UNLEARNED, UNDER_ATTACK, None),
            f"victims_attacked_{name}": hit,
            f"victims_random_requests_{name}": control,
        }
        wanted |= {key: MetricSpec(_mean_of(cell, name), True, (cell, name)) for key, cell in cells.items()}
        before, after = table.by_item(control, name), table.by_item(hit, name)
        both = [key for key in before if key in after]
        test = paired_comparison([before[key] for key in both], [after[key] for key in both])
        wanted[f"victims_{name}_excess_drop"] = MetricSpec(_excess(hit, control, name), False)
        p = Score(test.p_value, None if test.p_value is not None else "no victim was asked after both")
        wanted[f"victims_{name}_excess_drop_p_value"] = MetricSpec(lambda mean, p=p: p, None, resampled=False)  # type: ignore[misc]
    return summarized(table, wanted, skipped)


VALUES = ("accuracy", "probability")


def _mean_of(cell: Cell, name: str) -> Any:
    return lambda mean: Score(mean(cell, name))


def _excess(hit: Cell, control: Cell, name: str) -> Any:
    return lambda mean: Score(mean(control, name) - mean(hit, name))


ATTACK = Attack(
    "contaminate",
    Config,
    attack,
    work,
    does="forgets what hurts facts most that nobody asked to forget",
    axis="requests chosen by",
    controls_alone=False,
    check=check,
    about=about,
    summary=summary,
)
