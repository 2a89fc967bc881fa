"""Edits that leave the weights alone: at run time a memory decides whether a question is one of its own.

    edit/
      edit.json             as for every edit
      memory.json           which mechanism, at which module, with which settings; who each memory belongs to
      memory.safetensors    its tensors: GRACE's keys, values and radii; WISE's sparse changes and thresholds; MEMOIR's
                            matrix, masks and threshold
      config.json, tokenizer...

When a memory decides, and how long that holds, is written in `routing.py`; it is the same for all of them. The
memories are small: GRACE keeps one key and one value for each edit, WISE the changed coordinates of one matrix, MEMOIR
one matrix and a bit for each of its columns and edits. What each one does is in a file beside this one. Notes
(`notes.py`) are stored alike and stand beside no layer: they change what the whole model reads.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unlearn_eval.edits.base import MEMORY, EditInfo
from unlearn_eval.edits.folder import for_disk, write_edit
from unlearn_eval.edits.memory.routing import Router, router
from unlearn_eval.edits.memory.store import LayerStore, Route
from unlearn_eval.edits.sharing import OnHub
from unlearn_eval.models.anatomy import is_transposed
from unlearn_eval.models.arguments import accepts, cache_argument, cache_of
from unlearn_eval.models.out_of_memory import free_bytes
from unlearn_eval.models.prompt_ends import prompt_lengths
from unlearn_eval.models.scoring import keeps_plain_cache, pad, positions
from unlearn_eval.models.tracing import trace
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.terminal import gigabytes

TENSORS, SETTINGS = "memory.safetensors", "memory.json"


class Routed:
    """A memory edit in a model; `restore()` takes it out."""

    def __init__(self, owner: Router, number: int) -> None:
        self._owner, self._number = owner, number

    def restore(self) -> None:
        """Make the model what it was (its weights were never touched); harmless when repeated."""
        self._owner.remove(self._number)


@dataclass(frozen=True)
class MemoryEdit(OnHub):
    """A memory at one module of a model.

    Attributes:
        module: its path, e.g. `model.layers.24.mlp.down_proj`.
        store: what it remembers.
        info: what this is.
        texts: file name -> content of small texts that belong to the edit, e.g. `targets.jsonl`.
    """

    kind: ClassVar[str] = MEMORY
    module: str
    store: LayerStore
    info: EditInfo
    texts: Mapping[str, str] = field(default_factory=dict)

    def apply(self, model: nn.Module) -> Routed:
        """Put the memory into the model, on top of whatever edits are in it; the weights stay as they are.

        Raises:
            UserError: the model has no such module, or one of another shape; there is a memory there already; or the
                device's memory is too small.
        """
        module = _module_of(model, self.module, self.store.shape)
        weight: Tensor = module.weight  # type: ignore[assignment]
        check_memory(self.store.n_bytes(weight.dtype), weight.device, f"the {self.store.n} memories of this edit")
        owner = router(model)
        return Routed(owner, owner.add(self.module, self.store.at(weight.device, weight.dtype)))

    def save(self, folder: str | Path, tokenizer: Any = None, model_config: Any = None) -> Path:
        """Write the folder, with the base's `config.json` and tokenizer if they are given (errors as `write_edit`)."""
        return write_memory(self, folder, tokenizer, model_config)

    def routes(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[Route]:
        """Which memory would answer each prompt (token ids) in this model; the edit need not be in it."""
        return self.store.routes(self.inputs(model, prompts))

    def inputs(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """What the module reads at each token of each prompt, (T, d_in), in a model without the edit."""
        _module_of(model, self.module, self.store.shape)
        return read_inputs(model, self.module, prompts)


def write_memory(edit: Any, folder: str | Path, tokenizer: Any = None, model_config: Any = None) -> Path:
    """Write the folder of an edit with a store: tensors, settings, and what `write_edit` adds (errors as there)."""
    from safetensors.torch import save_file

    def fill(target: Path) -> None:
        tensors = {name: for_disk(tensor) for name, tensor in edit.store.tensors().items()}
        save_file(tensors, str(target / TENSORS), metadata={"format": "pt"})
        settings = {"mechanism": edit.store.mechanism, "module": edit.module, **edit.store.settings()}
        text = json.dumps(settings, ensure_ascii=False, allow_nan=False)
        (target / SETTINGS).write_text(text + "\n", encoding="utf-8")

    return write_edit(Path(folder), edit.kind, edit.info, fill, edit.texts, tokenizer, model_config)


# Details ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def read_inputs(model: Any, module: str, prompts: Sequence[Sequence[int]], rows_per_batch: int = 32) -> list[Tensor]:
    """What a module reads at each token of each prompt, (T, d_in); the pass ends there.

    An opening that all prompts share (a chat template's system message) is run once.

    Raises:
        UserError: a prompt has a token that the model does not know.
    """
    known = model.get_input_embeddings().num_embeddings
    if any(max(ids, default=0) >= known for ids in prompts):
        raise UserError(
            "a prompt of the edit has tokens that this model does not know", "give the model it was made on"
        )
    shared = _shared_opening(prompts) if len(prompts) > 1 and keeps_plain_cache(model) else 0
    opening, cache = None, None
    if shared:
        with trace(model, inputs=[module]) as seen, prompt_lengths([shared + 1]):  # not decided yet
            keep = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
            ids = torch.tensor([list(prompts[0][:shared])], device=model.device)
            cache = cache_of(model(input_ids=ids, use_cache=True, **keep))
        opening = seen.inputs[module][0]
    found: list[Tensor] = []
    for start in range(0, len(prompts), rows_per_batch):
        part = [list(ids[shared:]) for ids in prompts[start : start + rows_per_batch]]
        ids, mask = pad(part, "right", model.device)
        options: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            past = copy.deepcopy(cache)
            past.batch_repeat_interleave(len(part))
            mask = torch.cat([mask.new_ones(len(part), shared), mask], dim=1)
            options = {**cache_argument(model, past), "use_cache": True}
        places = positions(model, mask, last=ids.shape[1])
        lengths = prompt_lengths([len(row) + shared for row in part])
        with lengths, trace(model, inputs=[module], stop_after=module) as seen:
            model(input_ids=ids, attention_mask=mask, **places, **options)
        rows = [seen.inputs[module][i, : len(row)].clone() for i, row in enumerate(part)]
        found += rows if opening is None else [torch.cat([opening, row]) for row in rows]
    return found


def _shared_opening(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, leaving each at least one."""
    shortest = min(len(ids) for ids in prompts) - 1
    return next((i for i in range(shortest) if len({ids[i] for ids in prompts}) > 1), shortest)


def _module_of(model: nn.Module, name: str, shape: tuple[int, int]) -> nn.Module:
    try:
        module = model.get_submodule(name)
        weight: Tensor = module.weight  # type: ignore[assignment]
    except AttributeError as error:
        raise UserError(
            f"the edit is at {name}, which this model does not have", "give the model it was made on"
        ) from error
    stored = tuple(reversed(weight.shape)) if is_transposed(module) else tuple(weight.shape)
    if stored != shape:
        raise UserError(
            f"the edit's memory fits a module of {shape[0]}×{shape[1]}, and {name} is {stored[0]}×{stored[1]}",
            "give the model it was made on",
        )
    return module


def check_memory(n_bytes: int, device: torch.device, what: str) -> None:
    """Refuse what will not fit the device.

    Raises:
        UserError: more is needed than is free.
    """
    free = free_bytes(device)
    if free is not None and n_bytes > free:
        raise UserError(
            f"{what} need {gigabytes(n_bytes)}, and {gigabytes(free)} are free on {device}",
            "edit fewer items (--limit), merge them (--merge key), or use a larger device",
        )
