"""Target values, all requests at once, against the plain loop: one request, whole prompts, whole model, whole head.

Both sides run in one process on the same requests, taking turns; the values must agree. Writes
results/target_values.json. Options: --n (requests), --steps, --repeats, --curve (also time 10 to 1,000 requests).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from editing import forget_peak_memory
from torch import Tensor

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.editing.locate_then_edit.target_values import TargetValueConfig, target_values
from unlearn_eval.editing.requests.build import build_requests, sample_contexts
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editing.requests.targets import IDK
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.load import load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import pad
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.provenance import peak_memory_bytes, provenance

LAYER = 8


def plain_loop(model: Any, layer: int, request: EditRequest, config: TargetValueConfig) -> tuple[Tensor, float]:
    """MEMIT's compute_z for one request, as its authors write it: (v*, its last negative log-likelihood)."""
    block = model.get_submodule(f"{anatomy(model).blocks}.{layer}")
    subject = request.subject_ids or request.prompt_ids[: request.lookup + 1]
    rows = [((*ids, *request.target_ids[:-1]), lookup, len(ids)) for ids, lookup in request.rows]
    tokens, mask = pad([*(row for row, _, _ in rows), subject], "right", model.device)
    lookups = [*(lookup for _, lookup, _ in rows), len(subject) - 1]
    index = torch.arange(len(lookups))
    target = torch.tensor(request.target_ids)
    delta = torch.zeros(model.config.hidden_size, requires_grad=True)
    seen: dict[str, Tensor] = {}

    def add(module: Any, arguments: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.setdefault("clean", hidden[0, lookups[0]].detach())
        moved = hidden.index_put((index, torch.tensor(lookups)), delta.expand(len(lookups), -1), accumulate=True)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    adam = torch.optim.Adam([delta], lr=config.learning_rate)
    handle = block.register_forward_hook(add)
    clean = None
    try:
        for step in range(config.steps):
            adam.zero_grad()
            logp = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
            nll = -torch.stack(
                [
                    logp[j, n - 1 : n - 1 + len(target)].gather(-1, target[:, None]).mean()
                    for j, (_, _, n) in enumerate(rows)
                ]
            ).mean()
            edited = logp[-1, len(subject) - 1]
            clean = edited.detach() if clean is None else clean
            kl = (edited.exp() * (edited - clean)).sum()
            norm = seen["clean"].norm()
            loss = nll + config.kl_weight * kl + config.norm_weight * delta.norm() / norm**2
            if loss < config.stop_loss or step == config.steps - 1:
                break
            loss.backward()
            adam.step()
            with torch.no_grad():
                if delta.norm() > config.clamp * norm:
                    delta.mul_(config.clamp * norm / delta.norm())
    finally:
        handle.remove()
    return seen["clean"] + delta.detach(), float(nll)


def timed(work: Any) -> tuple[Any, float, float]:
    """What `work` returns, its wall seconds, its CPU seconds."""
    wall, cpu = time.monotonic(), time.process_time()
    found = work()
    return found, time.monotonic() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--output", default="results/target_values.json")
    arguments = parser.parse_args()
    loaded = load_model("default", dtype="float32")
    model, tokenizer = loaded.model, loaded.tokenizer
    contexts = sample_contexts(model, tokenizer, seed=0, n=5)
    items = facts().sample(arguments.n, seed=0).items
    requests = build_requests(items, [IDK] * len(items), PromptFormat(tokenizer, True), contexts)
    config = TargetValueConfig(steps=arguments.steps)
    parts = anatomy(model)
    model_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.repeats):
        forget_peak_memory()
        ours, wall, cpu = timed(lambda: target_values(model, parts, LAYER, requests, config))
        own_peak = peak_memory_bytes()
        low, low_wall, low_cpu = timed(
            lambda: target_values(model, parts, LAYER, requests, replace(config, bfloat16=True))
        )
        slow, slow_wall, slow_cpu = timed(lambda: [plain_loop(model, LAYER, r, config) for r in requests])
        values = torch.stack([value for value, _ in slow])
        change = (values - ours.clean).norm(dim=1)
        rounds.append(
            {
                "plain_wall_seconds": slow_wall,
                "plain_cpu_seconds": slow_cpu,
                "ours_wall_seconds": wall,
                "ours_cpu_seconds": cpu,
                "ours_bfloat16_wall_seconds": low_wall,
                "ours_bfloat16_cpu_seconds": low_cpu,
                "speedup": slow_wall / wall,
                "speedup_bfloat16": slow_wall / low_wall,
                "largest_relative_difference": float(((values - ours.values).norm(dim=1) / change).max()),
                "mean_target_nll_plain": sum(nll for _, nll in slow) / len(slow),
                "mean_target_nll_ours": sum(ours.nlls) / len(slow),
                "mean_target_nll_bfloat16": sum(low.nlls) / len(slow),
            }
        )
        if len(rounds) == 1:
            peak = own_peak
        print(json.dumps(rounds[-1]), flush=True)
    result: dict[str, Any] = {
        "what": f"{len(requests)} requests with {len(contexts)} contexts, layer {LAYER}, as a chat, "
        f"{arguments.steps} steps at most",
        "rounds": rounds,
        "peak_bytes": peak,
        "model_bytes": model_bytes,
        "memory_limit_bytes": 1.5 * model_bytes + 2**30,
        "model_weights_hash": hash_weights(model).exact,
        "threads": torch.get_num_threads(),
        "provenance": provenance(),
    }
    if arguments.curve:
        result["curve"] = curve(model, parts, tokenizer)
    Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def curve(model: Any, parts: Any, tokenizer: Any) -> list[dict[str, float]]:
    """Seconds and memory of 10 to 1,000 requests without contexts, three steps each."""
    items = facts().items
    texts = [(item.question, item) for item in items] + [(item.paraphrases[0], item) for item in items]
    varied = [replace(item, question=text, subject=None, id=str(i)) for i, (text, item) in enumerate(texts)]
    requests = build_requests(varied[:1000], [IDK] * 1000, PromptFormat(tokenizer, True))
    rows = []
    for n in (10, 30, 100, 300, 1000):
        forget_peak_memory()
        _, wall, cpu = timed(
            lambda n=n: target_values(model, parts, LAYER, requests[:n], TargetValueConfig(steps=3, stop_loss=0))
        )
        own = {"cpu_seconds_per_request": cpu / n, "peak_bytes": peak_memory_bytes()}
        rows.append({"n": n, "wall_seconds": wall, "cpu_seconds": cpu, **own})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
