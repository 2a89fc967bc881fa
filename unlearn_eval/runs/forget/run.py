"""From a request to a certificate: questions, inventory, candidates, search, proof; every step is kept in files.

    OUTPUT/
      certificate.json       the proof; `cli/forget.py` writes the page and the card beside it
      edit/                  the edit that it is about
      work/                  everything else, with the questions in clear: what is to be forgotten, what should stay,
                             the inventory, and every trial with its edit and results

A step is not done again while its files are there and whole, so a run that was killed goes on where it was. A folder is
of one request, model, policy and seed; another one is refused.
"""

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
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.editing.editor import MOMENTS, get_editor
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.edits.load import check_base, load_edit
from unlearn_eval.edits.places import DESCRIPTION
from unlearn_eval.harness.models import lent_lm
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.results.certificate import Certificate, certificate_path, read_certificate
from unlearn_eval.runs.edit import make_edit, model_check
from unlearn_eval.runs.forget.inventory import Known, inventory
from unlearn_eval.runs.forget.judged import judged, sound_rows
from unlearn_eval.runs.forget.measure import Bench, Measured
from unlearn_eval.runs.forget.policy import Candidate, Policy, read_policy, shipped_candidates, suited
from unlearn_eval.runs.forget.proof import Earlier, Found, certify
from unlearn_eval.runs.forget.request import Question, questions_of, read_request
from unlearn_eval.runs.forget.search import Trial, nearest, next_try
from unlearn_eval.runs.forget.surroundings import stored_surroundings, surroundings
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.folders import check_output
from unlearn_eval.utils.json_files import dumps, write_all
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.provenance import hash_json
from unlearn_eval.utils.settings import configure

Say = Callable[[str], Any]
WORK, EDIT, QUESTIONS, KNOWN = "work", "edit", "questions.jsonl", "known.jsonl"
_RUN, _SPENT, _TRIAL = "forget.json", "spent.json", "trial.json"
ORIGIN = ("source", "agreement")  # of a question in `questions.jsonl`, beside the fields of an item


@dataclass(frozen=True)
class ForgetConfig:
    """What `unlearn-eval forget` does.

    Attributes:
        request: file of questions and answers, or a YAML with a subject, texts and documents.
        output: folder of everything that it writes; a second run goes on from what is there.
        model: base model.
        policy: `standard`, `strict`, or a file.
        budget_seconds: for the search. What is begun is measured to its end, so a run may take a little longer.
        retain: a set or file of what should stay, beside what is found.
        editors: only these methods; empty is all that suit.
        earlier: folder or certificate of an earlier request, on top of which this one is fulfilled.
        redact: whether certificate and edit name nothing of what was asked.
        review: whether to stop once the questions are written.
        sign: file of an Ed25519 private key.
        chat: whether questions go through the chat template; None does if there is one.
        batch_size: rows per forward pass.
        dtype, device: of the model.
        seed: of everything random.
    """

    request: str
    output: str
    model: str = "default"
    policy: str = "standard"
    budget_seconds: float = 1800.0
    retain: str | None = None
    editors: tuple[str, ...] = ()
    earlier: str | None = None
    redact: bool = False
    review: bool = False
    sign: str | None = None
    chat: bool | None = None
    batch_size: int = 32
    dtype: str = "float32"
    device: str | None = None
    seed: int = 0


