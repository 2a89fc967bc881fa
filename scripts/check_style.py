"""The English of documents, docstrings and commit subjects, as far as a script can judge it.

    python scripts/check_style.py      lists what is wrong; exits with 1 if anything is

American spelling in documents, docstrings and comments; sentences of at most `MOST_WORDS` words in documents; subjects
of the last commits of at most `MOST_CHARACTERS` characters.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS = 50  # a style guide says 25; what is longer than twice that is always better as two
MOST_CHARACTERS, N_COMMITS = 72, 5
_STEMS = (
    "categor|final|general|initial|local|maxim|memor|minim|normal|optim|organ|quant|random|recogn|regular|standard"
    "|summar|token"
)
_BRITISH = re.compile(
    rf"(?<!\w)(?:[a-z]*(?:{_STEMS})is(?:e|es|ed|er|ers|ing|ation|ations)|[a-z]*(?:behavi|col|fav|neighb)ours?|labelled"
    r"|modelled|judgements?|artefacts?|whilst|towards)\b",
    re.IGNORECASE,
)
TITLES = ("Towards Practical Knowledge Unlearning",)  # of papers, as they are spelled
_NOT_PROSE = re.compile(r"```.*?```|`[^`]*`|<!--.*?-->|\]\([^)]*\)|https?://\S+", re.DOTALL)
_SENTENCES = re.compile(r"(?<=[.!?:;])\s+|\n\s*\n")


def documents() -> list[Path]:
    """Every page that is written by hand, and those made from docstrings."""
    places = ("*.md", "docs/**/*.md", "tasks/*/README.md")
    return sorted(path for place in places for path in ROOT.glob(place) if path.name != "CHANGELOG.md")


def sources() -> list[Path]:
    """The code of the package and what stands beside it."""
    folders = ("unlearn_eval", "editors", "scripts", "benchmarks", "tests")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def misspelled(text: str) -> list[str]:
    """The words of a text that are not spelled as in America, code and addresses left out."""
    for title in TITLES:
        text = text.replace(title, "")
    return _BRITISH.findall(_NOT_PROSE.sub(" ", text))


def prose_of(code: str) -> Iterator[str]:
    """The comments and docstrings of a module: the strings that are statements by themselves."""
    starts = True
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and starts):
            yield token.string
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            starts = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)


def long_sentences(text: str) -> list[str]:
    """The sentences of a document with too many words; tables, lists of names and code have none."""
    text = _NOT_PROSE.sub("x", text)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#", "- [", "    "))]
    found = (
        " ".join(own.split()) for own in _SENTENCES.split(re.sub(r"\n\s*(?:[-*]|\d+\.) ", "\n\n", "\n".join(lines)))
    )
    return [own for own in found if len(own.split()) > MOST_WORDS]


def subjects() -> list[str]:
    """The subjects of the last commits; none outside a checkout."""
    command = ["git", "-C", str(ROOT), "log", f"-{N_COMMITS}", "--no-merges", "--format=%s"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def problems() -> list[str]:
    """One line for everything that is wrong."""
    found = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        found += [f"{name}: not American: {word}" for word in misspelled(text)]
        if "reference" not in name.parts:
            found += [f"{name}: a sentence of {len(own.split())} words: {own[:80]}..." for own in long_sentences(text)]
    for path in sources():
        for prose in prose_of(path.read_text(encoding="utf-8")):
            found += [f"{path.relative_to(ROOT)}: not American: {word}" for word in misspelled(prose)]
    return found + [f"a commit's subject is too long: {own}" for own in subjects() if len(own) > MOST_CHARACTERS]


def main() -> int:
    """Lists the problems."""
    found = problems()
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
