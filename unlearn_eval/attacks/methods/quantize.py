r"""Quantization: weights rounded to few bits, as who runs a model cheaply does; a small edit may round away.

    absmax: W' = s · round(W / s), s = max|W| / (2^(b-1) - 1) over each group of inputs of each output
    nf4: each weight over its group's max|W| goes to the nearest of sixteen quantiles of a normal distribution

The rounded weights are computed with as before (simulated quantization): the answers are those of such weights on any
device, without its kernels. Activations stay as they are.

Source: Zhang et al. 2024 (arXiv 2410.16454), forgetting that is undone by four bits; NF4: Dettmers et al. 2023
(arXiv 2305.14314, appendix E). Differs from bitsandbytes in groups along the inputs of one output (there: along the
flattened matrix) and in scales that are not quantized themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unlearn_eval.attacks.base import Attack, Case, Observation, Work
from unlearn_eval.attacks.changed_weights import levels
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.settings import Size, Sizes

SCHEMES = ("absmax", "nf4")
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of quantization.

    Attributes:
        bits: levels of the attack; with nf4 there is only 4.
        group_size: inputs of one output that share a scale; 0: all of them.
        scheme: absmax or nf4.
    """

    bits: Sizes = (8, 4)
    group_size: Size = 64
    scheme: str = "absmax"

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise unknown_name("scheme", self.scheme, SCHEMES)
        if not self.bits or not all(2 <= bits <= 16 for bits in self.bits) or self.group_size < 0:
            raise UserError(
                f"bits {list(self.bits)} in groups of {self.group_size} do not make sense",
                "give --set bits=8,4 (from 2 to 16) and a group_size of at least 0",
            )


def attack(case: Case, config: Config) -> Iterator[Observation]:
    """Every model as it is, and at each number of bits."""
    if config.scheme == "nf4":
        return levels(case, [(4, partial(rounded_nf4, group_size=config.group_size))])
    return levels(case, [(bits, partial(rounded, bits=bits, group_size=config.group_size)) for bits in config.bits])


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """Every number of bits."""
    return Work(answered=n_items * (1 + len(config.bits)))


def rounded(weight: Tensor, bits: int, group_size: int = 0) -> Tensor:
    """The weight (d_out, d_in) rounded to the nearest of 2^bits - 1 evenly spaced values of each group."""
    groups, scale = _groups(weight, group_size)
    most = 2 ** (bits - 1) - 1
    step = scale / most
    return _joined((groups / step).round().clamp(-most, most) * step, weight)


def rounded_nf4(weight: Tensor, group_size: int = 64) -> Tensor:
    """The weight (d_out, d_in) rounded to the nearest of NF4's sixteen values of each group."""
    groups, scale = _groups(weight, group_size)
    values = torch.tensor(_NF4, dtype=weight.dtype, device=weight.device)
    middles = (values[1:] + values[:-1]) / 2
    return _joined(values[torch.bucketize((groups / scale).contiguous(), middles)] * scale, weight)


def _groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """The weight as (d_out, groups, size), zeros behind, and the largest size of each group (1 for 0)."""
    d_out, d_in = weight.shape
    size = group_size or d_in
    padded = torch.nn.functional.pad(weight, (0, -d_in % size))
    groups = padded.reshape(d_out, -1, size)
    largest = groups.abs().amax(-1, keepdim=True)
    return groups, torch.where(largest > 0, largest, 1.0)


def _joined(groups: Tensor, like: Tensor) -> Tensor:
    return groups.reshape(len(like), -1)[:, : like.shape[1]]


ATTACK = Attack("quantize", Config, attack, work, does="rounds the weights to few bits", axis="bits")
