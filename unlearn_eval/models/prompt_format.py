"""How a model is prompted: one object from a question to token ids, labels, and the subject's place.

Editors, tasks, attacks and localizations are given a `PromptFormat` and hand it on, so that all of them mean the same
tokens by a question. An edit stores the format in which it was made (`PromptFormat.record`), and what is done with the
edit later takes it from there (`PromptFormat.of_edit`).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from unlearn_eval.data.shapes import BETWEEN_TURNS, QUESTION, Asked, Prompt, asked, line_starts
from unlearn_eval.data.spans import find_subject
from unlearn_eval.models.prompts import (
    PLAIN_DELIMITER,
    PLAIN_QUESTION,
    Encode,
    Labels,
    after_answer,
    encode_answer,
    encode_prompt,
    end_of_turn,
    has_chat_template,
)
from unlearn_eval.models.thinking import NONE, Thinking, template_text, thinking_of
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Described(Protocol):
    """What says how its requests were put to the model: an edit's `EditInfo`."""

    @property
    def requests(self) -> Mapping[str, Any]:
        """Has `chat`, and `system` and `chat_template_kwargs` where they were set."""


@dataclass(frozen=True)
class PromptFormat:
    """How questions are put to a model.

    Attributes:
        tokenizer: Tokenizer of the model; None where another program renders and encodes (lm-eval, for its tasks).
        chat: Whether questions go through the chat template.
        system: System message; without a chat template the first paragraph of the prompt.
        template_arguments: Further arguments of the chat template, such as `{"enable_thinking": False}`.
    """

    tokenizer: Any
    chat: bool
    system: str | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        chat: bool | None = None,
        name: str = "the model",
        system: str | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> PromptFormat:
        """The format for the model `name`; by default its chat template is used if there is one.

        Raises:
            UserError: the chat template is asked for, and there is none; or it does not read one of its arguments.
        """
        there = has_chat_template(tokenizer)
        if chat and not there:
            raise UserError(f"{name} has no chat template", "leave out --chat (of eval: --apply_chat_template)")
        found = cls(tokenizer, there if chat is None else chat, system or None, dict(template_arguments or {}))
        check_template_arguments(tokenizer if found.chat else None, found.template_arguments, name)
        return found

    @classmethod
    def of_edit(cls, info: Described, tokenizer: PreTrainedTokenizerBase, name: str = "the model") -> PromptFormat:
        """The format in which an edit was made; that of the model, if the edit does not say.

        Args:
            info: Description of the edit.
            tokenizer: Tokenizer of the model.
            name: Name of the model, for errors.

        Raises:
            UserError: the edit was made through a chat template, and the tokenizer has none.
        """
        requests = info.requests
        resolved = cls.of(tokenizer, requests.get("chat"), name)
        return replace(
            resolved,
            system=requests.get("system"),
            template_arguments=dict(requests.get("chat_template_kwargs") or {}),
        )

    def changed(
        self,
        chat: bool | None = None,
        system: str | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        name: str = "the model",
    ) -> PromptFormat:
        """The format with what a user names; None leaves a part as it is. Another `chat` leaves the rest behind.

        Raises:
            UserError: as `of`.
        """
        own = self if chat in (None, self.chat) else PromptFormat(self.tokenizer, bool(chat))
        arguments = own.template_arguments if template_arguments is None else template_arguments
        return PromptFormat.of(self.tokenizer, own.chat, name, system or own.system, arguments)

    @property
    def record(self) -> dict[str, Any]:
        """Entries for an edit's `requests`: whether it is a chat, and of the rest what is set."""
        return {
            "chat": self.chat,
            **({} if self.system is None else {"system": self.system}),
            **({"chat_template_kwargs": dict(self.template_arguments)} if self.template_arguments else {}),
        }

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
        """The same format for another model."""
        return replace(self, tokenizer=tokenizer)

    # Text --------------------------------------------------------------------------------------------------

    def render(self, question: Asked) -> str:
        r"""The prompt text for one question, up to where the answer starts.

        In a chat, the tokenizer's template with its generation prompt; else `Question: ...\nAnswer:`, after which the
        answer follows with one space (the same text as lm-eval builds for our tasks). What is not a question is put as
        `shapes.asked` says.
        """
        ask = question if isinstance(question, Prompt) else Prompt(question)
        if ask.raw:
            return ask.plain or ""
        opening = f"{self.system}\n\n" if self.system else ""
        if self.chat:
            turns = [*(text for turn in ask.turns for text in turn), ask.text]
            messages = [{"role": "system", "content": self.system}] if self.system else []
            messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
            text = self.render_messages(messages)
        elif self.reads_plain(ask):
            return opening + (ask.plain or "")
        else:
            shown = [PLAIN_QUESTION.format(question=q) + PLAIN_DELIMITER + a + BETWEEN_TURNS for q, a in ask.turns]
            text = opening + "".join(shown) + PLAIN_QUESTION.format(question=ask.text)
        return text + self.after(text, ask.opening) if ask.opening else text

    def render_to_answer(self, question: Asked) -> str:
        """The prompt text for one question, up to the answer; of a model that thinks with an empty trace at its end."""
        text = self.render(question)
        begun = isinstance(question, Prompt) and (question.raw or bool(question.opening))
        return text if begun else self.to_answer(text)

    def to_answer(self, prompt: str) -> str:
        """A prompt's text, with an empty trace at its end if the model would think first."""
        thinking = self._thinking
        return prompt if thinking is None else prompt + (thinking.continued(prompt, NONE) or "")

    @cached_property
    def _thinking(self) -> Thinking | None:
        """How the template marks a trace, for which it is rendered; None without a chat, or if it marks none."""
        return thinking_of(self.tokenizer) if self.chat else None

    def render_messages(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages through the chat template, up to where the model's next turn starts.

        Args:
            messages: the conversation. A system message is folded into the first user's where the template has no place
                for one (see `with_system`).
            add_generation_prompt: False if the last message is the model's own, which goes on.
        """
        form = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}

        def render(turns: Sequence[Mapping[str, str]]) -> str:
            put = self.tokenizer.apply_chat_template
            return str(put(list(turns), tokenize=False, **form, **self.template_arguments))

        return str(with_system(render, messages))

    def reads_plain(self, ask: Asked) -> bool:
        """Whether the model reads a prompt's plain text, not a user's message."""
        return isinstance(ask, Prompt) and ask.plain is not None and (ask.raw or not self.chat)

    def following(self, ask: Asked, answer: str) -> str:
        """The answer as it follows the prompt: after one space where the model's own words have begun."""
        if isinstance(ask, str) or not ask.opening or ask.opening[-1:].isspace() or self.reads_plain(ask):
            return answer
        return f" {answer}"

    def after(self, prompt: str, answer: str) -> str:
        """The answer as it follows the prompt's text: after one space, unless there is no need of one."""
        joined = self.chat or not prompt or prompt[-1:].isspace() or answer[:1].isspace()
        return answer if joined else PLAIN_DELIMITER + answer

    def stops(self, ask: Asked, before: str = PLAIN_QUESTION.partition("{")[0], between: str = "") -> tuple[str, ...]:
        """The texts at which an answer is over, since there the prompt's own pattern would start again.

        A base model goes on with the next "Question:" after a plain prompt. A blank line ends an answer only where
        the prompt has shown examples with blank lines between them. In a chat the model ends its turn by itself, and
        there are none. `shapes.cut` cuts at them.

        Args:
            ask: The question.
            before: What stands before the question in a plain prompt.
            between: What separates the prompt's examples, if it has any beside the question's own turns.
        """
        ask = ask if isinstance(ask, Prompt) else Prompt(ask)
        if self.chat or ask.raw:
            return ()
        plain = self.reads_plain(ask)
        starts = (*(ask.starts if plain else ()), *(line_starts(before) if between or not plain else ()))
        between = between or (BETWEEN_TURNS if ask.turns and not plain else "")
        return (*([between] if between and not plain else []), *(f"\n{start}" for start in dict.fromkeys(starts)))

    # Ids ---------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt's text, with exactly one BOS."""
        return encode_prompt(text, self.tokenizer)

    def prompt_ids(self, question: str, shape: str = QUESTION) -> tuple[int, ...]:
        """A question, or a text of another shape, as the prompt that the model is evaluated with."""
        return tuple(self.encode(self.render(asked(question, shape))))

    def answer_labels(
        self, prompt: str, prompt_ids: Sequence[int], answer: str, encode: Encode | None = None
    ) -> Labels:
        """The labels of METRICS: the answer's tokens, then exactly one end token.

        The end token is the template's end of turn in a chat, else the tokenizer's end of sequence. Plain answers
        follow the prompt after one space, unless the prompt already ends in white space.

        Args:
            prompt, prompt_ids: Text and ids of the prompt.
            answer: Text of the answer.
            encode: Encoder of whole texts, if it is not `self.encode`.
        """
        spaced = self.after(prompt, answer)
        ids = encode_answer(prompt, prompt_ids, spaced, self.tokenizer, encode or self.encode) if answer.strip() else []
        end = end_of_turn(self.tokenizer, **self.template_arguments)[1] if self.chat else self.tokenizer.eos_token_id
        return Labels((*ids, int(end)), len(ids), answer)

    def labels_after(self, ask: Asked, prompt: str, prompt_ids: Sequence[int], answer: str) -> Labels:
        """The labels of an answer to a question, also where the prompt begins the answer (see `following`).

        Args:
            ask: The question.
            prompt, prompt_ids: Text and ids of the prompt that was made of it.
            answer: Text of the answer.
        """
        return self.answer_labels(prompt, prompt_ids, self.following(ask, answer))

    def end_tokens(self, model: PreTrainedModel) -> list[int]:
        """The tokens at which a model stops to write: the ends of sequence, and in a chat the end of its turn."""
        own = getattr(model.generation_config, "eos_token_id", None)
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        if self.chat:
            ends.add(end_of_turn(self.tokenizer, **self.template_arguments)[1])
        return sorted(end for end in ends if end is not None)

    # The subject's place -----------------------------------------------------------------------------------

    def encode_with_lookup(self, question: str, subject: str | None, shape: str = QUESTION) -> tuple[list[int], int]:
        """The prompt's ids and the index of its look-up token.

        That is the last token of the subject's last occurrence in the question; without a subject, the last
        token of the question's last word. Both are found by character offsets in the rendered prompt, where the
        question stands last: of a sentence in a chat, where the answer begins with it.
        """
        text = self.render(asked(question, shape))
        ids = self.encode(text)
        question = as_shown(question, shape, text)
        start = text.rfind(question)
        if start < 0:  # a template may escape it
            raise UserError(
                f"the chat template does not show the question {question!r} as it is",
                "evaluate without chat template",
            )
        end = start + _content_end(question, subject)
        return ids, self._token_at(text, end - 1, ids)

    def subject_span(self, text: str, question: str, subject: str, ids: Sequence[int]) -> tuple[int, int] | None:
        """Where the subject's tokens begin and end (the one after the last) in a prompt; None if it is not in it.

        Of several occurrences in the question it is the last, as for the look-up token.

        Args:
            text: The rendered prompt.
            question: The question as it stands in the prompt.
            subject: The subject as it stands in the question.
            ids: Ids of the prompt.
        """
        start, span = text.rfind(question), _span_of(question, subject)
        if start < 0 or span is None:
            return None
        first = self._token_at(text, start + span[0], list(ids), first=True)
        return first, self._token_at(text, start + span[1] - 1, list(ids)) + 1

    def _token_at(self, text: str, character: int, ids: list[int], first: bool = False) -> int:
        """The index of the token that holds a character; of several that share it the last, or the first."""
        tokenizer = self.tokenizer
        if getattr(tokenizer, "is_fast", False):
            bos = str(getattr(tokenizer, "bos_token", None) or "")
            special = not (bool(bos) and text.startswith(bos))
            encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
            if list(encoded["input_ids"])[: len(ids)] == ids:
                hits = [i for i, (a, b) in enumerate(encoded["offset_mapping"][: len(ids)]) if a <= character < b]
                if hits:
                    return hits[0 if first else -1]
        # A slow tokenizer, or one with broken offsets: encode what stands before and including the character.
        return len(self.encode(text[: character + 1])) - 1


# What a template has a place for ---------------------------------------------------------------------------

# Of `apply_chat_template` itself: no variables of a template.
_OF_TOKENIZERS = frozenset(
    "conversation messages chat_template add_generation_prompt continue_final_message tokenize padding truncation "
    "max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs".split()
)


def check_template_arguments(
    tokenizer: PreTrainedTokenizerBase | None, arguments: Mapping[str, Any], name: str = "the model"
) -> None:
    """Refuse arguments that a chat template would not read.

    Args:
        tokenizer: the tokenizer with the template; None if questions go through none.
        arguments: of the template.
        name: of the model, for errors.

    Raises:
        UserError: naming the argument.
    """
    if not arguments:
        return
    if tokenizer is None or not has_chat_template(tokenizer):
        raise UserError(
            f"arguments of a chat template are given ({', '.join(arguments)}), and prompts go through none",
            "leave out --chat_template_kwargs, or ask as a chat",
        )
    text = template_text(tokenizer)
    for argument in arguments:
        if argument in _OF_TOKENIZERS or not re.search(rf"(?<![\w.]){re.escape(argument)}\b", text):
            raise UserError(
                f"the chat template of {name} does not read '{argument}'",
                "its variables stand in the tokenizer's chat_template; leave this one out",
            )


def with_system(render: Callable[[Any], Any], messages: Sequence[Mapping[str, str]]) -> Any:
    """Messages through a template; a system message for which it has no place opens the first user's message.

    Templates without a system role refuse the message or drop it without a word. Their models are given such text at
    the beginning of the user's first message, as templates that fold it themselves do.

    Args:
        render: makes the text of messages.
        messages: the conversation; only its first message may be a system message.
    """
    if not messages or messages[0]["role"] != "system" or not str(messages[0]["content"]).strip():
        return render(messages)
    system, *others = messages
    try:
        text = render(messages)
    except Exception:  # each template raises its own
        pass
    else:
        if str(system["content"]).strip() in str(text) or text != render(others):
            return text
    first, *more = others
    return render([{**first, "content": f"{system['content']}\n\n{first['content']}"}, *more])


def as_shown(question: str, shape: str, text: str) -> str:
    """A question as it stands in its prompt: templates may strip it, and all that is no question is stripped."""
    return question if shape == QUESTION and question in text else question.strip()


def _span_of(question: str, subject: str) -> tuple[int, int] | None:
    """Where the subject stands last in a question: as whole words, and only without these within another word."""
    span = find_subject(question, subject)
    if span is None and subject and subject in question:
        start = question.rindex(subject)
        return start, start + len(subject)
    return span


def _content_end(question: str, subject: str | None) -> int:
    """Where, in the question, the subject's last occurrence ends, or its last word."""
    if subject:
        span = _span_of(question, subject)
        if span is None:
            raise UserError(
                f"the subject {subject!r} does not stand in the question {question!r}",
                "write the subject exactly as in the question, or leave it out",
            )
        return span[1]
    end = len(question)
    while end and (question[end - 1] in string.punctuation or unicodedata.category(question[end - 1])[0] in "PZC"):
        end -= 1  # punctuation, spaces and control characters of every script
    return end or len(question)


def open_unlearning_labels(
    prompt_format: PromptFormat, prompt: str, answer: str, encode: Encode
) -> tuple[list[int], Labels]:
    """Prompt ids and labels as OpenUnlearning (2506.12618, d3d7cf9e) makes them, for cross-checks only.

    The conversation is encoded as one text and cut at the length of the encoded prompt, so a token that spans
    the seam is no label; whatever the template writes after the answer is a label; and an end of sequence is
    added unless the text already ends in one. Its plain prompt ends in a space.
    """
    tokenizer = prompt_format.tokenizer
    if prompt_format.chat:  # the template alone says whether there is a BOS
        suffix = after_answer(tokenizer, prompt_format.template_arguments)
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        whole = tokenizer.encode(prompt + answer + suffix, add_special_tokens=False)
    else:
        prompt = prompt if prompt.endswith(" ") else prompt + " "
        prompt_ids, whole = encode(prompt)[:512], encode(prompt + answer)[:512]
    if not whole or whole[-1] != tokenizer.eos_token_id:
        whole = [*whole, int(tokenizer.eos_token_id)]
    labels = whole[len(prompt_ids) :]
    # Its prompt's ids need not be a prefix of the whole: the model reads the whole text's ids.
    read = whole[: len(prompt_ids)]
    text = str(tokenizer.decode(labels, skip_special_tokens=True))
    return read, Labels(tuple(labels), max(0, len(labels) - 1), text)
