"""Text for second moments: what the model itself writes, or a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unlearn_eval import prompts
from unlearn_eval.errors import UserError
from unlearn_eval.provenance import sha256_of_file
from unlearn_eval.results import read_jsonl

SELF = "self"
_USER = "§user§"


@dataclass(frozen=True)
class Sequences:
    """A batch of token sequences, and from where on each is text (before that: an opening they all share)."""

    rows: list[list[int]]
    starts: list[int]


def token_sequences(
    source: str, model: Any, tokenizer: Any, n_tokens: int, length: int = 64, seed: int = 0, batch_size: int = 128
) -> Iterator[Sequences]:
    """Batches of token sequences, about `n_tokens` tokens of text in all.

    Args:
        source: `self`, the path of a text file (UTF-8), which is read from its start, or the path of a JSONL
            file of conversations (`question` and `answer` in each record), put as they are put when evaluating.
        model, tokenizer: the model; `self` lets it write. A model with a chat template starts where a user
            starts to speak, so that it asks and answers; another starts at its beginning-of-sequence.
        n_tokens: how many tokens.
        length: tokens of text per sequence; short ones hold more questions, whose subjects are what edits touch.
        seed: of the sampling.
        batch_size: sequences per batch.

    Raises:
        UserError: the file does not exist or is too short.
    """
    if source == SELF:
        yield from _written_by(model, tokenizer, n_tokens, length, seed, batch_size)
        return
    path = Path(source).expanduser()
    if path.suffix == ".jsonl":
        yield from _conversations(path, tokenizer, n_tokens, batch_size)
        return
    source_key(source)
    ids = prompts.encode_prompt(path.read_text(encoding="utf-8"), tokenizer)[:n_tokens]
    if len(ids) < 2:
        raise UserError(f"{path} holds no text", "give a longer text file, or 'self'")
    rows = [ids[i : i + length] for i in range(0, len(ids), length)]
    for i in range(0, len(rows), batch_size):
        part = rows[i : i + batch_size]
        yield Sequences(part, [0] * len(part))


def source_key(source: str) -> str:
    """What a source's text is known by: its name if the model writes it, else the file's SHA-256."""
    if source == SELF:
        return SELF
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"the text for second moments, {path}, does not exist", "give a text file, or 'self'")
    return sha256_of_file(path)


def _conversations(path: Path, tokenizer: Any, n_tokens: int, batch_size: int) -> Iterator[Sequences]:
    chat = prompts.has_chat_template(tokenizer)
    rows = []
    for record in read_jsonl(path, required_fields=("question", "answer")):
        text = prompts.render(str(record["question"]), tokenizer, chat)
        ids = prompts.encode_prompt(text, tokenizer)
        rows.append([*ids, *prompts.answer_labels(text, ids, str(record["answer"]), tokenizer, chat).ids])
    shortest = min(map(len, rows))
    shared = next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), 0)
    left = n_tokens
    for i in range(0, len(rows), batch_size):
        if left > 0:
            part = rows[i : i + batch_size]
            left -= sum(len(row) - shared for row in part)
            yield Sequences(part, [shared] * len(part))


def _written_by(
    model: Any, tokenizer: Any, n_tokens: int, length: int, seed: int, batch_size: int
) -> Iterator[Sequences]:
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    opening = [bos]
    if prompts.has_chat_template(tokenizer):
        text = prompts.render(_USER, tokenizer, chat=True).partition(_USER)[0]
        opening = prompts.encode_prompt(text, tokenizer)
    n_rows = max(1, -(-n_tokens // length))
    for batch, first in enumerate(range(0, n_rows, batch_size)):
        n = min(n_rows - first, batch_size)
        rows = _sample(model, tokenizer, opening, n, length, seed + batch)
        yield Sequences(rows, [len(opening)] * n)


@torch.no_grad()
def _sample(model: Any, tokenizer: Any, opening: list[int], n: int, length: int, seed: int) -> list[list[int]]:
    ids = torch.tensor([opening] * n, device=model.device)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=0.95,
            max_new_tokens=length,
            # An end token must not end the text (after a question comes its answer), so none is ever met.
            eos_token_id=model.config.get_text_config().vocab_size,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    rows: list[list[int]] = output.tolist()
    return rows
