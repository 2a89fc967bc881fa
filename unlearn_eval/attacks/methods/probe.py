r"""Linear probes: can what was forgotten still be read from the states, by a reader trained on other facts?

At every layer a logistic regression on standardized states is trained on other entities and applied to the forgotten
ones. What is read is one of

    answers   which answer, from the state at the prompt's end, where few answers are shared by many entities
    truth     whether a statement is true, from the state at its end: each answer beside a wrong one

The layer is chosen on one half of the items and scored on the other, and the other way round, so that the best of many
layers is not better by chance. The same readers trained on shuffled labels are the control: what they reach is what the
method reaches by itself, and is subtracted (selectivity). On the full model the readers must succeed, or the probe says
nothing.

Source: Guo et al. 2024 (arXiv 2410.12949; answers, no cross-fitting); control tasks: Hewitt and Liang 2019 (arXiv
1909.03368); truth of statements: Azaria and Mitchell 2023 (arXiv 2304.13734).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unlearn_eval.attacks.base import (
    FULL,
    NO_REFERENCE,
    REFERENCE,
    UNDER_ATTACK,
    UNLEARNED,
    Attack,
    Case,
    ItemScore,
    Observation,
    Work,
)
from unlearn_eval.attacks.folds import split
from unlearn_eval.attacks.summary import Mean, MetricSpec, Summary, Table, summarized
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.metrics import contains_answer, normalise
from unlearn_eval.metrics.robustness import Score, recovery
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.tracing import last_states
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.settings import Size

Array = npt.NDArray[Any]
VALUE, RANDOM, BEST = "probe_accuracy", "random_labels", "best"
ABOVE = "above_control"
LABELS = ("auto", "answers", "truth")
_SHARED = 5  # how many other entities must have an answer before a reader can learn it
_LEAST = 10  # entities to train on


@dataclass(frozen=True)
class Config:
    """Settings of the probes.

    Attributes:
        labels: answers, truth, or auto: answers where at least five other entities share each forgotten one.
        penalty: inverse strength of the readers' L2 penalty.
        n_train: on how many other items at most, chosen by the seed.
        n_controls: how many readers with shuffled labels; the control is their mean.
        seed: of the items to train on, of wrong answers and of shuffled labels.
    """

    labels: str = "auto"
    penalty: float = 0.1
    n_train: Size = 300
    n_controls: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise unknown_name("kind of labels", self.labels, LABELS)
        if self.n_train < _LEAST or self.n_controls < 1 or self.penalty <= 0:
            raise UserError(
                f"n_train {self.n_train}, n_controls {self.n_controls}, penalty {self.penalty} do not make sense",
                f"train on at least {_LEAST}, and give a control and a penalty above 0",
            )


@dataclass(frozen=True)
class Statement:
    """What a reader is shown: an item, with an answer or without one, and what it should say.

    Attributes:
        item: it.
        ids, end: token ids, and how many of them are the prompt.
        label: the class.
    """

    item: ForgetItem
    ids: tuple[int, ...]
    end: int
    label: str


def attack(case: Case, config: Config) -> Iterator[Observation]:
    """Every model at every layer, with true and with shuffled labels."""
    check(case.items, case.others, config)
    assert case.others is not None
    kind = kind_of_labels(case.items, case.others) if config.labels == "auto" else config.labels
    case.notes.append(f"probes read {kind}")
    others = case.others.sample(config.n_train, config.seed)
    for name in case.names:
        with case.model(name) as loaded:
            shown, tested = (
                statements(case.format_for(loaded), part, kind, config.seed) for part in (others, case.items)
            )
            x, y = (_states(case, loaded, part) for part in (shown, tested))
            labels = np.array([one.label for one in shown])
            generator = np.random.default_rng(config.seed)  # the same shuffles for every model
            shuffled = [generator.permutation(labels) for _ in range(config.n_controls)]
            for layer in range(len(x)):
                case.progress(f"probes, {name} model", layer, len(x))
                yield Observation(name, layer, read(x[layer], labels, y[layer], tested, config.penalty))
                for i, own in enumerate(shuffled):
                    scores = read(x[layer], own, y[layer], tested, config.penalty)
                    yield Observation(name, layer, scores, seed=i, condition=RANDOM)


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """A true and a false statement of each fact; without the time of the readers."""
    return Work(read=2 * (config.n_train + n_items))


def check(items: ForgetSet, others: ForgetSet | None, config: Config) -> None:
    """Refuse too few facts.

    Raises:
        UserError: too few others to learn from, or items that cannot be halved.
    """
    if others is None or len(others) < _LEAST:
        raise UserError(
            f"probes are trained on at least {_LEAST} other facts, and there are {len(others or ())}",
            "give --retain SET",
        )
    split(items, 2, 0)


def _states(case: Case, loaded: LoadedModel, rows: Sequence[Statement]) -> Any:
    """(L, R, d)."""
    ids, ends = [row.ids for row in rows], [row.end for row in rows]
    return last_states(loaded.model, loaded.blocks, ids, case.batch_size, ends)[1:].numpy()


def kind_of_labels(items: ForgetSet, others: ForgetSet) -> str:
    """What the readers can be taught of these items."""
    known = Counter(normalise(item.answer) for item in others)
    shared = all(known[normalise(item.answer)] >= _SHARED for item in items)
    return "answers" if shared and len(known) > 1 else "truth"


def statements(prompt_format: PromptFormat, items: ForgetSet, kind: str, seed: int) -> list[Statement]:
    """What the readers are shown of items: each once with its answer as class, or each as a true and a false statement.

    A false one has a wrong answer of the item's own, or else that of another item, chosen by the seed.
    """
    from dataclasses import replace

    from unlearn_eval.attacks.asking import rows_of

    rows = rows_of(tuple(items), prompt_format)
    if kind == "answers":
        return [Statement(row.item, row.prompt_ids, len(row.prompt_ids), normalise(row.item.answer)) for row in rows]
    generator = random.Random(seed)
    wrong = [replace(item, answer=wrong_answer(item, items, generator)) for item in items]
    found = []
    for row, false in zip(rows, rows_of(wrong, prompt_format), strict=True):
        for label, own in (("true", row), ("false", false)):
            found.append(Statement(row.item, (*own.prompt_ids, *own.answer_ids), len(own.prompt_ids), label))
    return found


def wrong_answer(item: ForgetItem, items: ForgetSet, generator: random.Random) -> str:
    """A wrong answer of the item's own, or the answer of another item.

    Raises:
        UserError: there is none.
    """
    own = item.perturbed_answers or tuple(
        other.answer for other in items if not contains_answer(other.answer, item.accepted)
    )
    if not own:
        raise UserError(f"item {item.id} has no wrong answer to compare with", "give it perturbed_answers")
    return generator.choice(own)


def read(x: Array, labels: Array, y: Array, tested: Sequence[Statement], penalty: float) -> tuple[ItemScore, ...]:
    """Whether a reader that was trained on states x (n, d) with labels reads each tested item rightly from y (m, d).

    Of statements the true one must seem more likely to be true than the false one; a tie is half right.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    reader = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
    reader.fit(x, labels)
    if {one.label for one in tested} <= {"true", "false"} and {*labels} == {"true", "false"}:
        margins = reader.decision_function(y)  # classes in order: true is the second
        return tuple(
            ItemScore(tested[i].item.id, {VALUE: float(np.sign(margins[i] - margins[i + 1]) + 1) / 2})
            for i in range(0, len(tested), 2)
        )
    said = reader.predict(y)
    return tuple(
        ItemScore(one.item.id, {VALUE: float(label == one.label)}) for one, label in zip(tested, said, strict=True)
    )


