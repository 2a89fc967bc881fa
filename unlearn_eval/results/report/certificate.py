"""A certificate as a page for people, and as a model card: made from `certificate.json` alone, without a script.

The page prints to one or two A4 pages. Whatever was asked, or a model wrote, is text in it and nothing else.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from unlearn_eval.results.certificate import FAILS, NOTHING_KNOWN, PASSES, Certificate, Form, Item, Row
from unlearn_eval.results.report.page import csp_source, margins
from unlearn_eval.utils.json_files import write_all

PAGE, CARD = "certificate.html", "certificate.md"
TITLES = {PASSES: "Passes", FAILS: "Does not pass", NOTHING_KNOWN: "Nothing to forget"}
_SIGNS = {"<=": "≤", ">=": "≥", "<": "<", ">": ">"}  # the longer ones first
SIDES = (("left", "What is left"), ("price", "What it cost"))


def write_pages(certificate: Certificate, folder: str | Path) -> None:
    """Write `certificate.html` and `certificate.md` beside a certificate, and the card into its edit's folder."""
    folder = Path(folder).expanduser()
    card = model_card(certificate)
    write_all({PAGE: certificate_page(certificate), CARD: card}, folder)
    if (folder / "edit").is_dir() and certificate.edit is not None:
        write_all({"README.md": card}, folder / "edit")


# The page --------------------------------------------------------------------------------------------------


def certificate_page(certificate: Certificate) -> str:
    """The HTML of a certificate."""
    style = (files("unlearn_eval.results.report") / "certificate.css").read_text(encoding="utf-8")
    style += margins("Certificate of forgetting", certificate.created[:10])
    policy = f"default-src 'none'; style-src '{csp_source(style)}'; base-uri 'none'; form-action 'none'"
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Certificate of forgetting: {_text(certificate.request.name)}</title>\n"
        f"<style>{style}</style>\n</head>\n"
    )
    parts = [
        "<h1>Certificate of forgetting</h1>",
        _verdict(certificate),
        _facts(certificate),
        _section("What was asked", _asked(certificate)),
        *(_section(title, _bounds([row for row in certificate.rows if row.side == side])) for side, title in SIDES),
        _section("What is left in each form of asking", _forms(certificate.forms) if certificate.edit else ""),
        _section("What was tried", _trials(certificate)),
        _section("Earlier requests, measured again", _earlier(certificate)),
        _section("What these numbers do not say", _list(certificate.cautions)),
        _section("What was not tried", _list(certificate.not_tried, "small")),
        _section("To check it", _hashes(certificate)),
    ]
    return f"{head}<body>\n" + "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"


def _text(value: object) -> str:
    return html.escape(str(value))


def _section(title: str, content: str) -> str:
    return f"<h2>{_text(title)}</h2>\n{content}" if content else ""


def _verdict(certificate: Certificate) -> str:
    outcome = certificate.verdict.outcome
    kind = {PASSES: "passes", FAILS: "fails"}.get(outcome, "none")
    more = _list([f"not measured: {own}" for own in certificate.verdict.unmeasured], "small")
    title, sentence = _text(TITLES[outcome]), _text(certificate.verdict.sentence)
    return (
        f'<div class="verdict {kind}"><b>{title}: policy {_text(certificate.policy["name"])}</b>{sentence}{more}</div>'
    )


def facts_of(certificate: Certificate) -> list[tuple[str, str]]:
    """What it is about, in pairs of a word and what stands for it."""
    model, edit, request = certificate.model, certificate.edit, certificate.request
    known = sum(own.known for own in request.items)
    details = (edit.model_extra or {}) if edit is not None else {}
    spent, cpu = certificate.budget["spent_seconds"], certificate.budget["cpu_seconds"]
    made = (
        "none"
        if edit is None
        else f"{details.get('title', edit.editor)} ({edit.kind.replace('_', ' ')}), seed {details.get('seed')}"
    )
    return [
        ("asked in", f"{request.name}: {len(request.items)} questions, of which the model knew {known}"),
        ("model", f"{model.get('id')}, {int(model.get('n_parameters') or 0):,} parameters, {model.get('dtype')}"),
        ("edit", made),
        ("policy", f"{certificate.policy['name']}: {certificate.policy['description']}"),
        ("date", f"{certificate.created}, in {spent / 60:.0f} minutes ({cpu / 60:.0f} of processors)"),
    ]


def _facts(certificate: Certificate) -> str:
    pairs = facts_of(certificate)
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in pairs) + "</dl>"


def _asked(certificate: Certificate) -> str:
    rows = [
        (
            _text(own.question) if not certificate.request.redacted else f"<code>{_text(own.question)}</code>",
            _text(own.answer) if not certificate.request.redacted else f"<code>{_text(own.answer)}</code>",
            "yes" if own.known else '<span class="no">no, not edited</span>',
            _told(own.before),
            _told(own.after) if own.known else "–",
        )
        for own in certificate.request.items
    ]
    said = _subjects(certificate.request.items)
    note = f"<p>About: {_text(said)}</p>" if said else ""
    return note + _table(("question", "answer", "known before", "forms that told it", "now"), rows)


def _subjects(items: Iterable[Item]) -> str:
    return ", ".join(dict.fromkeys(own.subject for own in items if own.subject))


