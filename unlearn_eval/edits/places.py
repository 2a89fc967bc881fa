"""Whether a folder is an edit's, found without torch."""

from __future__ import annotations

from pathlib import Path

from unlearn_eval.utils.errors import UserError

DESCRIPTION = "edit.json"


def check_is_edit(folder: str | Path) -> Path:
    """The folder, if it holds an edit's description.

    Raises:
        UserError: there is no such folder, or it is not an edit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the edit folder {folder} does not exist", "make one with `unlearn-eval edit --output DIR`")
    if not (folder / DESCRIPTION).is_file():
        raise UserError(
            f"{folder} is not an edit: it has no {DESCRIPTION}",
            "name a folder that `unlearn-eval edit` wrote",
        )
    return folder
