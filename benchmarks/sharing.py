"""What evaluating ten edits in one vLLM engine takes, beside one: the command that a user types, as a whole.

    python benchmarks/sharing.py [--model default] [--rounds 2] [--limits 2,8] [--dtypes float32,bfloat16]

Timed is `unlearn-eval eval --edits ... --backend vllm --tasks unlearn_tofu --limit N` in a process of its own: wall and
CPU seconds from its start to its end, and what it says of loading and evaluating. Everything of the task is on, and the
engine is where the command puts it. The one edit is another one in each round, since edits differ in how long their
answers are; both are run one after the other, and ratios are within a round. TOFU comes from the hub or from
`UNLEARN_EVAL_DATA`; the edits, two facts each, are made by this project's own command, into `--folder`. A pair is
written to results/sharing.json as soon as it is there and not taken again; results/sharing.md is the table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving import ENGINE, make_edit, where

from unlearn_eval.utils.json_files import dumps, write_all

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "results" / "sharing.json"
N = 10
AIM = 1.5  # times as long as one
Timing = Mapping[str, float]


def main() -> None:
    """Measure what is not there yet, and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="default")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limits", default="2,8")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "scratch" / "sharing")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    edits = [made(i, arguments) for i in range(N)]
    data = json.loads(arguments.output.read_text()) if arguments.output.is_file() else start(arguments)
    for i in range(arguments.rounds):
        for dtype in arguments.dtypes.split(","):
            for limit in map(int, arguments.limits.split(",")):
                pairs = data["pairs"].setdefault(f"{dtype}, {limit}", [])
                if len(pairs) > i:
                    continue
                one, ten = (timed(own, dtype, limit, arguments) for own in ([edits[i % N]], edits))
                pairs.append({"one": one, "ten": ten})
                output = arguments.output
                write_all({output.name: dumps(data, indent=1) + "\n", f"{output.stem}.md": table(data)}, output.parent)
                print(
                    f"round {i + 1}, {dtype}, --limit {limit}: {ten['wall'] / one['wall']:.2f} {one} {ten}", flush=True
                )
    print(table(data))


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """An empty result."""
    from unlearn_eval.utils.provenance import provenance

    return {"settings": {"model": arguments.model, "edits": N}, "pairs": {}, "provenance": provenance()}


def made(i: int, arguments: argparse.Namespace) -> Path:
    """One of the edits: two facts of its own."""
    from unlearn_eval.data.forget_sets import facts

    folder: Path = arguments.folder / f"edit_{i}"
    ids = ",".join(item.id for item in facts().items[2 * i : 2 * i + 2])
    make_edit(folder, arguments.model, ("--editor", "memit", "--ids", ids, "--contexts", "0"))
    return folder


def timed(edits: Sequence[Path], dtype: str, limit: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of one command."""
    output = arguments.folder / "results"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "unlearn_eval.cli", "eval", "--tasks", "unlearn_tofu", "--limit", str(limit)]
    command += ["--backend", "vllm", "--model", arguments.model, "--model_args", f"dtype={dtype}"]
    command += ["--output", str(output), "--edits", *map(str, edits)]
    environment = {**ENGINE, **os.environ}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    results = [json.loads(path.read_text()) for path in output.glob("*.json")]
    if len(results) != len(edits):
        raise SystemExit(f"{len(results)} results of {len(edits)} edits in {output}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    timing = results[0]["timing"]
    own = {"wall": wall, "cpu": cpu, "loading": timing["loading_seconds"], "evaluating": timing["evaluation_seconds"]}
    return {key: round(value, 2) for key, value in own.items()}


def table(data: Mapping[str, Any]) -> str:
    """Medians over rounds as Markdown."""
    lines = [
        "# Ten edits in one engine, beside one",
        "",
        f"{data['settings']['model']}, {where(data['provenance'])}. `unlearn-eval eval --edits ... --backend vllm "
        f"--tasks unlearn_tofu --limit N`, from its start to its end, with one edit and with {N}. Medians over "
        f"rounds, each with another edit as the one; the aim is at most {AIM} times as long.",
        "",
        "| dtype | limit | rounds | one, s | ten, s | times | times, from loading on | times the CPU seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, pairs in sorted(data["pairs"].items(), key=lambda own: (own[0].partition(", ")[0], len(own[0]), own[0])):
        dtype, _, limit = name.partition(", ")
        walls = [[pair[key]["wall"] for pair in pairs] for key in ("one", "ten")]
        ratios = [
            statistics.median(value(pair["ten"]) / value(pair["one"]) for pair in pairs)
            for value in (_wall, _from_loading, _cpu)
        ]
        cells = [*(f"{statistics.median(own):.0f}" for own in walls), *(f"{ratio:.2f}" for ratio in ratios)]
        lines.append(f"| {dtype} | {limit} | {len(pairs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _wall(row: Timing) -> float:
    return row["wall"]


def _from_loading(row: Timing) -> float:
    return row["loading"] + row["evaluating"]


def _cpu(row: Timing) -> float:
    return row["cpu"]


if __name__ == "__main__":
    main()
