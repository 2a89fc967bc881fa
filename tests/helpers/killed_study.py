"""Run by test_study_kills: kills a study at random moments, runs the same command again, compares the numbers.

Each run is a forked child, so that the seconds that imports take are spent once and kills fall into the work.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from unlearn_eval.cli import app as cli  # noqa: F401  (imported before forking)
from unlearn_eval.editing.training.run import trained  # noqa: F401
from unlearn_eval.harness import models, run  # noqa: F401
from unlearn_eval.runs import evaluate as evaluation  # noqa: F401  (imported before forking)
from unlearn_eval.runs.study.cells import worker  # noqa: F401


def start(study: str, output: Path) -> int:
    """The number of a child that runs `unlearn-eval run STUDY --output OUTPUT`."""
    child = os.fork()
    if child:
        return child
    torch.set_num_threads(1)
    log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["unlearn-eval", "run", study, "--output", str(output)]
    code = 0
    try:
        cli.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        os._exit(code)


def whole(study: str, output: Path) -> float:
    """Run to the end; the seconds that it took."""
    began = time.monotonic()
    _, status = os.waitpid(start(study, output), 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(Path(f"{output}.log").read_text()[-3000:])
    return time.monotonic() - began


def main(study: str, folder: Path, n: int, seed: int) -> None:
    """Kill `n` runs, each with a folder and a cache of its own, and print what became of them as JSON."""
    from study_files import numbers

    cache = os.environ.get("UNLEARN_EVAL_CACHE", "")
    os.environ["UNLEARN_EVAL_CACHE"] = str(folder / "cache-whole")
    seconds = whole(study, folder / "whole")
    expected, generator, moments = numbers(folder / "whole"), random.Random(seed), []
    for i in range(n):
        os.environ["UNLEARN_EVAL_CACHE"] = str(folder / f"cache-{i}")
        output, wait = folder / f"killed{i}", generator.uniform(0.0, seconds)
        child = start(study, output)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = len(list(output.glob("runs/*/result.json")))
        again = whole(study, output)
        moments.append({
            "killed_after_seconds": round(wait, 2), "results_then": left, "seconds_again": round(again, 2),
            "equal": numbers(output) == expected,
        })  # fmt: skip
    os.environ["UNLEARN_EVAL_CACHE"] = cache
    print(json.dumps({"seconds": round(seconds, 2), "cells": len(expected), "moments": moments}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
