"""The folder of a study: which files there are, and what of it is done.

DIR/study.json                  the study as resolved, the cells of the last plan
DIR/runs/NAME-KEY/result.json   one result a cell, with its samples; failed ones too
DIR/shared/                     edits, evaluations task by task, what models know, fine-tuned models
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_eval.results.files import read_result
from unlearn_eval.results.schema import Result
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps, write_all

_LETTERS = 12  # of a key, in a folder's name
STUDY, RESULT, ATTEMPTS, FILES = "study.json", "result.json", "attempts.json", "files.json"


@dataclass(frozen=True)
class Store:
    """Where a study's files are.

    Attributes:
        folder: of the study.
    """

    folder: Path

    def open(self) -> None:
        """Make the folder, or refuse one that is something else.

        Raises:
            UserError: it holds other things than a study, or cannot be made.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file", "give another --output")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            others = [own for own in self.folder.iterdir() if not own.name.startswith(".")]
        except OSError as error:
            raise UserError(f"cannot make {self.folder}: {error.strerror}", "give another --output") from error
        if others and not (self.folder / STUDY).is_file():
            raise UserError(f"{self.folder} exists and is not a study's folder", "give another --output")

    def clear_left_overs(self) -> None:
        """Remove what writers that were killed have left beside their places; only for who holds the lock."""
        for place in (*self.folder.glob(".*"), *self.folder.glob("*/.*"), *self.folder.glob("*/*/.*")):
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            elif place.name.endswith(".tmp"):
                place.unlink(missing_ok=True)

    def run_folder(self, name: str, key: str) -> Path:
        """The folder of a cell: the one that has its key, whatever it was called then."""
        return next(
            iter(sorted((self.folder / "runs").glob(f"*-{key[:_LETTERS]}"))),
            self.folder / "runs" / f"{name}-{key[:_LETTERS]}",
        )

    def run_folders(self) -> dict[str, Path]:
        """The folders of all cells that were begun, by the start of their keys, as `run_folder` finds them."""
        paths = sorted((self.folder / "runs").glob("*-*"), reverse=True)
        return {path.name.rpartition("-")[2]: path for path in paths}

    def result(self, name: str, key: str) -> Result | None:
        """The result of a cell, or None if there is none that is whole."""
        return read_if_whole(self.run_folder(name, key) / RESULT)

    def results_of(self, keys: Iterable[str]) -> dict[str, Result]:
        """The results that there are of many cells, by key."""
        folders = self.run_folders()
        found = {key: folders.get(key[:_LETTERS]) for key in keys}
        read = {key: read_if_whole(folder / RESULT) for key, folder in found.items() if folder is not None}
        return {key: result for key, result in read.items() if result is not None}

    def results(self) -> Iterator[Result]:
        """Every whole result of the folder, of whichever plan."""
        for path in sorted((self.folder / "runs").glob(f"*/{RESULT}")):
            try:
                yield read_result(path, check_samples=False)
            except UserError:
                continue

    def shared(self, kind: str, name: str) -> Path:
        """The place of something that several cells use."""
        return self.folder / "shared" / kind / name

    def read(self, name: str) -> Any:
        """The content of a JSON file of the study, or {} if there is none that is whole."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the study, whole or not at all."""
        path = self.folder / name
        write_all({path.name: dumps(content, indent=2) + "\n"}, path.parent)

    def attempt(self, name: str, key: str) -> None:
        """Note that a cell is begun; what never ends takes the process with it, and comes last the next time."""
        folder = self.run_folder(name, key)
        folder.mkdir(parents=True, exist_ok=True)
        path = (folder / ATTEMPTS).relative_to(self.folder).as_posix()
        self.write(path, {"attempts": self.attempts(name, key) + 1})

    def attempts(self, name: str, key: str, folders: Mapping[str, Path] | None = None) -> int:
        """How often a cell was begun; of many cells, give `run_folders()`."""
        folder = self.run_folder(name, key) if folders is None else folders.get(key[:_LETTERS])
        if folder is None:
            return 0
        return int(self.read((folder / ATTEMPTS).relative_to(self.folder).as_posix()).get("attempts", 0))


def read_if_whole(path: Path) -> Result | None:
    """The result in a file, or None if there is none that is whole: one that was cut off or changed is made again."""
    try:
        return read_result(path) if path.is_file() else None
    except UserError:
        return None
