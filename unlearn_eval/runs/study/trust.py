"""Studies are programs: what a study file makes this process execute, and whose that is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from unlearn_eval.editing.from_file import is_editor_file
from unlearn_eval.runs.study.read import STUDIES_FOLDER
from unlearn_eval.runs.study.spec import Study
from unlearn_eval.utils.errors import UserError


def programs(study: Study) -> list[Path]:
    """The code that a study names: files of editors, and folders of tasks, whose YAML may call functions."""
    editors = (spec.editor for part in study.parts for spec in part.editors if is_editor_file(spec.editor))
    folders = (task.include_path for part in study.parts for task in part.tasks if task.include_path)
    return [Path(name).expanduser() for name in dict.fromkeys([*editors, *folders])]


def strangers(paths: Iterable[Path]) -> list[Path]:
    """Those that are not below the current folder, or that another user may have written."""
    here = Path.cwd().resolve()
    return [path for path in paths if path.exists() and not _is_own(path.resolve(), here)]


def check_trust(study: Study, file: Path, trusted: bool, ask: Callable[[str], bool] | None) -> str | None:
    """Refuse to execute what a study names, unless it is the user's own or the user says so.

    Args:
        study: what the file says.
        file: the study file.
        trusted: whether the user has said so.
        ask: asks the user; None where nobody can be asked.

    Returns:
        A line that names what is executed; None of a study that executes nothing.

    Raises:
        UserError: with what would be executed.
    """
    code = programs(study)
    if not code:
        return None
    listed = ", ".join(map(str, code))
    foreign = strangers(code if file.resolve().is_relative_to(STUDIES_FOLDER.resolve()) else [file, *code])
    told = f"{file} runs code: {listed}"
    if foreign and not trusted and not (ask is not None and ask(f"{told}. Run it?")):
        raise UserError(
            f"{told}; not below the current folder, or not yours: {', '.join(map(str, foreign))}",
            "read them; if you trust them, give --trust",
        )
    return told


def _is_own(path: Path, here: Path) -> bool:
    own = os.getuid() if hasattr(os, "getuid") else None
    about = path.stat()
    return path.is_relative_to(here) and (own is None or about.st_uid == own) and not about.st_mode & 0o002
