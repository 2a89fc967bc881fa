"""What the memory editors cost: a WISE step beside the full-model loop, seconds per edit, and decoding with an edit.

Everything is measured in one process, on one thread, in CPU seconds, on the default small model;
results/memory_speed.json holds the outcome. The full-model loop is the same optimization (same batches, same numbers
but for rounding), with every layer run on every token at every step, as the authors' code does it. Options:
--requests, --rounds, --repeats.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.editing.memory import joint
from unlearn_eval.editing.memory.calibration import other_prompts
from unlearn_eval.editing.memory.replacements import Replacements
from unlearn_eval.editing.presets import preset_for
from unlearn_eval.editing.requests.build import build_requests, sample_contexts
from unlearn_eval.editing.requests.targets import make_targets
from unlearn_eval.editors.memory import wise
from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.edit import MemoryEdit
from unlearn_eval.edits.memory.residual_memory import ResidualMemory
from unlearn_eval.edits.memory.side_memories import SideMemories
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.load import load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import pad
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.provenance import provenance

RESULT = Path("results/memory_speed.json")


class WholeModel(Replacements):
    """The same rows, with all layers run on all tokens at every step."""

    def __init__(self, model: Any, parts: Any, layer: int, rows: Any, whole: bool = False) -> None:
        super().__init__(model, parts, layer, rows, whole=True)
        self.model, self.name = model, parts.projection_name(layer)

    def losses(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """As that of `Replacements`, from a whole forward pass."""
        ids, mask = pad([(*prompt, *target[:-1]) for prompt, target in self.rows], "left", self.model.device)
        moved = outputs[:, -ids.shape[1] :]
        handle = self.model.get_submodule(self.name).register_forward_hook(lambda m, a, o: moved)
        try:
            places = (mask.cumsum(-1) - 1).clamp(min=0)
            logits = self.model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits
        finally:
            handle.remove()
        rows, back, tokens = self._read
        logp = logits[rows, logits.shape[1] - back].float().log_softmax(-1)
        own = logp.gather(-1, tokens[:, None])[:, 0]
        nll = own.new_zeros(len(self.rows)).index_add(0, rows, -own) / self._lengths
        missed = (own.detach() < logp.detach().amax(-1)).float()
        return nll, own.new_zeros(len(self.rows)).index_add(0, rows, missed) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=24)  # what ten facts take
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model("default", dtype="float32")
    forget = ForgetSet("speed", tuple(random.Random(0).sample(list(facts()), arguments.requests)))
    found = {
        "model_weights_hash": hash_weights(loaded.model).exact,
        "provenance": provenance(),
        "settings": vars(arguments),
        "wise_step": wise_step(loaded, forget, arguments.rounds),
        "inference": inference(loaded, arguments.repeats),
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: found[key] for key in ("wise_step", "inference")}, indent=2))


def wise_step(loaded: Any, forget: ForgetSet, rounds: int) -> dict[str, Any]:
    """CPU seconds of one WISE edit's optimization, both ways, and how far their outcomes are apart."""
    model, tokenizer = loaded.model, loaded.tokenizer
    targets = make_targets("idk", forget.items, random.Random(0), loaded, loaded.prompt_format(True), seed=0)
    contexts = sample_contexts(model, tokenizer, 0, n=1)
    requests = build_requests(forget.items, [t.target for t in targets], PromptFormat(tokenizer, True), contexts)
    preset = preset_for(model)
    layer = int(preset.settings("wise")["layers"]) if preset else 26
    others = other_prompts("", forget, PromptFormat(tokenizer, True), 0)[:64]
    config = wise.Config(layers=(layer,), steps=rounds, stop_loss=0.0, n_others=32, per_step=32)
    deltas, seconds = [], {}
    for name, kind in (("ours", Replacements), ("whole_model", WholeModel)):
        joint.Replacements = kind  # type: ignore[misc]
        start = time.process_time()
        edit = wise.EDITOR.edit(model, tokenizer, requests, config, others=others)
        seconds[name] = (time.process_time() - start) / len(requests)
        deltas.append(edit.store.deltas[0])  # type: ignore[union-attr]
        print(name, seconds[name], flush=True)
    joint.Replacements = Replacements  # type: ignore[misc]
    return {
        "cpu_seconds_per_edit": seconds,
        "times_faster": seconds["whole_model"] / seconds["ours"],
        "rounds": rounds,
        "largest_difference": float((deltas[0] - deltas[1]).abs().max()),
        "largest_change": float(deltas[0].abs().max()),
    }


def inference(loaded: Any, repeats: int, n_tokens: int = 48) -> dict[str, Any]:
    """CPU seconds of decoding a batch that no memory answers, with and without an edit, in turns."""
    model, tokenizer = loaded.model, loaded.tokenizer
    rows = [PromptFormat(tokenizer, True).prompt_ids(item.question) for item in list(facts())[:8]]
    ids, mask = pad(rows, "left", model.device, filler=tokenizer.pad_token_id)
    parts = anatomy(model)
    generator = torch.Generator().manual_seed(0)
    book = Codebook(
        torch.randn(100, parts.d_mlp, generator=generator) * 100,
        torch.randn(100, parts.d_model, generator=generator),
        torch.ones(100),
        torch.arange(100),
        ((1,),) * 100,
        tuple((str(i),) for i in range(100)),
    )
    index = torch.randperm(parts.d_mlp * parts.d_model, generator=generator)[: parts.d_mlp * parts.d_model // 5]
    side = SideMemories(
        (index,), (torch.randn(len(index), generator=generator),), torch.full((1,), 1e9),
        (parts.d_model, parts.d_mlp), (("x",),),
    )  # fmt: skip
    masks = torch.rand(100, parts.d_mlp, generator=generator).argsort(-1) < round(parts.d_mlp * 2 / 7)
    residual = ResidualMemory(
        torch.randn(parts.d_model, parts.d_mlp, generator=generator), masks, torch.arange(parts.d_mlp),
        torch.zeros(parts.d_mlp), torch.full((1,), 2.0), ((1,),) * 100, tuple((str(i),) for i in range(100)),
    )  # fmt: skip
    stores = {
        "grace_100_keys": MemoryEdit(parts.projection_name(24), book, EditInfo("grace", {})),
        "wise": MemoryEdit(parts.projection_name(26), side, EditInfo("wise", {})),
        "memoir_100_masks": MemoryEdit(parts.projection_name(26), residual, EditInfo("memoir", {})),
        "wise_mean": MemoryEdit(parts.projection_name(26), replace(side, pool="mean"), EditInfo("wise", {})),
    }

    def seconds() -> float:
        start = time.process_time()
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return time.process_time() - start

    seconds()
    times: dict[str, list[float]] = {"none": [], **{name: [] for name in stores}}
    for _ in range(repeats):
        times["none"].append(seconds())
        for name, edit in stores.items():
            handle = edit.apply(model)
            times[name].append(seconds())
            handle.restore()
    plain = median(times["none"])
    return {
        "tokens": len(rows) * n_tokens,
        "cpu_seconds": {name: round(median(own), 3) for name, own in times.items()},
        "all_cpu_seconds": {name: [round(t, 3) for t in own] for name, own in times.items()},
        "overhead": {name: round(median(own) / plain - 1, 4) for name, own in times.items() if name != "none"},
    }


if __name__ == "__main__":
    main()
