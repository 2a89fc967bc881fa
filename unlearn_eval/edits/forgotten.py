"""What an edit forgot, and in which form its questions were put: read from an edit's folder, also from older ones.

Under `info.requests`, `sets` lists the forget sets of the edit and of those that it continues, each as
`{"name", "hash", "ids"}`. The items of a user's own set also stand in the folder itself (`forget.jsonl`), which may be
read where the user's file is not. Items of benchmarks do not: their data have licences of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn_eval.data.benchmark import Chosen
from unlearn_eval.data.files import extras_in, read_forget_set
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.data.registry import benchmark_of_set
from unlearn_eval.edits.folder import read_description
from unlearn_eval.edits.places import local_folder
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps

FORGET = "forget.jsonl"


@dataclass(frozen=True)
class Forgotten:
    """What an edit forgot.

    Attributes:
        folder: of the edit.
        sets: the items of each forget set.
        chat: whether the questions went through the chat template; None if the edit does not say.
        system, template_arguments: the system message and further arguments of the template, if there were any.
    """

    folder: Path
    sets: tuple[Chosen, ...]
    chat: bool | None
    system: str | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(chosen.forget) for chosen in self.sets)

    @property
    def names(self) -> str:
        """The names of the sets."""
        return " and ".join(dict.fromkeys(chosen.forget.name for chosen in self.sets))


def read_forgotten(folder: str | Path) -> Forgotten:
    """What the edit in a folder forgot; its other files are not read.

    Raises:
        UserError: the folder is no edit, does not say what was forgotten, or names a set or an item that is not to be
            had.
    """
    folder = local_folder(folder)
    requests = read_description(folder, check_files=False)["info"].get("requests", {})
    entries = _entries(requests)
    if not entries:
        raise UserError(f"{folder} does not say what was forgotten", "name it, as in --metadata '{\"forget\": ...}'")
    sets = tuple(_chosen(folder, entry) for entry in entries)
    arguments = dict(requests.get("chat_template_kwargs") or {})
    return Forgotten(folder, sets, asked_as_chat(requests), requests.get("system"), arguments)


def asked_as_chat(requests: Mapping[str, Any]) -> bool | None:
    """Whether the questions of an edit went through the chat template, as its `requests` say."""
    chat = requests.get("chat")
    return None if chat is None else bool(chat)


def _entries(requests: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`sets` of an edit's requests; of an edit from before there were any, what comes to the same."""
    if "sets" in requests:
        return [dict(entry) for entry in requests["sets"]]
    if not requests.get("forget_set") or not requests.get("ids") or "target" not in requests:
        return []  # a model that was fine-tuned on a set names it, too, but has no targets
    return [{"name": requests["forget_set"], "hash": None, "ids": list(requests["ids"])}]


def _chosen(folder: Path, entry: Mapping[str, Any]) -> Chosen:
    name = str(entry["name"])
    stored = folder / FORGET
    whole = read_forget_set(stored) if _is_own(name) and stored.is_file() else load_forget_set(name)
    items = whole.select(entry["ids"])
    if entry.get("hash") and items.hash != entry["hash"]:
        raise UserError(
            f"the items that {folder} forgot are no longer in {whole.name} as they were", "restore the data"
        )
    return Chosen(items, whole=len(items) == len(whole))


def stored_items(texts: Mapping[str, str]) -> ForgetSet | None:
    """The user's own items that an edit has brought along among its texts; None if it forgot none."""
    if FORGET not in texts:
        return None
    records = [json.loads(line) for line in texts[FORGET].split("\n") if line.strip()]
    return load_forget_set(records)


def _is_own(name: str) -> bool:
    """Whether a set is a user's, which the edit has to bring along."""
    return benchmark_of_set(name) is None


# Writing ---------------------------------------------------------------------------------------------------


def forgotten_entries(forget: ForgetSet, earlier: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `sets` of an edit's requests, after those of the edit that it continues."""
    return [*_entries(earlier), {"name": forget.name, "hash": forget.hash, "ids": [item.id for item in forget]}]


def forgotten_texts(forget: ForgetSet, earlier: Mapping[str, str]) -> dict[str, str]:
    """The file of a user's own items, after those of the edit that it continues; nothing if there are none."""
    text = earlier.get(FORGET, "")
    if _is_own(forget.name):
        text += "".join(dumps(record) + "\n" for record in _records(forget))
    return {FORGET: text} if text else {}


def _records(forget: ForgetSet) -> Sequence[dict[str, Any]]:
    """The items as records, with the extras of the user's file."""
    more = extras_in(forget.name)
    items = [{key: value for key, value in item.record.items() if value not in (None, ())} for item in forget]
    return [own | more.get(own["id"], {}) for own in items]
