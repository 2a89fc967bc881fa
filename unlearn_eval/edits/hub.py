"""Edits on the Hugging Face hub: `hub:ORG/NAME[@REVISION]` in place of a folder."""

from __future__ import annotations

import json
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.hub import check_repository, snapshot

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from unlearn_eval.edits.base import Edit

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


@cache
def _snapshot(place: str) -> Path:
    repository, at, revision = place.removeprefix(HUB).partition("@")
    check_repository(repository)
    if at and not revision:
        raise UserError(f"{place} names no revision", "give a branch, a tag or a commit after @, or leave it out")
    folder = snapshot(repository, revision or None, [DESCRIPTION])
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{place} is not an edit: it has no {DESCRIPTION}", "name what `unlearn-eval push` wrote")
    commit = folder.name if _COMMIT.fullmatch(folder.name) else revision or None
    return snapshot(repository, commit, [DESCRIPTION, *_listed(folder / DESCRIPTION)])


def _listed(path: Path) -> list[str]:
    """The names of an edit's files; none if the description is damaged, which those who read it say."""
    try:
        return [name for name in json.loads(path.read_text(encoding="utf-8"))["files"] if not _PATTERN.search(name)]
    except (ValueError, KeyError, TypeError):
        return []


class OnHub:
    """What every kind of edit can do with the hub."""

    def push_to_hub(
        self: Edit,
        repository: str,
        *,
        private: bool = False,
        redact: bool = False,
        result: str | Path | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_config: PretrainedConfig | None = None,
    ) -> str:
        """Upload the edit with a model card; returns the repository's address.

        Args:
            repository: ORG/NAME.
            private: Whether a new repository is private.
            redact: Whether nothing that is uploaded names what was forgotten; see `edits.sharing.push_edit`.
            result: Result file of an evaluation of this edit, for the card.
            tokenizer, model_config: The base model's, as for `save`; vLLM and chat prompts need them.

        Raises:
            UserError: as `edits.sharing.push_edit`.
        """
        from unlearn_eval.edits.sharing import push_edit

        with tempfile.TemporaryDirectory(prefix="unlearn-eval-") as place:
            folder = self.save(Path(place) / repository.rpartition("/")[2], tokenizer, model_config)
            return push_edit(folder, repository, private=private, redact=redact, result=result)
