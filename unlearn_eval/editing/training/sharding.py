"""A model shared out over processes while it is trained: each holds a part of its weights, gradients and optimizer.

PyTorch's FSDP2 puts each block together while it is computed. Afterwards the model is the object that it was, with its
own parameters.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn_eval.models.anatomy import blocks_of
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_launch(shard: bool) -> None:
    """Refuse a launch that does not fit the settings, before anything is written or computed.

    Raises:
        UserError: Accelerate is to share the model out itself, or `shard` is set and there is one process only.
    """
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise UserError(
                f"Accelerate was told to share the model out by {name}, which leaves the run without its weights",
                "start without it, and give --set shard=true (FSDP2)",
            )
    if shard and int(os.environ.get("WORLD_SIZE", 1)) < 2:
        raise UserError(
            "shard=true shares a model out over processes, and there is one",
            "start as many as there are GPUs: torchrun --nproc_per_node 4 $(which unlearn-eval) edit ...",
        )


@contextmanager
def sharded(model: PreTrainedModel) -> Iterator[None]:
    """Share a model out over all processes; afterwards each has the whole of it again, with the values it has by then.

    A model that lies on the host is taken to the GPUs block by block, where there are any.
    """
    from accelerate import PartialState
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    state = PartialState(cpu=not torch.cuda.is_available())
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    modules = [(own, type(own), dict(own._parameters), set(own.__dict__)) for own in model.modules()]
    homes = {parameter: parameter.device for parameter in model.parameters()}
    blocks = model.get_submodule(blocks_of(model).blocks)
    for block in (*blocks, model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    for parameter in homes:  # the whole of it, of which FSDP has taken a part
        parameter.data = parameter.data.new_empty(0)
    try:
        yield
    finally:
        done: set[Tensor] = set()
        for module, _, parameters, _ in modules:
            for name, parameter in parameters.items():
                if parameter is not None and parameter not in done:
                    parameter.data = whole(module._parameters[name].detach()).to(homes[parameter])
                    done.add(parameter)
        for module, kind, parameters, names in modules:
            module._parameters.update(parameters)
            module.__class__ = kind
            for name in set(module.__dict__) - names:
                del module.__dict__[name]
            _strike_off(module)


def _strike_off(module: nn.Module) -> None:
    """Take a module off PyTorch's list of those that are shared out; there is no public way to share one out twice."""
    from torch.distributed import _composable_state

    states: Any = getattr(_composable_state, "_module_state_mapping", {})
    states.pop(module, None)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process has a part, put together; all processes have to ask. Others as they are."""
    return tensor.full_tensor() if is_shared(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if is_shared(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Set a tensor to values that every process has whole."""
    if not is_shared(tensor):
        tensor.copy_(values)
        return
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(tensor, DTensor) and tensor.placements == (Shard(0),)  # noqa: PT018 (as FSDP2 has them)
    rank, processes = tensor.device_mesh.get_local_rank(), tensor.device_mesh.size()
    parts = values.chunk(processes)
    if rank < len(parts):  # of fewer rows than processes some have none
        tensor.to_local().copy_(parts[rank])


def is_shared(tensor: Tensor) -> bool:
    """Whether each process has a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether this process's parts of tensors are numbers."""
    return all(bool(torch.isfinite(own_part(own)).all()) for own in tensors)


@torch.no_grad()
def whole_copy(module: nn.Module) -> Any:
    """A module with tensors of its own, each whole; nothing of it is trained."""
    made = copy.deepcopy(module)
    for name, parameter in module.named_parameters(recurse=False):
        made._parameters[name] = nn.Parameter(whole(parameter.detach()).clone(), requires_grad=False)
    return made.requires_grad_(False)
