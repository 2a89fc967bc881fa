"""Certificates measured again: hashes, signature, revocation, and the numbers, within their intervals.

Nothing in a certificate is believed: the policy in it is measured with the edit and the questions that are here, whose
hashes must be those of the certificate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.edits.base import Edit
from unlearn_eval.edits.load import check_base, load_edit
from unlearn_eval.edits.places import DESCRIPTION, is_edit
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.results.certificate import (
    FAILS,
    REVOKED,
    Certificate,
    Row,
    certificate_path,
    check_signature,
    read_certificate,
    signature_of,
)
from unlearn_eval.results.requirements import OPERATORS
from unlearn_eval.results.schema import utc_now
from unlearn_eval.runs.forget.judged import judged, sound_rows
from unlearn_eval.runs.forget.measure import Bench
from unlearn_eval.runs.forget.policy import Policy
from unlearn_eval.runs.forget.proof import KEY, hash_of_questions, hidden
from unlearn_eval.runs.forget.surroundings import stored_surroundings
from unlearn_eval.runs.forget.trials import (
    KNOWN,
    PLACE,
    QUESTIONS,
    RUN,
    WORK,
    Prior,
    bench_of,
    measured_before,
    read_earlier,
)
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.json_files import dumps, parse, read_text, write_all
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.provenance import hash_json, sha256_of_file

TOLERANCE = 0.05  # of numbers without an interval: other kernels and other sums


@dataclass(frozen=True)
class Verified:
    """What came of it.

    Attributes:
        certificate: as it says.
        wrong: what does not agree.
        checked: what agrees, one line each.
    """

    certificate: Certificate
    wrong: tuple[str, ...]
    checked: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether everything that was looked at agrees."""
        return not self.wrong

    @property
    def passes(self) -> bool:
        """Whether the certificate says that nothing is left to do."""
        return self.certificate.verdict.outcome != FAILS

    @property
    def lines(self) -> list[str]:
        """All of it, for a terminal."""
        end = "agrees" if self.agrees else "does not agree"
        return [
            *(f"ok     {own}" for own in self.checked),
            *(f"WRONG  {own}" for own in self.wrong),
            f"{end}: {self.certificate.verdict.sentence}",
        ]

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        verdict = self.certificate.verdict.outcome
        return {"agrees": self.agrees, "outcome": verdict, "checked": list(self.checked), "wrong": list(self.wrong)}


def verify_certificate(
    place: str,
    model: str | None = None,
    edit_folder: str | None = None,
    work: str | None = None,
    only: Sequence[str] | None = None,
    key: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
    say: Callable[[str], Any] = lambda line: None,
    progress: Progress = no_progress,
) -> Verified:
    """Check a certificate against what is here, and measure it again.

    Args:
        place: the certificate, or its folder.
        model: base model; None is the one that it names.
        edit_folder, work: of the edit, and of the questions; None is beside the certificate.
        only: measurements to repeat; None is all of the policy, an empty one none.
        key: file of the public key that must have signed.
        batch_size, device: of measuring.
        say, progress: told what is done.

    Raises:
        UserError: there is no certificate, edit, model or question, or an unknown measurement.
    """
    path = certificate_path(place)
    certificate = read_certificate(path)
    folder = path.parent
    wrong, checked = _papers(certificate, folder, key)
    policy = Policy.model_validate(certificate.policy)
    names = [own.name for own in policy.measurements]
    for name in only or ():
        if name not in names:
            raise unknown_name("measurement", name, names)
    chosen = names if only is None else [name for name in names if name in only]
    place_of_edit = Path(edit_folder) if edit_folder else folder / "edit"
    if certificate.edit is None:
        return Verified(certificate, tuple(wrong), (*checked, "there is no edit to measure"))
    if not is_edit(place_of_edit):
        raise UserError(f"the edit of {path} is not at {place_of_edit}", "give its folder with --edit")
    _compare(sha256_of_file(place_of_edit / DESCRIPTION), certificate.hashes["edit"], "the edit", wrong, checked)
    try:
        edit = load_edit(place_of_edit)
    except UserError as error:  # a file of it was changed
        return Verified(certificate, (*wrong, error.message), tuple(checked))
    _compare_rows(certificate, sound_rows(edit), wrong, checked, Row.__eq__)
    if not chosen:
        return Verified(certificate, tuple(wrong), tuple(checked))
    room = Path(work) if work else folder / WORK
    if not (room / KNOWN).is_file():
        raise UserError(f"{room} does not hold the questions", "give the folder that forget called work with --work")
    _data(certificate, room, wrong, checked)
    name = model or _model_of(certificate)
    say(f"loading {name}")
    dtype = str(certificate.model["dtype"])
    loaded = load_model(name, dtype=dtype, device=device, revision=certificate.model.get("revision"))
    try:
        check_base(edit.info, loaded)
        checked.append("the base model is the certificate's")
    except UserError as error:
        return Verified(certificate, (*wrong, error.message), tuple(checked))
    bench = _bench(loaded, edit, room, certificate, batch_size, say, progress)
    with tempfile.TemporaryDirectory(prefix="unlearn-eval-") as scratch:
        _measure_again(certificate, policy, chosen, bench, edit, place_of_edit, Path(scratch), wrong, checked)
    return Verified(certificate, tuple(wrong), tuple(checked))


