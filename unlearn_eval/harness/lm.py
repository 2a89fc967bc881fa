"""lm-eval's models: their type, for annotations in rooms that do not import lm_eval, and the precision they run in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.model import LM

__all__ = ["LM", "autocast"]


def autocast(lm: Any) -> AbstractContextManager[Any]:
    """The mixed precision that the model was asked to run in."""
    import torch

    if lm.mixed_precision_dtype is None:
        return nullcontext()
    return torch.autocast(lm.device.type, dtype=lm.mixed_precision_dtype)
