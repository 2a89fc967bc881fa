"""Where an engine of vLLM runs, and how it ends."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from unlearn_eval.utils.provenance import usable_cores

_THREADS = ("EngineCoreOutputQueueThread", "MPClientEngineMonitor")  # of vLLM's that wait for its engine's process
_PATIENCE = 10.0  # seconds
_APART = "VLLM_ENABLE_V1_MULTIPROCESSING"  # whether an engine has processes of its own
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
_MANY_CPUS = 8


@contextlib.contextmanager
def engine_here(options: Mapping[str, Any]) -> Iterator[None]:
    """Within this, an engine of vLLM that is started on few CPUs is in this process, unless the user says where.

    vLLM starts two processes for an engine. Both have everything to import, and of a CPU's cores the one that computes
    leaves one to the other: of two cores, half.

    Args:
        options: of the engine. One that is parallel has its own processes.
    """
    parallel = any(str(options.get(name, 1)) != "1" for name in _PARALLEL)
    here = not parallel and _APART not in os.environ and _on_few_cpus()
    if here:
        os.environ[_APART] = "0"
    try:
        yield
    finally:
        if here:
            del os.environ[_APART]


def _on_few_cpus() -> bool:
    if importlib.util.find_spec("vllm") is None:
        return False  # which is said where it is needed
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu()) and (usable_cores() or _MANY_CPUS) < _MANY_CPUS


@contextlib.contextmanager
def engine_stopped(lm: Any) -> Iterator[None]:
    """Within this, lm-eval's model answers; afterwards its engine, if it has one, is stopped.

    Left to the end of the process, vLLM's threads may be cut off inside C++ while Python ends, which aborts a process
    whose work is done ("terminate called without an active exception").
    """
    try:
        yield
    finally:
        engine = getattr(getattr(lm, "model", None), "llm_engine", None)
        if engine is not None:
            engine.engine_core.shutdown()
            if hasattr(engine.engine_core, "engine_core"):  # in this process, where another may follow
                from vllm.distributed import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()
            for thread in threading.enumerate():
                if thread.name in _THREADS:
                    thread.join(_PATIENCE)
