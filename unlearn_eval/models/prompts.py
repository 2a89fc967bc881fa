"""From text to token ids, once: the seam between prompt and answer, the end token.

These are the steps of a tokenizer; `prompt_format.PromptFormat` joins them, and is what other parts are given. There is
exactly one BOS, and after that only ids: text is never encoded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_QUESTION = "Question: {question}\nAnswer:"
PLAIN_DELIMITER = " "
_SENTINEL = "§answer§"

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Labels:
    """What a model has to say after a prompt, as ids.

    Attributes:
        ids: the answer's tokens, then exactly one end token.
        n_answer: how many of `ids` are the answer's own (`len(ids) - 1`, except in compatibility modes).
        text: the answer as it is compared with other texts.
    """

    ids: tuple[int, ...]
    n_answer: int
    text: str


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer carries a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def encode_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt's ids with exactly one BOS, whether or not the template has already written one."""
    bos = str(getattr(tokenizer, "bos_token", None) or "")
    starts_with_bos = bool(bos) and text.startswith(bos)
    ids = list(tokenizer.encode(text, add_special_tokens=not starts_with_bos))
    eos = getattr(tokenizer, "eos_token_id", None)
    if len(ids) > 1 and ids[-1] == eos and not text.endswith(str(getattr(tokenizer, "eos_token", None))):
        ids.pop()  # a few tokenizers close every text; a prompt is not closed
    return ids


def encode_answer(
    prompt: str, prompt_ids: Sequence[int], answer: str, tokenizer: PreTrainedTokenizerBase, encode: Encode
) -> list[int]:
    """The ids of `answer` as they follow `prompt_ids`.

    The whole text is encoded and cut where the prompt ends, if the prompt's ids are a prefix of it. Where a
    token spans the seam they are not, and the answer is encoded alone, so that none of its tokens is lost.
    """
    whole = encode(prompt + answer)
    if whole[: len(prompt_ids)] == list(prompt_ids):
        return whole[len(prompt_ids) :]
    return list(tokenizer.encode(answer, add_special_tokens=False))


def end_of_turn(tokenizer: PreTrainedTokenizerBase, **template_options: object) -> tuple[str, int]:
    """What the chat template writes after an assistant's answer: its whole text, and its first special token.

    Templates differ in what follows the end of the turn (a newline, a second end token); the label that a
    model has to predict is the first special token, e.g. `<|im_end|>` or `<|eot_id|>`. Without one it is the
    end of sequence.
    """
    suffix = after_answer(tokenizer, template_options)
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    for token in tokenizer.encode(suffix, add_special_tokens=False):
        if token in special:
            return suffix, int(token)
    return suffix, int(tokenizer.eos_token_id)


def up_to_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """What stands before the first of the end tokens; everything, if none of them is there."""
    return list(ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))])


def after_answer(tokenizer: PreTrainedTokenizerBase, template_options: Mapping[str, Any]) -> str:
    """What the chat template writes after an assistant's answer."""
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": _SENTINEL}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, **template_options))
    return text.partition(_SENTINEL)[2]
