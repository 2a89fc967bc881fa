"""The type of lm-eval's models, for annotations in rooms that do not import lm_eval."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval.api.model import LM

__all__ = ["LM"]
