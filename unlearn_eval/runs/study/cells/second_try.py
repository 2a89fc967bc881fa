"""A cell whose edit ran out of memory is edited once more, with a setting that takes less and changes no number."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

from unlearn_eval.editing.editor import get_editor
from unlearn_eval.edits.load import AnyEdit
from unlearn_eval.runs.memory import choices
from unlearn_eval.utils.errors import is_out_of_memory
from unlearn_eval.utils.settings import configure

SAME_NUMBERS = {"target.tokens_per_batch", "tokens_per_batch", "gradient_checkpointing"}  # but for rounding


def less_memory(editor: str, settings: Mapping[str, str]) -> dict[str, str]:
    """The first setting of a plan's choices that changes no number and is not given already; none if there is no such.

    Rows per forward pass have become one by then: whatever runs out of memory halves them by itself.
    """
    for choice in choices("", configure(get_editor(editor).Config, settings)):
        if choice.settings and choice.settings.keys() <= SAME_NUMBERS - settings.keys():
            return dict(choice.settings)
    return {}


def ran_out(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is that memory ran out."""
    return error is not None and (is_out_of_memory(error) or ran_out(error.__cause__))


def at_most_twice(
    make: Callable[[Mapping[str, str]], AnyEdit], editor: str, settings: Mapping[str, str], say: Callable[[str], Any]
) -> tuple[AnyEdit, str | None]:
    """An edit, and what was set for the second try if there was one.

    Args:
        make: function from settings to the edit.
        editor: the method.
        settings: its settings, as text.
        say: told of the second try.

    Raises:
        Exception: what `make` raises, if memory is not what was wanting, or no setting takes less.
    """
    try:
        return make(settings), None
    except Exception as error:
        less = less_memory(editor, settings) if ran_out(error) else {}
        if not less:
            raise
    gc.collect()
    _empty_cache()
    words = ", ".join(f"{name}={value}" for name, value in less.items())
    say(f"out of memory: once more with {words}")
    return make({**settings, **less}), words


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