def forget(
    config: ForgetConfig, say: Say = lambda line: None, progress: Progress = no_progress
) -> Certificate | list[Question]:
    """Fulfil a request and certify what came of it; with `review`, the questions.

    Raises:
        UserError: nothing is asked, the output is of another run, a setting is wrong, or nothing can be written.
    """
    policy, request = read_policy(config.policy), read_request(config.request)
    for name in config.editors:
        get_editor(name)
    folder = Path(config.output).expanduser()
    work = folder / WORK
    check_output(folder, "certificate")
    if folder.is_dir() and any(folder.iterdir()) and not (work / QUESTIONS).is_file():
        raise UserError(f"{folder} exists and is not the folder of a request", "give another --output")
    earlier = None if config.earlier is None else read_earlier(config.earlier)
    say(f"loading {config.model}")
    loaded = load_model(config.model, dtype=config.dtype, device=config.device)
    prompt_format = loaded.prompt_format(config.chat)
    if earlier is not None:
        check_base(earlier.edit.info, loaded)
    clock = Clock(work)
    with clock.timed("questions"):
        questions = _questions(
            work, lambda: questions_of(request, loaded, prompt_format, config.seed, config.batch_size, progress)
        )
    if config.review:
        return questions
    asked = load_forget_set(str(work / QUESTIONS))
    _check_same(work, config, policy, asked, loaded, earlier)
    lm = lent_lm(loaded.model, loaded.tokenizer, config.batch_size)
    say("asking the model what should stay")
    with clock.timed("surroundings"):
        around = surroundings(
            work, asked, lm, loaded, prompt_format, config.retain, config.seed, config.batch_size, progress
        )
    bench = Bench(loaded, prompt_format, asked, work / QUESTIONS, around, config.batch_size, config.seed, say, progress)
    say(f"asking the model what it knows of {len(asked)} questions")
    with clock.timed("inventory"):
        before = measured_before(bench, policy, work / "inventory", earlier)
    known = inventory(asked, before)
    say(f"it knows {sum(own.known for own in known)} of them")
    found = Found(config.request, questions, known, policy, before)
    if any(own.known for own in known):
        found = _searched(config, found, bench, work, clock, earlier, say)
    certificate = certify(found, bench, config.redact, config.sign, clock.spent, config.budget_seconds, folder)
    return certificate


@dataclass(frozen=True)
class Prior:
    """An earlier request: its certificate, its edit, and its folder of work."""

    certificate: Certificate
    edit: Any
    edit_folder: Path
    work: Path


def read_earlier(place: str) -> Prior:
    """An earlier request, by its folder or certificate.

    Raises:
        UserError: it has no edit, or its questions are not there in clear.
    """
    path = certificate_path(place)
    certificate, work = read_certificate(path), path.parent / WORK
    chosen = next((trial.number for trial in certificate.trials if trial.chosen), None)
    folder = work / "trials" / f"{chosen:03d}" / EDIT if chosen else path.parent / EDIT
    if certificate.edit is None or not (folder / DESCRIPTION).is_file() or not (work / KNOWN).is_file():
        raise UserError(f"{path.parent} has no edit in clear on which another could be made", "keep its folder `work`")
    return Prior(certificate, load_edit(folder), folder, work)


# Questions -------------------------------------------------------------------------------------------------


def _questions(work: Path, make: Callable[[], list[Question]]) -> list[Question]:
    """The questions in the file, which may have been edited; made and written if there is none."""
    path = work / QUESTIONS
    if not path.is_file():
        made = make()
        lines = [{**own.item.record, "source": own.source, "agreement": own.agreement} for own in made]
        lines = [{key: value for key, value in line.items() if value not in (None, ())} for line in lines]
        write_all({QUESTIONS: "".join(dumps(line) + "\n" for line in lines)}, work)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    origins = [(str(own.get("source", "given")), own.get("agreement")) for own in records]
    items = load_forget_set(str(path))
    return [Question(item, *origin) for item, origin in zip(items, origins, strict=True)]


def _check_same(
    work: Path, config: ForgetConfig, policy: Policy, asked: ForgetSet, loaded: LoadedModel, earlier: Prior | None
) -> None:
    """Refuse to go on with files that were made for another run."""
    key = {
        "questions": asked.hash,
        "model": loaded.weights.exact,
        "policy": hash_json(policy.model_dump()),
        "retain": config.retain and load_forget_set(config.retain).hash,
        "earlier": None if earlier is None else earlier.certificate.sha256,
        "editors": list(config.editors),
        "seed": config.seed,
        "chat": config.chat,
    }
    path = work / _RUN
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if other := [name for name in key if old.get(name) != key[name]]:
            raise UserError(
                f"{config.output} holds a run with other {' and '.join(other)}", "give another --output, or remove it"
            )
    else:
        write_all({_RUN: dumps(key, indent=2) + "\n"}, work)


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


# Measuring -------------------------------------------------------------------------------------------------


