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

from forked import prepare, start, whole


def main(study: str, folder: Path, n: int, seed: int) -> None:
    """Kill `n` runs, each with a folder and a cache of its own, and print what became of them as JSON."""
    from study_files import numbers

    def words(output: Path) -> list[str]:
        return ["run", study, "--output", str(output)]

    prepare("run")
    cache = os.environ.get("UNLEARN_EVAL_CACHE", "")
    os.environ["UNLEARN_EVAL_CACHE"] = str(folder / "cache-whole")
    seconds = whole(words(folder / "whole"), folder / "whole.log")
    expected, generator, moments = numbers(folder / "whole"), random.Random(seed), []
    for i in range(n):
        os.environ["UNLEARN_EVAL_CACHE"] = str(folder / f"cache-{i}")
        output, wait = folder / f"killed{i}", generator.uniform(0.0, seconds)
        log = Path(f"{output}.log")
        child = start(words(output), log)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = len(list(output.glob("runs/*/result.json")))
        again = whole(words(output), log)
        moments.append({
            "killed_after_seconds": round(wait, 2), "results_then": left, "seconds_again": round(again, 2),
            "equal": numbers(output) == expected,
        })  # fmt: skip
    os.environ["UNLEARN_EVAL_CACHE"] = cache
    print(json.dumps({"seconds": round(seconds, 2), "cells": len(expected), "moments": moments}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
