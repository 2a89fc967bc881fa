"""The certificate: what was found, in its schema, with the sentence of result and with what it does not say."""

from __future__ import annotations

import hmac
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unlearn_eval.attacks.base import attack_names, get_attack
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.editing.editor import get_editor
from unlearn_eval.edits.base import MEMORY
from unlearn_eval.edits.folder import read_description
from unlearn_eval.edits.places import DESCRIPTION
from unlearn_eval.edits.redaction import Names, write_redacted
from unlearn_eval.harness.forms import ALL_FORMS
from unlearn_eval.metrics import normalise
from unlearn_eval.metrics.catalogue import interval
from unlearn_eval.results.certificate import (
    FAILS,
    KIND,
    NOTHING_KNOWN,
    PASSES,
    SCHEMA_VERSION,
    Certificate,
    Form,
    certificate_of,
    signature_of,
    write_certificate,
)
from unlearn_eval.results.schema import Metric, utc_now
from unlearn_eval.runs.forget.inventory import Known
from unlearn_eval.runs.forget.measure import Bench, Measured
from unlearn_eval.runs.forget.policy import ASKED, Candidate, Policy
from unlearn_eval.runs.forget.request import Question
from unlearn_eval.runs.forget.search import Trial
from unlearn_eval.runs.study.identity import code_hash
from unlearn_eval.utils.folders import write_whole
from unlearn_eval.utils.json_files import write_all
from unlearn_eval.utils.provenance import hash_json, provenance, redact, sha256_of_file

MOST_IN_A_SENTENCE = 3  # failures; the rows have all
KEY = "redaction.key"  # in `work`: who has it can say for which question a keyed hash stands
NEVER = (
    "attacks on the prompt that are searched with gradients (GCG) or by another model",
    "other languages than that of the questions",
    "training on the forgotten answers themselves: whoever has them needs no model",
    "copies of the model from before the edit, and the data that it was trained on",
)


@dataclass(frozen=True)
class Earlier:
    """An earlier certificate, measured again with a new edit."""

    sha256: str
    policy: str
    outcome: str
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """All that a run has found.

    Attributes:
        request: the file that it was asked by.
        questions: of the request.
        known: what the model knew of each, and what is left.
        policy: the policy.
        before: the measurements before, of what was edited.
        candidates, trials: what was tried.
        not_tried: methods that were not, and why.
        chosen, edit, edit_folder, after: the trial that passed or is nearest, its edit, and its measurements.
        earlier: earlier requests, measured again.
    """

    request: str
    questions: Sequence[Question]
    known: Sequence[Known]
    policy: Policy
    before: Measured
    candidates: tuple[Candidate, ...] = ()
    trials: tuple[Trial, ...] = ()
    not_tried: tuple[str, ...] = ()
    chosen: Trial | None = None
    edit: Any = None
    edit_folder: Path | None = None
    after: Measured = field(default_factory=Measured)
    earlier: tuple[Earlier, ...] = ()

    @property
    def title(self) -> str:
        """The chosen method's name as people write it."""
        assert self.chosen is not None
        return get_editor(self.candidates[self.chosen.candidate].editor).title

    @property
    def passes(self) -> bool:
        """Whether the chosen trial passes everything."""
        return self.chosen is not None and self.chosen.passes(len(self.policy.measurements))


def certify(
    found: Found,
    bench: Bench,
    redacted: bool,
    sign: str | None,
    spent: tuple[float, float],
    budget_seconds: float,
    folder: Path,
) -> Certificate:
    """Write the edit and the certificate of what was found; returns the certificate.

    Args:
        found: everything.
        bench: with which it was measured.
        redacted: whether nothing that was asked is named.
        sign: file of a private key.
        spent: seconds of the clock, and of processors.
        budget_seconds: that were allowed.
        folder: of the run.
    """
    names = _names(found) if redacted else None
    key = _key(folder / "work") if redacted else None
    edit = None
    if found.edit_folder is not None:
        _place_edit(found.edit_folder, folder / "edit", redacted)
        description = read_description(folder / "edit", check_files=False)
        edit = {
            "sha256": sha256_of_file(folder / "edit" / DESCRIPTION),
            "editor": found.edit.info.editor,
            "title": found.title,
            "kind": found.edit.kind,
            "settings": found.edit.info.config,
            "seconds": found.edit.info.seconds,
            "seed": found.edit.info.seed,
            "n_files": len(description["files"]),
        }
    around = bench.around
    questions = hash_of_questions(own.item for own in found.questions)
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "created": utc_now(),
        "verdict": _verdict(found),
        "request": {
            "name": Path(found.request).name,
            "hash": questions,
            "redacted": redacted,
            "items": [_item(own, question) for own, question in zip(found.known, found.questions, strict=True)],
        },
        "model": bench.loaded.describe(bench.loaded.weights) | {"device": str(bench.loaded.model.device)},
        "edit": edit,
        "policy": found.policy.model_dump(),
        "rows": [row.model_dump() for row in (found.chosen.rows if found.chosen else ())],
        "forms": [form.model_dump() for form in _forms(found)],
        "trials": [_trial(own, found) for own in found.trials],
        "not_tried": [*found.not_tried, *_attacks_not_tried(found.policy), *NEVER],
        "cautions": _cautions(found),
        "hashes": {
            "base": bench.loaded.weights.canonical,
            "edit": None if edit is None else edit["sha256"],
            "questions": questions,
            "retain": None if around.retain is None else around.retain.hash,
            "neighbors": None if around.neighbors is None else around.neighbors.hash,
            "policy": hash_json(found.policy.model_dump()),
            "code": hash_json([code_hash(), code_hash("attacks")]),
        },
        "earlier": [{**asdict(own), "failures": list(own.failures)} for own in found.earlier],
        "environment": provenance(bench.loaded.model.device),
        "budget": {"allowed_seconds": budget_seconds, "spent_seconds": spent[0], "cpu_seconds": spent[1]},
    }
    content = redact(content)
    if names is not None and key is not None:
        content = _redacted(content, names, key)
    if sign is not None:
        content["signature"] = signature_of(certificate_of(content).model_dump(), sign)
    certificate = certificate_of(content)
    write_certificate(certificate, folder)
    return certificate


