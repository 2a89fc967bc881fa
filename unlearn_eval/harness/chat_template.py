"""A model's chat template as our tasks use it: the system message is in its place, and traces are told from answers.

lm-eval hands a task the template as a function (`lm.apply_chat_template`), or `plan` makes one of an edit's folder.
Both become a `ChatTemplate`, which also says whether the model thinks before it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from unlearn_eval.data.shapes import cut
from unlearn_eval.harness.instances import stops_of
from unlearn_eval.models.prompt_format import with_system
from unlearn_eval.models.thinking import AS_IS, DECODINGS, NONE, Spoken, Thinking, thinking_of
from unlearn_eval.utils.errors import UserError, unknown_name

THINKING, BUDGET = "thinking", "thinking_tokens"  # keys of a run's metadata: the decoding; the longest trace
TRACE_TOKENS = 512
PROBABILITY = "of the answer after an empty trace"
_UNLIMITED = 10**9  # a tokenizer that knows no length says a larger number


@dataclass(frozen=True)
class ChatTemplate:
    """A template that can be called as lm-eval calls it.

    Attributes:
        render: makes a text of messages.
        tokenizer: whose template it is; None if that is not known.
        arguments: further arguments of the template.
        max_length: the tokens that fit the model's context; None if that is not known.
    """

    render: Callable[..., Any]
    tokenizer: Any = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    max_length: int | None = None

    @classmethod
    def of(cls, template: Callable[..., Any]) -> ChatTemplate:
        """The template that lm-eval has handed over, usually a method of its model."""
        if isinstance(template, cls):
            return template
        lm = getattr(template, "__self__", None)
        length = getattr(lm, "max_length", None)
        length = length if isinstance(length, int) and length < _UNLIMITED else None
        arguments = dict(getattr(lm, "chat_template_args", None) or {})
        if (thinks := getattr(lm, "enable_thinking", None)) is not None:  # vLLM's model keeps it apart
            arguments["enable_thinking"] = thinks
        return cls(template, getattr(lm, "tokenizer", None), arguments, length)

    def __call__(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> Any:
        """The messages' text; a system message that the template drops is folded into the first user's."""
        return with_system(partial(self.render, add_generation_prompt=add_generation_prompt), messages)

    @cached_property
    def thinking(self) -> Thinking | None:
        """How the template marks a trace; None if it marks none."""
        return None if self.tokenizer is None else thinking_of(self.tokenizer)


@dataclass
class Decoder:
    """How the answers of one run are decoded, of a model that thinks.

    Attributes:
        thinking: the model's markers.
        tokenizer: the model's tokenizer.
        decoding: one of `DECODINGS`, for questions that name none.
        budget: the most tokens of a trace.
        prompt: the end of a prompt of the run, where the model's turn starts.
    """

    thinking: Thinking
    tokenizer: Any
    decoding: str = AS_IS
    budget: int = TRACE_TOKENS
    prompt: str = ""

    def added(self, decoding: str | None) -> str | None:
        """What is added to a prompt; None if the prompt leaves no choice."""
        return self.thinking.continued(self.prompt, decoding or self.decoding)

    @property
    def empty(self) -> str:
        """What is added to a prompt before an answer that is scored."""
        return self.thinking.continued(self.prompt, NONE) or ""

    def generation(self, settings: Mapping[str, Any], decoding: str | None) -> dict[str, Any]:
        """Settings of a generation; as it is, a trace comes first, and where to stop holds for the answer alone."""
        if not self.thinks(decoding):
            return dict(settings)
        return {**settings, "until": [], "max_gen_toks": int(settings.get("max_gen_toks", 0)) + self.budget}

    def thinks(self, decoding: str | None) -> bool:
        """Whether a decoding lets the model think."""
        return (decoding or self.decoding) == AS_IS and not self.thinking.over(self.prompt)

    def spoken(self, text: str, settings: Mapping[str, Any], decoding: str | None) -> Spoken:
        """A generation's trace and answer; the answer ends where it would have ended without a trace."""
        if not self.thinks(decoding):
            return Spoken("", text)
        found = self.thinking.split(self.prompt, text)
        answer = cut(found.answer, stops_of(settings))
        longest = settings.get("max_gen_toks")
        ids = self.tokenizer.encode(answer, add_special_tokens=False) if longest else []
        if longest and len(ids) > int(longest):
            answer = str(self.tokenizer.decode(ids[: int(longest)]))
        return Spoken(found.trace, answer, found.finished)

    @property
    def record(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "markers": [self.thinking.opening, self.thinking.closing],
            "decoding": self.decoding,
            "switched_off": self.thinking.over(self.prompt),
            "max_trace_tokens": self.budget,
            "probability": PROBABILITY,
        }


def decoder_of(template: ChatTemplate | None, metadata: Mapping[str, Any], longest: int) -> Decoder | None:
    """How a run's answers are decoded; None of a model that does not think, or is not asked as a chat.

    Args:
        template: through which questions go; None if they go through none.
        metadata: of the run.
        longest: the most tokens of an answer.

    Raises:
        UserError: an unknown decoding, a decoding for a model that does not think, or a trace that is too long for it.
    """
    wanted, budget = metadata.get(THINKING), metadata.get(BUDGET)
    if wanted is not None and wanted not in DECODINGS:
        raise unknown_name("decoding (thinking)", str(wanted), DECODINGS)
    thinking = None if template is None else template.thinking
    if template is None or thinking is None:
        if named := [key for key in (THINKING, BUDGET) if metadata.get(key) is not None]:
            why = "the prompts go through no chat template" if template is None else "its template marks no trace"
            raise UserError(f"{named[0]} is given for a model that does not think: {why}", f"leave out {named[0]}")
        return None
    room = None if template.max_length is None else template.max_length // 2 - longest
    if budget is not None and room is not None and budget > room:
        raise UserError(
            f"traces of {budget} tokens and answers of {longest} do not fit a context of {template.max_length}",
            f"give thinking_tokens {max(room, 0)} or less",
        )
    most = TRACE_TOKENS if budget is None else int(budget)
    return Decoder(thinking, template.tokenizer, wanted or AS_IS, most if room is None else max(min(most, room), 1))
