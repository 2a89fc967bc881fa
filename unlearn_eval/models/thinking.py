"""Models that think before they answer: their markers, their decodings, and the split of a trace from an answer.

A thinking model is recognized by its chat template, which mentions the marker that ends a trace (`</think>`,
`[/THINK]`, `<|end_of_thought|>`, the channels of gpt-oss); its name plays no part. There are three decodings:

- `as_is`: the prompt is left as the template writes it, and the model thinks as it likes;
- `none`: the prompt continues with an empty trace;
- `short`: the prompt continues with one sentence as the whole trace.

A prompt may settle this itself: a template's arguments (`enable_thinking=False`) can write an empty trace already.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AS_IS, NONE, SHORT = "as_is", "none", "short"
DECODINGS = (AS_IS, NONE, SHORT)
SHORT_TRACE = "This needs no long thought; I can answer at once."
SWITCHED_OFF = "the prompt ends with an empty trace already: its template arguments switch thinking off"
_WORD = r"[\w:]*(?:think|thought|reason)\w*"
_SLASHED = re.compile(rf"([<\[◁])/({_WORD})([>\]▷])", re.IGNORECASE)
_NAMED = re.compile(rf"<\|(end_of_|end_)({_WORD})\|>", re.IGNORECASE)
_BEGINNINGS = {"end_of_": ("begin_of_", "start_of_"), "end_": ("start_", "begin_")}
_ANALYSIS, _FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
_BETWEEN_CHANNELS = "<|end|><|start|>assistant"


@dataclass(frozen=True)
class Spoken:
    """A generation in its two parts.

    Attributes:
        trace: what the model thought; empty if it did not think.
        answer: the rest; empty if the trace does not end.
        finished: whether the trace ends, or there is none.
    """

    trace: str
    answer: str
    finished: bool = True


@dataclass(frozen=True)
class Thinking:
    """How a model's template marks a trace.

    Attributes:
        opening, closing: the markers around it.
        empty: an empty trace as the template writes it where an answer is to follow at once.
        before_closing, after_closing: what stands between a trace and its closing marker, and before the answer.
    """

    opening: str
    closing: str
    empty: str
    before_closing: str = "\n"
    after_closing: str = "\n\n"

    def begun(self, prompt: str) -> bool:
        """Whether the model's turn has begun with an open trace."""
        return prompt.rstrip().endswith(self.opening)

    def over(self, prompt: str) -> bool:
        """Whether the model's turn has begun with a whole trace."""
        return prompt.rstrip().endswith(self.closing)

    def continued(self, prompt: str, decoding: str) -> str | None:
        """What a decoding adds to a prompt; None if the prompt leaves no choice.

        Args:
            prompt: up to where the model's turn starts.
            decoding: one of `DECODINGS`.
        """
        if decoding == AS_IS:
            return ""
        if self.over(prompt):
            return "" if decoding == NONE else None
        end = f"{self.before_closing}{self.closing}{self.after_closing}"
        if decoding == NONE:
            return end if self.begun(prompt) else self.empty
        start = "" if self.begun(prompt) else f"{self.opening}\n"
        return f"{start}{SHORT_TRACE}{end}"

    def split(self, prompt: str, text: str) -> Spoken:
        """The trace and the answer in what was generated after a prompt."""
        if self.over(prompt):
            return Spoken("", text)
        trace, closed, answer = text.rpartition(self.closing)
        if closed:
            return Spoken(self._bare(trace), answer.lstrip())
        if self.begun(prompt) or text.lstrip().startswith(self.opening):
            return Spoken(self._bare(text), "", finished=False)
        return Spoken("", text)

    def _bare(self, trace: str) -> str:
        return trace.strip().removeprefix(self.opening).removesuffix(_BETWEEN_CHANNELS).strip()


def thinking_of(tokenizer: PreTrainedTokenizerBase | None) -> Thinking | None:
    """The markers of a tokenizer's chat template; None if it mentions none."""
    text = template_text(tokenizer)
    if _ANALYSIS.partition("analysis")[0] in text and "analysis" in text and "final" in text:
        return Thinking(_ANALYSIS, _FINAL, _FINAL, _BETWEEN_CHANNELS, "")
    markers = _markers(text)
    if markers is None:
        return None
    opening, closing = markers
    usual = f"{opening}\n\n{closing}\n\n"
    return Thinking(opening, closing, _written_empty(tokenizer, text, closing) or usual)


def template_text(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """A tokenizer's chat templates as one text; empty if it has none."""
    found = getattr(tokenizer, "chat_template", None)
    return "\n".join(map(str, found.values())) if isinstance(found, Mapping) else str(found or "")


def _markers(text: str) -> tuple[str, str] | None:
    if slashed := _SLASHED.search(text):
        left, word, right = slashed.groups()
        return f"{left}{word}{right}", slashed.group()
    if named := _NAMED.search(text):
        beginnings = [f"<|{begin}{named[2]}|>" for begin in _BEGINNINGS[named[1].lower()]]
        beginnings += [mark.upper() for mark in beginnings]
        return next((mark for mark in beginnings if mark in text), beginnings[0]), named.group()
    return None


def _written_empty(tokenizer: PreTrainedTokenizerBase | None, text: str, closing: str) -> str | None:
    """What the template adds to a prompt when it is told not to think."""
    if not re.search(r"\benable_thinking\b", text):
        return None

    assert tokenizer is not None
    put = partial(tokenizer.apply_chat_template, [{"role": "user", "content": "q"}], tokenize=False)
    thinks, answers = (str(put(add_generation_prompt=True, enable_thinking=on)) for on in (True, False))
    added = answers.removeprefix(thinks)
    return added if answers.startswith(thinks) and closing in added else None


def special_markers(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of a trace's markers that a tokenizer takes for special tokens, and so leaves out of decoded text."""
    thinking = thinking_of(tokenizer)
    if thinking is None:
        return frozenset()
    marks = tokenizer.encode(thinking.opening + thinking.closing, add_special_tokens=False)
    return frozenset(marks) & frozenset(getattr(tokenizer, "all_special_ids", ()))


def decode_with_markers(decode: Callable[..., str], tokens: Sequence[int], markers: Collection[int]) -> str:
    """The text of token ids without special tokens, except for some.

    Args:
        decode: takes ids and `skip_special_tokens`.
        tokens: the ids.
        markers: ids of special tokens that stay.
    """
    parts, start = [], 0
    for i, token in enumerate(tokens):
        if token in markers:
            parts += [decode(tokens[start:i], skip_special_tokens=True), decode([token], skip_special_tokens=False)]
            start = i + 1
    return "".join([*parts, decode(tokens[start:], skip_special_tokens=True)])
