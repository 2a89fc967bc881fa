"""Locks between processes: one run in a folder, one that makes what all of them need.

The operating system holds a lock for its process: of one that is dead, however it died, nothing is left to take over.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps, write_all
from unlearn_eval.utils.terminal import say

LOCK, HOLDER = ".lock", ".lock.json"


@contextmanager
def locked(folder: Path, hint: str = "wait for it, or give another --output") -> Iterator[None]:
    """Hold a folder's lock within a `with` block; `hint` is for the error.

    Raises:
        UserError: another process holds it; its number, machine and start are named.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(str(folder / LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another run writes to {folder}: {_holder(folder)}", hint) from error
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        write_all({HOLDER: dumps(holder) + "\n"}, folder)
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


@contextmanager
def alone(places: Sequence[Path], what: str, tell: Callable[[str], Any] = say) -> Iterator[None]:
    """Hold the locks of several places within a `with` block, so that one process makes what all need.

    Whoever has to wait is told so once. The locks are empty files, `.NAME.lock` beside each place, which stay.

    Args:
        places: the files or folders to make; their parents are made.
        what: is made, for the line.
        tell: receives the line; standard error by default.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as stack:
        for place in sorted(places):  # in one order, so that no two processes wait for each other
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(place.with_name(f".{place.name}.lock")))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                tell(f"waiting for another process, which makes {what}")
                lock.acquire()
            except NotImplementedError:  # some network drives have no locks
                continue
            stack.callback(lock.release)
        yield


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "a process that has just begun"
