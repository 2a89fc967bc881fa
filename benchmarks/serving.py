"""What an edit costs in vLLM: tokens per second and the time of an evaluation, one process for each engine.

    python benchmarks/serving.py [--model default] [--rounds 3] [--only NAMES] [--device cuda] [--output FILE]

Compared are lm-eval's `hf`, our `edited`, stock `vllm` on the base model, and `edited-vllm` with each kind of edit. All
of them write the same number of tokens after the same questions, then evaluate `unlearn_tofu --limit`; TOFU comes from
the hub or from `UNLEARN_EVAL_DATA`. Rounds go through all engines, so that what else the machine does falls on all;
ratios are to stock vLLM of the same round, by wall and by CPU time (the engine runs in the measured process). Edits are
made by this project's own commands, into `--folder`. A measurement is written to results/serving.json as soon as it is
there and not taken again; results/serving.md is the table. Several edits in one engine: see sharing.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_eval.utils.json_files import dumps, write_all

ROOT = Path(__file__).parent.parent
RESULT, TABLE = ROOT / "results" / "serving.json", ROOT / "results" / "serving.md"
STOCK = "vllm"
ENGINE = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}  # environment, where it says nothing else
LIMITS = {"low_rank": 0.98, "dense": 0.98, "grace": 0.95, "wise": 0.90}  # of stock vLLM's throughput, what we aim at


EDITS = {  # what stands after `unlearn-eval edit`
    "low_rank": ("--editor", "memit", "--limit", "10"),
    "dense": ("--editor", "gradient_ascent", "--limit", "4", "--set", "epochs=1"),  # every weight of the model
    "grace": ("--editor", "grace", "--limit", "100"),
    "wise": ("--editor", "wise", "--limit", "10"),
    "memoir": ("--editor", "memoir", "--limit", "10"),
}
ENGINES = (
    "hf", "edited, low_rank", "edited, grace", STOCK,
    *(f"edited-vllm, {kind}" for kind in ("low_rank", "dense", "grace", "wise", "memoir")),
)  # fmt: skip


def main() -> None:
    """Measure what is not there yet, and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of the writing, in each process")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32, help="of Hugging Face's models")
    parser.add_argument("--device", default=None)
    parser.add_argument("--only", default="", help="names of engines, separated by '; '")
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "scratch" / "serving")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        from unlearn_eval.harness.patching import quiet

        with quiet():
            found = measure(arguments.one, arguments)
        print(json.dumps(found))
        return
    engines = arguments.only.split("; ") if arguments.only else ENGINES
    data = json.loads(arguments.output.read_text()) if arguments.output.is_file() else start(arguments)
    for i in range(arguments.rounds):
        for name in engines:
            found = data["engines"].setdefault(name, [])
            if len(found) > i:
                continue
            make_edits(name, arguments)
            found.append(in_a_process(name, arguments))
            data["ratios"] = ratios(data["engines"])
            write(data, arguments.output)
            print(f"round {i + 1}, {name}: {found[-1]}", flush=True)
    print(table(data))


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """An empty result."""
    from unlearn_eval.utils.provenance import provenance

    names = ("model", "dtype", "prompts", "tokens", "limit", "batch_size", "repeats")
    return {"settings": {name: getattr(arguments, name) for name in names}, "engines": {}, "provenance": provenance()}


def write(data: Mapping[str, Any], output: Path) -> None:
    """The numbers, and their table if they are the project's own."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_all({output.name: dumps(data, indent=2) + "\n"}, output.parent)
    if output == RESULT:
        TABLE.write_text(table(data), encoding="utf-8")


def make_edits(engine: str, arguments: argparse.Namespace) -> None:
    """The edits that an engine needs, where they are not there."""
    for name in edits_of(engine):
        make_edit(arguments.folder / name, arguments.model, EDITS[name])


def make_edit(folder: Path, model: str, options: Sequence[str]) -> None:
    """An edit in its folder, if it is not there."""
    if not (folder / "edit.json").is_file():
        command = [sys.executable, "-m", "unlearn_eval.cli", "edit", "-o", str(folder), "-m", model]
        subprocess.run([*command, *options], check=True)


def edits_of(engine: str) -> tuple[str, ...]:
    """The edits in an engine."""
    _, _, name = engine.partition(", ")
    return (name,) if name else ()


def in_a_process(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """What `measure` finds in a process of its own."""
    own = [str(Path(__file__).resolve()), *sys.argv[1:], "--one", name]
    done = subprocess.run([sys.executable, *own], stdout=subprocess.PIPE, text=True, env=_environment(), check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _environment() -> dict[str, str]:
    """The engine in the process itself, so that its CPU time is told."""
    return {**ENGINE, **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


# In the process of one engine ------------------------------------------------------------------------------


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of loading and evaluating, and tokens per second, of one model in one engine."""
    from unlearn_eval.harness.run import evaluate, load_lm
    from unlearn_eval.models.places import resolve_model
    from unlearn_eval.serving.engine import engine_stopped
    from unlearn_eval.utils.provenance import peak_memory_bytes

    kind, _, edit = name.partition(", ")
    options = {"pretrained": resolve_model(arguments.model), "dtype": arguments.dtype}
    if edit:
        options["edit"] = str(arguments.folder / edit)
    size = "auto" if kind.endswith("vllm") else arguments.batch_size
    started = time.perf_counter()
    lm = load_lm(kind, options, size, arguments.device)
    found = {"loading_seconds": time.perf_counter() - started}
    with engine_stopped(lm):
        asked = [prompts(lm, arguments, i) for i in range(arguments.repeats)]
        speak = by_vllm(lm, arguments) if kind.endswith("vllm") else by_transformers(lm, arguments)
        speak(asked[0][:8])  # what is compiled or allocated once
        times = [timed(lambda own=own: speak(own)) for own in asked]
        best = min(wall for wall, _ in times), min(cpu for _, cpu in times)
        n = arguments.prompts * arguments.tokens
        found |= {"tokens_per_second": n / best[0], "tokens_per_cpu_second": n / best[1]}
        metadata = {"encoder": "off", "fluency_model": "off"}
        wall, cpu = timed(lambda: evaluate(lm, ["unlearn_tofu"], limit=arguments.limit, metadata=metadata))
    found |= {"evaluation_seconds": wall, "evaluation_cpu_seconds": cpu, "peak_gigabytes": peak_memory_bytes() / 1e9}
    return {key: round(value, 3) for key, value in found.items()}


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def prompts(lm: Any, arguments: argparse.Namespace, seed: int) -> list[list[int]]:
    """Token ids of other questions for every repeat, as a chat if the model has one."""
    from unlearn_eval.data.forget_sets import facts
    from unlearn_eval.models.prompt_format import PromptFormat

    items = [facts().sample(len(facts()), seed).items[i % len(facts())] for i in range(arguments.prompts)]
    return [list(PromptFormat.of(lm.tokenizer).prompt_ids(item.question)) for item in items]


