"""Where a model's attention and MLPs write into the residual stream, and the linear maps that they are made of.

An output is read at the last linear map of each (`o_proj`, `c_proj`, `dense`, ...): a plain tensor in every
architecture. The attention's one is given the heads' outputs side by side, whatever keys and values they share. A
norm that follows before the residual stream (Gemma, OLMo 2, GLM 4) is kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from unlearn_eval.editing.training.weights import linear_maps
from unlearn_eval.models.anatomy import ATTENTION_NAMES, Anatomy, anatomy
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION, MLP = "attention", "mlp"
KINDS = (ATTENTION, MLP)
# What architectures call the last map within an attention.
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "o")
# The norm after attention, in blocks that have one after the MLP too (elsewhere the second name is the norm before it).
POST_ATTENTION_NORMS = ("post_self_attn_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Unit:
    """The attention or the MLP of one layer: what is chosen whole."""

    kind: str
    layer: int


@dataclass(frozen=True)
class Sites:
    """Where one model's units are.

    Attributes:
        parts: its anatomy.
        attention: path of each layer's attention output projection.
        mlp: path of each layer's MLP output projection.
        n_heads: attention heads per layer; their outputs are equal parts of the projection's input.
        maps: unit -> the paths of all its linear maps, in the model's order.
        parameters: path of a linear map -> its number of weights, with the bias.
    """

    parts: Anatomy
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    n_heads: int
    maps: Mapping[Unit, tuple[str, ...]]
    parameters: Mapping[str, int]

    def output(self, unit: Unit) -> str:
        """The path of the module whose output is the unit's."""
        return (self.attention if unit.kind == ATTENTION else self.mlp)[unit.layer]

    def of_head(self, head: int, width: int) -> slice:
        """Where a head's output z stands in what its output projection is given, which is `width` wide."""
        size = width // self.n_heads
        return slice(head * size, (head + 1) * size)

    def units(self, *kinds: str) -> list[Unit]:
        """All units of some kinds, from the lowest layer up."""
        return [Unit(kind, layer) for layer in range(self.parts.n_layers) for kind in kinds]

    def size(self, unit: Unit) -> int:
        """The unit's number of weights."""
        return sum(self.parameters[name] for name in self.maps[unit])


def sites(model: PreTrainedModel) -> Sites:
    """The sites of a causal language model.

    Raises:
        UserError: blocks, MLPs or attention are not where they are looked for.
    """
    parts = anatomy(model)
    attention = tuple(_attention_output(model, parts, layer) for layer in range(parts.n_layers))
    mlp = tuple(parts.projection_name(layer) for layer in range(parts.n_layers))
    maps: dict[Unit, list[str]] = {}
    for name in linear_maps(model):
        layer, _, inner = name.removeprefix(f"{parts.blocks}.").partition(".")
        if layer.isdigit():
            kind = ATTENTION if inner.split(".")[0] in ATTENTION_NAMES else MLP
            maps.setdefault(Unit(kind, int(layer)), []).append(name)
    return Sites(
        parts,
        attention,
        mlp,
        int(model.config.get_text_config().num_attention_heads),
        {unit: tuple(names) for unit, names in maps.items()},
        {name: _n_weights(model.get_submodule(name)) for names in maps.values() for name in names},
    )


def written(model: PreTrainedModel, found: Sites, unit: Unit, output: Tensor) -> Tensor:
    """What a unit with this output adds to the residual stream: the output after the norm that follows it, if any."""
    after = found.parts.post_norm(model, unit.layer)
    if after is not None and unit.kind == ATTENTION:
        block = found.parts.block(model, unit.layer)
        after = next((norm for name in POST_ATTENTION_NORMS if (norm := getattr(block, name, None)) is not None), None)
    return output if after is None else after(output)


def _attention_output(model: PreTrainedModel, parts: Anatomy, layer: int) -> str:
    block = parts.block(model, layer)
    for name in ATTENTION_NAMES:
        inner = getattr(block, name, None)
        if isinstance(inner, nn.Module):
            found = [path for path, _ in inner.named_modules() if path.rpartition(".")[2] in OUTPUT_PROJECTIONS]
            if found:
                return f"{parts.blocks}.{layer}.{name}.{found[-1]}"
    raise UserError(
        f"block {layer} of {type(model).__name__} has no attention with an output projection",
        "layers without attention (recurrent, hybrid models) cannot be localized in; use a transformer",
    )


def _n_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
