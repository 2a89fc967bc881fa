"""What a model writes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from unlearn_eval.models.arguments import cache_argument
from unlearn_eval.models.prompt_ends import ROUTER
from unlearn_eval.models.prompts import up_to_end
from unlearn_eval.models.scoring import LEAST_SAVED, Beginning, keeps_plain_cache, pad, read_prompts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn_eval.models.prompt_format import PromptFormat

_SAMPLED = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


def written(
    model: PreTrainedModel,
    prompt_format: PromptFormat,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    max_new_tokens: int,
    seed: int | None = None,
) -> list[str]:
    """What a model writes after each row of ids up to its end token, greedily, or sampled by a seed at temperature 1.

    The process's random state is afterwards as it was.
    """
    tokenizer, ends = prompt_format.tokenizer, prompt_format.end_tokens(model)
    texts = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for start in range(0, len(rows), batch_size):
        batch = order[start : start + batch_size]
        inputs = read_once(model, [rows[i] for i in batch], max_new_tokens, tokenizer.pad_token_id or 0)
        with torch.no_grad(), torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed + start)
            output = model.generate(
                **inputs,
                **({"do_sample": False} if seed is None else _SAMPLED),
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=ends or None,
                pad_token_id=tokenizer.pad_token_id or 0,
            )
        width = inputs["input_ids"].shape[1]
        for i, new in zip(batch, output[:, width:].tolist(), strict=True):
            texts[i] = str(tokenizer.decode(up_to_end(new, ends), skip_special_tokens=True)).strip()
    return texts


@torch.no_grad()
def read_once(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], max_new_tokens: int, filler: int
) -> dict[str, Tensor | Any]:
    """Prompts as `generate` takes them: ids and mask (B, L), and where it pays the cache of all but their last tokens.

    What all prompts begin with is run once, and so is a prompt that several rows have, of which many samples are drawn.
    A row is then the common beginning, padding, and the rest. Up to rounding `generate` gives the same.

    Args:
        model: a causal language model.
        rows: ids of each prompt.
        max_new_tokens: how many are generated.
        filler: the id of padding.
    """
    prompts = list(dict.fromkeys(map(tuple, rows)))
    longest = max(map(len, rows))
    again = sum(map(len, rows)) - sum(map(len, prompts))
    plain = not hasattr(model, ROUTER) and longest > 1 and keeps_plain_cache(model)
    beginning = Beginning.of(model, prompts, longest + max_new_tokens) if plain else Beginning()
    if not beginning.n and (not plain or again < LEAST_SAVED):
        ids, mask = pad(rows, "left", model.device, filler=filler)
        return {"input_ids": ids, "attention_mask": mask}
    cache, read = read_prompts(model, prompts, beginning)
    number = {prompt: i for i, prompt in enumerate(prompts)}
    owners = torch.tensor([number[tuple(row)] for row in rows], device=model.device)
    cache.batch_select_indices(owners)
    mask = torch.cat([read[owners], read.new_ones((len(rows), 1))], dim=1)
    ids = torch.full_like(mask, filler)
    ids[mask.bool()] = torch.tensor([token for row in rows for token in row], device=model.device)
    return {"input_ids": ids, "attention_mask": mask, **cache_argument(model, cache)}
