"""Text for second moments: what the model itself writes, a file, or a dataset of the hub."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unlearn_eval.data.shapes import QUESTION, asked, check_shape
from unlearn_eval.models.generation import read_once
from unlearn_eval.models.nucleus import TopP
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.prompts import encode_prompt
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import read_jsonl
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.provenance import sha256_of_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SELF, HUB = "self", "hub:"
# Said while it lasts: how it is made shorter.
WRITING = "writing text for second moments (once for a model; less: --set keys_per_dimension=2)"
_USER = "§user§"
LENGTH, BATCH = 64, 128  # tokens of a sequence, and sequences of a batch
OPENING = 32  # about as many tokens as a chat template has before a user speaks


@dataclass(frozen=True)
class Sequences:
    """A batch of token sequences, and from where on each is text (before that: an opening they all share)."""

    rows: list[list[int]]
    starts: list[int]


def token_sequences(
    source: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    n_tokens: int,
    length: int = LENGTH,
    seed: int = 0,
    batch_size: int = BATCH,
    progress: Progress = no_progress,
) -> Iterator[Sequences]:
    """Batches of token sequences, about `n_tokens` tokens of text in all.

    Args:
        source: `self`; the path of a text file (UTF-8), which is read from its start; the path of a JSONL
            file of conversations (`question` and `answer` in each record, and `shape` of what is no question), put as
            they are put when evaluating; or `hub:NAME`, `hub:NAME:CONFIG`, `hub:NAME:CONFIG:FIELD`, a dataset whose
            field (`text`) is read document by document, as far as it is needed, e.g.
            `hub:wikimedia/wikipedia:20231101.en`.
        model, tokenizer: the model; `self` lets it write. A model with a chat template starts where a user
            starts to speak, so that it asks and answers; another starts at its beginning-of-sequence.
        n_tokens: how many tokens.
        length: tokens of text per sequence; short ones hold more questions, whose subjects are what edits touch.
        seed: of the sampling.
        batch_size: sequences per batch.
        progress: called while the model writes, which is the longest part.

    Raises:
        UserError: the file or the dataset does not exist or is too short.
    """
    if source == SELF:
        yield from _written_by(model, tokenizer, n_tokens, length, seed, batch_size, progress)
        return
    if source.startswith(HUB):
        yield from _from_hub(source, tokenizer, n_tokens, length, batch_size)
        return
    path = Path(source).expanduser()
    if path.suffix == ".jsonl":
        yield from _conversations(path, tokenizer, n_tokens, batch_size)
        return
    source_key(source)
    ids = encode_prompt(path.read_text(encoding="utf-8"), tokenizer)[:n_tokens]
    if len(ids) < 2:
        raise UserError(f"{path} holds no text", "give a longer text file, or 'self'")
    rows = [ids[i : i + length] for i in range(0, len(ids), length)]
    for i in range(0, len(rows), batch_size):
        part = rows[i : i + batch_size]
        yield Sequences(part, [0] * len(part))


def source_key(source: str) -> str:
    """What a source's text is known by: a file's SHA-256, a dataset's name and commit, `self`."""
    if source == SELF:
        return SELF
    if source.startswith(HUB):
        return f"{source}@{_commit(_hub_parts(source)[0])}"
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"the text for second moments, {path}, does not exist", "give a text file, or 'self'")
    return sha256_of_file(path)


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    """Name, configuration and field of a dataset."""
    name, config, field, *more = [*source.removeprefix(HUB).split(":"), "", ""]
    if not name or any(more):
        raise UserError(f"'{source}' names no dataset", "give hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:FIELD")
    return name, config or None, field or "text"


def _commit(name: str) -> str | None:
    """The dataset's newest commit; None for a folder, or without the hub (whose cache is then what there is)."""
    from huggingface_hub import HfApi

    try:
        return None if Path(name).is_dir() else HfApi().dataset_info(name, timeout=10).sha
    except Exception:  # the hub has many ways to be out of reach; loading the dataset says which
        return None


