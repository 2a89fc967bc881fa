"""Which single weights of a model may change: one bit for each, eight to a byte, in a safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import write_all

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT, VERSION = "unlearn_eval_masks", "1"


@dataclass(frozen=True)
class WeightMasks:
    """Masks of some of a model's parameters.

    Attributes:
        bits: parameter -> (⌈n/8⌉,) uint8, its n weights in their order, the first in the highest bit; rest 0.
        shapes: parameter -> its shape.
    """

    bits: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, masks: Mapping[str, Tensor]) -> WeightMasks:
        """From tensors of booleans; parameters of which nothing may change are left out."""
        some = {name: mask for name, mask in masks.items() if bool(mask.any())}
        bits = {name: torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))) for name, mask in some.items()}
        return cls(bits, {name: tuple(mask.shape) for name, mask in some.items()})

    def mask(self, name: str) -> Tensor:
        """The booleans of one parameter, in its shape, on the CPU."""
        shape = self.shapes[name]
        flat = np.unpackbits(self.bits[name].numpy(), count=int(np.prod(shape)))
        return torch.from_numpy(flat.astype(bool).reshape(shape))

    @cached_property
    def counts(self) -> dict[str, int]:
        """Parameter -> how many of its weights may change."""
        return {name: int(np.unpackbits(own.numpy()).sum()) for name, own in self.bits.items()}

    @property
    def n_weights(self) -> int:
        """How many weights may change."""
        return sum(self.counts.values())

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model that these masks are not of.

        Raises:
            UserError: it lacks a parameter, or has it in another shape.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        hint = "give the model that they were made on, or make them again with `unlearn-eval localize`"
        for name, shape in self.shapes.items():
            if name not in parameters:
                raise UserError(f"the masks name {name}, which this model does not have", hint)
            own = tuple(parameters[name].shape)
            if own != shape:
                found, given = ("×".join(map(str, one)) for one in (own, shape))
                raise UserError(f"the mask of {name} is {given}, the model's {found}", hint)

    def save(self, path: str | Path) -> str:
        """Write the file, whole or not at all; its SHA-256."""
        from safetensors.torch import save

        about = {"format": FORMAT, "version": VERSION, "shapes": json.dumps(self.shapes)}
        content = save(dict(self.bits), about)
        path = Path(path).expanduser()
        write_all({path.name: content}, path.parent)
        return hashlib.sha256(content).hexdigest()


def read_masks(path: str | Path) -> WeightMasks:
    """The masks in a file.

    Raises:
        UserError: no file, or none of ours.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path).expanduser()
    hint = "write them with `unlearn-eval localize ... --set masks=attribution`"
    if not path.is_file():
        raise UserError(f"no masks at {path}", hint)
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            bits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}", hint) from error
    if (about.get("format"), about.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{path} holds no masks of version {VERSION}", hint)
    shapes = {name: tuple(shape) for name, shape in json.loads(about["shapes"]).items()}
    return WeightMasks({name: bits[name] for name in shapes}, shapes)


def largest(scores: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Masks of the n largest of all scores together; of equal ones the first.

    The bound is found by halving, so that no second copy of the scores is made.

    Args:
        scores: name -> float32 values of at least 0.
        n: at least 1, and at most as many as there are.

    Raises:
        UserError: a score is not a number.
    """
    if not all(bool(torch.isfinite(own).all()) for own in scores.values()):
        raise UserError("the weights' scores are not finite", "give another dtype (--dtype float32) or a lower rate")
    bits = {name: (own.float() + 0.0).view(torch.int32) for name, own in scores.items()}  # ordered as the floats are

    def n_from(bound: int) -> int:
        return sum(int((own >= bound).sum()) for own in bits.values())

    low, high = 0, 2**31 - 1  # n_from(low) >= n > n_from(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if n_from(middle) >= n else (low, middle)
    left = n - n_from(low + 1)
    chosen = {}
    for name, own in bits.items():
        mask, ties = own > low, (own == low).flatten().nonzero()[:, 0][:left]
        mask.view(-1)[ties] = True
        left -= len(ties)
        chosen[name] = mask
    return chosen
