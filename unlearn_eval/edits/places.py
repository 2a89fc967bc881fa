"""Where an edit is: a folder, or `hub:ORG/NAME[@REVISION]` on the Hugging Face hub; found without torch."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.hub import check_repository, snapshot

HUB = "hub:"
DESCRIPTION = "edit.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATTERN = re.compile(r"[*?\[\]]")  # of names that would stand for others too


def local_folder(place: str | Path) -> Path:
    """The folder of an edit on this machine: for `hub:ORG/NAME[@REVISION]` a snapshot, else the place itself.

    Only files that `edit.json` lists are downloaded. Within a process a place is always the same snapshot.

    Raises:
        UserError: the hub has no such edit, or cannot be reached.
    """
    text = str(place)
    return _snapshot(text) if text.startswith(HUB) else Path(place)


def edit_name(place: str | Path) -> str:
    """What an edit is called by: the name of its folder or repository."""
    text = str(place)
    return text.partition("@")[0].rpartition("/")[2] if text.startswith(HUB) else Path(place).resolve().name


def is_edit(folder: object) -> bool:
    """Whether this is a folder on this machine that holds an edit's description."""
    return isinstance(folder, str | Path) and (Path(folder).expanduser() / DESCRIPTION).is_file()


def check_is_edit(folder: str | Path) -> Path:
    """The folder on this machine, if it holds an edit's description; of an edit on the hub, that of its snapshot.

    Raises:
        UserError: there is no such folder, or it is not an edit; or the hub has no such edit, or cannot be reached.
    """
    folder = local_folder(folder)
    if not folder.is_dir():
        raise UserError(f"the edit folder {folder} does not exist", "make one with `unlearn-eval edit --output DIR`")
    if not is_edit(folder):
        raise UserError(
            f"{folder} is not an edit: it has no {DESCRIPTION}",
            "name a folder that `unlearn-eval edit` wrote",
        )
    return folder


@cache
def _snapshot(place: str) -> Path:
    repository, at, revision = place.removeprefix(HUB).partition("@")
    check_repository(repository)
    if at and not revision:
        raise UserError(f"{place} names no revision", "give a branch, a tag or a commit after @, or leave it out")
    folder = snapshot(repository, revision or None, [DESCRIPTION])
    if not is_edit(folder):
        raise UserError(f"{place} is not an edit: it has no {DESCRIPTION}", "name what `unlearn-eval push` wrote")
    commit = folder.name if _COMMIT.fullmatch(folder.name) else revision or None
    return snapshot(repository, commit, [DESCRIPTION, *_listed(folder / DESCRIPTION)])


def _listed(path: Path) -> list[str]:
    """The names of an edit's files; none if the description is damaged, which those who read it say."""
    try:
        return [name for name in json.loads(path.read_text(encoding="utf-8"))["files"] if not _PATTERN.search(name)]
    except (ValueError, KeyError, TypeError):
        return []