def measured_before(bench: Bench, policy: Policy, folder: Path, earlier: Prior | None = None) -> Measured:
    """The questions and tasks of a policy before the edit: what its bounds call the base."""
    found = Measured()
    edit, place = (None, None) if earlier is None else (earlier.edit, earlier.edit_folder)
    for wanted in policy.measurements:
        if not wanted.attack:
            bench.say(f"before: {wanted.name}")
            found.add(wanted.name, bench.measure(wanted, folder, edit, place))
    return found


# Searching -------------------------------------------------------------------------------------------------


def _searched(
    config: ForgetConfig,
    found: Found,
    asked: Bench,
    work: Path,
    clock: Clock,
    earlier: Prior | None,
    say: Say,
) -> Found:
    """Try edits until one passes, the budget is spent, or nothing is left to try; the nearest is measured whole."""
    known = [own.item.id for own in found.known if own.known]
    items = asked.forget.select(known)
    write_all({KNOWN: "".join(dumps(item.record) + "\n" for item in items)}, work)
    bench = replace(asked, forget=replace(items, name=str(work / KNOWN)), place=work / KNOWN)
    base = found.before
    if len(known) < len(asked.forget):  # the base of what is edited is that of the same questions
        with clock.timed("inventory"):
            base = measured_before(bench, found.policy, work / "inventory_known", earlier)
    candidates, reasons = _candidates(config, found.policy, items, bench, earlier)
    search = _Search(config, found.policy, bench, base, work, clock, earlier, candidates, say)
    trials = search.run()
    chosen = nearest(trials)
    if chosen is not None and len(chosen.measured) < len(found.policy.measurements):
        say(f"measuring the nearest, trial {chosen.number}, to the end")
        chosen = search.measured(chosen, whole=True)
        trials = [chosen if own.number == chosen.number else own for own in trials]
    if search.stopped:
        reasons.append(search.stopped)
    found = replace(
        found,
        before=base,
        inventory=found.before,
        trials=tuple(trials),
        candidates=tuple(candidates),
        not_tried=tuple(reasons),
    )
    if chosen is None:
        return found
    folder = search.folder(chosen)
    edit = load_edit(folder / EDIT)
    after = search.results(chosen, edit)
    again = search.earlier_again(chosen, edit) if earlier is not None else ()
    return replace(
        found,
        chosen=chosen,
        edit=edit,
        edit_folder=folder / EDIT,
        after=after,
        earlier=tuple(again),
        known=tuple(_after(found.known, bench, after)),
    )


def _after(known: Sequence[Known], bench: Bench, after: Measured) -> list[Known]:
    """The items with what is left of those that were edited."""
    left = {own.item.id: own.before for own in inventory(bench.forget, after)}
    return [replace(own, after=left[own.item.id]) if own.item.id in left else own for own in known]


def _candidates(
    config: ForgetConfig, policy: Policy, items: ForgetSet, bench: Bench, earlier: Prior | None
) -> tuple[list[Candidate], list[str]]:
    """What is tried: what the policy names, as far as it suits the request, the model, the memory and the user."""
    listed = list(policy.candidates) or shipped_candidates()
    if config.editors:
        by_name = {own.editor: own for own in reversed(listed)}
        listed = [by_name.get(name, Candidate(editor=name)) for name in config.editors]
    most = max(len(item.answer.split()) for item in items)
    found, reasons = (listed, []) if config.editors else suited(listed, len(items), most)
    kept = []
    for own in found:
        why = _why_not(own, policy, bench, earlier, forced=bool(config.editors))
        if why:
            reasons.append(f"{own.editor} is not tried: {why}")
        else:
            kept.append(own)
    return kept, reasons


def _why_not(own: Candidate, policy: Policy, bench: Bench, earlier: Prior | None, forced: bool) -> str | None:
    """Why a method cannot be tried, or None."""
    method = get_editor(own.editor)
    options = options_of(own, None, bench)
    try:
        model_check(method, options)(bench.loaded.model)
    except UserError as error:
        return error.message
    if earlier is not None and earlier.edit.info.editor != own.editor:
        return f"the earlier edit is {earlier.edit.info.editor}'s, and only the same method goes on from it"
    config = configure(method.Config, options)
    kind = method.kind(config)
    if kind not in (None, *policy.kinds) and not forced:
        return f"it makes a {kind} edit, which the policy does not let pass"
    copies = 1.25 if not method.trained or getattr(config, "lora_rank", None) else 4.0  # as in a study's plan
    needed, free = copies * _bytes_of(bench.loaded), _free_bytes(bench.loaded)
    if free is not None and needed - _bytes_of(bench.loaded) > free:
        return f"it needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free beside the model"
    return None


