"""What a result depends on, as hashes that are known before a model is loaded: weights, code, files in settings."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from unlearn_eval.models.load import resolve_model
from unlearn_eval.runs.study.spec import ModelSpec
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import Record
from unlearn_eval.utils.provenance import hash_json, sha256_of_file

PACKAGE = Path(__file__).parents[2]
_NO_NUMBERS = (
    "report",
    "studies",
    "serving",
    "cli.py",
    "cli_localization.py",
    "cli_report.py",
    "cli_study.py",
    "result_files.py",
    "meanings.py",
)  # nothing here changes a result
_STUDY_NUMBERS = ("worker.py", "told.py", "spec.py")  # of this room, what does
_CODE_ENDINGS = (".py", ".yaml", ".jsonl", ".json", ".npz", ".safetensors")
_LIBRARIES = ("torch", "transformers", "tokenizers", "lm_eval", "peft")
_MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt", "*.gguf")


@cache
def code_hash() -> str:
    """SHA-256 of our code that makes results, its tasks with their data, and the versions of the libraries below."""
    digest = hashlib.sha256()
    for path in sorted(_code_files()):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {sha256_of_file(path)}\n".encode())
    for name in _LIBRARIES:
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    return digest.hexdigest()


def _code_files() -> list[Path]:
    found = []
    for folder, folders, files in os.walk(PACKAGE, followlinks=True):  # editors and tasks are links in a checkout
        own = Path(folder).relative_to(PACKAGE)
        folders[:] = [name for name in folders if name != "__pycache__"]
        if own.parts and own.parts[0] in _NO_NUMBERS:
            continue
        found += [
            Path(folder) / name
            for name in files
            if name.endswith(_CODE_ENDINGS)
            and name not in _NO_NUMBERS
            and (own.parts[:1] != ("study",) or name in _STUDY_NUMBERS)
        ]
    return found


class Identities:
    """Which model a name stands for; files that were hashed before and have not changed are not read again.

    Args:
        remembered: path -> [size, time of change, SHA-256]; filled, so that the caller can keep it.
    """

    def __init__(self, remembered: Record) -> None:
        self.remembered = remembered

    def model(self, spec: ModelSpec) -> tuple[str, str | None]:
        """The identity of a model's files, and the hub's commit if it is from there.

        Raises:
            UserError: no such model, or it is on the hub, which is out of reach, and not in its cache.
        """
        path = Path(resolve_model(spec.model))
        if path.is_file():
            return f"file:{self._file(path)}", None
        if path.is_dir():
            files = sorted({file for pattern in _MODEL_FILES for file in path.glob(pattern)})
            named = {file.name: self._file(file) for file in files if file.name != "source.json"}
            return f"folder:{hash_json(named)}", None
        commit = _hub_commit(spec)
        return f"hub:{spec.model}@{commit}", commit

    def settings(self, value: Any) -> Any:
        """Settings with what is in the files and folders that they name, in place of their paths."""
        if isinstance(value, Mapping):
            return {str(key): self.settings(own) for key, own in value.items()}
        if isinstance(value, list | tuple):
            return [self.settings(own) for own in value]
        if isinstance(value, str) and 0 < len(value) < 1000:
            path = Path(value).expanduser()
            if path.is_file():
                return {"file": self._file(path)}
            if "/" in value and path.is_dir():
                return {"folder": {own.name: self._file(own) for own in sorted(path.glob("*.json*"))}}
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
