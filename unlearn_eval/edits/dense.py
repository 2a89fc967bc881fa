"""An edit that replaces whole tensors: what training in place leaves behind.

Beside what every edit's folder has (see `edits.py`) there are `dense.json`, which says which tensor is in which file,
and `dense-N.safetensors`. Only tensors that training has changed are there, in the model's own type: applied to
the model they were made on they are bit for bit what was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unlearn_eval.edits.base import DENSE, Applied, EditInfo
from unlearn_eval.edits.folder import read_stored, write_edit
from unlearn_eval.edits.sharing import OnHub
from unlearn_eval.edits.stored import DenseIndex
from unlearn_eval.edits.tensors import HINT, read_tensors
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

INDEX = "dense.json"
SHARD_BYTES = 4 * 2**30


@dataclass(frozen=True)
class DenseEdit(OnHub):
    """New values of some of a model's tensors.

    Attributes:
        tensors: parameter name -> its new value.
        info: what this is; its notes hold the norms of the changes, which cannot be told from the new values.
        texts: file name -> content of small texts that belong to the edit, e.g. `targets.jsonl`.
        state: none; a further edit goes on from the tensors.
    """

    kind: ClassVar[str] = DENSE
    tensors: Mapping[str, Tensor]
    info: EditInfo
    texts: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def after(self, earlier: DenseEdit) -> DenseEdit:
        """This edit and the one that it went on from, as one.

        The norms of a tensor that both have changed are of the later change alone.
        """
        changes = earlier.info.notes.get("changes", {}) | self.info.notes.get("changes", {})
        info = replace(self.info, notes=self.info.notes | {"changes": changes})
        return replace(self, tensors={**earlier.tensors, **self.tensors}, info=info)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> Applied:
        """Put the new values into the model, rounded to its own type if that is another.

        Raises:
            UserError: the model lacks one of the tensors, or has it in another shape.
        """
        handle, parameters = Applied(), dict(model.named_parameters(remove_duplicate=False))
        hint = "give the model it was made on"
        for name, tensor in self.tensors.items():
            if name not in parameters:
                raise UserError(f"the edit changes {name}, which this model does not have", hint)
            if parameters[name].shape != tensor.shape:
                found, own = ("×".join(map(str, t.shape)) for t in (parameters[name], tensor))
                raise UserError(f"the edit's {name} is {own}, the model's {found}", hint)
        try:
            for name, tensor in self.tensors.items():
                handle.keep(parameters[name])
                parameters[name].copy_(tensor)
        except BaseException:
            handle.restore()
            raise
        return handle

    def save(
        self,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_config: PretrainedConfig | None = None,
    ) -> Path:
        """Write the folder, in shards if it is large; errors as in `write_edit`."""
        from safetensors.torch import save_file

        def fill(target: Path) -> None:
            index: dict[str, str] = {}
            shards = _shards(self.tensors)
            for i, names in enumerate(shards):
                file = f"dense-{i + 1}.safetensors"
                save_file({name: _own_copy(self.tensors[name]) for name in names}, str(target / file))
                index |= dict.fromkeys(names, file)
            text = json.dumps({"tensors": index}, indent=2, ensure_ascii=False, allow_nan=False)
            (target / INDEX).write_text(text + "\n", encoding="utf-8")

        return write_edit(Path(folder), self.kind, self.info, fill, self.texts, tokenizer, model_config)


def read_dense(folder: Path, description: Mapping[str, Any], info: EditInfo, texts: Mapping[str, str]) -> DenseEdit:
    """The edit in a folder whose files have been checked."""
    index: dict[str, str] = read_stored(folder / INDEX, DenseIndex)["tensors"]
    if other := sorted(set(index.values()) - description["files"].keys()):
        raise UserError(f"{folder / INDEX} is damaged: {other[0]} is no file of the edit", HINT)
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(index.values())):
        tensors |= read_tensors(folder / file, names=(name for name, place in index.items() if place == file))
    return DenseEdit({name: tensors[name] for name in index}, info, texts)


def change_norms(new: Tensor, original: Tensor) -> dict[str, float]:
    """The norms of a tensor's change and of the tensor, as the notes of an edit have them under `changes`."""
    old = original.double()
    return {"frobenius": float((new.double() - old).norm()), "weight_norm": float(old.norm())}


def _shards(tensors: Mapping[str, Tensor], limit: int | None = None) -> list[list[str]]:
    """Names in their order, as many in a shard as fit."""
    limit = limit or SHARD_BYTES
    shards: list[list[str]] = []
    size = 0
    for name, tensor in tensors.items():
        own = tensor.numel() * tensor.element_size()
        if not shards or size + own > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += own
    return shards


def _own_copy(tensor: Tensor) -> Tensor:
    """A tensor of its own storage in its own type (safetensors refuses views of one storage)."""
    return tensor.detach().cpu().clone().contiguous()
