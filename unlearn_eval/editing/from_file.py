"""An editor that is no part of the package: a Python file of the user's own, found by its path."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import sha256_of_file

_HINT = "write it as docs/guides/own_editor.md shows, or give a name that `unlearn-eval ls editors` lists"


def is_editor_file(name: str) -> bool:
    """Whether `name` is the path of an editor's file and not the name of one of ours."""
    return name.endswith(".py")


def editor_label(name: str) -> str:
    """How a method is called in edits, tables and folder names: its own name, or its file's without `.py`."""
    return Path(name).stem if is_editor_file(name) else name


def editor_file(name: str) -> dict[str, str] | None:
    """The file's name and SHA-256, for an edit to say what made it; None of our own methods."""
    if not is_editor_file(name):
        return None
    path = _checked_path(name)
    return {"name": path.name, "sha256": sha256_of_file(path)}


def editor_from_file(name: str) -> Any:
    """The module in a file, run once for each content; it has a frozen dataclass `Config` and a function `edit`.

    Raises:
        UserError: no such file, it does not run, or it lacks one of the two or has it in another shape.
    """
    path = _checked_path(name)
    return _loaded(path.resolve(), sha256_of_file(path))


def _checked_path(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"there is no editor file {path}", _HINT)
    return path


@cache
def _loaded(path: Path, sha256: str) -> ModuleType:
    name = f"_editor_{path.stem}_{sha256[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
        _check(module, path)
    except UserError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"the editor file {path} does not run: {_what(error, path)}", "mend it there") from error
    return module


def _what(error: Exception, path: Path) -> str:
    """The error with the last line of the file that led to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{f'line {line}: ' if line else ''}{type(error).__name__}: {text}"


def _check(module: ModuleType, path: Path) -> None:
    """Refuse a file whose `Config` or `edit` could not be used."""
    config, edit = getattr(module, "Config", None), getattr(module, "edit", None)
    missing = [name for name, value in (("Config", config), ("edit", edit)) if value is None]
    if missing:
        raise UserError(f"the editor file {path} has no {' and no '.join(missing)}", _HINT)
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise UserError(f"Config in {path} is no dataclass", "put @dataclass(frozen=True) above it")
    if needed := [field.name for field in dataclasses.fields(config) if _has_no_default(field)]:
        raise UserError(f"Config in {path} has no default for {', '.join(needed)}", "give every setting a default")
    try:
        inspect.signature(edit).bind(None, None, [], None, None, state=None, progress=None)  # type: ignore[arg-type]
    except TypeError as error:
        wanted = "edit(model, tokenizer, requests, config, generator, state=None, progress=...)"
        raise UserError(f"edit in {path} does not fit: {error}", f"write it as {wanted}") from error


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
