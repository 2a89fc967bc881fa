"""Folders that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import held, nobody_holds

MOST_BYTES = 255 - 40  # of a name; temporary files have longer ones
ROOM = 4 * 2**20  # bytes, of a small edit or a result with its samples


def files_below(folder: Path) -> list[Path]:
    """Every file, also in subfolders: several chat templates go into one of their own."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_place(folder: Path, what: str, marker: str, option: str = "--output") -> None:
    """Refuse to write over anything but an empty folder, or one that holds the file `marker`."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / marker).is_file())):
        raise UserError(f"{folder} exists and is not an {what}", f"give another {option}")


def check_output(path: str | Path, what: str, option: str = "--output", room: int = ROOM) -> None:
    """Refuse a place where nothing could be written at the end of a long run.

    Args:
        path: of the file or folder to write; its parents need not be there.
        what: "edit", "result" ..., for the error.
        option: with which the user named the place.
        room: bytes that have to be free.

    Raises:
        UserError: a name is too long, the nearest folder that exists cannot be written to, or too little space is free.
    """
    hint = f"give another {option}"
    path = Path(path).expanduser()
    if "\0" in str(path) or any(len(os.fsencode(part)) > MOST_BYTES for part in path.parts):
        raise UserError(f"the {what} cannot be called {str(path)[:80]!r}: a name is too long, or no name", hint)
    try:
        parent = next(own for own in path.absolute().parents if own.exists())
        with tempfile.TemporaryFile(dir=parent):
            free = shutil.disk_usage(parent).free
    except OSError as error:
        raise UserError(f"cannot write the {what} to {path}: {error.strerror or error}", hint) from error
    if free < room:
        raise UserError(
            f"the {what} needs {room / 1e6:,.0f} MB at {path}, and {free / 1e6:,.0f} MB are free",
            f"free some space or {hint}",
        )


def check_folder(path: str | Path, what: str, marker: str, option: str = "--output") -> None:
    """Refuse, before the work that fills it, a folder in which `write_whole` would not put anything at the end.

    Raises:
        UserError: as `check_output` and `check_place`.
    """
    check_output(path, what, option)
    check_place(Path(path), what, marker, option)


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
    with ExitStack() as stack:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with held(place.parent):
                _clear_left_overs(place, ".new")
                temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".new", dir=place.parent))
                stack.enter_context(held(temporary))
        except OSError as error:
            raise UserError(f"cannot write the {what} to {folder}: {error}", f"give another {option}") from error
        _fill_and_place(temporary, place, folder, what, fill, option)
    return folder


def _fill_and_place(
    temporary: Path, place: Path, folder: Path, what: str, fill: Callable[[Path], None], option: str
) -> None:
    try:
        fill(temporary)
        os.chmod(temporary, 0o755)
        for path in files_below(temporary):
            path.chmod(0o644)  # safetensors writes for the owner alone
        _put_in_place(temporary, place)
    except Exception as error:
        if not is_of_the_disk(error):
            raise
        reason = " ".join(str(error).split())
        failed, hint = f"cannot write the {what} to {folder}: {reason}", f"free some space or give another {option}"
        saved = _saved_elsewhere(fill, place.name)
        if saved is not None:
            failed, hint = f"{failed}; nothing is lost: it is in {saved}", f"{hint}, and move it: mv {saved} {folder}"
        raise UserError(failed, hint) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_whole(folder: Path) -> None:
    """Remove a folder so that a process that is killed meanwhile leaves all of it or nothing under its name."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    if folder.exists():
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _clear_left_overs(place: Path, ending: str) -> None:
    """Remove what processes that were killed have left beside a place; what somebody is filling is held, and stays."""
    for left in place.parent.glob(f".{glob.escape(place.name)}.????????{ending}"):
        if left.is_dir() and nobody_holds(left):
            shutil.rmtree(left, ignore_errors=True)


def _saved_elsewhere(fill: Callable[[Path], None], name: str) -> Path | None:
    """The folder filled in a temporary one; None where that fails too."""
    rescue = Path(tempfile.mkdtemp(prefix="unlearn-eval-")) / name
    try:
        rescue.mkdir()
        fill(rescue)
    except Exception as error:
        shutil.rmtree(rescue.parent, ignore_errors=True)
        if not is_of_the_disk(error):
            raise
        return None
    return rescue


def is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed: safetensors has an error for that; tokenizers and torch are known by their texts."""
    from safetensors import SafetensorError

    known = isinstance(error, OSError | SafetensorError)
    return known or any(text in str(error) for text in ("(os error ", "PytorchStreamWriter failed", "unexpected pos"))


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; an older folder stands aside until that has worked."""
    with held(folder.parent):
        _exchange(new, folder)
        _clear_left_overs(folder, ".new.old")


def _exchange(new: Path, folder: Path) -> None:
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
