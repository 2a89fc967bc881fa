"""Plans of memory beside measured peaks: results/memory_plan.json, one case at a time.

Each case runs in a process of its own, on one thread of a CPU, in float32. The process first does the same with a tiny
random model, so that all libraries are loaded; what is in memory then (RSS, after what is free has been given back) is
subtracted from the largest RSS from there on, the model's loading included. The plan is of the same command, model,
items and settings on a CPU, and nothing in it is fitted to what was measured.

A plan counts tensors, so each tensor gets pages of its own here and gives them back (MALLOC_MMAP_THRESHOLD_). With
--heap the allocator is as users have it, and is measured beside it (`heap_bytes`): the heap of glibc keeps what is free
between tensors. Options: cases by name, as `eval`, `memit`, `npo_lora` (all by default); --model; --items; --heap.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.editing.editor import get_editor
from unlearn_eval.editing.training import run as trainer  # noqa: F401 (what importing it needs is the libraries')
from unlearn_eval.harness.patching import quiet_libraries
from unlearn_eval.models.default_model import fetch_default_model
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.runs.edit import make_edit
from unlearn_eval.runs.evaluate import evaluate
from unlearn_eval.runs.finetune import finetune
from unlearn_eval.runs.memory import plan_edit, plan_eval, plan_finetune, sized
from unlearn_eval.utils.provenance import peak_memory_bytes, provenance

RESULT = Path("results/memory_plan.json")
WHAT = "Planned and measured peaks of memory on a CPU: evaluation, GRACE, MEMIT, NPO of whole weights and LoRA"
PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536"}
SHORT = {"steps": "2"}
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "eval": ("eval", {}),
    "memit": ("memit", {"keys_per_dimension": "5"}),  # text that no cache has
    "grace": ("grace", {}),
    "npo_lora": ("npo", {"lora_rank": "8", **SHORT}),
    "npo": ("npo", SHORT),
    "finetune_lora": ("finetune", {"lora_rank": "8", **SHORT}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--model", default="default")
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--heap", action="store_true")
    parser.add_argument("--measure", action="store_true", help="measure one case in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        print(json.dumps(measured(arguments.cases[0], arguments.model, arguments.items)))
        return
    for case in arguments.cases:
        command = [sys.executable, __file__, case, "--measure", "--model", arguments.model]
        environment = {**os.environ, **({} if arguments.heap else PAGES)}
        done = subprocess.run(
            [*command, "--items", str(arguments.items)], capture_output=True, text=True, check=True, env=environment
        )
        found = json.loads(done.stdout.splitlines()[-1])
        known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"rows": {}}
        name = case if arguments.model == "default" else f"{case}_{Path(arguments.model).stem}"
        if arguments.heap:
            found = {"heap_bytes": found["measured_bytes"]}
        else:
            found |= {"planned_bytes": planned(case, arguments), "items": arguments.items, "model": arguments.model}
            found["planned_over_measured"] = round(found["planned_bytes"] / found["measured_bytes"], 4)
        known["rows"][name] = known["rows"].get(name, {}) | found
        known = {"what": WHAT, "rows": known["rows"], "provenance": provenance()}
        RESULT.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        print(name, known["rows"][name], flush=True)


def planned(case: str, arguments: Any) -> int:
    """The peak by the plan."""
    method, settings = CASES[case]
    base, forget = sized(arguments.model), load_forget_set("facts").sample(arguments.items, 0)
    if method == "eval":
        return plan_eval(base, forget).peak_bytes
    if method == "finetune":
        return plan_finetune(base, forget, settings, device="cpu").peak_bytes
    editor = get_editor(method)
    retain = load_forget_set("facts").sample(60, 1) if editor.trained else None
    return plan_edit(base, editor, forget, settings, retain=retain, device="cpu").peak_bytes


def measured(case: str, model: str, items: int) -> dict[str, Any]:
    """The largest RSS of a case above what the libraries take."""
    with TemporaryDirectory() as folder, quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(fetch_default_model())
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
        )
        tiny = LlamaForCausalLM(config).eval().requires_grad_(False)
        run(case, LoadedModel(tiny, tokenizer, "tiny", None, "tiny"), folder, 4)
        del tiny
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
        libraries, started = peak_memory_bytes(), time.process_time()
        run(case, load_model(model, dtype="float32"), folder, items)
    return {
        "measured_bytes": peak_memory_bytes() - libraries,
        "libraries_bytes": libraries,
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def run(case: str, loaded: LoadedModel, folder: str, n: int) -> None:
    """One case."""
    method, settings = CASES[case]
    forget = load_forget_set("facts").sample(n, 0)
    if method == "eval":
        evaluate(loaded, tasks=["unlearn_facts"], limit=n, batch_size=16, output=f"{folder}/result.json")
    elif method == "finetune":
        finetune(loaded, forget, settings)
    else:
        retain = load_forget_set("facts").sample(60, 1) if get_editor(method).trained else None
        make_edit(loaded, forget, method, settings, retain=retain)


if __name__ == "__main__":
    main()
