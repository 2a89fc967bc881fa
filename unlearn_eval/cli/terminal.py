"""What commands share on a terminal: bars on standard error, and NAME=VALUE."""

from __future__ import annotations

import sys
from typing import Any

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.progress import no_progress
from unlearn_eval.utils.terminal import LEVEL, QUIET, say


def progress() -> Any:
    """A progress callback: a bar on a terminal, a line every ten seconds elsewhere."""
    import time

    if LEVEL.get() <= QUIET:
        return no_progress
    if sys.stderr.isatty():
        from tqdm import tqdm

        bars: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            bar = bars.setdefault(what, tqdm(total=total, desc=f"     {what}", file=sys.stderr, leave=False))
            bar.total = max(total, bar.total or 0)
            bar.n = min(done, total) if total > 1 else bar.total
            bar.refresh()
            if bar.n >= bar.total:
                bar.close()

        return show
    last = {"at": 0.0}

    def tell(what: str, done: int, total: int) -> None:
        if time.monotonic() - last["at"] > 10 and total > 1:
            last["at"] = time.monotonic()
            say(f"     {what}: {done} of {total}")

    return tell


def pair(text: str) -> tuple[str, str]:
    """A setting as `--set` takes it."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set takes NAME=VALUE, not '{text}'", "for example --set preservation=2")
    return name.strip(), value.strip()
