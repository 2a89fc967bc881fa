"""A study file as plain data: YAML whose mistakes are named with their line, and what the command line sets over it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.json_files import read_text
from unlearn_eval.utils.yaml_text import parse_yaml

STUDIES_FOLDER = Path(__file__).parents[2] / "studies"
META = "meta"  # a table of its own: what a meta-evaluation is made of
NAMED = {"models": "model", "editors": "editor", "recipes": "recipe", "tasks": "task"}  # axis -> what its entries name


def study_file(name: str) -> Path:
    """The file that `name` stands for: a study that is shipped, else a path.

    A shipped study's name means that study, whatever lies in the current folder; a file of the same name is `./NAME`.

    Raises:
        UserError: there is none; the nearest names are given. Or it is a folder.
    """
    shipped = {own.stem: own for own in STUDIES_FOLDER.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(
            f"{name} is a folder, and not a study file",
            f"give a .yaml file, or the name of a shipped study: {', '.join(sorted(shipped))}",
        )
    if path.suffix in (".yaml", ".yml") or "/" in name or os.sep in name or path.is_file():
        return path
    raise unknown_name("study", name, [*shipped, "a .yaml file"])


def read_study(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a study file with `KEY=VALUE` set over it.

    What is set holds for every part; `PART.KEY=VALUE` for one; `parts=[A,B]` picks parts; `meta.KEY=VALUE` is for that
    table. A bare name in models, editors, recipes or tasks that the file gives an entry to means that entry, with its
    settings.

    Raises:
        UserError: no such file, not YAML, a key twice (each with its line), or not `KEY=VALUE`.
    """
    content = parse_yaml(read_text(path, "study file"), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} is no study: it holds a {type(content).__name__}", "write KEY: VALUE lines")
    parts = content.get("parts") or {}
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise UserError(f"{path}: parts is no table of tables", "write parts: NAME: KEY: VALUE")
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"'{text}' is not KEY=VALUE", "for example models=default sizes=[10]")
        _set(content, key.strip(), parse_yaml(value, f"'{text}'"))
    return content


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    parts: dict[str, Any] = content.get("parts") or {}
    part, dot, own = key.partition(".")
    if dot and part == META and META in content:
        content[META] = {**(content[META] or {}), own: value}
    elif dot:
        if part not in parts:
            raise unknown_name("part", part, parts)
        parts[part][own] = _entries(content, own, value)
    elif key == "parts":
        names = value if isinstance(value, list) else [value]
        for name in names:
            if name not in parts:
                raise unknown_name("part", str(name), parts)
        content["parts"] = {name: parts[name] for name in names}
    else:
        value = _entries(content, key, value)
        content[key] = value
        for settings in parts.values():
            settings.pop(key, None)


def _entries(content: Mapping[str, Any], axis: str, value: Any) -> Any:
    """The value with bare names replaced by the file's entries of these names."""
    if axis not in NAMED:
        return value
    known = dict(_named(content, axis))
    values = value if isinstance(value, list) else [value]
    return [known.get(entry, entry) if isinstance(entry, str) else entry for entry in values]


def _named(content: Mapping[str, Any], axis: str) -> Iterator[tuple[str, Any]]:
    for settings in (*(content.get("parts") or {}).values(), content):
        entries = settings.get(axis)
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, dict):
                name = entry.get("name", entry.get(NAMED[axis]))
                if isinstance(name, str):
                    yield name, entry
