"""The shipped facts' questions in other languages, of relations whose answer is a name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "tasks" / "facts" / "languages.json"
LANGUAGES = ("german", "french", "spanish", "italian")


def translated(relation: str, subject: str, accepted: Sequence[str]) -> list[dict[str, Any]]:
    """A fact's question in each language, with what its answer is called there; nothing of other relations.

    Names without an entry read the same; titles stay as they are.
    """
    found = []
    for language in LANGUAGES:
        form = _table()["questions"][language].get(relation)
        if form is not None:
            answers = dict.fromkeys(name for answer in accepted for name in _names(answer, language))
            own = {"question": form.format(subject=_names(subject, language)[0]), "answers": list(answers)}
            found.append({"language": language, **own})
    return found


def _names(name: str, language: str) -> list[str]:
    """What something is called in a language, the usual name first."""
    own = _table()["names"].get(name)
    return [name] if own is None else str(own[LANGUAGES.index(language)] or name).split("|")


@cache
def _table() -> Mapping[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content
