"""What is done to a model after its edit and before it is asked: taught a set, rounded to few bits, or made noisy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from unlearn_eval.runs.study.spec import ThenSpec
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import configure

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on every linear map of the blocks.

    Attributes:
        scale: standard deviation, in standard deviations of each matrix's own weights; 0 changes nothing.
        seed: of the noise.
    """

    scale: float = 0.0
    seed: int = 0


def config_of_then(spec: ThenSpec) -> Any:
    """The settings, resolved.

    Raises:
        UserError: an unknown setting, or several numbers of bits.
    """
    if spec.teaches:
        from unlearn_eval.editing.training.gradient import GradientConfig

        return configure(GradientConfig, spec.settings)
    if spec.quantizes:
        from unlearn_eval.attacks.methods.quantize import Config

        config = configure(Config, {"bits": "4", **spec.settings})
        if len(config.bits) != 1:
            raise UserError(
                f"{spec.name} has {len(config.bits)} numbers of bits", "give one, as in settings: {bits: 4}"
            )
        return config
    return configure(Noise, spec.settings)


@contextmanager
def rewritten(spec: ThenSpec, model: PreTrainedModel) -> Iterator[None]:
    """The model quantized or with noise, within a `with` block; bit for bit as before afterwards."""
    from unlearn_eval.attacks.changed_weights import changed_maps
    from unlearn_eval.attacks.methods.quantize import rounded, rounded_nf4

    config = config_of_then(spec)
    if spec.quantizes and config.scheme == "nf4":
        change = partial(rounded_nf4, group_size=config.group_size)
    elif spec.quantizes:
        change = partial(rounded, bits=config.bits[0], group_size=config.group_size)
    else:
        change = _noisy(config)
    with changed_maps(model, change):
        yield


def _noisy(config: Noise) -> Any:
    import torch

    generator = torch.Generator().manual_seed(config.seed)

    def change(weight: Tensor) -> Tensor:
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        return weight + config.scale * weight.std() * noise if config.scale else weight

    return change
