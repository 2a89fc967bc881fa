"""Where the prompt of each row ends, for whatever decides something there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT_END = "prompt_end"  # in a request to an engine for scoring (extra_args): how many of its tokens are the prompt


ROUTER = "unlearn_eval_router"  # attribute of a model whose memory edits ask for prompts


def said_prompt_end(sampling: Any, n: int) -> int | None:
    """How many of the n tokens of a request to an engine are its prompt, if it says what can be; else None.

    This runs within an engine's step, where an error would end the engine, so it raises none.
    """
    given = getattr(sampling, "extra_args", None)
    end = given.get(PROMPT_END) if isinstance(given, Mapping) else None
    return end if is_prompt_end(end, n) else None


def is_prompt_end(value: Any, n: int) -> bool:
    """Whether a prompt of n tokens can end after so many."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= n


@dataclass(frozen=True)
class PromptEnds:
    """Where the prompts of the rows end: after `lengths[r]` tokens, or within the first `width` columns."""

    lengths: tuple[int, ...] | None = None
    width: int | None = None


PROMPT: ContextVar[PromptEnds | None] = ContextVar("unlearn_eval_prompt", default=None)


@contextmanager
def prompt_lengths(lengths: Sequence[int]) -> Iterator[None]:
    """Say how many tokens of each row are the prompt (padding not counted), for the forward passes in this block.

    A pass may hold a part of it: what is still missing comes in a later pass on the same cache.

    Raises:
        UserError: a prompt without tokens.
    """
    if any(n < 1 for n in lengths):
        raise UserError("a prompt needs at least one token, at which a memory decides", "give each row a first token")
    token = PROMPT.set(PromptEnds(lengths=tuple(int(n) for n in lengths)))
    try:
        yield
    finally:
        PROMPT.reset(token)


def needs_whole_prompts(model: PreTrainedModel) -> bool:
    """Whether a memory edit in the model wants each prompt in one forward pass (false without one)."""
    found = getattr(model, ROUTER, None)
    return found is not None and bool(found.needs_whole_prompts)


def refuse_inserted(model: Any) -> None:
    """Refuse to look into a model that reads more tokens than it is given.

    Raises:
        UserError: an edit in it inserts text into prompts.
    """
    if getattr(getattr(model, ROUTER, None), "inserts", False):
        raise UserError(
            "notes or prefixes are in this model, so its hidden states are of more tokens than the prompt's",
            "look into the base model: they leave it unchanged",
        )
