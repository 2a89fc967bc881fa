"""What is printed: data as text, whatever is in it. Nothing else in the package writes to a terminal.

Names, answers and errors may come from strangers. Control characters, which a terminal would obey, are written as
escapes; brackets are not markup.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# C0 and C1 without tab and newline, what reorders text, and halves of surrogate pairs, which UTF-8 cannot hold.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """The text with control characters as JSON escapes them."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


def put(text: object, end: str = "\n") -> None:
    """Print data, on standard output."""
    print(printable(text), end=end, flush=True)


QUIET, USUAL, VERBOSE = -1, 0, 1
LEVEL = ContextVar("LEVEL", default=USUAL)  # of what is said beside data, for a command
_ALWAYS = ("error:", "hint:", "warning:")


def say(text: object) -> None:
    """Print a line that is no data, on standard error; where it is to be quiet, only errors, hints and warnings."""
    if LEVEL.get() > QUIET or str(text).startswith(_ALWAYS):
        print(printable(text), file=sys.stderr, flush=True)


def columns() -> int | None:
    """How wide the terminal is; None where the output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class Lines(io.TextIOBase):
    """A stream for progress bars that are no bars: whatever is drawn over the same line is said as a line."""

    def write(self, text: str) -> int:
        """Say what is not empty."""
        for line in text.replace("\x1b[A", "").replace("\r", "\n").splitlines():
            if line.strip():
                say(f"     {line.strip()}")
        return len(text)


def gigabytes(n: float) -> str:
    """Bytes as people read them: `1.5 GB`."""
    return f"{n / 1e9:.1f} GB"


def new_console(stream: TextIO | None = None, width: int = 100) -> Console:
    """A console for tables, as wide as the terminal, or `width` where there is none."""
    from rich.console import Console as RichConsole

    class Plain(RichConsole):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})

    stream = stream or sys.stdout
    return Plain(file=stream, width=None if stream.isatty() else width, markup=False, emoji=False)


def styled(text: object, style: str = "", **options: Any) -> Text:
    """Text of a style, for a cell of a table."""
    from rich.text import Text as RichText

    return RichText(printable(text), style=style, **options)
