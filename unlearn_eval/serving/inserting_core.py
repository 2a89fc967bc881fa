"""What an engine's core does first: a memory edit that inserts is read there, and all requests pass it.

An engine with such an edit names `scheduler` as the class of its scheduler (`scheduler_cls`). So this runs in the
core's own process, before any request, and an engine that cannot run it does not start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.serving.door import OWN, rules_of
from unlearn_eval.serving.inserted import Inserting, load_inserting
from unlearn_eval.serving.patching import read_requests

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_at_work: dict[int, Inserting] = {}  # by the engine's number


def scheduler(*, vllm_config: VllmConfig, **options: Any) -> Any:
    """The scheduler of vLLM; requests that come to it have been read.

    Raises:
        UserError: the edit's encoder cannot be had, or this vLLM's requests come another way.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    config, rules = vllm_config.model_config, rules_of(vllm_config)
    scoring = rules is not None and rules.scoring
    edit = load_inserting(Path(config.model))
    _at_work[_number(vllm_config)] = Inserting(edit, config.dtype, config.max_model_len, scoring)
    read_requests(_reading)
    stock = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler
    return stock(vllm_config=vllm_config, **options)


def _number(vllm_config: VllmConfig) -> int:
    return int(vllm_config.additional_config[OWN]["number"])


def _reading(preprocess: Any) -> Any:
    def preprocess_add_request(self: Any, request: Any) -> Any:
        rules = rules_of(self.vllm_config)
        if rules is not None and rules.inserts:
            request = _at_work[_number(self.vllm_config)](request)
        return preprocess(self, request)

    return preprocess_add_request
