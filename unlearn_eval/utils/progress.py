"""How work that takes long reports what is done: a function that is called with (what, done, total)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], Any]


def no_progress(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""
