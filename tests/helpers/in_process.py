"""Commands run in this process, as `unlearn-eval` runs them."""

from __future__ import annotations

import io
import signal
import sys
import time
import traceback
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from unlearn_eval.cli import app as cli


@dataclass(frozen=True)
class Done:
    """What a command did.

    Attributes:
        code: exit code; None if it ended in a traceback or hung.
        traceback: of what the command line did not catch.
        out, err: what it printed.
        seconds, cpu_seconds: what it took.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    traceback: str = ""
    cpu_seconds: float = 0.0


class TooLong(BaseException):
    """A command took longer than it may."""


class _Out(io.TextIOWrapper):
    """A stream as a file is, which refuses what UTF-8 cannot hold."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode()


def run_here(arguments: list[str], limit: int = 10) -> Done:
    """Run a command; one that takes more than `limit` CPU seconds, or six times that by the clock, is stopped."""

    def stop(number: int, frame: object) -> None:
        raise TooLong

    out, err, argv, code, trace = _Out(), _Out(), sys.argv, None, ""
    sys.argv = ["unlearn-eval", *arguments]
    before = {own: signal.signal(own, stop) for own in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, limit)  # a busy machine is no hang
    signal.alarm(6 * limit)
    started, cpu = time.monotonic(), time.process_time()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except TooLong:
        trace = f"longer than {limit} s\n{traceback.format_exc()}"
    except BaseException:
        trace = traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for own, handler in before.items():
            signal.signal(own, handler)
        sys.argv = argv
    return Done(code, out.text, err.text, time.monotonic() - started, trace, time.process_time() - cpu)


def typed(*arguments: object, cwd: str | Path | None = None) -> Done:
    """Run a command in a folder, however long it takes; what would be a traceback fails the test."""
    with chdir(cwd or Path.cwd()):
        done = run_here([str(own) for own in arguments], limit=600)
    assert not done.traceback, done.traceback
    return done


def ours(words: list[str]) -> Any:
    """What a command of ours printed, which must succeed."""
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done
