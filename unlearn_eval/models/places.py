"""Which model a name means, found without torch: a hub id, a folder, a GGUF file, or "default"."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

from unlearn_eval.models.default_model import fetch_default_model
from unlearn_eval.utils.errors import UserError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHT_FILES = ("*.safetensors", "*.bin")


def resolve_model(name: str) -> str:
    """The hub id or path that `name` stands for; "default" is fetched if it is not in the cache.

    Raises:
        UserError: if it is neither a model folder, a GGUF file, nor written like a hub id.
    """
    if name == "default":
        return str(fetch_default_model())
    return named_model(name)


def named_model(name: str) -> str:
    """The hub id or path that a name other than "default" stands for (errors as in `resolve_model`)."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        _check_folder(path)
        return str(path)
    if name.lower().endswith(".gguf"):
        if path.is_file():
            return str(path)
        raise UserError(f"no GGUF file at {name}", "give the path of a .gguf file that exists")
    if name and path.exists():
        raise UserError(
            f"{name} is a file, and not a model",
            "give a model's folder, a .gguf file, or a hub id (org/name)",
        )
    if _HUB_ID.fullmatch(name):
        return name
    raise UserError(
        f"no model '{name}': there is no such folder or file, and it is not a hub id",
        "give 'default', a model's folder, a .gguf file, or a hub id with its owner (org/name)",
    )


def _check_folder(path: Path) -> None:
    """Refuses a folder that is an edit, a PEFT adapter, or no model at all."""
    edit, adapter = path / "edit.json", path / "adapter_config.json"
    if edit.is_file():  # before config.json, of which an edit has a copy
        base = _field(edit, "base")
        raise UserError(
            f"{path} is an edit{_of(base)}, not a model",
            "give the base model here and the edit as --edit (or export it: unlearn-eval export --merged)",
        )
    if adapter.is_file() and not (path / "config.json").is_file():
        base = _field(adapter, "base_model_name_or_path")
        raise UserError(f"{path} is a PEFT adapter{_of(base)}, not a model", "give its base model")
    if not (path / "config.json").is_file():
        ggufs = sorted(p.name for p in path.glob("*.gguf"))
        hint = "a model folder holds config.json, *.safetensors and tokenizer files"
        raise UserError(
            f"{path} is not a model folder: it has no config.json",
            f"{hint}; for a GGUF file name the file: {path / ggufs[0]}" if ggufs else hint,
        )
    if not any(any(path.glob(pattern)) for pattern in _WEIGHT_FILES):
        raise UserError(
            f"{path} has a config.json but no weights", f"a model folder holds {' or '.join(_WEIGHT_FILES)}"
        )


def _field(path: Path, *names: str) -> str | None:
    """The first of the fields that a JSON file has as text (or as an object with an id)."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        for name in names if isinstance(content, dict) else ():
            value = content.get(name)
            value = value.get("id") if isinstance(value, dict) else value
            if isinstance(value, str):
                return value
    return None


def _of(base: str | None) -> str:
    return f" of {base}" if base else ""
