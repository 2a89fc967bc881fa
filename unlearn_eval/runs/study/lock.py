"""One run at a time in a study's folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from unlearn_eval.results.schema import utc_now
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps, write_all

LOCK, HOLDER = ".lock", ".lock.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock within a `with` block.

    The operating system holds it for the process: of one that is dead, however it died, nothing is left to take over.

    Raises:
        UserError: another process holds it; its number, machine and start are named.
    """
    lock = FileLock(str(folder / LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another run writes to {folder}: {_holder(folder)}", "wait for it, or give another --output"
        ) from error
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": utc_now()}
        write_all({HOLDER: dumps(holder) + "\n"}, folder)
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "a process that has just begun"