def options_of(own: Candidate, value: str | None, bench: Bench, folder: Path | None = None) -> dict[str, str]:
    """The settings of a method, with the value of the one that makes it stronger, and the run's text and folder."""
    method = get_editor(own.editor)
    options = dict(own.settings)
    if own.strength is not None and value is not None:
        options[own.strength.setting] = value
    if MOMENTS in method.uses and "text" in method.settings and "text" not in options and _is_enough(bench):
        options |= {"text": str(bench.around.conversations), "keys_per_dimension": str(KEYS_PER_DIMENSION)}
    if "folder" in method.settings and folder is not None:
        options.setdefault("folder", str(folder / "training"))
    return options


KEYS_PER_DIMENSION = 8  # of the model's own answers, which are there anyway; FastMEMIT finds 10 enough


def _is_enough(bench: Bench) -> bool:
    """Whether the answers to shipped facts are text enough for second moments; else the model writes more."""
    text = bench.around.conversations.read_text(encoding="utf-8")
    n_tokens = len(text) / 4  # with field names, and without what the template puts around each
    return n_tokens >= KEYS_PER_DIMENSION * bench.loaded.anatomy.d_mlp


def _bytes_of(loaded: LoadedModel) -> int:
    return sum(own.numel() * own.element_size() for own in loaded.model.parameters())


def _free_bytes(loaded: LoadedModel) -> int | None:
    """Memory that is free where the model is; None where nobody says."""
    import os

    import torch

    if loaded.model.device.type == "cuda":
        return int(torch.cuda.mem_get_info(loaded.model.device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


@dataclass
class _Search:
    """The trials of a run, in files."""

    config: ForgetConfig
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
        reserve = 2 * self.base.seconds  # attacks take about as long as tasks
        return self.clock.spent[0] + max(trial.seconds for trial in trials) + reserve <= self.config.budget_seconds

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
            if not (folder / EDIT / DESCRIPTION).is_file():
                made = make_edit(
                    self.bench.loaded,
                    self.bench.forget,
                    own.editor,
                    options_of(own, trial.value, self.bench, folder),
                    Recipe(chat=self.bench.prompt_format.chat, seed=self.config.seed),
                    None if self.earlier is None else self.earlier.edit,
                    self.bench.progress,
                    self.bench.around.trained if method.trained else None,
                )
                made.save(folder / EDIT, self.bench.loaded.tokenizer, self.bench.loaded.model.config)
        except UserError as mistake:
            error = mistake.message
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

    def results(self, trial: Trial, edit: Any) -> Measured:
        """All results of a trial that was measured whole."""
        found, folder = Measured(), self.folder(trial)
        for wanted in self.policy.measurements:
            found.add(wanted.name, self.bench.measure(wanted, folder, edit, folder / EDIT))
        return found

    def earlier_again(self, trial: Trial, edit: Any) -> list[Earlier]:
        """The earlier request, measured again with a new edit."""
        assert self.earlier is not None
        prior, folder = self.earlier, self.folder(trial) / "earlier"
        policy = Policy.model_validate(prior.certificate.policy)
        bench = bench_of(prior.work, self.bench)
        failures = []
        base = measured_before(bench, policy, self.work / "earlier")
        for wanted in policy.measurements:
            result = bench.measure(wanted, folder, edit, self.folder(trial) / EDIT)
            rows = judged(policy.bounds_of(wanted.name), result, base.metrics)
            failures += [f"{row.words} ({row.value})" for row in rows if row.holds is False]
        failures = [own for own in failures if own]
        was = prior.certificate
        return [Earlier(was.sha256, policy.name, "fails" if failures else "passes", tuple(failures))]


def bench_of(work: Path, like: Bench) -> Bench:
    """The bench of another request, from its folder of work."""
    return replace(
        like, forget=load_forget_set(str(work / KNOWN)), place=work / KNOWN, around=stored_surroundings(work)
    )
