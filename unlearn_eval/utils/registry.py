"""Methods are found by the names of their files: a new file in a package of methods is all that registers one."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from unlearn_eval.utils.errors import unknown_name


def names_in(package: str) -> list[str]:
    """The names of a package's modules and of those in its folders: each file is one method."""
    return sorted(_places(package))


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
