"""The exception for a user's mistake, with what came, what is allowed and the next step; and errors of the machine."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend. The command line prints it in two lines, without a traceback.

    Args:
        message: what came and what is allowed, in one line.
        hint: the next step, in one line.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = message, hint
        super().__init__(f"{message}\nhint: {hint}" if hint else message)


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not one of `allowed`, with the nearest names as a hint."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    some = ", ".join(allowed[:20]) + (f", ... ({len(allowed)} in all)" if len(allowed) > 20 else "")
    hint = f"did you mean {' or '.join(close)}?" if close else f"allowed: {some}"
    return UserError(f"unknown {kind} '{name}'", hint)


_TOO_LITTLE = ("out of memory", "allocate memory", "failed to map segment", "can't start new thread")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, on any device, also for a library to be loaded or a thread to be started."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(text in str(error) for text in _TOO_LITTLE)
