"""The worker of an engine with a memory edit (`worker_cls`): vLLM's own for the platform, and its runner is watched.

Of prefixes it takes vectors in the places of tokens, which vLLM's workers do not unless they are told.

`RoutedWorker` is made when vLLM asks for it, since vLLM knows its own worker's class only then.
"""

from __future__ import annotations

import functools
from typing import Any

from unlearn_eval.serving.door import OWN, VECTORS
from unlearn_eval.serving.patching import watch_steps
from unlearn_eval.serving.routed_model import rest, step
from unlearn_eval.serving.worker import WorkerExtension
from unlearn_eval.utils.errors import UserError


def __getattr__(name: str) -> Any:
    if name != "RoutedWorker":
        raise AttributeError(name)
    return _routed(_stock())


def _stock() -> Any:
    """VLLM's worker for this platform."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        return CPUWorker
    if current_platform.is_cuda_alike():
        from vllm.v1.worker.gpu_worker import Worker

        return Worker
    raise UserError(
        f"memory edits are not served on {current_platform.device_name or 'this platform'}",
        "serve them on a GPU of NVIDIA or AMD, or on a CPU",
    )


@functools.cache
def _routed(stock: Any) -> Any:
    class RoutedWorker(stock, WorkerExtension):  # type: ignore[misc]  # a base already, so vLLM does not mix it in again
        """vLLM's worker, whose V1 model runner tells the memory edit of each step."""

        def init_device(self) -> None:
            own = (self.vllm_config.additional_config or {}).get(OWN) or {}
            if own.get(VECTORS):  # of the worker alone: to the front end, embeddings of clients stay refused
                self.model_config.enable_prompt_embeds = True
            super().init_device()
            watch_steps(self.model_runner, step, rest)

    return RoutedWorker
