"""Quicker steps for engines that run adapters on a CPU, which vLLM does not compile.

vLLM gathers a copy of an adapter's factors for every token; here the tokens of one adapter are multiplied together.
Where nothing is compiled, its norms and rotations are chains of PyTorch operations; its own kernels for CPUs, which it
leaves unused then, are several times as fast. All results are the same up to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearn_eval.serving.patching import PATCHES, quicken_steps

if TYPE_CHECKING:
    from torch import nn

Rows = tuple[int, Tensor]  # an adapter's place, and the tokens of a step that have it


def quicken(model: nn.Module) -> list[str]:
    """Give the modules of an engine's model quicker steps; what is not as expected here stays as it is.

    Returns:
        The names of the classes, each once, whose modules are quicker now.
    """
    PATCHES["cpu-steps"].check()
    from vllm.lora.layers import BaseLayerWithLoRA
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    classes: dict[Any, Any] = {}
    methods: dict[Any, Any] = {}
    quicker = set()
    for module in model.modules():
        kind: Any = type(module)
        if isinstance(module, BaseLayerWithLoRA):
            kind = type(wrapper := getattr(module, "punica_wrapper", None))
            if kind is PunicaWrapperCPU:
                classes[wrapper] = grouped_class()
                quicker.add(kind.__name__)
        elif kind is RMSNorm and module.has_weight and module.variance_size_override is None and _is_native(module):
            methods[module] = MethodType(_normed, module)
            quicker.add(kind.__name__)
        elif isinstance(module, RotaryEmbedding) and _is_native(module):
            own, steps = RotaryEmbedding, ("forward_native", "forward_cuda")
            if all(getattr(kind, step) is getattr(own, step) for step in steps):
                methods[module] = module.forward_cuda  # which calls the kernel that CPUs have too
                quicker.add(kind.__name__)
    quicken_steps(classes, methods)
    return sorted(quicker)


def _is_native(module: nn.Module) -> bool:
    """Whether a module runs its chain of operations, and nothing that was compiled or put there."""
    return module._forward_method in (module.forward_native, module.forward_cpu)


def _normed(self: Any, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """`RMSNorm` by vLLM's kernel."""
    weight, kernels = self.weight.data, torch.ops._C
    if weight.dtype != x.dtype or not x.is_contiguous() or not (residual is None or residual.is_contiguous()):
        return self.forward_native(x, residual)  # type: ignore[no-any-return]
    if residual is not None:
        kernels.fused_add_rms_norm(x, residual, weight, self.variance_epsilon)
        return x, residual
    out = torch.empty_like(x)
    kernels.rms_norm(out, x, weight, self.variance_epsilon)
    return out


@functools.cache
def grouped_class() -> Any:
    """The class of what applies adapters in an engine on a CPU, made when vLLM is there."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    class GroupedPunicaCPU(PunicaWrapperCPU):  # type: ignore[misc]
        """vLLM's adapters on a CPU, with one product for each adapter of a step."""

        _rows: list[Rows] | None = None

        def update_metadata(self, *arguments: object, **options: object) -> None:
            self._rows = None
            super().update_metadata(*arguments, **options)

        def add_lora_linear(
            self,
            y: Tensor,
            x: Tensor,
            lora_a_stacked: Sequence[Tensor],
            lora_b_stacked: Sequence[Tensor],
            scale: float,
            output_slices: Sequence[int],
            **options: object,
        ) -> None:
            """Adds scale · x (T, inputs) Aᵀ Bᵀ to y (T, outputs); the inner product is kept in float32."""
            if self._rows is None:
                self._rows = rows_of(self.token_lora_indices)
            for adapter, rows in self._rows:
                own, start = x[rows].float(), 0
                for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                    found = own @ a[adapter, 0].float().T @ b[adapter, 0].float().T
                    y[:, start : start + width].index_add_(0, rows, found.to(y.dtype), alpha=scale)
                    start += width

    return GroupedPunicaCPU


def rows_of(adapters: Tensor) -> list[Rows]:
    """Each adapter's tokens, of a step's (T,) adapters; -1 is a token without one."""
    order = adapters.argsort(stable=True)
    places, counts = torch.unique_consecutive(adapters[order], return_counts=True)  # type: ignore[no-untyped-call]
    groups = torch.split(order, counts.tolist())
    return [(place, rows) for place, rows in zip(places.tolist(), groups, strict=True) if place >= 0]
