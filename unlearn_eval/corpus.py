"""Text for second moments: what the model itself writes, or a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from unlearn_eval import prompts
from unlearn_eval.errors import UserError
from unlearn_eval.scoring import pad

SELF = "self"
_USER = "§user§"


def token_sequences(
    source: str,
    model: Any,
    tokenizer: Any,
    n_tokens: int,
    length: int = 256,
    seed: int = 0,
    batch_size: int = 64,
) -> Iterator[list[list[int]]]:
    """Batches of token sequences, about `n_tokens` tokens in all.

    Args:
        source: `self`, or the path of a text file (UTF-8), which is read from its start.
        model, tokenizer: the model; `self` lets it write: half of the sequences from its beginning-of-sequence,
            half, if it has a chat template, from where a user starts to speak, so that it asks and answers.
        n_tokens: how many tokens.
        length: tokens per sequence.
        seed: of the sampling.
        batch_size: sequences per batch.

    Raises:
        UserError: the file does not exist or is too short.
    """
    if source == SELF:
        yield from _written_by(model, tokenizer, n_tokens, length, seed, batch_size)
        return
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"the text for second moments, {path}, does not exist", "give a text file, or 'self'")
    ids = prompts.encode_prompt(path.read_text(encoding="utf-8"), tokenizer)[:n_tokens]
    if len(ids) < 2:
        raise UserError(f"{path} holds no text", "give a longer text file, or 'self'")
    rows = [ids[i : i + length] for i in range(0, len(ids), length)]
    for i in range(0, len(rows), batch_size):
        yield rows[i : i + batch_size]


def _written_by(
    model: Any, tokenizer: Any, n_tokens: int, length: int, seed: int, batch_size: int
) -> Iterator[list[list[int]]]:
    starts = [[tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]]
    if prompts.has_chat_template(tokenizer):
        opening = prompts.render(_USER, tokenizer, chat=True).partition(_USER)[0]
        starts.append(prompts.encode_prompt(opening, tokenizer))
    n_rows = max(1, -(-n_tokens // length))
    for batch, first in enumerate(range(0, n_rows, batch_size)):
        rows = [starts[i % len(starts)] for i in range(first, min(n_rows, first + batch_size))]
        yield _sample(model, tokenizer, rows, length, seed + batch)


@torch.no_grad()
def _sample(model: Any, tokenizer: Any, rows: list[list[int]], length: int, seed: int) -> list[list[int]]:
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids, mask = pad(rows, "left", model.device, filler=pad_id)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=0.95,
            max_new_tokens=max(1, length - ids.shape[1]),
            eos_token_id=-1,  # an end token does not end the text: after a question comes its answer
            pad_token_id=pad_id,
        )
    return [row[keep.argmax() :].tolist() for row, keep in zip(output, mask, strict=True)]
