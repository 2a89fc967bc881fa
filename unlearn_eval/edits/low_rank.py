"""Edits of the form W + U V, in PEFT's LoRA layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unlearn_eval.edits.base import LOW_RANK, Applied, EditInfo
from unlearn_eval.edits.folder import (
    ADAPTER,
    ADAPTER_CONFIG,
    STATE,
    for_disk,
    read_stored,
    write_edit,
    write_json,
)
from unlearn_eval.edits.sharing import OnHub
from unlearn_eval.edits.stored import Adapter
from unlearn_eval.edits.tensors import check_layout, read_tensors
from unlearn_eval.models.anatomy import is_transposed
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Factors = Mapping[str, tuple[Tensor, Tensor]]


_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"  # of names in the adapter


@dataclass(frozen=True)
class LowRankEdit(OnHub):
    """Changes W + U V of some linear maps.

    Attributes:
        factors: module name -> (U, V), U (d_out, n) and V (n, d_in), whatever way round the module stores W. A change
            of nothing is n = 0; PEFT refuses an edit that names no module at all.
        info: what this is.
        stored_transposed: whether the modules store W as (d_in, d_out), as GPT-2's Conv1D does.
        state: what the method needs to go on from this edit, e.g. `keys.5`: (n, d_in) past keys.
        texts: file name -> content of small texts that belong to the edit, e.g. `targets.jsonl`.
    """

    kind: ClassVar[str] = LOW_RANK
    factors: Factors
    info: EditInfo
    stored_transposed: bool = False
    state: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> Applied:
        """Add U V to every weight, computed in float32 (float64 for such weights) and rounded once to its type.

        Factors are first taken to that type, so that float64 factors do what they do after saving.
        """
        handle = Applied()
        try:
            for name, (u, v) in self.factors.items():
                weight = _weight_of(model, name, u, v)
                if u.shape[1] == 0:  # even adding zero changes a bit: -0.0 becomes 0.0
                    continue
                handle.keep(weight)
                weight.copy_(added(weight, u, v, is_transposed(model.get_submodule(name))))
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
        """Write the folder in PEFT's LoRA layout, with the base's `config.json` and tokenizer if they are given.

        Floating numbers are written as float32.

        Raises:
            UserError: the folder exists and holds something else than an edit, writing fails, or a text has a name
                that is no plain file name or is taken.
        """
        from safetensors.torch import save_file

        thin = {name: compact(u.cpu().double(), v.cpu().double()) for name, (u, v) in self.factors.items()}
        rank = max([1, *(u.shape[1] for u, _ in thin.values())])
        tensors = {}
        for name, (u, v) in thin.items():
            tensors[f"{_PREFIX}{name}{_A}"] = _padded(v, rank, 0).float().contiguous()
            tensors[f"{_PREFIX}{name}{_B}"] = _padded(u, rank, 1).float().contiguous()

        def fill(target: Path) -> None:
            save_file(tensors, str(target / ADAPTER), metadata={"format": "pt"})
            write_json(target / ADAPTER_CONFIG, self._peft_config(rank))
            if self.state:
                state = {name: for_disk(tensor) for name, tensor in self.state.items()}
                save_file(state, str(target / STATE), metadata={"format": "pt"})

        return write_edit(Path(folder), self.kind, self.info, fill, self.texts, tokenizer, model_config)

    def _peft_config(self, rank: int) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.info.base.id,
            "revision": self.info.base.revision,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.stored_transposed,
            "target_modules": sorted(self.factors),
        }


def read_low_rank(
    folder: Path, description: Mapping[str, Any], info: EditInfo, texts: Mapping[str, str]
) -> LowRankEdit:
    """The edit in a folder whose files have been checked."""
    adapter = read_stored(folder / ADAPTER_CONFIG, Adapter)
    tensors = read_tensors(folder / ADAPTER)
    names = sorted(key.removeprefix(_PREFIX).removesuffix(_A) for key in tensors if key.endswith(_A))
    shapes = {f"{_PREFIX}{name}{_A}": f"r {name}.in" for name in names}
    shapes |= {f"{_PREFIX}{name}{_B}": f"{name}.out r" for name in names}
    check_layout(folder / ADAPTER, tensors, shapes, {"r": adapter["r"]})
    factors = {name: _unpadded(tensors[f"{_PREFIX}{name}{_B}"], tensors[f"{_PREFIX}{name}{_A}"]) for name in names}
    state = read_tensors(folder / STATE) if STATE in description["files"] else {}
    return LowRankEdit(factors, info, bool(adapter["fan_in_fan_out"]), state, texts)


@torch.no_grad()
def added(weight: Tensor, u: Tensor, v: Tensor, transposed: bool) -> Tensor:
    """W + U V in float32 (float64 of such a weight), rounded once to the weight's type."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    delta = u.to(weight.device, wide) @ v.to(weight.device, wide)
    return (weight.to(wide) + (delta.T if transposed else delta)).to(weight.dtype)


def concatenate(first: Factors, second: Factors) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors of two edits made one after another: U = [U₁ U₂], V = [V₁; V₂] where both change a map.

    Each map's factors are on the device of the later edit, in the wider of both types.

    Raises:
        UserError: the two change one map in different shapes, so that they are of different models.
    """
    both = dict(first) | dict(second)
    for name in first.keys() & second.keys():
        (u, v), (more_u, more_v) = first[name], second[name]
        if (u.shape[0], v.shape[1]) != (more_u.shape[0], more_v.shape[1]):
            raise UserError(
                f"one edit's change of {name} is {u.shape[0]}×{v.shape[1]}, the other's "
                f"{more_u.shape[0]}×{more_v.shape[1]}",
                "go on from an edit of the same model",
            )
        wide = torch.promote_types(u.dtype, more_u.dtype)
        both[name] = (
            torch.cat([u.to(more_u.device, wide), more_u.to(wide)], dim=1),
            torch.cat([v.to(more_v.device, wide), more_v.to(wide)], dim=0),
        )
    return both


def compact(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with no more columns than the matrix has rows or columns (exact: a QR step)."""
    if u.shape[1] <= min(u.shape[0], v.shape[1]):
        return u, v
    if u.shape[0] <= v.shape[1]:
        q, r = torch.linalg.qr(u)
        return q, r @ v
    q, r = torch.linalg.qr(v.T)
    return u @ r.T, q.T


def _weight_of(model: nn.Module, name: str, u: Tensor, v: Tensor) -> Tensor:
    try:
        module = model.get_submodule(name)
        weight: Tensor = module.weight  # type: ignore[assignment]
    except AttributeError as error:
        raise UserError(
            f"the edit changes {name}, which this model does not have", "give the model it was made on"
        ) from error
    shape = (u.shape[0], v.shape[1])
    stored = tuple(reversed(weight.shape)) if is_transposed(module) else tuple(weight.shape)
    if shape != stored:
        raise UserError(
            f"the edit's change of {name} is {shape[0]}×{shape[1]}, the model's weight {stored[0]}×{stored[1]}",
            "give the model it was made on",
        )
    return weight


def _padded(factor: Tensor, rank: int, dim: int) -> Tensor:
    missing = rank - factor.shape[dim]
    if missing <= 0:
        return factor
    shape = [missing, factor.shape[1]] if dim == 0 else [factor.shape[0], missing]
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim)


def _unpadded(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The factors without the zero columns and rows that `_padded` put behind them."""
    used = (u.any(dim=0) | v.any(dim=1)).nonzero()
    n = int(used.max()) + 1 if used.numel() else 0
    return u[:, :n], v[:n]
