"""What large models need, by the plan of memory: results/memory_large.json, one row after another.

The configurations are numbers from the config.json that each model was published with; nothing is downloaded. Items: 20
of the shipped facts (their lengths by letters), 60 to retain; bfloat16; a GPU. Rows that are there are not planned
again. Options: models and commands by name (all by default).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoConfig

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.editing.editor import get_editor
from unlearn_eval.runs.memory import CARDS, MemoryPlan, Sized, plan_edit, plan_eval, sized
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import provenance

RESULT = Path("results/memory_large.json")
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
    arguments = parser.parse_args()
    for name in arguments.models:
        with TemporaryDirectory() as folder:
            base = published(name, Path(folder))
            for command in arguments.commands:
                known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"rows": {}}
                row = f"{name}: {command}"
                if row in known["rows"]:
                    continue
                try:
                    plan = planned(base, command)
                    fits = {str(card): plan.fits(card) for card in CARDS}
                    known["rows"][row] = plan.record | {"model": name, "cards": fits}
                except UserError as error:
                    known["rows"][row] = {"model": name, "refused": error.message}
                text = json.dumps({**known, "provenance": provenance()}, indent=2)
                RESULT.write_text(text + "\n", encoding="utf-8")
                print(row, known["rows"][row].get("peak_bytes"), flush=True)


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


def planned(base: Sized, command: str) -> MemoryPlan:
    """The plan of one command."""
    editor, settings = COMMANDS[command]
    forget: Any = load_forget_set("facts").sample(20, 0)
    if not editor:
        return plan_eval(base, forget)
    method = get_editor(editor)
    retain = load_forget_set("facts").sample(60, 1) if method.trained else None
    return plan_edit(base, method, forget, settings, retain=retain)


if __name__ == "__main__":
    main()
