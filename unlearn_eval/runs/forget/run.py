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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.editing.editor import get_editor
from unlearn_eval.edits.load import check_base, load_edit
from unlearn_eval.harness.models import lent_lm
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.results.certificate import Certificate, certificate_path, signature_of
from unlearn_eval.runs.forget.candidates import chosen
from unlearn_eval.runs.forget.inventory import Known, inventory
from unlearn_eval.runs.forget.measure import Bench, Measured
from unlearn_eval.runs.forget.policy import Policy, read_policy
from unlearn_eval.runs.forget.proof import Found, certify
from unlearn_eval.runs.forget.request import Question, questions_of, read_request
from unlearn_eval.runs.forget.search import nearest
from unlearn_eval.runs.forget.surroundings import surroundings
from unlearn_eval.runs.forget.trials import (
    EDIT,
    KNOWN,
    PLACE,
    QUESTIONS,
    RUN,
    WORK,
    Clock,
    Prior,
    Say,
    Search,
    measured_before,
    read_earlier,
)
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.folders import check_output
from unlearn_eval.utils.json_files import dumps, read_jsonl, write_all
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.provenance import hash_json


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
    if config.sign is not None:
        signature_of({}, config.sign)  # a key that cannot sign is found before the hours
    if config.retain is not None:
        load_forget_set(config.retain)
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


# Questions -------------------------------------------------------------------------------------------------


def _questions(work: Path, make: Callable[[], list[Question]]) -> list[Question]:
    """The questions in the file, which may have been edited; made and written if there is none."""
    path = work / QUESTIONS
    if not path.is_file():
        made = make()
        lines = [{**own.item.record, "source": own.source, "agreement": own.agreement} for own in made]
        lines = [{key: value for key, value in line.items() if value not in (None, ())} for line in lines]
        write_all({QUESTIONS: "".join(dumps(line) + "\n" for line in lines)}, work)
    origins = [(str(own.get("source", "given")), own.get("agreement")) for own in read_jsonl(path)]
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
    path = work / RUN
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if other := [name for name in key if old.get(name) != key[name]]:
            raise UserError(
                f"{config.output} holds a run with other {' and '.join(other)}", "give another --output, or remove it"
            )
    else:
        place = None if config.earlier is None else str(certificate_path(config.earlier).resolve())
        write_all({RUN: dumps({**key, PLACE: place}, indent=2) + "\n"}, work)


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
    candidates, reasons = chosen(
        config.editors, found.policy, items, bench, None if earlier is None else str(earlier.edit.info.editor)
    )
    search = Search(config.budget_seconds, found.policy, bench, base, work, clock, earlier, candidates, say)
    trials = search.run()
    best = nearest(trials)
    if best is not None and len(best.measured) < len(found.policy.measurements):
        say(f"measuring the nearest, trial {best.number}, to the end")
        with clock.timed(f"trial {best.number}"):
            best = search.measured(best, whole=True)
        trials = [best if own.number == best.number else own for own in trials]
    found = replace(
        found,
        before=base,
        trials=tuple(trials),
        candidates=tuple(candidates),
        not_tried=(*reasons, *([search.stopped] if search.stopped else [])),
    )
    if best is None:
        return found
    folder = search.folder(best)
    edit = load_edit(folder / EDIT)
    after = search.results(best, edit)
    return replace(
        found,
        chosen=best,
        edit=edit,
        edit_folder=folder / EDIT,
        after=after,
        earlier=tuple(search.earlier_again(best, edit)) if earlier is not None else (),
        known=tuple(_after(found.known, bench, after)),
    )


def _after(known: Sequence[Known], bench: Bench, after: Measured) -> list[Known]:
    """The items with what is left of those that were edited."""
    left = {own.item.id: own.before for own in inventory(bench.forget, after)}
    return [replace(own, after=left[own.item.id]) if own.item.id in left else own for own in known]