def best_layers(items: ForgetSet, observations: Sequence[Observation]) -> list[Observation]:
    """For each model and condition the items' scores at the layer that is best on the other half of them.

    The layer of the lower number is taken where several are best. Every shuffle has layers of its own; their mean is
    the control.
    """
    halves = [{item.id for item in tested} for _, tested in split(items, 2, 0)]
    runs: dict[tuple[str, str, int], dict[Any, dict[str, float]]] = {}
    for one in observations:
        layers = runs.setdefault((one.model, one.condition, one.seed), {})
        layers[one.at] = {score.id: float(score.values[VALUE] or 0.0) for score in one.scores}
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for (model, condition, _), layers in runs.items():
        chosen: dict[str, float] = {}
        for own, other in (halves, halves[::-1]):
            best = max(layers, key=lambda layer: sum(layers[layer][key] for key in other))  # noqa: B023
            chosen |= {key: layers[best][key] for key in own}
        found.setdefault((model, condition), []).append(chosen)
    return [
        Observation(
            model, BEST, tuple(ItemScore(item.id, {VALUE: _mean(item, seen)}) for item in items), 0, 0, condition
        )
        for (model, condition), seen in found.items()
    ]


def _mean(item: ForgetItem, seen: Sequence[dict[str, float]]) -> float:
    return sum(own[item.id] for own in seen) / len(seen)


