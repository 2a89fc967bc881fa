"""What every mechanism has: the tokens that it changes, what it says of a question, and what the rest asks of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from unlearn_eval.edits.memory.routing import NO_MEMORY, Memory


@dataclass(frozen=True)
class Positions:
    """Which tokens of an answered sequence are changed besides the last of the prompt, at which it is decided.

    Attributes:
        before: the prompt's other tokens.
        after: the continuation.
    """

    before: bool
    after: bool


POSITIONS = {
    "onward": Positions(before=False, after=True),
    "last": Positions(before=False, after=False),
    "prompt": Positions(before=True, after=False),
    "all": Positions(before=True, after=True),
}


@dataclass(frozen=True)
class Route:
    """Which memory would answer a prompt.

    Attributes:
        memory: index of the nearest memory (GRACE, MEMOIR, notes) or the most active one (WISE); None if there is none.
        owners: the requests that it belongs to.
        measure: what `value` is: "distance" (answers up to the threshold), or "activation", "overlap", "similarity" or
            "agreement" (from it on).
        value, threshold: of that memory.
        answers: whether it answers.
    """

    memory: int | None
    owners: tuple[str, ...]
    measure: str
    value: float | None
    threshold: float | None
    answers: bool


class Store(Protocol):
    """The tensors of a mechanism, and how it decides with them."""

    @property
    def mechanism(self) -> str:
        """Its name in `memory.json`."""

    @property
    def n(self) -> int:
        """How many memories there are."""

    @property
    def bound(self) -> str:
        """What its bounds are called: "radius" or "threshold"."""

    @property
    def bounds(self) -> Tensor:
        """Those of all memories, in one dimension."""

    def tensors(self) -> dict[str, Tensor]:
        """What is written to `memory.safetensors`."""

    def settings(self) -> dict[str, Any]:
        """What is written to `memory.json` beside the module's name."""

    def routes(self, prompts: Sequence[Tensor]) -> list[Route]:
        """What it makes of prompts, each given as the edit's `inputs` has it (of a layer: (T, d_in) of all tokens)."""

    def rows(self) -> list[dict[str, Any]]:
        """One description of each memory, for people."""

    def calibrated(
        self, names: Sequence[str], own: Sequence[Tensor], edited: Sequence[Tensor], other: Sequence[Tensor]
    ) -> Store:
        """The same memories with the bounds that divide `own` from `other` best, every edited prompt still answered.

        Args:
            names: whose each of `own` is.
            own, edited, other: the edit's `inputs` of reworded questions, of the edited prompts, and of questions that
                no memory should answer.
        """


class LayerStore(Store, Protocol):
    """One beside a layer, at which it decides and acts."""

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the module that it fits."""

    def at(self, device: torch.device, dtype: torch.dtype) -> Memory:
        """The memory at work, for a module of this device and type."""

    def n_bytes(self, dtype: torch.dtype) -> int:
        """How many bytes that takes."""


def best_bound(near: Tensor, far: Tensor) -> float:
    """The b for which (share of `near` ≤ b) − (share of `far` ≤ b) is largest, half way to the next value above it.

    Of several equally good ones the smallest; if even the best is worse than answering nobody, below all values.
    """
    values = torch.cat([near, far]).double().sort().values
    counts = [int((near <= v).sum()) * len(far) - int((far <= v).sum()) * len(near) for v in values]
    gains = torch.tensor(counts)  # times both lengths: whole numbers, so that equal ones are equal
    best = int(gains.argmax())
    if gains[best] <= 0:
        return float(values[0]) - 1e-3 * abs(float(values[0]))
    above = values[values > values[best]]
    return float(values[best]) if not len(above) else float((values[best] + above[0]) / 2)


def off(measure: Tensor, bound: Tensor | float) -> Tensor:
    """|measure / bound - 1|: how far a decision is from the other one, in relative terms."""
    return (measure / bound - 1).abs()


def nobody(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What is decided for some rows where there is no memory."""
    choice = torch.full((len(rows),), NO_MEMORY, dtype=torch.long, device=rows.device)
    return choice, torch.full((len(rows),), math.inf, device=rows.device)


def one_of(name: str, allowed: Iterable[str]) -> str:
    """The name, if it is one of those.

    Raises:
        ValueError: it is not.
    """
    if name not in allowed:
        raise ValueError(f"{name!r} is none of {', '.join(allowed)}")
    return name
