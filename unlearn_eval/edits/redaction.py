"""Edits without the names of what they forgot: neither subjects nor questions, answers or ids stand in the folder.

Left out are all texts, forget and retain sets, hashes by which a guess could be confirmed, sampled contexts, and
every text among the notes. Ids are keyed hashes, whose key is thrown away. Of memories, token ids of prompts and
targets go too: they could be decoded. Tensors stay, and with them whatever can be read from weights.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unlearn_eval.edits.folder import write_json
from unlearn_eval.edits.forgotten import read_forgotten
from unlearn_eval.edits.places import DESCRIPTION
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import redact as without_home
from unlearn_eval.utils.provenance import sha256_of_file

REDACTED = "redacted"
_MEMORY = "memory.json"
_REQUESTS = ("n", "n_merged", "chat", "system", "chat_template_kwargs", "target", "merge", "merge_size", "per_step")
_OURS = ("weight_norms", "changes", "preset")  # notes whose names and texts are of modules and of the package
_NOTES = {"components", "editor_file"}  # that are left out
_FIXED = {"id", "shape", "source", "fallback"}  # of items and targets; all but the id are words of the package
_LEAST_LETTERS, _MOST_CHARACTERS = 3, 500
_BETWEEN = re.compile(r"[\W_]+")
_NOTHING = object()


@dataclass(frozen=True)
class Names:
    """The ids and words that an edit's folder has of what was forgotten.

    Attributes:
        ids: Of items and requests.
        words: Subjects, questions, answers, targets.
    """

    ids: frozenset[str]
    words: frozenset[str]
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @classmethod
    def of(cls, folder: Path, description: Mapping[str, Any]) -> Names:
        """Those of a folder, whose files have been checked; of items that can be had, with all that they say."""
        requests = description["info"].get("requests") or {}
        ids = {*requests.get("ids", ()), *requests.get("lookup", {}), *requests.get("shapes", {})}
        words: set[str] = set()
        for entry in requests.get("sets") or ():
            ids.update(entry["ids"])
        for name in description.get("texts", ()):
            for record in _records((folder / name).read_text(encoding="utf-8")):
                words.update(_texts({key: value for key, value in record.items() if key not in _FIXED}))
                ids.update([record["id"]] if isinstance(record.get("id"), str) else [])
        if (folder / _MEMORY).is_file():
            owners = json.loads((folder / _MEMORY).read_text(encoding="utf-8")).get("owners", ())
            ids.update(name for own in owners for name in own)
        try:
            items = [item for chosen in read_forgotten(folder).sets for item in chosen.forget]
        except UserError:  # an older edit, or the data are not here
            items = []
        if not items:
            words.update(name.rpartition("/")[2] for name in ids)  # of capital_of/france
        for item in items:
            words.update(_texts({key: value for key, value in item.record.items() if key not in _FIXED}))
        return cls(frozenset(ids), frozenset(words))

    def hidden(self, name: str) -> str:
        """What stands for an id."""
        return hmac.new(self._key, name.encode(), "sha256").hexdigest()[:16]

    def clean(self, value: Any) -> Any:
        """Plain values for JSON, without texts that hold one of the names."""
        if isinstance(value, str):
            return REDACTED if self.names(value) else value
        if isinstance(value, Mapping):
            return {self.hidden(key) if self.names(key) else key: self.clean(own) for key, own in value.items()}
        return [self.clean(own) for own in value] if isinstance(value, list | tuple) else value

    def names(self, text: str) -> bool:
        """Whether a text holds an id or a word."""
        return text in self.ids or (self._pattern is not None and self._pattern.search(text) is not None)

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        found = {
            r"[\W_]+".join(filter(None, _BETWEEN.split(name)))  # however it is spelled: "The Hobbit", the_hobbit
            for name in self.ids | self.words
            # Shorter names, and numbers, stand in much that has nothing to do with them; whole texts in nothing else.
            if sum(map(str.isalpha, name)) >= _LEAST_LETTERS and len(name) <= _MOST_CHARACTERS
        }
        either = "|".join(sorted(found, key=len, reverse=True))
        return re.compile(rf"(?<![^\W_])(?:{either})(?![^\W_])", re.IGNORECASE) if found else None


def write_redacted(
    folder: Path, description: Mapping[str, Any], names: Names, target: Path, put: Callable[[Path, Path], None]
) -> dict[str, Any]:
    """Write an edit without names of what it forgot into a folder; returns what its `edit.json` says.

    Args:
        folder: Folder of the edit, whose files have been checked.
        description: Its `edit.json`.
        names: What must not be named.
        target: Empty folder.
        put: Puts a file as it is into the other place.
    """
    files = dict(description["files"])
    for name in description.get("texts", ()):
        del files[name]
    for name in files:
        if name == _MEMORY:
            settings = _memory(json.loads((folder / name).read_text(encoding="utf-8")), names)
            write_json(target / name, settings)
            files[name] = sha256_of_file(target / name)
        else:
            put(folder / name, target / name)
    found = {**description, "info": _info(description["info"], names), "texts": [], "files": files}
    write_json(target / DESCRIPTION, found)
    return found


# Details ---------------------------------------------------------------------------------------------------


def _info(info: Mapping[str, Any], names: Names) -> dict[str, Any]:
    requests = info.get("requests") or {}
    kept = {key: names.clean(requests[key]) for key in _REQUESTS if key in requests}
    for key in ("lookup", "shapes"):
        if key in requests:
            kept[key] = {names.hidden(name): value for name, value in requests[key].items()}
    kept |= {"ids": [names.hidden(name) for name in requests.get("ids", ())], "sets": []}
    own = {**info, "config": names.clean(info["config"]), "requests": kept, "notes": _notes(info, names)}
    return without_home(own)  # type: ignore[no-any-return]


def _notes(info: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """The numbers among the notes."""
    notes: dict[str, Any] = {}
    for key, value in (info.get("notes") or {}).items():
        own = value if key in _OURS else _numbers(value, names)
        if own is not _NOTHING and key not in _NOTES:
            notes[key] = own
    return notes | {REDACTED: True}


def _numbers(value: Any, names: Names) -> Any:
    if isinstance(value, Mapping):
        pairs = ((names.hidden(key) if names.names(key) else key, _numbers(own, names)) for key, own in value.items())
        return {key: own for key, own in pairs if own is not _NOTHING}
    if isinstance(value, list | tuple):
        rows = [_numbers(own, names) for own in value]
        return _NOTHING if any(own is _NOTHING for own in rows) else rows
    return _NOTHING if isinstance(value, str) else value


def _memory(settings: dict[str, Any], names: Names) -> dict[str, Any]:
    """`memory.json`: whose each memory is, by hashes; equal labels stay equal, and prompts go.

    Raises:
        UserError: what the memory answers with names what was forgotten.
    """
    if "notes" in settings:
        raise UserError(
            f"an edit of {settings['mechanism']} cannot be redacted: it holds text about what was forgotten",
            "leave out --redact, or share an edit of another method",
        )
    own = {**settings, "owners": [[names.hidden(name) for name in owners] for owners in settings["owners"]]}
    if "labels" in own:
        numbers: dict[str, int] = {}
        own["labels"] = [[numbers.setdefault(str(ids), len(numbers))] for ids in own["labels"]]
    return own | ({"prompts": []} if "prompts" in own else {})


def _records(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def _texts(value: Any) -> Iterable[str]:
    """All texts in a value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [text for own in value for text in _texts(own)] if isinstance(value, list | tuple) else []
