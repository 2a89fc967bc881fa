"""Public names of a package that are imported on first use, so that importing the package stays cheap."""

from __future__ import annotations

TYPE_CHECKING = False  # an interpreter of this environment imports this module at its start, and typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def exports(package: str, homes: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        homes: module of the package -> the names it holds, separated by spaces.
    """
    places = {name: module for module, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        import importlib

        if name not in places:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(f"{package}.{places[name]}"), name)

    return sorted(places), get, lambda: sorted(places)
