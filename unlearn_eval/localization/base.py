"""What every localization is: facts in, a ranking of units out, and the model left as it was found.

A method is one file of `methods/`. It ends in `LOCALIZER = Localizer(NAME, Config, localize, passes, ...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from unlearn_eval.localization.sites import Sites, Unit
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.registry import module_in, names_in

METHODS = "unlearn_eval.localization.methods"


@dataclass(frozen=True)
class Fact:
    """A question whose answer is one token against another, in token ids.

    Attributes:
        id: of the forget item.
        prompt_ids: the whole prompt, up to where the true answer and a wrong one differ.
        subject: where in `prompt_ids` the subject begins, and the place after its last token.
        true_id, false_id: the tokens in which they differ.
        answer: as text: the class that a probe predicts.
        subject_ids: the bare subject after whatever token begins a text.
    """

    id: str
    prompt_ids: tuple[int, ...]
    subject: tuple[int, int]
    true_id: int
    false_id: int
    answer: str = ""
    subject_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """What a method is given.

    Attributes:
        model: in eval mode.
        sites: where its units are.
        facts: what is looked for.
        others: further facts, which a method that learns to tell classes apart may learn from.
        words: token ids that may stand in for a subject's.
        seed: of everything random.
        rows: prompts at a time, at most; it changes memory and speed, not the result.
        progress: told of what is done.
    """

    model: Any
    sites: Sites
    facts: Sequence[Fact]
    others: Sequence[Fact] = ()
    words: Sequence[int] = ()
    seed: int = 0
    rows: int = 64
    progress: Progress = no_progress

    def generator(self, part: int) -> torch.Generator:
        """Random numbers of their own for a part of the run, the same on every device."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + part)


@dataclass(frozen=True)
class Ranking:
    """What a method finds.

    Attributes:
        units: best first; what can be chosen.
        scores: unit -> score; those without one are not in it.
        n_chosen: how many units the method itself would keep, if it has a rule.
        takes_budget: whether a budget cuts the ranking; else all units are taken, whatever it is.
        tables: further scores, as JSON: effects by layer and position, by head, accuracies by layer.
        notes: what else should be known, as JSON.
    """

    units: tuple[Unit, ...]
    scores: Mapping[Unit, float] = field(default_factory=dict)
    n_chosen: int | None = None
    takes_budget: bool = True
    tables: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Localizer:
    """One localization, as its file declares it.

    Attributes:
        name: as on the command line.
        Config: frozen dataclass of settings, each with a default.
        run: function from job and settings to the ranking of units; the model is as before afterwards.
        passes: function from settings and number of layers to about how many passes of the whole model each fact costs.
        needs_facts: whether it reads facts; a control does not.
        check: refuses settings, given the answers of all facts that may be read, before anything is run.
        first: whether lists say to start with it.
    """

    name: str
    Config: type[Any]
    run: Callable[[Run, Any], Ranking]
    passes: Callable[[Any, int], float]
    needs_facts: bool = True
    check: Callable[[Any, Sequence[str]], None] = lambda config, answers: None
    first: bool = False


def localizer_names() -> list[str]:
    """The names of the methods: the files in `methods/`."""
    return names_in(METHODS)


def get_localizer(name: str) -> Localizer:
    """The localization called `name`.

    Raises:
        UserError: there is none; the nearest names are given.
    """
    found: Localizer = module_in(METHODS, name, "localization").LOCALIZER
    return found


def by_score(scores: Mapping[Unit, float]) -> tuple[Unit, ...]:
    """Units from the highest score down; of equal ones the lower layer first."""
    return tuple(sorted(scores, key=lambda unit: (-scores[unit], unit.layer, unit.kind)))
