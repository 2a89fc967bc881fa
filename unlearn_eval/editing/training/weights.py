"""Which weights of a model are trained, and how the model becomes again what it was.

Originals of weights that are trained in place lie on disk and not in memory, so that a run needs no second copy of the
model; putting them back is exact. Weights of less than float32 are trained in float32 (small steps would be lost
in rounding) and rounded once, when the edit is made.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from unlearn_eval.editing.training.masks import WeightMasks
from unlearn_eval.editing.training.sharding import fill, whole
from unlearn_eval.edits.dense import change_norms
from unlearn_eval.models.anatomy import blocks_of, is_transposed
from unlearn_eval.models.weights import mark_restored, state_of
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ORIGINALS = "originals"


class Weights(Protocol):
    """The weights that a run trains.

    Attributes:
        model: what is trained: the model, or PEFT's wrapper around it.
    """

    model: Any

    def current(self) -> dict[str, Tensor]:
        """The trained tensors by name, as they are now: of a model that is shared out, each process's part."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set them."""

    def reset(self) -> None:
        """Set them to what they were before training."""

    def restore(self) -> None:
        """Make the model what it was, bit for bit."""

    def after_step(self) -> None:
        """What is to be done after every step of the optimizer."""

    @property
    def n_trained(self) -> int:
        """How many numbers are trained."""


def split_patterns(text: str) -> list[str]:
    """Patterns separated by commas; commas within brackets belong to a pattern."""
    return [part.strip() for part in re.split(r",(?![^(\[{]*[)\]}])", text) if part.strip()]


def match_names(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that a pattern names, or that stand below a module which it names; in their own order.

    A pattern is a regular expression for a whole path or its end: `mlp.down_proj`, `layers.5`, `layers.(5|6).mlp`.

    Raises:
        UserError: a pattern is no regular expression, or names nothing (near names are given).
    """
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            expression = re.compile(rf"(?:.*\.)?(?:{pattern})(?:\..*)?")
        except re.error as error:
            raise UserError(
                f"the pattern '{pattern}' is no regular expression: {error}", "as in mlp.down_proj"
            ) from error
        found = {name for name in names if expression.fullmatch(name)}
        if not found:
            raise UserError(f"no component of the model is called '{pattern}'", _near(pattern, names))
        chosen |= found
    return [name for name in names if name in chosen]


def _near(pattern: str, names: Sequence[str]) -> str:
    ends = {".".join(parts[i:]) for name in names for parts in [name.split(".")] for i in range(len(parts))}
    ends |= {end.removesuffix(".weight") for end in ends if end.endswith(".weight")}
    close = difflib.get_close_matches(pattern, sorted(ends, key=len), n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    generic = sorted({re.sub(r"\d+", "N", name.removesuffix(".weight")) for name in names})
    return "there are: " + ", ".join(generic[:12])


class FullWeights:
    """Some or all weights of a model, trained in place.

    Args:
        model: the model; nothing else of it is trained.
        patterns: of the components, as in `match_names`; none is everything.
        folder: where the originals are kept, as `originals-PROCESS.safetensors`.
        process: of several, which.
        masks: which single weights are trained, and of which parameters; None is all of them. What is not trained stays
            bit for bit, whatever the optimizer does: it gets no gradient, and is put back after every step. This takes
            memory for one copy of the masked parameters.

    Raises:
        UserError: as in `match_names`; masks of another model, or of no parameter that the patterns name.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        patterns: Sequence[str],
        folder: Path,
        process: int = 0,
        masks: WeightMasks | None = None,
    ) -> None:
        from safetensors.torch import save_file

        parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        names = match_names(list(parameters), patterns) if patterns else list(parameters)
        if masks is not None:
            masks.check(model)
            names = [name for name in names if name in masks.bits]
            if not names:
                raise UserError(
                    "no masked weight is in the components that are trained",
                    "leave out components, or give other masks",
                )
        self.model, self.dtype = model, next(model.parameters()).dtype  # as it was: what is trained becomes float32
        self._parameters = {name: parameters[name] for name in names}
        self._states = {name: state_of(p) for name, p in self._parameters.items()}
        self._types = {name: p.dtype for name, p in self._parameters.items()}
        self._needed_gradients = {p: p.requires_grad for p in model.parameters()}
        self.path = folder / f"{ORIGINALS}-{process}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().contiguous() for name, p in self._parameters.items()}, str(self.path))
        model.requires_grad_(False)
        for parameter in self._parameters.values():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
            parameter.requires_grad_(True)
        self._masks = {name: masks.mask(name).to(self._parameters[name].device) for name in names} if masks else {}
        self._kept = {name: self._parameters[name].detach().clone() for name in self._masks}
        self._hooks = [
            self._parameters[name].register_hook(lambda gradient, mask=mask: gradient * mask)
            for name, mask in self._masks.items()
        ]

    @torch.no_grad()
    def after_step(self) -> None:
        """Put back what no mask lets change: weight decay, for one, moves weights that have no gradient."""
        for name, mask in self._masks.items():
            parameter = self._parameters[name]
            parameter.copy_(torch.where(mask, parameter, self._kept[name]))

    @property
    def n_trained(self) -> int:
        """How many weights are trained."""
        masked = sum(int(mask.sum()) for mask in self._masks.values())
        return masked if self._masks else sum(own.numel() for own in self._parameters.values())

    def current(self) -> dict[str, Tensor]:
        """The trained tensors, in at least float32."""
        return {name: self.model.get_parameter(name).detach() for name in self._parameters}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the trained tensors."""
        for name, tensor in self.current().items():
            fill(tensor, tensors[name])

    def reset(self) -> None:
        """Set the trained tensors to the originals."""
        with self._originals() as file:
            for name, tensor in self.current().items():
                fill(tensor, file.get_tensor(name))

    def restore(self) -> None:
        """Put the originals back in their own type, and ask for gradients where they were asked for."""
        for hook in self._hooks:
            hook.remove()
        self._kept = {}
        with self._originals() as file:
            for name, parameter in self._parameters.items():
                original = file.get_tensor(name)
                parameter.grad = None
                if parameter.dtype == original.dtype:
                    parameter.data.copy_(original)
                else:
                    parameter.data = original.to(parameter.device)
                mark_restored(parameter, self._states[name])
        for parameter, needed in self._needed_gradients.items():
            parameter.requires_grad_(needed)

    @torch.no_grad()
    def changes(self) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
        """The changed tensors in the model's own types, and of each the norms of its change and of the original."""
        changed, norms = {}, {}
        with self._originals() as file:
            for name, tensor in self.current().items():
                original = file.get_tensor(name)
                new = whole(tensor).to(self._types[name]).cpu()
                if not torch.equal(new, original):
                    changed[name] = new.clone()
                    norms[name] = change_norms(new, original)
        return changed, norms

    @torch.no_grad()
    def mean_changes(self) -> dict[str, float]:
        """Of each trained tensor the mean absolute change so far, in float32, before it is rounded to its own type."""
        with self._originals() as file:
            return {
                name: float((whole(tensor).cpu().float() - file.get_tensor(name).float()).abs().mean())
                for name, tensor in self.current().items()
            }

    def _originals(self) -> Any:
        from safetensors import safe_open

        return safe_open(str(self.path), framework="pt")