def _papers(certificate: Certificate, folder: Path, key: str | None) -> tuple[list[str], list[str]]:
    """Revocation, signature, policy, and whether the verdict is that of the rows."""
    wrong, checked = [], []
    if (reason := revoked(certificate, folder)) is not None:
        wrong.append(f"it was revoked: {reason}")
    fault = check_signature(certificate.model_dump(), key)
    if fault:
        wrong.append(fault)
    elif certificate.is_signed:
        checked.append("the signature fits" + ("" if key else " (of whoever made it: give --key to say who)"))
    _compare(hash_json(certificate.policy), certificate.hashes["policy"], "the policy", wrong, checked)
    wrong += _own_faults(certificate)
    return wrong, checked


def _own_faults(certificate: Certificate) -> list[str]:
    """Where a certificate's verdict is not that of its rows, or a row's not that of its number; nothing is measured."""
    bounds = {own.require: own.requirement for own in Policy.model_validate(certificate.policy).bounds}
    rows = {row.require: row for row in certificate.rows}
    missing = bounds.keys() - rows.keys()
    failing = missing or any(row.holds is False for row in rows.values())
    found = []
    if certificate.passes and (failing or any(own.failures for own in certificate.earlier)):
        found.append("it says that the policy is passed, and its own numbers say otherwise")
    for row in rows.values():
        required = bounds.get(row.require)
        if required is None or row.value is None or row.bound is None:
            continue
        moved = required.factor is None and row.bound != required.shift
        if moved or OPERATORS[required.operator](row.value, row.bound) is not row.holds:
            found.append(
                f"{row.words}: {_shown(row)} and the bound {row.bound:.3g} do not go with what it says of them"
            )
    return found


def _model_of(certificate: Certificate) -> str:
    """The base model: where it was, if that is here, else by its name."""
    path = certificate.model.get("path")
    return str(path if path and Path(path).expanduser().exists() else certificate.model["id"])


def _compare(found: str, expected: str | None, what: str, wrong: list[str], checked: list[str]) -> None:
    if found == expected:
        checked.append(f"{what} is the certificate's")
    else:
        wrong.append(f"{what} is not the certificate's (its SHA-256 differs)")


def _data(certificate: Certificate, work: Path, wrong: list[str], checked: list[str]) -> None:
    """Whether questions and retained facts are those of the certificate; keyed hashes need the key beside them."""
    around, asked = stored_surroundings(work), load_forget_set(str(work / QUESTIONS))
    found = {"questions": hash_of_questions(asked)}
    found |= {name: own.hash for name, own in (("retain", around.retain), ("neighbors", around.neighbors)) if own}
    if certificate.request.redacted:
        key = bytes.fromhex(read_text(work / KEY, "redaction key"))
        found = {name: hidden(own, key) for name, own in found.items()}
    for name, digest in found.items():
        _compare(digest, certificate.hashes.get(name), f"the file of {name}", wrong, checked)


def _bench(
    loaded: LoadedModel,
    edit: Edit,
    work: Path,
    certificate: Certificate,
    batch_size: int,
    say: Callable[[str], Any],
    progress: Progress,
) -> Bench:
    from unlearn_eval.models.prompt_format import PromptFormat

    made = PromptFormat.of_edit(edit.info, loaded.tokenizer, loaded.name)
    around, asked = stored_surroundings(work), load_forget_set(str(work / KNOWN))
    seed = int((certificate.edit.model_extra or {}).get("seed") or 0) if certificate.edit else 0
    like = Bench(loaded, made, asked, work / KNOWN, around, batch_size, seed, say, progress)
    return bench_of(work, like)


