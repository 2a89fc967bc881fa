"""Where more tasks are, found without lm-eval."""

from __future__ import annotations

from pathlib import Path

from unlearn_eval.utils.errors import UserError


def check_tasks_folder(include_path: str | None) -> None:
    """Refuse a folder of more tasks that is not there.

    Raises:
        UserError: there is no such folder.
    """
    if include_path is not None and not Path(include_path).expanduser().is_dir():
        raise UserError(f"there is no folder {include_path} of tasks", "give --include_path a folder of YAML files")
