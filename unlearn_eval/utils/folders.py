"""Folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from unlearn_eval.utils.errors import UserError


def files_below(folder: Path) -> list[Path]:
    """Every file, also in subfolders: several chat templates go into one of their own."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_place(folder: Path, what: str, marker: str, option: str = "--output") -> None:
    """Refuse to write over anything but an empty folder, or one that holds the file `marker`."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / marker).is_file())):
        raise UserError(f"{folder} exists and is not an {what}", f"give another {option}")


def write_whole(folder: Path, what: str, marker: str, fill: Callable[[Path], None], option: str = "--output") -> Path:
    """Fill a folder beside its place and move it there; what was there goes only when that is done.

    Args:
        folder: where it should be; its parents are made.
        what: "edit" or "export", for errors.
        marker: the file that `fill` writes and by which an earlier folder of this kind is known.
        fill: writes the files into the folder it is given.
        option: with which the user named the folder, for hints.

    Raises:
        UserError: the folder exists and is something else, or it cannot be written (no space, no permission).
    """
    check_place(folder, what, marker, option)
    place = folder.resolve()  # through a link: the link stays
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise UserError(f"cannot write the {what} to {folder}: {error}", f"give another {option}") from error
    try:
        fill(temporary)
        os.chmod(temporary, 0o755)
        for path in files_below(temporary):
            path.chmod(0o644)  # safetensors writes for the owner alone
        _put_in_place(temporary, place)
    except Exception as error:
        if not _is_of_the_disk(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot write the {what} to {folder}: {reason}", f"free some space or give another {option}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed: safetensors has its own error for that, and tokenizers a bare one with a number."""
    from safetensors import SafetensorError

    return isinstance(error, OSError | SafetensorError) or "(os error " in str(error)


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; an older folder stands aside until that has worked."""
    if not folder.exists():
        new.rename(folder)
        return
    aside = new.with_name(new.name + ".old")
    folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