def _measure_again(
    certificate: Certificate,
    policy: Policy,
    chosen: Sequence[str],
    bench: Bench,
    edit: Edit,
    edit_folder: Path,
    scratch: Path,
    wrong: list[str],
    checked: list[str],
) -> None:
    some = policy.model_copy(update={"measurements": [own for own in policy.measurements if own.name in chosen]})
    needed = {bound.measurement for bound in policy.bounds if bound.requirement.factor is not None}
    based = some.model_copy(update={"measurements": [own for own in some.measurements if own.name in needed]})
    base = measured_before(bench, based, scratch / "before", _earlier(bench.place.parent))
    for wanted in some.measurements:
        bench.say(f"again: {wanted.name}")
        result = bench.measure(wanted, scratch / "after", edit, edit_folder)
        _compare_rows(certificate, judged(policy.bounds_of(wanted.name), result, base.metrics), wrong, checked)


def _compare_rows(
    certificate: Certificate,
    rows: Sequence[Row],
    wrong: list[str],
    checked: list[str],
    same: Callable[[Row, Row], bool] | None = None,
) -> None:
    """Bounds as they stand now against those of a certificate; of what is read and not measured they are the same."""
    before = {row.require: row for row in certificate.rows}
    for row in rows:
        old = before.get(row.require)
        said = f"{row.words}: {_shown(row)}, certified {_shown(old)}"
        (checked if old is not None and (same or agree)(old, row) else wrong).append(said)


def _earlier(work: Path) -> Prior | None:
    """The request on top of which one was met, whose edit its base has; None if it was met by itself."""
    path = work / RUN
    place = parse(read_text(path, "run"), path, "restore it").get(PLACE) if path.is_file() else None
    return read_earlier(place) if place else None


def agree(old: Row, new: Row) -> bool:
    """Whether two measurements of a bound agree: their intervals meet, and the bound holds of both or of neither.

    A number without an interval may differ by a twentieth. One that could not be measured could not be again. Where the
    intervals meet and only one of the numbers is within the bound, they do not agree: the certificate is decided by it.
    """
    if old.value is None or new.value is None:
        return old.value is None and new.value is None
    if old.holds != new.holds:
        return False
    if old.low is None or old.high is None or new.low is None or new.high is None:
        return abs(old.value - new.value) <= TOLERANCE * max(1.0, abs(old.value))
    return old.low <= new.high and new.low <= old.high


def _shown(row: Row | None) -> str:
    if row is None:
        return "nothing"
    if row.value is None:
        return f"not measured ({row.reason})"
    ends = "" if row.low is None else f" [{row.low:.3g}, {row.high:.3g}]"
    return f"{row.value:.3g}{ends}"


# Revoking, serving -----------------------------------------------------------------------------------------


def revoke_certificate(place: str, reason: str, sign: str | None = None) -> Path:
    """Write beside a certificate that it no longer holds, and why; the edit stays, and comes off as it went on.

    Raises:
        UserError: there is no certificate, no reason, or the key cannot be used.
    """
    if not reason.strip():
        raise UserError("a certificate is revoked for a reason", "give --reason TEXT")
    path = certificate_path(place)
    content: dict[str, Any] = {
        "certificate": read_certificate(path).sha256,
        "revoked": utc_now(),
        "reason": reason.strip(),
    }
    if sign is not None:
        content["signature"] = signature_of(content, sign)
    write_all({REVOKED: dumps(content, indent=2) + "\n"}, path.parent)
    return path.parent / REVOKED


def revoked(certificate: Certificate, folder: Path) -> str | None:
    """Why a certificate was revoked, or None if the folder says nothing of it."""
    path = folder / REVOKED
    if not path.is_file():
        return None
    content = parse(read_text(path, "revocation"), path, "restore or remove it")
    if not isinstance(content, dict) or content.get("certificate") != certificate.sha256:
        return None
    return f"{content.get('reason')} ({content.get('revoked')})"


def check_certified(folder: Path, place: str | None = None) -> Certificate:
    """The certificate of an edit's folder, if it passes; for `serve --require-certificate`.

    Args:
        folder: of the edit.
        place: of the certificate; None is in the folder, or beside it.

    Raises:
        UserError: there is none, it is of another edit, was changed or revoked, or its policy is not passed.
    """
    places = [Path(place)] if place else [folder, folder.resolve().parent]
    path = next((own for own in map(certificate_path, places) if own.is_file()), None)
    hint = "make one with `unlearn-eval forget`, or leave out --require-certificate"
    if path is None:
        raise UserError(f"{folder} has no certificate", hint)
    certificate = read_certificate(path)
    wrong, _ = _papers(certificate, path.parent, None)
    if certificate.hashes["edit"] != sha256_of_file(folder / DESCRIPTION):
        wrong.append("it is of another edit")
    if not certificate.passes:
        wrong.append(certificate.verdict.sentence)
    if wrong:
        raise UserError(f"the certificate {path} does not let {folder} be served: {'; '.join(wrong)}", hint)
    return certificate
