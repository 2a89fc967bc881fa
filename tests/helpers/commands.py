"""Commands as a user types them, run in this process: Python's imports cost more than most of them do."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from unlearn_eval.cli import app as cli


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def typed(*arguments: object, cwd: str | Path | None = None) -> Done:
    """Run `unlearn-eval ARGUMENTS` to its end; an exception that would be a traceback is raised."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd or os.getcwd()),
        mock.patch.object(sys, "argv", ["unlearn-eval", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Done(code, out.getvalue(), err.getvalue())