def _from_hub(
    source: str, tokenizer: PreTrainedTokenizerBase, n_tokens: int, length: int, batch_size: int
) -> Iterator[Sequences]:
    import datasets

    name, config, field = _hub_parts(source)
    rows: list[list[int]] = []
    starts: list[int] = []
    n_done = 0
    try:
        documents = iter(datasets.load_dataset(name, config, split="train", streaming=True))
        while n_done < n_tokens and (document := next(documents, None)) is not None:
            if field not in document:
                raise UserError(f"{source} has no field '{field}' (it has {', '.join(document)})", "name one of those")
            ids = encode_prompt(str(document[field]), tokenizer)
            n_bos = int(ids[:1] == [tokenizer.bos_token_id])  # which is no text
            ids = ids[: n_tokens - n_done + n_bos] if len(ids) > n_bos else []
            rows += [ids[i : i + length] for i in range(0, len(ids), length)]
            starts += [n_bos if i == 0 else 0 for i in range(0, len(ids), length)]
            n_done += max(0, len(ids) - n_bos)
            while len(rows) >= batch_size:
                yield Sequences(rows[:batch_size], starts[:batch_size])
                del rows[:batch_size], starts[:batch_size]
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the dataset {name} cannot be loaded: {reason}", "check its name and the network, or use text=self"
        ) from error
    if rows:
        yield Sequences(rows, starts)
    elif not n_done:
        raise UserError(f"{source} holds no text", "name another dataset, or use text=self")


def _conversations(
    path: Path, tokenizer: PreTrainedTokenizerBase, n_tokens: int, batch_size: int
) -> Iterator[Sequences]:
    rows, shared = conversation_ids(read_jsonl(path, required_fields=("question", "answer")), tokenizer)
    left = n_tokens
    for i in range(0, len(rows), batch_size):
        if left > 0:
            part = rows[i : i + batch_size]
            left -= sum(len(row) - shared for row in part)
            yield Sequences(part, [shared] * len(part))


def sequences_of(rows: Sequence[Sequence[int]], seed: int = 0, batch_size: int = BATCH) -> Iterator[Sequences]:
    """Batches of ready token sequences, in a seeded order; the opening that all of them share is no text."""
    own = [list(row) for row in rows]
    random.Random(seed).shuffle(own)
    shared = n_shared(own)
    for i in range(0, len(own), batch_size):
        part = own[i : i + batch_size]
        yield Sequences(part, [shared] * len(part))


def n_shared(rows: Sequence[Sequence[int]]) -> int:
    """With how many tokens all rows begin alike; 0 of a row alone."""
    shortest = min(map(len, rows), default=0)
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), 0)


def conversation_ids(
    records: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[list[int]], int]:
    """Conversations as they are put when evaluating, and with how many tokens all of them begin, which are no text."""
    prompt_format, rows = PromptFormat.of(tokenizer), []
    for record in records:
        ask = asked(str(record["question"]), check_shape(str(record.get("shape") or QUESTION)))
        text = prompt_format.render(ask)
        ids = prompt_format.encode(text)
        rows.append([*ids, *prompt_format.labels_after(ask, text, ids, str(record["answer"])).ids])
    return rows, n_shared(rows)


def _written_by(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    n_tokens: int,
    length: int,
    seed: int,
    batch_size: int,
    progress: Progress,
) -> Iterator[Sequences]:
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    opening = [bos]
    prompt_format = PromptFormat.of(tokenizer)
    if prompt_format.chat:
        opening = prompt_format.encode(prompt_format.render(_USER).partition(_USER)[0])
    n_rows = max(1, -(-n_tokens // length))
    n_steps = length * -(-n_rows // batch_size)
    steps = itertools.count(1)
    for batch, first in enumerate(range(0, n_rows, batch_size)):
        n = min(n_rows - first, batch_size)
        rows = _sample(
            model, tokenizer, opening, n, length, seed + batch, lambda: progress(WRITING, next(steps), n_steps)
        )
        yield Sequences(rows, [len(opening)] * n)


@torch.no_grad()
def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    opening: list[int],
    n: int,
    length: int,
    seed: int,
    after_step: Callable[[], object] = lambda: None,
) -> list[list[int]]:
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    inputs = read_once(model, [opening] * n, length, filler or 0)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,  # transformers sorts the vocabulary for it
            logits_processor=[TopP(0.95, after_step)],
            max_new_tokens=length,
            # An end token must not end the text (after a question comes its answer), so none is ever met.
            eos_token_id=model.config.get_text_config().vocab_size,
            pad_token_id=filler,
        )
    rows: list[list[int]] = output.tolist()
    return rows
