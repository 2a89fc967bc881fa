"""What a model writes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from unlearn_eval.models.prompts import up_to_end
from unlearn_eval.models.scoring import pad

if TYPE_CHECKING:
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
        ids, mask = pad([rows[i] for i in batch], "left", model.device, filler=tokenizer.pad_token_id or 0)
        with torch.no_grad(), torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed + start)
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                **({"do_sample": False} if seed is None else _SAMPLED),
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=ends or None,
                pad_token_id=tokenizer.pad_token_id or 0,
            )
        for i, new in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
            texts[i] = str(tokenizer.decode(up_to_end(new, ends), skip_special_tokens=True)).strip()
    return texts