class LowRankWeights:
    """LoRA factors beside some linear maps of a model (PEFT); the model's own weights stay as they are.

    Args:
        model: the model.
        patterns: of the maps, as in `match_names`; none is every linear map in the blocks.
        rank, alpha, dropout: LoRA's; the change is (alpha / rank) B A.
    """

    def __init__(
        self, model: PreTrainedModel, patterns: Sequence[str], rank: int, alpha: float, dropout: float
    ) -> None:
        from peft import LoraConfig, get_peft_model

        maps = linear_maps(model)
        names = match_names(maps, patterns) if patterns else maps
        self._inner, self._needed_gradients = model, {p: p.requires_grad for p in model.parameters()}
        self.dtype = next(model.parameters()).dtype
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=names,
            fan_in_fan_out=any(is_transposed(model.get_submodule(name)) for name in names),
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(model, config)
        self._start = {name: tensor.clone() for name, tensor in self.current().items()}

    def current(self) -> dict[str, Tensor]:
        """The factors by PEFT's names."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the factors."""
        for name, tensor in self.current().items():
            fill(tensor, tensors[name])

    def after_step(self) -> None:
        """Nothing: factors are trained whole."""

    @property
    def n_trained(self) -> int:
        """How many numbers the factors have."""
        return sum(tensor.numel() for tensor in self.current().values())

    def reset(self) -> None:
        """Set the factors to what they were at the start: a change of nothing."""
        self.load(self._start)

    def restore(self) -> None:
        """Take the factors out of the model."""
        self.model.unload()
        if "peft_config" in self._inner.__dict__:
            del self._inner.peft_config
        for parameter, needed in self._needed_gradients.items():
            parameter.requires_grad_(needed)

    @torch.no_grad()
    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Module -> (U, V), U (d_out, r) with the scale in it, V (r, d_in)."""
        found = {}
        for name, module in self._inner.named_modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                found[name] = ((b * module.scaling["default"]).detach().cpu().clone(), a.detach().cpu().clone())
        return found


def check_components(model: nn.Module, components: str, low_rank: bool) -> None:
    """Refuse patterns that name nothing of a model, which may have no weights, and LoRA where there are no linear maps.

    Raises:
        UserError: as in `match_names`, or the model has no list of blocks.
    """
    names = linear_maps(model) if low_rank else [name for name, _ in model.named_parameters()]
    if components:
        match_names(names, split_patterns(components))


def linear_maps(model: nn.Module) -> list[str]:
    """The names of all linear maps within the blocks, but for what stands beside experts.

    Experts are stacks of matrices, which no factors of one map fit. PEFT takes the other maps of their part of a block
    (routers, shared experts, the dense MLPs of first blocks) for experts too, so they are left out in every block.
    """
    blocks = blocks_of(model).blocks + "."
    mixed = {
        _part(name, blocks)
        for name, module in model.named_modules()
        if name.startswith(blocks) and not isinstance(module, nn.modules.conv._ConvNd)
        if any(own.ndim > 2 for own in module.parameters(recurse=False))
    }
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(blocks) and (isinstance(module, nn.Linear) or is_transposed(module))
        if _part(name, blocks) not in mixed
    ]


def _part(name: str, blocks: str) -> str:
    """The part of a block in which a module is: `mlp` of `model.layers.3.mlp.experts`."""
    return [*name.removeprefix(blocks).split("."), ""][1]
