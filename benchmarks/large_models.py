"""What large models need, by the plan of memory: results/memory_large.json, and from it docs/guides/large_models.md.

The configurations are numbers from the config.json that each model was published with; nothing is downloaded. Items: 20
of the shipped facts (their lengths by letters), 60 to retain; bfloat16; a GPU. Where a command does not fit a card, it
is planned again with the options that `unlearn-eval plan` tries. Rows that are there are not planned again. --write
writes the tables of the guide, these and those of results/memory_plan.json. Options: models and commands by name (all
by default).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoConfig

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.editing.editor import get_editor
from unlearn_eval.runs.memory import (
    BATCH_SIZE,
    CARDS,
    Choice,
    MemoryPlan,
    Sized,
    choices,
    plan_edit,
    plan_eval,
    sized,
    smaller,
)
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import provenance
from unlearn_eval.utils.settings import configure

RESULT, MEASURED = Path("results/memory_large.json"), Path("results/memory_plan.json")
WHAT = "The memory that editing, training and evaluating published configurations is planned to take on a GPU"
GUIDE = Path("docs/guides/large_models.md")
# model type, layers, width, MLP, heads, key-value heads, width of a head, vocabulary, tied embeddings
SHAPES: dict[str, tuple[str, int, int, int, int, int, int, int, bool]] = {
    "Llama-3.2-1B": ("llama", 16, 2048, 8192, 32, 8, 64, 128256, True),
    "Llama-3.1-8B": ("llama", 32, 4096, 14336, 32, 8, 128, 128256, False),
    "Qwen3-8B": ("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, False),
    "Qwen3-30B-A3B": ("qwen3_moe", 48, 2048, 6144, 32, 4, 128, 151936, False),
    "Llama-3.3-70B": ("llama", 80, 8192, 28672, 64, 8, 128, 128256, False),
}
EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1}
COMMANDS: dict[str, tuple[str, dict[str, str]]] = {
    "eval": ("", {}),
    "grace": ("grace", {}),
    "memit": ("memit", {}),
    "npo, LoRA": ("npo", {"lora_rank": "8", "micro_batch_size": "1"}),
    "npo, whole weights": ("npo", {"micro_batch_size": "1"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(SHAPES))
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.write:
        write()
        return
    for name in arguments.models:
        with TemporaryDirectory() as folder:
            base = published(name, Path(folder))
            for command in arguments.commands:
                known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"rows": {}}
                if f"{name}: {command}" not in known["rows"]:
                    known["rows"][f"{name}: {command}"] = row(base, command) | {"model": name}
                    text = json.dumps({"what": WHAT, "rows": known["rows"], "provenance": provenance()}, indent=2)
                    RESULT.write_text(text + "\n", encoding="utf-8")
                    print(name, command, known["rows"][f"{name}: {command}"].get("peak_bytes"), flush=True)


def row(base: Sized, command: str) -> dict[str, Any]:
    """One command of one model: its plan, and for each card the options with which it fits, or null."""
    editor, settings = COMMANDS[command]
    try:
        first = planned(base, command, Choice(""))
    except UserError as error:
        return {"refused": error.message}
    plans = [replace(first, what="")]
    if not first.fits(min(CARDS)):
        config = configure(get_editor(editor).Config, settings) if editor else None
        tried = choices(base.dtype, config, None if editor else BATCH_SIZE)
        plans += smaller(lambda choice: planned(base, command, choice), tried)
    cards = {str(card): next((own.what for own in plans if own.fits(card)), None) for card in CARDS}
    least = {"options": plans[-1].what, "peak_bytes": plans[-1].peak_bytes}
    return first.record | {"cards": cards, "least": least}


def published(name: str, folder: Path) -> Sized:
    """The model of a row of `SHAPES`."""
    kind, layers, width, mlp, heads, key_value_heads, head, vocabulary, tied = SHAPES[name]
    config = AutoConfig.for_model(
        kind,
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        dtype="bfloat16",
        **(EXPERTS if kind.endswith("moe") else {}),
    )
    config.save_pretrained(folder)
    return sized(str(folder), "bfloat16")


def planned(base: Sized, command: str, choice: Choice) -> MemoryPlan:
    """The plan of one command with more options."""
    editor, settings = COMMANDS[command]
    forget: Any = load_forget_set("facts").sample(20, 0)
    if not editor:
        return plan_eval(base, forget, choice.batch_size or BATCH_SIZE)
    method = get_editor(editor)
    retain = load_forget_set("facts").sample(60, 1) if method.trained else None
    return plan_edit(base, method, forget, {**settings, **choice.settings}, retain=retain)


def write() -> None:
    """Write the guide's tables between their marks."""
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    lines = [f"| model | weights | {' | '.join(COMMANDS)} |", f"|---|---:|{'---:|' * len(COMMANDS)}"]
    for name in SHAPES:
        own = [rows.get(f"{name}: {command}", {}) for command in COMMANDS]
        weights = next((gigabytes(each["weights_bytes"]) for each in own if "weights_bytes" in each), "–")
        lines.append(f"| {name} | {weights} | {' | '.join(map(cell, own))} |")
    into_guide("large", lines)
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    lines = ["| command | planned | measured | planned / measured | with glibc's heap |", "|---|---:|---:|---:|---:|"]
    for name, each in measured["rows"].items():
        heap = gigabytes(each["heap_bytes"]) if "heap_bytes" in each else "–"
        ratio = f"{each['planned_over_measured']:.2f}"
        sizes = [gigabytes(each["planned_bytes"]), gigabytes(each["measured_bytes"]), ratio, heap]
        lines.append(f"| {name.replace('_', ', ')} | {' | '.join(sizes)} |")
    into_guide("measured", lines)


def cell(own: dict[str, Any]) -> str:
    """`17.1 GB, 24`: the peak and the smallest card; with an option in brackets where that fits a smaller one."""
    if "peak_bytes" not in own:
        return "refused" if "refused" in own else "–"
    plain = next((card for card, options in own["cards"].items() if options == ""), "none")
    text = f"{gigabytes(own['peak_bytes'])}, {plain}"
    card, options = next(((card, what) for card, what in own["cards"].items() if what is not None), ("none", ""))
    if not options:
        return text
    return f"{text} ({card} with `{options.replace('--set ', '')}`)"


def gigabytes(n: int) -> str:
    """`17.1 GB`."""
    return f"{n / 1e9:.1f} GB" if n >= 1e10 else f"{n / 1e9:.2f} GB"


def into_guide(mark: str, lines: list[str]) -> None:
    """Replace what stands between `<!-- MARK -->` and `<!-- end -->`."""
    text = GUIDE.read_text(encoding="utf-8")
    before, _, rest = text.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    GUIDE.write_text(f"{before}<!-- {mark} -->\n" + "\n".join(lines) + f"\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
