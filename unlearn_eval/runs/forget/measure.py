"""The measurements of a policy, made by the tasks and attacks that there are; each is a result file, and made once."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unlearn_eval.attacks.base import UNLEARNED, get_attack
from unlearn_eval.attacks.folds import clusters
from unlearn_eval.attacks.run import AttackConfig, run_attack, task_name
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.edits.base import Edit, applied
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.results.files import read_result, write_result
from unlearn_eval.results.schema import Metric, Result, utc_now
from unlearn_eval.runs.evaluate import EvalConfig, Lent, run_evaluation
from unlearn_eval.runs.forget.asked import FORGET, NEIGHBORS, RETAIN, ask_all
from unlearn_eval.runs.forget.policy import ASKED, Measurement
from unlearn_eval.runs.forget.surroundings import Surroundings
from unlearn_eval.runs.study.store import read_if_whole
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.progress import Progress, no_progress

Say = Callable[[str], Any]


@dataclass(frozen=True)
class Measured:
    """What measurements found.

    Attributes:
        metrics: by measurement, then name.
        results: by measurement.
        notes: sentences for the reader of the certificate.
    """

    metrics: dict[str, dict[str, Metric]] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, result: Result) -> None:
        """Add a measurement's result."""
        self.metrics[name] = dict(result.metrics[name])
        self.results[name] = result

    @property
    def seconds(self) -> float:
        """What they took."""
        return sum(sum(result.timing.values()) for result in self.results.values())


@dataclass(frozen=True)
class Bench:
    """What everything is measured with.

    Attributes:
        loaded: the base model.
        prompt_format: how it is asked.
        forget: what is to be forgotten.
        place: the file that holds it.
        around: what should stay.
        batch_size: rows per forward pass.
        seed: of sampling and training.
        say, progress: told what is done.
    """

    loaded: LoadedModel
    prompt_format: PromptFormat
    forget: ForgetSet
    place: Path
    around: Surroundings
    batch_size: int = 32
    seed: int = 0
    say: Say = lambda line: None
    progress: Progress = no_progress

    @property
    def recipe(self) -> Recipe:
        """How the edits are made."""
        return Recipe(chat=self.prompt_format.chat, seed=self.seed)

    def measure(
        self, wanted: Measurement, folder: Path, edit: Edit | None = None, edit_folder: Path | None = None
    ) -> Result:
        """One measurement of the model, with an edit if one is given; read if it is in the folder already.

        Args:
            wanted: the measurement.
            folder: of the result files.
            edit, edit_folder: the edit, and where it is.
        """
        path = folder / f"{wanted.name}.json"
        found = read_if_whole(path)
        if found is None:
            if wanted.task:
                found = self._task(wanted, path, edit_folder)
            elif wanted.attack:
                found = self._attack(wanted, path, edit)
            else:
                found = self._asked(path, edit)
        return found

    def _asked(self, path: Path, edit: Edit | None) -> Result:
        created, started = utc_now(), time.monotonic()
        sets = {FORGET: self.forget, NEIGHBORS: self.around.neighbors or (), RETAIN: self.around.retain or ()}
        with applied(edit, self.loaded.model) if edit is not None else nullcontext():
            metrics, records = ask_all(self.loaded, self.prompt_format, sets, self.batch_size)
        result = Result.new(
            "evaluation",
            created,
            device=self.loaded.model.device,
            config={"sets": {name: len(own) for name, own in sets.items()}, **self.prompt_format.record},
            model=self.loaded.describe(self.loaded.weights),
            metrics={ASKED: metrics},
            data={ASKED: {"hash": self.forget.hash, "n_documents": len(records)}},
            seed=self.seed,
            timing={"evaluation_seconds": round(time.monotonic() - started, 2)},
        )
        write_result(result, path, {ASKED: records})
        return read_result(path)

    def _task(self, wanted: Measurement, path: Path, edit_folder: Path | None) -> Result:
        assert wanted.task
        retain = self.around.retain
        control = None if retain is None else {"set": retain.name, "ids": [own.id for own in retain[: wanted.controls]]}
        forget = {"set": str(self.place), "ids": [item.id for item in self.forget]}
        takes = _options(wanted.task)
        metadata = {"forget": forget, **({"retain": control} if control and "retain" in takes else {})}
        config = EvalConfig(
            tasks=(wanted.task,),
            model=self.loaded.name,
            edit=None if edit_folder is None else str(edit_folder),
            output=str(path),
            batch_size=self.batch_size,
            apply_chat_template=self.prompt_format.chat,
            system_instruction=self.prompt_format.system,
            metadata={**metadata, **wanted.metadata},
            seed=1234 + self.seed,
        )
        result = run_evaluation(config, self.say, Lent(self.loaded))
        assert result is not None
        return result

    def _attack(self, wanted: Measurement, path: Path, edit: Edit | None) -> Result:
        assert wanted.attack
        attack, items = get_attack(wanted.attack), self.forget
        if (
            len(clusters(items)) < 2
        ):  # facts about one subject: each stands for itself, and knowing some tells of others
            items = ForgetSet(items.name, tuple(replace(item, subject=None, group=None) for item in items))
        config = AttackConfig(
            wanted.attack,
            "in memory",
            settings=wanted.settings,
            retain=None if self.around.trained is None else self.around.trained.name,
            output=str(path),
            batch_size=self.batch_size,
            seed=self.seed,
            only=(UNLEARNED,) if attack.summary is None else (),
        )
        try:
            return run_attack(config, self.say, self.progress, edit, self.loaded, items)
        except UserError as error:
            return _unmeasured(wanted, path, error.message)


def _options(task: str) -> frozenset[str]:
    """What the metadata of a task may say."""
    from unlearn_eval.harness.options import task_class

    kind, metadata = task_class(task)
    return frozenset(kind.options(metadata))


def _unmeasured(wanted: Measurement, path: Path, reason: str) -> Result:
    """The result of an attack that cannot be made on these items: it has no metrics, and the reason is its note."""
    assert wanted.attack
    metrics: dict[str, dict[str, Metric]] = {task_name(wanted.attack): {}}
    write_result(Result.new("attack", utc_now(), status="partial", metrics=metrics, notes=[reason]), path)
    return read_result(path)
