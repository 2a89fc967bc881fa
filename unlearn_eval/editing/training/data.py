"""What a training run shows to a model: rows, in which order, and as which tensors.

The whole order of a run is drawn before it starts, from the seed alone. So a run that was cut off goes on with
exactly what it would have seen; the reference scores only what will be needed; and with several processes each
takes its own share of one and the same order: what they retain is drawn independently, and a run on two
processes sees what a run on one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

RETAIN = "retain"


@dataclass(frozen=True)
class Row:
    """A prompt and what follows it, as ids: T labels (never none), the end token among them."""

    prompt_ids: tuple[int, ...]
    label_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.label_ids) - 1


Rows = Mapping[str, Sequence[Row]]  # "answer", "target", ...: one row of each for an item to forget; and "retain"


@dataclass(frozen=True)
class Chunk:
    """What one process sees at once: items to forget, and as many to retain, by position."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]


class Schedule(Dataset[Chunk]):
    """The order of a run: element k is chunk k % `chunks` of step k // `chunks`.

    Items to forget come in one random order after another, so that each is seen once per epoch; for each of them one
    item to retain is drawn, with replacement.

    Args:
        n_forget, n_retain: how many there are; without any to retain, none is drawn.
        batch_size: items to forget per step, over all processes.
        steps: how many steps.
        chunks: into how many parts of nearly the same size a step is cut (processes × accumulation).
        seed: of the order.
    """

    def __init__(self, n_forget: int, n_retain: int, batch_size: int, steps: int, chunks: int, seed: int) -> None:
        self.chunks, self.steps = chunks, steps
        forget, retain = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
        n = batch_size * steps
        order = np.concatenate([forget.permutation(n_forget) for _ in range(-(-n // n_forget))])[:n]
        drawn = retain.integers(n_retain, size=n) if n_retain else np.empty(0, dtype=int)
        self.forget = order.reshape(steps, batch_size)
        self.retain = drawn.reshape(steps, batch_size if n_retain else 0)

    def __len__(self) -> int:
        return self.steps * self.chunks

    def __getitem__(self, k: int) -> Chunk:
        step, part = divmod(k, self.chunks)
        forget, retain = (np.array_split(drawn[step], self.chunks)[part] for drawn in (self.forget, self.retain))
        return Chunk(tuple(forget.tolist()), tuple(retain.tolist()))

    def needed(self, part: str, process: int = 0, processes: int = 1) -> list[int]:
        """The positions of the rows of one kind that a process will see in this run."""
        own = [self[k] for k in range(process, len(self), processes)]
        return sorted({i for chunk in own for i in (chunk.retain if part == RETAIN else chunk.forget)})


def tensors(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Rows as tensors: prompts padded on the left, labels on the right, so that labels stand in the same columns.

    `ids` and `attention` are (B, P + T − 1): the last T columns are those by which the labels are predicted. `labels`
    and `mask` are (B, T).
    """
    prompt = max(len(row.prompt_ids) for row in rows)
    width = max(len(row.label_ids) for row in rows)
    ids = torch.zeros((len(rows), prompt + width - 1), dtype=torch.long)
    attention, labels = torch.zeros_like(ids), torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        start = prompt - len(row.prompt_ids)
        ids[i, start : start + len(row)] = torch.tensor((*row.prompt_ids, *row.label_ids[:-1]))
        attention[i, start : start + len(row)] = 1
        labels[i, : len(row.label_ids)] = torch.tensor(row.label_ids)
        mask[i, : len(row.label_ids)] = True
    return {"ids": ids, "attention": attention, "labels": labels, "mask": mask}


def padded(values: Sequence[Tensor], width: int) -> Tensor:
    """Tensors (T_i, ...) as one (B, width, ...), zeros behind."""
    whole = values[0].new_zeros((len(values), width, *values[0].shape[1:]))
    for i, value in enumerate(values):
        whole[i, : len(value)] = value
    return whole


class Collator:
    """From a chunk to the tensors of every kind of row, with what the reference said of them."""

    def __init__(self, rows: Rows, recall: Callable[[str, int], Mapping[str, Tensor]]) -> None:
        self.rows, self.recall = rows, recall

    def __call__(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """The batch of one chunk: kind of row -> tensors. Reference entries are called `reference_...`."""
        (chunk,) = chunks
        return {
            part: self.batch(part, chunk.retain if part == RETAIN else chunk.forget)
            for part in self.rows
            if part != RETAIN or chunk.retain
        }

    def batch(self, part: str, positions: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of some rows of one kind."""
        made = tensors([self.rows[part][i] for i in positions])
        recalled = [self.recall(part, i) for i in positions]
        width = made["labels"].shape[1]
        for name in recalled[0]:
            made[f"reference_{name}"] = padded([entry[name] for entry in recalled], width)
        return made
