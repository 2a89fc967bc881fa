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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from unlearn_eval.edits.records import BaseRef, Costs, RequestSummary, SelfCheck
from unlearn_eval.metrics.edit_checks import edit_faults
from unlearn_eval.models.weights import mark_restored, state_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

KINDS = LOW_RANK, DENSE, MEMORY = "low_rank", "dense", "memory"  # of edits, as `edit.json` names them


@dataclass(frozen=True)
class EditInfo:
    """What an edit is, as it stands in `edit.json`.

    Plain dictionaries are converted, so `EditInfo(name, asdict(config))` is all that an editor has to say.

    Attributes:
        editor: the method's name.
        config: its settings as resolved.
        base: the model that was edited.
        requests: what was asked for.
        seed: of everything random.
        versions: of the packages that made it.
        seconds, peak_memory_bytes: what it cost.
        notes: anything else worth keeping, e.g. the loss of every request.
    """

    editor: str
    config: dict[str, Any]
    base: BaseRef = field(default_factory=BaseRef)
    requests: RequestSummary = field(default_factory=RequestSummary)
    seed: int | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", BaseRef.of(self.base))
        object.__setattr__(self, "requests", RequestSummary.of(self.requests))

    @property
    def costs(self) -> Costs:
        """What making it took."""
        return Costs(self.seconds, self.peak_memory_bytes)

    @property
    def self_check(self) -> SelfCheck | None:
        """Whether it took, as measured when it was made; None if it was not."""
        found = self.notes.get("self_check")
        return None if found is None else SelfCheck.of(found)

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the edit is not to be read as a result, if it did not take or did harm; see `metrics.edit_checks`."""
        return edit_faults(self.notes)

    def as_stored(self) -> dict[str, Any]:
        """Plain values for JSON, with the keys and their order as `edit.json` has them."""
        stored = vars(self) | {"base": dict(self.base), "requests": dict(self.requests)}
        return {name: asdict(_Value(value))["value"] for name, value in stored.items()}


@dataclass(frozen=True)
class _Value:
    """Anything; `asdict` makes plain copies of the dataclasses in it."""

    value: Any


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

    def save(
        self,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_config: PretrainedConfig | None = None,
    ) -> Path:
        """Write the folder, whole or not at all."""


class Applied:
    """An edit in a model; `restore()` puts the original tensors back, bit for bit."""

    def __init__(self) -> None:
        self._originals: list[tuple[Tensor, Tensor, int | None]] = []

    def keep(self, weight: Tensor) -> None:
        """Remember a weight before it is changed in place."""
        self._originals.append((weight, weight.detach().clone(), state_of(weight)))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; harmless when repeated."""
        while self._originals:
            weight, original, state = self._originals.pop()
            weight.copy_(original)
            mark_restored(weight, state)


@contextmanager
def applied(edit: Edit, model: nn.Module) -> Iterator[nn.Module]:
    """The model with the edit, within a `with` block."""
    handle = edit.apply(model)
    try:
        yield model
    finally:
        handle.restore()


# Details ---------------------------------------------------------------------------------------------------
