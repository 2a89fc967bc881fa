"""What the documents hold: commands, pieces of Python, files, links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("tasks/*/README.md"),
        *ROOT.glob("results/*.md"),
    )
    if path.name != "CHANGELOG.md"
)
GUIDES = ROOT / "docs" / "guides"
SCRIPTS = sorted(ROOT.glob("examples/*"))
PROGRAMS = ("unlearn-eval", "lm_eval")
ALTERNATIVES = re.compile(r" \| .*")  # `ls tasks | editors` says what may stand there
_VARIABLES = {
    "$ASK": "{}",
    "$METADATA": "{}",
    "$MODEL": "MODEL",
    "$OUT": "OUT",
    "$EDIT": "EDIT",
    "$@": "",
}


def named(path: Path) -> str:
    """A document's path from the top."""
    return str(path.relative_to(ROOT))


def blocks(text: str, *kinds: str) -> list[str]:
    """The contents of fenced blocks of these kinds."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [content for kind, content in found if kind in kinds]


def files(text: str) -> dict[str, str]:
    """The files that a page shows: `<!-- file: NAME -->` before a block."""
    found = re.findall(r"<!-- file: (\S+) -->\n```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return dict(found)


def commands(path: Path) -> list[list[str]]:
    """The command lines of ours and of lm_eval in a document's blocks, or in a script, as words."""
    text = path.read_text(encoding="utf-8")
    lines = "\n".join(blocks(text, "", "sh")) if path.suffix == ".md" else text
    found = []
    if options := re.search(r"^ *OPTIONS: (.*)$", text, flags=re.MULTILINE):
        lines = lines.replace("$OPTIONS", options[1])
    for line in re.sub(r"\\\n\s*", " ", re.sub(r">\n((?: {10}.*\n)+)", _folded, lines)).splitlines():
        line = re.sub(r"^\s*(?:- run: )?", "", line)
        if not line.startswith(tuple(f"{program} " for program in PROGRAMS)):
            continue
        line = re.sub(r"\$\{?(\w+)(?::-[^}]*)?\}?", lambda match: _VARIABLES.get(f"${match[1]}", "VALUE"), line)
        words = shlex.split(
            ALTERNATIVES.sub("", line).replace('--output "$@"', "--output VALUE").replace("$@", ""), comments=True
        )
        found.append([word for word in words if word not in ("", "...", ">")])
    return found


def _folded(match: re.Match[str]) -> str:
    """YAML's folded text as one line."""
    return "\n" + " ".join(line.strip() for line in match[1].splitlines()) + "\n"


def links(path: Path) -> list[str]:
    """The places that a document links to, without those on the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL))
    return [target.partition("#")[0] for target in found if not target.startswith(("http", "#", "mailto"))]


def paths(path: Path) -> list[str]:
    """The files of ours that a document names in backticks, by their paths from the top."""
    folders = "unlearn_eval|editors|tests|scripts|benchmarks|studies|examples|docs"
    return re.findall(rf"`((?:{folders})/[\w./-]+)`", path.read_text(encoding="utf-8"))
