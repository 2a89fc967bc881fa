"""Where an architecture keeps its blocks, and the MLP projections that are edited.

Nothing here depends on a model's class name. The blocks are the `ModuleList` whose children hold an attention or an
MLP, of the length and width that the configuration gives for the text; the projections are found by their names
inside a block. Structure is all that is read, so a model without weights (`load.skeleton`) has an anatomy too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unlearn_eval.utils.errors import UserError

# The last linear map of an MLP, by the names that architectures give it.
DOWN_PROJECTIONS = (
    "down_proj",
    "c_proj",
    "fc_out",
    "dense_4h_to_h",
    "fc2",
    "w2",
    "wo",
    "proj_out",
    "dense_out",
)
MLP_NAMES = ("mlp", "feed_forward", "ffn", "ff", "")
# What architectures call the attention of a block.
ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
# A norm between the MLP and the residual stream (Gemma 2 and 3, OLMo 2; GLM 4), by the names that are given to it.
POST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")


@dataclass(frozen=True)
class Blocks:
    """The blocks of one model, whatever is in them.

    Attributes:
        blocks: path of the list of blocks, e.g. `model.layers` or `transformer.h`.
        n_layers: number of blocks.
    """

    blocks: str
    n_layers: int

    def block(self, model: nn.Module, layer: int) -> nn.Module:
        """The block `layer`."""
        return model.get_submodule(f"{self.blocks}.{layer}")

    def check_layers(self, layers: tuple[int, ...]) -> None:
        """Refuse layers that the model does not have."""
        bad = [layer for layer in layers if not 0 <= layer < self.n_layers]
        if bad or not layers:
            raise UserError(
                f"layers {list(layers)} do not fit a model of {self.n_layers} layers",
                f"give one or more numbers from 0 to {self.n_layers - 1}",
            )


@dataclass(frozen=True)
class Anatomy(Blocks):
    """The named parts of one model whose every block has an MLP of plain matrices.

    Attributes:
        blocks, n_layers: as for `Blocks`.
        down_projection: path of the edited projection within a block, e.g. `mlp.down_proj`.
        d_model: width of the residual stream (the projection's outputs).
        d_mlp: width of the MLP (the projection's inputs: the keys).
        transposed: whether the projection stores its weight as (inputs, outputs), as GPT-2's Conv1D does.
    """

    down_projection: str
    d_model: int
    d_mlp: int
    transposed: bool

    def projection_name(self, layer: int) -> str:
        """The full path of the projection in block `layer`."""
        return f"{self.blocks}.{layer}.{self.down_projection}"

    def projection(self, model: nn.Module, layer: int) -> nn.Module:
        """The projection in block `layer`: its input is the key, its output the value."""
        return model.get_submodule(self.projection_name(layer))

    def weight(self, model: nn.Module, layer: int) -> Tensor:
        """The projection's weight as (d_model, d_mlp); a view, so it can be changed in place."""
        weight: Tensor = self.projection(model, layer).weight  # type: ignore[assignment]
        return weight.T if self.transposed else weight

    def post_norm(self, model: nn.Module, layer: int) -> nn.Module | None:
        """The norm through which the MLP's output goes before it is added to the residual stream, if there is one."""
        block = self.block(model, layer)
        return next((found for name in POST_NORMS if (found := getattr(block, name, None)) is not None), None)

    def resolve_layers(self, layers: tuple[int, ...], depth: tuple[float, float]) -> tuple[int, ...]:
        """`layers` in order and each once; if there are none, those between two fractions of the depth.

        Raises:
            UserError: the model does not have them.
        """
        resolved = tuple(sorted(set(layers))) or layers_at_depth(self.n_layers, *depth)
        self.check_layers(resolved)
        return resolved


def blocks_of(model: nn.Module) -> Blocks:
    """The blocks of a causal language model; they may be mixtures of experts.

    Raises:
        UserError: there is no list of blocks, or there are several among which nothing decides.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(map(_is_block, module))
    }
    if not lists:
        raise UserError(
            f"{type(model).__name__} has no list of blocks with an attention or an MLP",
            "use a decoder-only transformer",
        )
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    n_layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)

    def fit(name: str) -> tuple[bool, bool, int]:
        """Whether the configuration speaks of these blocks and not of an image encoder's, and how many they are."""
        d_model = _width(lists[name][0])
        return len(lists[name]) == n_layers, d_model is None or d_model == width, len(lists[name])

    best = max(map(fit, lists))
    found = [name for name in lists if fit(name) == best]
    if len(found) > 1:  # blocks that are run in turn or in a loop: one pass is not one run of each
        raise UserError(
            f"{type(model).__name__} has {len(found)} lists of {best[-1]} blocks: {', '.join(found)}",
            "use a model with one stack of blocks",
        )
    return Blocks(found[0], len(lists[found[0]]))


def anatomy(model: nn.Module) -> Anatomy:
    """The anatomy of a causal language model (Llama, Qwen, Mistral, Gemma, GPT-2, GPT-J, GPT-NeoX, OPT, Phi, ...).

    Raises:
        UserError: no list of blocks with an MLP projection is found, or the projection is not a plain
            matrix (mixture of experts, quantized weights).
    """
    where = blocks_of(model)
    modules = [where.block(model, layer) for layer in range(where.n_layers)]
    path = _down_projection(modules[0])
    attention = attention_of(modules[0])
    hint = "mixture-of-experts and quantized models are not supported; use a dense model in full precision"
    if attention is not None:
        hint = f"use a dense model, or train the attention: --editor npo --set lora_rank=8 --components {attention}"
    if path is None:
        raise UserError(
            f"{type(model).__name__} has no list of blocks with an MLP output projection that can be edited", hint
        )
    weight: Any = modules[0].get_submodule(path).weight
    if not weight.is_floating_point() or weight.ndim != 2:
        raise UserError(f"{where.blocks}.0.{path} holds {weight.dtype} weights", "load the model without quantization")
    other = next((i for i, block in enumerate(modules) if _down_projection(block) != path), None)
    if other is not None:
        raise UserError(f"block {other} of {where.blocks} has no {path}, as block 0 has", hint)
    transposed = is_transposed(modules[0].get_submodule(path))
    d_model, d_mlp = weight.shape[::-1] if transposed else weight.shape
    return Anatomy(where.blocks, where.n_layers, path, int(d_model), int(d_mlp), transposed)


def attention_of(block: nn.Module) -> str | None:
    """What a block calls its attention; None if it has none."""
    return next((name for name in ATTENTION_NAMES if isinstance(getattr(block, name, None), nn.Module)), None)


def _is_block(module: nn.Module) -> bool:
    return attention_of(module) is not None or _down_projection(module) is not None


def _width(block: nn.Module) -> int | None:
    """How wide what a block's MLP gives is; None where its MLP is no plain matrix."""
    path = _down_projection(block)
    weight: Any = None if path is None else block.get_submodule(path).weight
    if path is None or weight.ndim != 2:
        return None
    return int(weight.shape[1 if is_transposed(block.get_submodule(path)) else 0])


def _down_projection(block: nn.Module) -> str | None:
    for mlp in MLP_NAMES:
        # A projection that lies in the block itself: an MLP by itself has one too, and is no block.
        inner: Any = getattr(block, mlp, None) if mlp else block if attention_of(block) else None
        if not isinstance(inner, nn.Module):
            continue
        for name in DOWN_PROJECTIONS:
            found = getattr(inner, name, None)
            if isinstance(found, nn.Module) and getattr(found, "weight", None) is not None:
                return f"{mlp}.{name}" if mlp else name
    return None


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear map stores its weight as (inputs, outputs), as GPT-2's Conv1D does."""
    return type(module).__name__ == "Conv1D"


def layers_at_depth(n_layers: int, start: float, stop: float) -> tuple[int, ...]:
    """The layers between two fractions of the depth, at least one: the way presets carry over to other models."""
    first = round(start * n_layers)
    last = max(first, round(stop * n_layers))
    return tuple(range(min(first, n_layers - 1), min(last, n_layers - 1) + 1))
