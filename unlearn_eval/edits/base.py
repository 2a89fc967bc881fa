"""An edit: what an editor changed, as a small folder that can be applied, undone, served, shared and continued.

    edit/
      edit.json                   what, on which base model (hash), from which requests, by which method
      adapter_config.json         PEFT's LoRA layout, so that peft, `lm_eval --model hf peft=`, and vLLM's LoRA
      adapter_model.safetensors   serving read the folder as it is
      state.safetensors           what more edits of the same model go on from, if the method keeps anything
      memory.json, .safetensors   instead of an adapter: edits that leave the weights alone (`memory/`)
      targets.jsonl ...           small texts that belong to the edit, if it has any
      config.json, tokenizer...   of the base model

Every file's SHA-256 stands in `edit.json`; a changed file, or another base model, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

KINDS = LOW_RANK, DENSE, MEMORY = "low_rank", "dense", "memory"  # of edits, as `edit.json` names them


@dataclass(frozen=True)
class EditInfo:
    """What an edit is, as it stands in `edit.json`.

    Attributes:
        editor: the method's name.
        config: its settings as resolved.
        base: `{"id", "revision", "canonical_hash", "architecture"}` of the model that was edited.
        requests: `{"n", "hash", "chat", "target", "sets"}`: what was asked for, and which items were forgotten.
        seed: of everything random.
        versions: of the packages that made it.
        seconds, peak_memory_bytes: what it cost.
        notes: anything else worth keeping, e.g. the loss of every request.
    """

    editor: str
    config: dict[str, Any]
    base: dict[str, Any] = field(default_factory=dict)
    requests: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Restorable(Protocol):
    """An edit in a model."""

    def restore(self) -> None:
        """Make the model what it was, bit for bit; harmless when repeated."""


class Edit(Protocol):
    """What every kind of edit can do.

    Attributes:
        kind: one of `LOW_RANK`, `DENSE` and `MEMORY`.
    """

    kind: ClassVar[str]

    @property
    def info(self) -> EditInfo:
        """What this is."""

    @property
    def texts(self) -> Mapping[str, str]:
        """File name -> content of small texts that belong to the edit, e.g. `targets.jsonl`."""

    def apply(self, model: nn.Module) -> Restorable:
        """Change the model; the result undoes it."""

    def save(self, folder: str | Path, tokenizer: Any = None, model_config: Any = None) -> Path:
        """Write the folder, whole or not at all."""


class Applied:
    """An edit in a model; `restore()` puts the original tensors back, bit for bit."""

    def __init__(self) -> None:
        self._originals: list[tuple[Tensor, Tensor]] = []

    def keep(self, weight: Tensor) -> None:
        """Remember a weight before it is changed in place."""
        self._originals.append((weight, weight.detach().clone()))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; harmless when repeated."""
        while self._originals:
            weight, original = self._originals.pop()
            weight.copy_(original)


@contextmanager
def applied(edit: Edit, model: nn.Module) -> Iterator[nn.Module]:
    """The model with the edit, within a `with` block."""
    handle = edit.apply(model)
    try:
        yield model
    finally:
        handle.restore()


# Details ---------------------------------------------------------------------------------------------------
