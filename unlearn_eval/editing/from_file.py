"""An editor that is no part of the package: a Python file of the user's own, found by its path."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Callable
from functools import cache
from importlib.machinery import SourceFileLoader
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


def module_from_file(name: str) -> ModuleType:
    """The module in a file, run once for each content.

    Raises:
        UserError: no such file, or it does not run.
    """
    path = _checked_path(name)
    return _loaded(path.resolve(), sha256_of_file(path))


def _checked_path(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"there is no editor file {path}", _HINT)
    return path


class _Source(SourceFileLoader):
    """Runs the file as it is: bytecode that is kept is told from a newer file by its size and second alone."""

    def path_stats(self, path: str) -> Any:
        """Nothing that bytecode could be kept by; neither read nor written, it leaves no folder beside the file."""
        raise OSError


@cache
def _loaded(path: Path, sha256: str) -> ModuleType:
    name = f"_editor_{path.stem}_{sha256[:16]}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
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


def check_parts(module: ModuleType, path: str) -> None:
    """Refuse a file that holds neither an `EDITOR` nor the two parts of one."""
    missing = [name for name in ("Config", "edit") if getattr(module, name, None) is None]
    if missing:
        raise UserError(f"the editor file {path} has no {' and no '.join(missing)}", _HINT)


def check_config(config: Any, path: str) -> None:
    """Refuse settings that cannot be made from text."""
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise UserError(f"Config in {path} is no dataclass", "put @dataclass(frozen=True) above it")
    if needed := [field.name for field in dataclasses.fields(config) if _has_no_default(field)]:
        raise UserError(f"Config in {path} has no default for {', '.join(needed)}", "give every setting a default")


def check_function(edit: Callable[..., Any], path: str) -> None:
    """Refuse a function `edit` that cannot be called with what an editor is given."""
    try:
        inspect.signature(edit).bind(None, None, [], None, None, state=None, progress=None)
    except TypeError as error:
        wanted = "edit(model, tokenizer, requests, config, generator, state=None, progress=...)"
        raise UserError(f"edit in {path} does not fit: {error}", f"write it as {wanted}") from error


def parameters(edit: Callable[..., Any]) -> frozenset[str]:
    """The names of a function's parameters."""
    return frozenset(inspect.signature(edit).parameters)


def kind_returned(edit: Callable[..., Any]) -> str | None:
    """The kind of edit that a function's annotation names; None without one, or with one that cannot be resolved."""
    try:
        returned = typing.get_type_hints(edit).get("return")
    except Exception:  # whatever a user's annotations do when they are evaluated
        return None
    kind = getattr(returned, "kind", None)
    return kind if isinstance(kind, str) else None


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
