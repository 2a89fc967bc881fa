"""Methods are found by the names of their files: a new file in the folder is all that registers one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection
from typing import Any

from unlearn_eval.errors import unknown_name


def names_in(package: str, but: Collection[str]) -> list[str]:
    """The names of a package's modules without those in `but`, which are no methods."""
    folder = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(folder) if module.name not in but)


def module_in(package: str, name: str, but: Collection[str], kind: str) -> Any:
    """The module of the method `name`; `kind` says what it is in the error.

    Raises:
        UserError: there is none; the nearest names are given.
    """
    names = names_in(package, but)
    if name not in names:
        raise unknown_name(kind, name, names)
    return importlib.import_module(f"{package}.{name}")
