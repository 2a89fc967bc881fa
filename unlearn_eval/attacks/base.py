"""What every attack is: a case in, observations out, and every model left as it was found.

An attack is a file of `methods/`. It ends in `ATTACK = Attack(NAME, Config, attack, work, ...)`, which declares
what it does and to which kinds of edit. It is given a `Case` (the models, the items, how they are asked), and yields an
`Observation` for each model, level of the attack, fold and seed: one score for each item. What is made of them is said
by `summary.py`, or by the attack's own `summary`; its `derived` gives what follows item by item from several models or
conditions (a gap, a share), for the curves alone (`curves.py`).

Depth (probe, logit_lens, uds) is measured by attacks too: they read states instead of answers, but are given the same
case, run on the same models, and end in the same result.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from unlearn_eval.attacks.asking import Row, answered, rows_of
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.edits.base import KINDS, applied
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.registry import module_in, names_in

METHODS = "unlearn_eval.attacks.methods"
UNLEARNED, FULL, REFERENCE = "unlearned", "full", "reference"
UNDER_ATTACK = "attack"  # the condition of an observation that is not a control
NO_REFERENCE = "no reference model that never knew the facts was given (--reference)"


@dataclass(frozen=True)
class Work:
    """What an attack costs on one model, for estimates.

    Attributes:
        trained: rows that go through the model forward and backward.
        answered: questions that are answered freely, and scored.
        read: rows that go through the model once.
    """

    trained: int = 0
    answered: int = 0
    read: int = 0


@dataclass(frozen=True)
class ItemScore:
    """What is measured of one item: a number by name, None where it is undefined, and what was said, if anything."""

    id: str
    values: Mapping[str, float | None]
    said: str | None = None


@dataclass(frozen=True)
class Observation:
    """One model at one level of an attack.

    Attributes:
        model: unlearned, full or reference.
        at: the level, on the attack's axis; None is before the attack.
        scores: of the items that are tested.
        fold: which part of the items that is; 0 if there is one.
        seed: of everything random.
        condition: `attack`, or the name of a control.
    """

    model: str
    at: float | str | None
    scores: tuple[ItemScore, ...]
    fold: int = 0
    seed: int = 0
    condition: str = UNDER_ATTACK


@dataclass
class Case:
    """What an attack is given.

    Attributes:
        loaded: the base model, without the edit.
        edit: what was unlearned, as an edit of it.
        items: what was to be forgotten.
        prompt_format: how the models are asked, whichever tokenizer is theirs.
        others: other facts, that share no subject and no question with them; for controls and for training on.
        batch_size: rows per forward pass.
        max_new_tokens: length of an answer.
        open_reference: loads the model that never knew the items, if there is one.
        open_full: loads the model before unlearning, where `loaded` is the unlearned one as it stands and there is no
            edit; only attacks that read or ask can treat such a case.
        progress: told of what takes long.
        notes: sentences for the reader of the result; attacks add to them.
        skipped: what was not done -> why.
        only: of which of the models observations are wanted; empty is of all.
    """

    loaded: LoadedModel
    edit: Any
    items: ForgetSet
    prompt_format: PromptFormat
    others: ForgetSet | None = None
    batch_size: int = 16
    max_new_tokens: int = 24
    open_reference: Callable[[], LoadedModel] | None = None
    open_full: Callable[[], LoadedModel] | None = None
    progress: Progress = no_progress
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are measured, of those that there are."""
        found = (UNLEARNED, FULL, *([REFERENCE] if self.open_reference else []))
        return tuple(name for name in found if not self.only or name in self.only)

    @contextmanager
    def model(self, name: str) -> Iterator[LoadedModel]:
        """One of the models within a `with` block; the base model is bit for bit as before afterwards."""
        opens = {REFERENCE: self.open_reference, FULL: self.open_full}.get(name)
        if opens is not None:
            other = opens()
            try:
                yield other
            finally:
                del other
                gc.collect()
        elif name == UNLEARNED and self.edit is not None:
            with applied(self.edit, self.loaded.model):
                yield self.loaded
        else:
            yield self.loaded

    def format_for(self, loaded: LoadedModel) -> PromptFormat:
        """How one of the models is asked."""
        return self.prompt_format.with_tokenizer(loaded.tokenizer)

    def rows(
        self, loaded: LoadedModel, items: Sequence[ForgetItem] | ForgetSet, opening: str = "", wrap: str = "{question}"
    ) -> list[Row]:
        """The items as a model is asked them."""
        return rows_of(tuple(items), self.format_for(loaded), opening, wrap)

    def observed(
        self, loaded: LoadedModel, rows: Sequence[Row], model: str, at: float | str | None, **more: Any
    ) -> Observation:
        """What a model, as it is now, answers."""
        return Observation(model, at, self.scores(loaded, rows), **more)

    def scores(self, loaded: LoadedModel, rows: Sequence[Row]) -> tuple[ItemScore, ...]:
        """Accuracy by free generation, and the answer's probability, of each row."""
        found = answered(loaded.model, self.format_for(loaded), rows, self.batch_size, self.max_new_tokens)
        return tuple(
            ItemScore(row.item.id, {"accuracy": one.accuracy, "probability": one.probability}, one.said)
            for row, one in zip(rows, found, strict=True)
        )


@dataclass(frozen=True)
class Attack:
    """One attack, as its file declares it.

    Attributes:
        name: as on the command line.
        Config: frozen dataclass of settings, each with a default.
        run: function from case and settings to observations, in the order in which they are measured; the models are
            as before when it ends, however it ends.
        work: function from settings, number of items and number of layers to what one model costs.
        does: in a few words, for lists.
        axis: what its levels count: step, bits, fraction, ...
        kinds: of edit that it can treat.
        headline: which level stands for the attack: the last, or the worst, at which most comes back.
        why_not: why other kinds of edit cannot be treated.
        controls_alone: whether what is measured of the full model and of the reference does not depend on the edit, and
            is measured by itself where `Case.only` asks for these models.
        retrains: whether weights are trained; the settings are then those of training.
        check: refuses items, other facts and settings that cannot be, before anything is run.
        about: the case whose items are measured, where these are not what was forgotten.
        summary: metrics and intervals from observations; None: the usual ones (`summary.summary`).
        derived: observations that follow item by item from several models or conditions, for the curves alone.
        first: whether lists say to start with it.
    """

    name: str
    Config: type[Any]
    run: Callable[[Case, Any], Iterator[Observation]]
    work: Callable[[Any, int, int], Work]
    does: str
    axis: str
    kinds: tuple[str, ...] = KINDS
    headline: str = "worst"
    why_not: str = ""
    controls_alone: bool = True
    retrains: bool = False
    check: Callable[[ForgetSet, ForgetSet | None, Any], None] = lambda items, others, config: None
    about: Callable[[Case, Any], Case] = lambda case, config: case
    summary: Callable[..., Any] | None = None
    derived: Callable[[ForgetSet, Sequence[Observation]], Sequence[Observation]] = lambda items, observations: ()
    first: bool = False


def attack_names() -> list[str]:
    """The names of the attacks: the files in `methods/`."""
    return names_in(METHODS)


def get_attack(name: str) -> Attack:
    """The attack called `name`.

    Raises:
        UserError: there is none; the nearest names are given.
    """
    found: Attack = module_in(METHODS, name, "attack").ATTACK
    return found


def finite(value: float | None) -> float | None:
    """None in the place of what is no number."""
    return value if value is not None and math.isfinite(value) else None