def hash_of_questions(items: Iterable[ForgetItem]) -> str:
    """SHA-256 of a request's questions."""
    return hash_json([item.record for item in items])


# The result in words ---------------------------------------------------------------------------------------


def _verdict(found: Found) -> dict[str, Any]:
    n_known, n = sum(own.known for own in found.known), len(found.known)
    some = f"{n_known} of the {n} facts" if n_known < n else f"all {n} facts"
    asked = "the one fact that was asked for" if n == 1 else f"{some} that were asked for"
    rows = found.chosen.rows if found.chosen else ()
    unmeasured = [f"{row.words}: {row.reason}" for row in rows if row.value is None]
    failures = found.chosen.failures if found.chosen else []
    policy = found.policy.name
    if n_known == 0:
        sentence = (
            f"There is nothing to forget: the model gave away none of the {n} answers, in any form that was asked."
        )
        return {"outcome": NOTHING_KNOWN, "sentence": sentence, "failures": [], "unmeasured": []}
    if found.chosen is None:
        reason = "; ".join(trial.error for trial in found.trials if trial.error) or "no method suits the request"
        sentence = f"No edit was made, so the policy {policy} is not passed: {reason}."
        return {"outcome": FAILS, "sentence": sentence, "failures": [reason], "unmeasured": []}
    did = f"{found.title} was made to forget {asked}"
    if n_known < n:
        did += "; the model did not know the others, and they were left alone"
    if found.passes:
        left = f", as far as it could be measured ({len(unmeasured)} could not)" if unmeasured else ""
        sentence = f"Passes the policy {policy}{left}: {did}."
        return {"outcome": PASSES, "sentence": sentence, "failures": [], "unmeasured": unmeasured}
    tried = len(found.trials)
    more = f"; and {len(failures) - MOST_IN_A_SENTENCE} more" if len(failures) > MOST_IN_A_SENTENCE else ""
    reasons = "; ".join(failures[:MOST_IN_A_SENTENCE]) + more
    sentence = f"Does not pass the policy {policy}, because {reasons}. {did}."
    sentence += f" This is the nearest of {tried} edits that were tried." if tried > 1 else ""
    return {"outcome": FAILS, "sentence": sentence, "failures": failures, "unmeasured": unmeasured}


def _cautions(found: Found) -> list[str]:
    said = [
        "This says what was measured on one day with these questions. It is not a proof that nothing is left, and not "
        "legal advice."
    ]
    n = sum(own.known for own in found.known)
    if unknown := len(found.known) - n:
        said.append(
            f"{unknown} of the {len(found.known)} answers were given away in no form before the edit. They were not "
            "edited, and nothing is certified of them."
        )
    if not n:
        return said
    ends = interval("forget_accuracy", Metric(0.0, 0.0, n))
    if ends is not None:
        said.append(f"With {n} facts a share of 0 may be up to {ends[1]:.0%} (95 % interval).")
    if found.edit is None:
        return said
    if found.edit.kind == MEMORY:
        said.append(
            "A memory edit is a filter before an unchanged model: the weights still hold what was asked to be "
            "forgotten, and whoever has them without the filter has it too."
        )
    said += _depth(found.after)
    if len(found.trials) > 1:
        said.append(
            f"The edit was chosen among {len(found.trials)} by the same questions that it is certified by, so its "
            "numbers are a little better than they would be on others."
        )
    said.append(
        "Neighbors count as kept if the name or number of the model's earlier answer is still in its answer, right or "
        "wrong."
    )
    return [*said, *found.after.notes]


def _depth(after: Measured) -> list[str]:
    """Whether the answers are hidden at the last layers rather than gone from those before, by the depth measures."""
    found = []
    for metrics in after.metrics.values():
        mean, last = metrics.get("forget_logit_lens_gap"), metrics.get("forget_last_logit_lens_gap")
        if mean is None or last is None or mean.value is None or last.value is None:
            continue
        hidden = mean.value < HIDDEN_BELOW * last.value
        found.append(
            f"Read from the layers, the answers have lost {mean.value:.2f} nats per token in the mean over all layers "
            f"and {last.value:.2f} at the last: "
            + ("that looks hidden rather than erased." if hidden else "the loss is not of the last layers alone.")
        )
    return found