def by_vllm(lm: Any, arguments: argparse.Namespace) -> Callable[[Sequence[list[int]]], Any]:
    """Writes through the engine."""
    from vllm import SamplingParams, TokensPrompt

    sampling = SamplingParams(temperature=0, max_tokens=arguments.tokens, ignore_eos=True, detokenize=False)

    def speak(rows: Sequence[list[int]]) -> Any:
        asked = [TokensPrompt(prompt_token_ids=row) for row in rows]
        return lm.model.generate(asked, sampling, use_tqdm=False)

    return speak


def by_transformers(lm: Any, arguments: argparse.Namespace) -> Callable[[Sequence[list[int]]], Any]:
    """Writes in batches."""
    import torch

    from unlearn_eval.models.scoring import pad

    n, size = arguments.tokens, arguments.batch_size

    @torch.no_grad()
    def speak(rows: Sequence[list[int]]) -> Any:
        for i in range(0, len(rows), size):
            ids, mask = pad(rows[i : i + size], "left", lm.model.device, filler=lm.tokenizer.pad_token_id or 0)
            own = {"do_sample": False, "min_new_tokens": n, "max_new_tokens": n}
            lm.model.generate(input_ids=ids, attention_mask=mask, pad_token_id=lm.tokenizer.pad_token_id, **own)

    return speak


# The table -------------------------------------------------------------------------------------------------


def ratios(engines: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over rounds of each engine's numbers by those of stock vLLM in the same round."""
    found: dict[str, dict[str, float]] = {}
    stock = engines.get(STOCK, [])
    for name, rounds in engines.items():
        both = [(own, base) for own, base in zip(rounds, stock, strict=False) if "tokens_per_second" in own]
        if both:
            found[name] = {
                key: round(statistics.median(own[key] / base[key] for own, base in both), 3)
                for key in ("tokens_per_second", "tokens_per_cpu_second", "evaluation_seconds")
            }
    return found


def table(data: Mapping[str, Any]) -> str:
    """The medians over rounds as Markdown."""
    said = data["settings"]
    lines = [
        "# What an edit costs in vLLM",
        "",
        f"{said['model']}, {said['dtype']}, {where(data['provenance'])}: "
        f"{said['prompts']} questions, {said['tokens']} tokens each; `unlearn_tofu --limit {said['limit']}`. Medians "
        "over rounds; ratios are to stock vLLM in the same round.",
        "",
        "| engine | rounds | tokens/s | of vLLM | by CPU time | aim | evaluation, s | loading, s | peak GB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, rounds in sorted(data["engines"].items(), key=lambda entry: ENGINES.index(entry[0])):
        own = data["ratios"].get(name, {})
        aim = LIMITS.get(name.removeprefix("edited-vllm, "))
        cells = [
            str(len(rounds)), _median(rounds, "tokens_per_second", ".0f"),
            _percent(own.get("tokens_per_second")), _percent(own.get("tokens_per_cpu_second")), _percent(aim),
            *(_median(rounds, key, ".1f") for key in ("evaluation_seconds", "loading_seconds", "peak_gigabytes")),
        ]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def where(machine: Mapping[str, Any]) -> str:
    """Which vLLM ran where, from a result's provenance."""
    packages, gpus = machine["packages"], machine["gpus"]
    version = packages.get("vllm") or f"{packages.get('vllm-cpu', '?')} for CPU"
    place = gpus[0]["name"] if gpus else f"{machine['cpu']['model']}, {machine['cpu']['usable_cores']} CPUs"
    return f"vLLM {version}, {place}"


def _median(rounds: Sequence[Mapping[str, float]], key: str, form: str) -> str:
    values = [row[key] for row in rounds if key in row]
    return format(statistics.median(values), form) if values else "–"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


if __name__ == "__main__":
    main()
