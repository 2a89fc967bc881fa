"""An edit's folder on the Hugging Face hub: its files as they are checked here, and a model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.edits.card import edit_card
from unlearn_eval.edits.folder import read_description
from unlearn_eval.edits.places import DESCRIPTION, local_folder
from unlearn_eval.edits.redaction import Names, write_redacted
from unlearn_eval.results.files import read_result
from unlearn_eval.results.schema import Result
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.hub import CARD, check_repository, upload

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from unlearn_eval.edits.base import Edit


def push_edit(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    redact: bool = False,
    result: str | Path | None = None,
) -> str:
    """Upload the folder of an edit with a model card; returns the repository's address.

    The card names no subject, question, answer or id of what was forgotten; the files do, as they do here, unless
    they are redacted. A redacted edit loads and is served like any other. It cannot be continued, and tasks have to
    be given the forget set.

    Args:
        folder: Folder of the edit.
        repository: ORG/NAME; it is created if it does not exist. What an earlier upload left there is replaced.
        private: Whether a new repository is private.
        redact: Whether all that names what was forgotten is left out or replaced by keyed hashes. The repository must
            be empty: its history would keep the names.
        result: Result file of an evaluation of this edit, for the card.

    Raises:
        UserError: no such edit, a result of another edit, or the hub refuses or cannot be reached.
    """
    check_repository(repository)
    folder = local_folder(folder)
    description = read_description(folder)
    measured = None if result is None else _result_of(result, description["info"])
    if CARD in description["files"]:
        raise UserError(f"the edit has a text {CARD}, where its card has to be", "give the text another name")
    names = Names.of(folder, description)
    with tempfile.TemporaryDirectory(prefix="unlearn-eval-") as place:
        target = Path(place)
        if redact:
            description = write_redacted(folder, description, names, target, _put)
        else:
            for name in (DESCRIPTION, *description["files"]):
                _put(folder / name, target / name)
        card = edit_card(description, repository, names, measured, redact)
        (target / CARD).write_text(card, encoding="utf-8")
        read_description(target)
        return upload(target, repository, "model", DESCRIPTION, private, "Upload an edit", afresh=redact)


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
            redact: Whether nothing that is uploaded names what was forgotten; see `push_edit`.
            result: Result file of an evaluation of this edit, for the card.
            tokenizer, model_config: The base model's, as for `save`; vLLM and chat prompts need them.

        Raises:
            UserError: as `push_edit`.
        """
        with tempfile.TemporaryDirectory(prefix="unlearn-eval-") as place:
            folder = self.save(Path(place) / repository.rpartition("/")[2], tokenizer, model_config)
            return push_edit(folder, repository, private=private, redact=redact, result=result)


def _put(source: Path, target: Path) -> None:
    """A file without a second copy of its bytes, where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _result_of(path: str | Path, info: Mapping[str, Any]) -> Result:
    """A result, if it is one of the edit with this description."""
    result = read_result(path, check_samples=False)
    edit = result.edit or {}
    same = all(edit.get(key) == info.get(key) for key in ("editor", "seed", "seconds"))
    base, own = (about.get("base") or {} for about in (edit, info))
    requests, asked = (about.get("requests") or {} for about in (edit, info))
    same &= base.get("canonical_hash") == own.get("canonical_hash") and requests.get("hash") == asked.get("hash")
    if not same:
        raise UserError(f"{path} is not a result of this edit", "give one that `unlearn-eval eval --edit` wrote")
    return result