HIDDEN_BELOW = 0.1  # of the last layer's loss: a tenth of the layers, or all of them a little


def _attacks_not_tried(policy: Policy) -> list[str]:
    made = {own.attack for own in policy.measurements}
    return [f"the attack {name}, which {get_attack(name).does}" for name in attack_names() if name not in made]


def _trial(own: Trial, found: Found) -> dict[str, Any]:
    candidate = found.candidates[own.candidate]
    setting = f"{candidate.strength.setting}={own.value}" if candidate.strength else ""
    return {
        "number": own.number,
        "editor": candidate.editor,
        "setting": setting,
        "measured": list(own.measured),
        "failures": own.failures,
        "seconds": own.seconds,
        "chosen": found.chosen is not None and own.number == found.chosen.number,
    }


def _item(own: Known, question: Question) -> dict[str, Any]:
    item = own.item
    return {
        "id": item.id,
        "question": item.question,
        "answer": item.answer,
        "subject": item.subject,
        "source": question.source,
        "known": own.known,
        "before": dict(own.before),
        "after": dict(own.after),
    }


def _forms(found: Found) -> list[Form]:
    """What is left in each way of asking."""
    wanted = [
        (ASKED, "forget_accuracy", "question as given"),
        (ASKED, "forget_extraction_strength", "completed by itself"),
    ]
    for name in found.before.metrics:
        own = found.before.metrics[name]
        wanted += [
            (name, f"forget_leak_{form}", form.replace("_", " ")) for form in ALL_FORMS if f"forget_leak_{form}" in own
        ]
        wanted += [(name, "forget_leak_at_1", "one sampled answer")] if "forget_leak_at_1" in own else []
    rows = []
    for name, metric, words in wanted:
        before, after = found.before.metrics.get(name, {}).get(metric), found.after.metrics.get(name, {}).get(metric)
        if before is None:
            continue
        low, high = (None, None) if after is None else interval(metric, after) or (None, None)
        rows.append(
            Form(
                form=words,
                before=before.value,
                value=None if after is None else after.value,
                low=low,
                high=high,
                n=(after or before).n,
                reason=str((after or before).reason or ""),
            )
        )
    return rows


# Without names ---------------------------------------------------------------------------------------------


def _names(found: Found) -> Names:
    """The ids and words of the request."""
    items = [own.item for own in found.questions]
    words = {
        text
        for item in items
        for text in (
            item.question,
            item.answer,
            *item.aliases,
            item.subject or "",
            *item.paraphrases,
            *item.perturbed_answers,
        )
        if text
    }
    return Names(frozenset(item.id for item in items), frozenset(words) | {Path(found.request).stem})


def _key(work: Path) -> bytes:
    path = work / KEY
    if not path.is_file():
        write_all({KEY: secrets.token_hex(32)}, work)
    return bytes.fromhex(path.read_text(encoding="utf-8"))


def hidden(text: str, key: bytes) -> str:
    """What stands for a text in a redacted certificate: whoever has the key can tell which text it is."""
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def initials(subject: str) -> str:
    """A subject by its first letters."""
    return " ".join(f"{word[0]}." for word in subject.split() if word[0].isalnum())


def _redacted(content: dict[str, Any], names: Names, key: bytes) -> dict[str, Any]:
    """A certificate's content without what was asked; the policy is none of it, and stays."""
    request, policy, hashes = content["request"], content["policy"], dict(content["hashes"])
    items = [
        {
            **item,
            "id": hidden(item["id"], key)[:16],
            "question": hidden(normalise(item["question"]), key)[:16],
            "answer": hidden(normalise(item["answer"]), key)[:16],
            "subject": None if item["subject"] is None else initials(item["subject"]),
        }
        for item in request["items"]
    ]
    for name in ("questions", "retain", "neighbors"):  # by which a guess could be confirmed
        hashes[name] = None if hashes[name] is None else hidden(hashes[name], key)
    cleaned = {name: _clean(own, names) for name, own in content.items() if name not in ("request", "policy", "hashes")}
    hashed = {**request, "name": "redacted", "hash": hidden(request["hash"], key), "items": items}
    return {**cleaned, "request": hashed, "policy": policy, "hashes": hashes}


def _clean(value: Any, names: Names) -> Any:
    """Values without texts that hold a name; keys are the schema's, and stay."""
    if isinstance(value, dict):
        return {key: _clean(own, names) for key, own in value.items()}
    return [_clean(own, names) for own in value] if isinstance(value, list) else names.clean(value)


def _place_edit(source: Path, target: Path, redacted: bool) -> None:
    """The chosen edit beside the certificate, without names where that is asked for."""

    def fill(folder: Path) -> None:
        description = read_description(source)
        if redacted:
            write_redacted(source, description, Names.of(source, description), folder, _copy)
        else:
            shutil.copytree(source, folder, dirs_exist_ok=True)

    write_whole(target, "edit", DESCRIPTION, fill)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
