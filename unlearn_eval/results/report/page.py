"""Result files as one page for a browser: a file of its own, without network, in which data can only be text.

Only the page's own code may run, named by its hash (Content-Security-Policy): no script in what a model wrote can. The
summary is JSON with `<`, `>`, `&` and line separators escaped; the answers are compressed.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import zlib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from unlearn_eval import __version__
from unlearn_eval.results.report.answers import shortened
from unlearn_eval.results.report.page_data import Say, page_data
from unlearn_eval.results.runs import Place, Runs, read_runs
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import write_all

SCRIPTS = (
    "page_robustness.js",
    "page_popularity.js",
    "page_sequence.js",
    "page_sharing.js",
    "page.js",
)  # page.js ends by starting
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def build_page(runs: Runs, title: str = "", say: Say = lambda line: None) -> str:
    """The HTML of a report on these runs; without a title it is called as the study is whose cells they are."""
    summary, answers = page_data(runs, say)
    folder = files("unlearn_eval.results.report")
    template, style, *scripts = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", *SCRIPTS)
    )
    title, script = title or runs.study or "unlearn-eval", "".join(scripts)
    style += margins(title, summary["dates"][-1])
    parts = {
        "POLICY": f"default-src 'none'; script-src '{csp_source(script)}'; style-src '{csp_source(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        "TITLE": html.escape(title),
        "STYLE": style,
        "SUMMARY": as_script_json({"title": title, **summary}),
        "ANSWERS": _compressed(answers),
        "SCRIPT": script,
    }
    pieces = template.split("@@")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def report(
    results: Place | Iterable[Place],
    output: str | Path = "report.html",
    title: str = "",
    base: str | Path | None = None,
) -> Path:
    """Writes one page about results, which needs no network; returns its path.

    Args:
        results: result files, folders of them, or results; lm-eval's and OpenUnlearning's files are read, too.
        output: the page.
        title: what it is called.
        base: a result that edited runs are compared with, where no unedited one is found by itself.

    Raises:
        UserError: there is no result, or the page cannot be written.
    """
    return write_page(read_runs(results, base), output, title)


def write_page(runs: Runs, path: str | Path, title: str = "", say: Say = lambda line: None) -> Path:
    """Writes the report on these runs; returns its path.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(path).expanduser()
    text = build_page(runs, title, say)
    try:
        write_all({path.name: text}, path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}", "give another --output") from error
    return path


def as_script_json(content: object) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin another."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return _without_halves(text).translate(_ESCAPES)


def margins(title: str, date: str) -> str:
    """What stands in the margins of every printed page: title, date and version, and the page's number."""
    left = _css_text(f"{title} · {date} · unlearn-eval {__version__}")
    small = "font: 7pt sans-serif; color: #5a626c;"
    return (
        f"@page {{ size: A4; margin: 11mm 12mm 13mm; @bottom-left {{ content: {left}; {small} }} "
        f'@bottom-right {{ content: counter(page) " of " counter(pages); {small} }} }}'
    )


def _css_text(text: str) -> str:
    """A text as a string of CSS: every character but letters, digits and spaces by its number."""
    shown = "".join(c if c.isalnum() or c in " .-" else f"\\{ord(c):x} " for c in _without_halves(shortened(text, 90)))
    return f'"{shown}"'


def _compressed(content: object) -> str:
    """JSON, deflated, as base64; a level above 6 takes longer and gains little."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(_without_halves(text).encode(), 6)).decode()


def _without_halves(text: str) -> str:
    """The text with halves of surrogate pairs, which UTF-8 cannot hold, replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def csp_source(text: str) -> str:
    """What a Content-Security-Policy calls a style or script by: its hash."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