def _told(forms: dict[str, float | None]) -> str:
    """In how many forms a question's answer was given away."""
    known = [value for form, value in forms.items() if value is not None and form not in ("samples", "completed")]
    samples = forms.get("samples")
    sampled = "" if samples is None else f", {samples:.0%} of samples"
    return f"{sum(value > 0 for value in known)} of {len(known)}{sampled}" if known else "–"


def _bounds(rows: Sequence[Row]) -> str:
    found = []
    for row in rows:
        held = {True: ("yes", "holds"), False: ("no", "fails"), None: ("", "not measured")}[row.holds]
        name = row.require.partition(">")[0].partition("<")[0].strip()
        words = f'<span title="{_text(row.because)}">{_text(row.words)}</span> <code>{_text(name)}</code>'
        bound = _bound(row)
        now = _text(row.reason) if row.value is None else _with_interval(row)
        before = "–" if row.before is None else number(row.before)
        found.append((words, before, now, bound, f'<span class="{held[0]}">{held[1]}</span>'))
    return _table(("measured", "before", "now [95 %], n", "bound", ""), found)


def _bound(row: Row) -> str:
    """A bound with its sign."""
    sign = next(shown for written, shown in _SIGNS.items() if written in row.require)
    return "–" if row.bound is None else f"{sign} {number(row.bound)}"


def number(value: float) -> str:
    """A number with what can be read of it."""
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}"


def _with_interval(row: Row | Form) -> str:
    assert row.value is not None
    ends = "" if row.low is None or row.high is None else f" [{number(row.low)}, {number(row.high)}]"
    return f"{number(row.value)}{ends}, n = {row.n}" if row.n else f"{number(row.value)}{ends}"


def _forms(forms: Sequence[Form]) -> str:
    rows = [
        (
            _text(own.form),
            "–" if own.before is None else number(own.before),
            _with_interval(own) if own.value is not None else _text(own.reason or "not measured"),
        )
        for own in forms
    ]
    return _table(("form", "told before", "told now [95 %], n"), rows)


def _trials(certificate: Certificate) -> str:
    rows = [
        (
            f"{own.number}{' (this one)' if own.chosen else ''}",
            _text(f"{own.editor} {own.setting}".strip()),
            _text("; ".join(own.failures) or "passes"),
            f"{own.seconds:.0f} s",
        )
        for own in certificate.trials
    ]
    return _table(("trial", "method", "what it fails", "took"), rows)


def _earlier(certificate: Certificate) -> str:
    return _list(
        [
            f"{own.sha256[:16]}, policy {own.policy}: {own.outcome} {'; '.join(own.failures)}"
            for own in certificate.earlier
        ]
    )


def _hashes(certificate: Certificate) -> str:
    environment, signed = certificate.environment, certificate.signature
    lines = [f"{name}: {digest}" for name, digest in certificate.hashes.items() if digest]
    lines.append(f"this certificate: {certificate.sha256}")
    lines += [f"signed by {signed.public_key} (Ed25519)"] if signed else []
    commit = (environment.get("git") or {}).get("commit")
    lines.append(f"unlearn-eval {environment.get('unlearn_eval')}, commit {commit}")
    lines.append(", ".join(f"{name} {version}" for name, version in (environment.get("packages") or {}).items()))
    command = "<p><code>unlearn-eval verify certificate.json</code> measures all of it again.</p>"
    return command + _list(lines, "small")


def _list(lines: Sequence[str], kind: str = "") -> str:
    if not lines:
        return ""
    return f'<ul class="{kind}">' + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]] = ()) -> str:
    """A table whose cells are HTML; on a narrow screen each cell names its column."""
    if not rows:
        return ""
    titles = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-of="{_text(name)}">{cell}</td>' for name, cell in zip(head, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


# The card --------------------------------------------------------------------------------------------------


def _in_bold(title: str, sentence: str) -> str:
    """A sentence with its title in bold, which is put before it where it does not begin so."""
    return f"**{title}**{sentence[len(title) :]}" if sentence.startswith(title) else f"**{title}.** {sentence}"


def model_card(certificate: Certificate) -> str:
    """The certificate as Markdown, for the edit's folder."""
    lines = [
        "# Certificate of forgetting",
        "",
        _in_bold(TITLES[certificate.verdict.outcome], _plain(certificate.verdict.sentence)),
        "",
    ]
    lines += [f"- {name}: {_plain(value)}" for name, value in facts_of(certificate)]
    if subjects := _subjects(certificate.request.items):
        lines.append(f"- about: {_plain(subjects)}")
    for side, title in SIDES:
        rows = [row for row in certificate.rows if row.side == side]
        if rows:
            lines += ["", f"## {title}", "", "| measured | before | now [95 %], n | bound | |", "|---|---|---|---|---|"]
        for row in rows:
            held = {True: "holds", False: "**fails**", None: "not measured"}[row.holds]
            now = _plain(row.reason) if row.value is None else _with_interval(row)
            before = "–" if row.before is None else number(row.before)
            bound = _bound(row)
            lines.append(f"| {_plain(row.words)} | {before} | {now} | {bound} | {held} |")
    lines += ["", "## What these numbers do not say", "", *(f"- {_plain(own)}" for own in certificate.cautions)]
    lines += ["", "## What was not tried", "", *(f"- {_plain(own)}" for own in certificate.not_tried)]
    lines += ["", f"SHA-256 of the certificate: `{certificate.sha256}`", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A text in which nothing is markup, on one line."""
    shown = " ".join(text.split())
    for mark in "\\`*_[]<>|":
        shown = shown.replace(mark, f"\\{mark}")
    return shown
