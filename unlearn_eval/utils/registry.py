"""Methods are found by the names of their files: a new file in a package of methods is all that registers one."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from unlearn_eval.utils.errors import unknown_name


def names_in(package: str) -> list[str]:
    """The names of a package's modules and of those in its folders: each file is one method."""
    return sorted(_places(package))


def summary_in(package: str, name: str) -> str:
    """What the file of the method `name` says first of itself; the file is read, not imported."""
    origin = importlib.util.find_spec(_places(package)[name])
    text = Path(str(origin.origin)).read_text(encoding="utf-8") if origin else ""
    return " ".join((ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0].split())


def module_in(package: str, name: str, kind: str) -> Any:
    """The module of the method `name`; `kind` says what it is in the error.

    Raises:
        UserError: there is none; the nearest names are given.
    """
    places = _places(package)
    if name not in places:
        raise unknown_name(kind, name, sorted(places))
    return importlib.import_module(places[name])


@cache
def _places(package: str) -> dict[str, str]:
    """Method -> module; methods of several folders share one space of names."""
    found: dict[str, str] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        new = _places(module.name) if module.ispkg else {module.name.rpartition(".")[2]: module.name}
        if twice := found.keys() & new.keys():
            raise AssertionError(f"two files of {package} are called {sorted(twice)}")
        found |= new
    return found
