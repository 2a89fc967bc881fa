"""The trials of a request: edits made and measured one after the other, all of it in files, on top of earlier ones."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.editing.editor import get_editor
from unlearn_eval.edits.base import Edit
from unlearn_eval.edits.load import AnyEdit, load_edit
from unlearn_eval.edits.places import is_edit
from unlearn_eval.results.certificate import FAILS, PASSES, Certificate, certificate_path, read_certificate
from unlearn_eval.runs.edit import make_edit
from unlearn_eval.runs.forget.candidates import options_of
from unlearn_eval.runs.forget.judged import judged, sound_rows
from unlearn_eval.runs.forget.measure import Bench, Measured
from unlearn_eval.runs.forget.policy import Candidate, Policy
from unlearn_eval.runs.forget.proof import Earlier
from unlearn_eval.runs.forget.search import Trial, failure_of, next_try
from unlearn_eval.runs.forget.surroundings import stored_surroundings
from unlearn_eval.utils.errors import UserError, is_out_of_memory
from unlearn_eval.utils.json_files import dumps, write_all

WORK, EDIT, QUESTIONS, KNOWN = "work", "edit", "questions.jsonl", "known.jsonl"
RUN, PLACE = "forget.json", "earlier_place"  # what a run is of; in it, where the certificate is that it goes on from
_SPENT, _TRIAL = "spent.json", "trial.json"
Say = Callable[[str], Any]


class Clock:
    """What the steps of a run took, over all processes that worked on it.

    Args:
        work: the folder in which it is kept.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.steps: dict[str, list[float]] = {}
        if (work / _SPENT).is_file():
            self.steps = json.loads((work / _SPENT).read_text(encoding="utf-8"))

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Count what is done within a `with` block, also if it ends with an error."""
        wall, cpu = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            old = self.steps.get(step, [0.0, 0.0])
            self.steps[step] = [
                round(old[0] + time.monotonic() - wall, 2),
                round(old[1] + time.process_time() - cpu, 2),
            ]
            write_all({_SPENT: dumps(self.steps) + "\n"}, self.work)

    @property
    def spent(self) -> tuple[float, float]:
        """Seconds of the clock, and of processors."""
        return sum(own[0] for own in self.steps.values()), sum(own[1] for own in self.steps.values())


def measured_before(bench: Bench, policy: Policy, folder: Path, earlier: Prior | None = None) -> Measured:
    """The questions and tasks of a policy before the edit: what its bounds call the base."""
    found = Measured()
    edit, place = (None, None) if earlier is None else (earlier.edit, earlier.edit_folder)
    for wanted in policy.measurements:
        if not wanted.attack:
            bench.say(f"before: {wanted.name}")
            found.add(wanted.name, bench.measure(wanted, folder, edit, place))
    return found


@dataclass(frozen=True)
class Prior:
    """An earlier request: its certificate, its edit, and its folder of work."""

    certificate: Certificate
    edit: AnyEdit
    edit_folder: Path
    work: Path

    def all(self) -> Iterator[Prior]:
        """This one, and those that it was made on top of."""
        yield self
        place = json.loads((self.work / RUN).read_text(encoding="utf-8")).get(PLACE)
        if place:
            yield from read_earlier(place).all()


def read_earlier(place: str) -> Prior:
    """An earlier request, by its folder or certificate.

    Raises:
        UserError: it has no edit, or its questions are not there in clear.
    """
    path = certificate_path(place)
    certificate, work = read_certificate(path), path.parent / WORK
    chosen = next((trial.number for trial in certificate.trials if trial.chosen), None)
    folder = work / "trials" / f"{chosen:03d}" / EDIT if chosen else path.parent / EDIT
    if certificate.edit is None or not is_edit(folder) or not (work / KNOWN).is_file():
        raise UserError(f"{path.parent} has no edit in clear on which another could be made", "keep its folder `work`")
    return Prior(certificate, load_edit(folder), folder, work)


@dataclass
class Search:
    """The trials of a run, in files."""

    budget_seconds: float
    policy: Policy
    bench: Bench
    base: Measured
    work: Path
    clock: Clock
    earlier: Prior | None
    candidates: Sequence[Candidate]
    say: Say
    stopped: str = ""

    def folder(self, trial: Trial) -> Path:
        """Where a trial is kept."""
        return self.work / "trials" / f"{trial.number:03d}"

    def run(self) -> list[Trial]:
        """Every trial, those that are in files among them."""
        trials: list[Trial] = []
        while (wanted := next_try(self.candidates, trials)) is not None:
            trial = Trial(len(trials) + 1, *wanted)
            done = self._stored(trial)
            if done is None and trials and not self._has_time(trials):
                self.stopped = "the budget is spent: what else there is was not tried"
                break
            with self.clock.timed(f"trial {trial.number}"):
                trial = self._tried(trial) if done is None else self.measured(done)
            trials.append(trial)
            if trial.passes(len(self.policy.measurements)):
                break
        return trials

    def _has_time(self, trials: Sequence[Trial]) -> bool:
        """Whether one more trial fits, as long as the longest so far, and measuring the nearest to its end."""
        reserve = 2.5 * self.base.seconds  # the tasks again, and attacks, which take half as long again
        return self.clock.spent[0] + max(trial.seconds for trial in trials) + reserve <= self.budget_seconds

    def _stored(self, trial: Trial) -> Trial | None:
        """A trial whose edit was made, or could not be."""
        path = self.folder(trial) / _TRIAL
        if not path.is_file():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        return replace(trial, seconds=stored["seconds"], error=stored["error"])

    def _tried(self, trial: Trial) -> Trial:
        """Make the edit of a trial, and measure it until something does not hold."""
        own, folder = self.candidates[trial.candidate], self.folder(trial)
        method = get_editor(own.editor)
        strength = f", {own.strength.setting}={trial.value}" if own.strength else ""
        self.say(f"trial {trial.number}: {own.editor}{strength}")
        started, error = time.monotonic(), ""
        try:
            if not is_edit(folder / EDIT):
                made = make_edit(
                    self.bench.loaded,
                    self.bench.forget,
                    own.editor,
                    options_of(own, trial.value, self.bench, folder),
                    self.bench.recipe,
                    None if self.earlier is None else self.earlier.edit,
                    self.bench.progress,
                    self.bench.around.trained if method.trained else None,
                )
                made.save(folder / EDIT, self.bench.loaded.tokenizer, self.bench.loaded.model.config)
        except UserError as mistake:
            error = mistake.message
        except Exception as problem:
            if not is_out_of_memory(problem):
                raise
            error = "it needs more memory than there is"
        made_in = round(time.monotonic() - started, 2)
        write_all({_TRIAL: dumps({"seconds": made_in, "error": error}) + "\n"}, folder)
        shutil.rmtree(folder / "training", ignore_errors=True)
        trial = replace(trial, error=error, seconds=made_in)
        return trial if error else self.measured(trial)

    def measured(self, trial: Trial, whole: bool = False) -> Trial:
        """A trial with its measurements and the bounds that were held against them.

        Args:
            trial: whose edit is there.
            whole: whether to go on after something does not hold.
        """
        if trial.error:
            return trial
        folder = self.folder(trial)
        edit = load_edit(folder / EDIT)
        rows, names, seconds = sound_rows(edit), [], trial.seconds
        for wanted in self.policy.measurements:
            if any(row.holds is False for row in rows) and not whole:
                break
            self.say(f"trial {trial.number}: {wanted.name}")
            result = self.bench.measure(wanted, folder, edit, folder / EDIT)
            names.append(wanted.name)
            seconds += sum(result.timing.values())
            rows += judged(self.policy.bounds_of(wanted.name), result, self.base.metrics)
        other = (
            "" if edit.kind in self.policy.kinds else f"it is a {edit.kind} edit, which the policy does not let pass"
        )
        found = replace(trial, measured=tuple(names), rows=tuple(rows), failed_kind=other, seconds=round(seconds, 2))
        if self.earlier is not None and found.passes(len(self.policy.measurements)):
            lost = [own for own in self.earlier_again(found, edit) if own.failures]
            other = "; ".join(f"an earlier request no longer holds: {', '.join(own.failures)}" for own in lost)
            found = replace(found, failed_kind=other)
        return found

    def results(self, trial: Trial, edit: Edit) -> Measured:
        """All results of a trial that was measured whole."""
        found, folder = Measured(), self.folder(trial)
        for wanted in self.policy.measurements:
            found.add(wanted.name, self.bench.measure(wanted, folder, edit, folder / EDIT))
        return found

    def earlier_again(self, trial: Trial, edit: Edit) -> list[Earlier]:
        """The earlier requests, measured again with a new edit; each from the unedited model as its base."""
        assert self.earlier is not None
        found = []
        for prior in self.earlier.all():
            was, key = prior.certificate, prior.certificate.sha256[:12]
            policy, bench = Policy.model_validate(was.policy), bench_of(prior.work, self.bench)
            base = measured_before(bench, policy, self.work / "earlier" / key)
            failures: list[str] = []
            for wanted in policy.measurements:
                folder = self.folder(trial) / "earlier" / key
                result = bench.measure(wanted, folder, edit, self.folder(trial) / EDIT)
                rows = judged(policy.bounds_of(wanted.name), result, base.metrics)
                failures += [failure_of(row) for row in rows if row.holds is False]
            outcome = FAILS if failures else PASSES
            found.append(Earlier(was.sha256, policy.name, outcome, tuple(failures)))
        return found


def bench_of(work: Path, like: Bench) -> Bench:
    """The bench of another request, from its folder of work."""
    return replace(
        like, forget=load_forget_set(str(work / KNOWN)), place=work / KNOWN, around=stored_surroundings(work)
    )