def derived(items: ForgetSet, observations: Sequence[Observation]) -> list[Observation]:
    """For each model and layer, what the reader reads of each item above the mean of the readers of shuffled labels."""
    controls: dict[tuple[str, Any], dict[str, list[float]]] = {}
    for one in observations:
        if one.condition == RANDOM:
            for score in one.scores:
                own = controls.setdefault((one.model, one.at), {}).setdefault(score.id, [])
                own.append(float(score.values[VALUE] or 0.0))
    return [
        Observation(one.model, one.at, tuple(_above(score, controls[one.model, one.at]) for score in one.scores))
        for one in observations
        if one.condition == UNDER_ATTACK and (one.model, one.at) in controls
    ]


def _above(score: ItemScore, controls: Mapping[str, Sequence[float]]) -> ItemScore:
    own = controls[score.id]
    return ItemScore(score.id, {ABOVE: float(score.values[VALUE] or 0.0) - sum(own) / len(own)})


def summary(
    items: ForgetSet,
    observations: Sequence[Observation],
    method: Attack,
    has_reference: bool,
    skipped: str | None = None,
) -> Summary:
    """Accuracies at the best layer, cross-fitted, and what is left of them without the control."""
    table = Table(items, best_layers(items, observations) if observations else ())

    def at(model: str, condition: str = UNDER_ATTACK) -> tuple[str, str, str]:
        return (model, condition, BEST)

    def mean_of(cell: tuple[str, str, str]) -> Any:
        return lambda mean: Score(mean(cell, VALUE))

    def selective(model: str) -> Any:
        return lambda mean: Score(mean(at(model), VALUE) - mean(at(model, RANDOM), VALUE))

    def recovered(mean: Mean) -> Score:
        if not has_reference:
            return Score(None, NO_REFERENCE)
        return recovery(mean(at(UNLEARNED), VALUE), mean(at(FULL), VALUE), mean(at(REFERENCE), VALUE))

    cells = {
        "forget_probe_accuracy": at(UNLEARNED),
        "forget_random_labels_probe_accuracy": at(UNLEARNED, RANDOM),
        "forget_unedited_probe_accuracy": at(FULL),
    }
    if has_reference:
        cells["forget_reference_probe_accuracy"] = at(REFERENCE)
    wanted = {name: MetricSpec(mean_of(cell), "unedited" in name, (cell, VALUE)) for name, cell in cells.items()}
    wanted["forget_probe_selectivity"] = MetricSpec(selective(UNLEARNED), False)
    wanted["forget_unedited_probe_selectivity"] = MetricSpec(selective(FULL), True)
    wanted["forget_probe_recovery"] = MetricSpec(recovered, False)
    return summarized(table, wanted, skipped)


ATTACK = Attack(
    "probe",
    Config,
    attack,
    work,
    does="reads the facts from each layer by a linear reader trained on others",
    axis="layer",
    check=check,
    summary=summary,
    derived=derived,
)
