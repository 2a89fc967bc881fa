"""From text to token ids, once: the chat template, the seam between prompt and answer, the end token.

Every part that shows a question to a model (editors, tasks, servers) goes through here, so that all of them
mean the same tokens by it. There is exactly one BOS, and after that only ids: text is never encoded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_eval.data.shapes import QUESTION, Asked, Prompt, asked, following, reads_plain
from unlearn_eval.utils.errors import UserError

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


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer carries a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def resolve_chat(chat: bool | None, tokenizer: Any, name: str) -> bool:
    """Whether to ask the model `name` through its chat template; None does if there is one.

    Raises:
        UserError: it is asked for, and there is none.
    """
    there = has_chat_template(tokenizer)
    if chat and not there:
        raise UserError(f"{name} has no chat template", "leave out --chat")
    return there if chat is None else chat


def render(question: Asked, tokenizer: Any, chat: bool, system: str | None = None) -> str:
    r"""The prompt text for one question, up to where the answer starts.

    With `chat`, the tokenizer's template with its generation prompt; else `Question: ...\nAnswer:`, after
    which the answer follows with one space (the same text as lm-eval builds for our tasks). What is no question is put
    as `shapes.asked` says.
    """
    ask = question if isinstance(question, Prompt) else Prompt(question)
    if ask.raw:
        return ask.plain or ""
    if chat:
        said = [*(text for turn in ask.turns for text in turn), ask.text]
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    elif reads_plain(ask, chat):
        return (f"{system}\n\n" if system else "") + (ask.plain or "")
    else:
        shown = [PLAIN_QUESTION.format(question=q) + PLAIN_DELIMITER + a + "\n\n" for q, a in ask.turns]
        last = PLAIN_QUESTION.format(question=ask.text)
        text = (f"{system}\n\n" if system else "") + "".join(shown) + last
    return text + after(text, ask.opening, chat) if ask.opening else text


def encode_prompt(text: str, tokenizer: Any) -> list[int]:
    """The prompt's ids with exactly one BOS, whether or not the template has already written one."""
    bos = str(getattr(tokenizer, "bos_token", None) or "")
    starts_with_bos = bool(bos) and text.startswith(bos)
    ids = list(tokenizer.encode(text, add_special_tokens=not starts_with_bos))
    eos = getattr(tokenizer, "eos_token_id", None)
    if len(ids) > 1 and ids[-1] == eos and not text.endswith(str(getattr(tokenizer, "eos_token", None))):
        ids.pop()  # a few tokenizers close every text; a prompt is not closed
    return ids


def encode_answer(prompt: str, prompt_ids: Sequence[int], answer: str, tokenizer: Any, encode: Encode) -> list[int]:
    """The ids of `answer` as they follow `prompt_ids`.

    The whole text is encoded and cut where the prompt ends, if the prompt's ids are a prefix of it. Where a
    token spans the seam they are not, and the answer is encoded alone, so that none of its tokens is lost.
    """
    whole = encode(prompt + answer)
    if whole[: len(prompt_ids)] == list(prompt_ids):
        return whole[len(prompt_ids) :]
    return list(tokenizer.encode(answer, add_special_tokens=False))


def end_of_turn(tokenizer: Any, **template_options: Any) -> tuple[str, int]:
    """What the chat template writes after an assistant's answer: its whole text, and its first special token.

    Templates differ in what follows the end of the turn (a newline, a second end token); the label that a
    model has to predict is the first special token, e.g. `<|im_end|>` or `<|eot_id|>`. Without one it is the
    end of sequence.
    """
    suffix = _after_answer(tokenizer, template_options)
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    for token in tokenizer.encode(suffix, add_special_tokens=False):
        if token in special:
            return suffix, int(token)
    return suffix, int(tokenizer.eos_token_id)


def end_tokens(model: Any, tokenizer: Any, chat: bool) -> list[int]:
    """The tokens at which a model stops to write: the ends of sequence, and in a chat the end of its turn."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    if chat:
        ends.add(end_of_turn(tokenizer)[1])
    return sorted(end for end in ends if end is not None)


def up_to_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """What stands before the first of the end tokens; everything, if none of them is there."""
    return list(ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))])


def _after_answer(tokenizer: Any, template_options: dict[str, Any]) -> str:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": _SENTINEL}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, **template_options))
    return text.partition(_SENTINEL)[2]


def after(prompt: str, answer: str, chat: bool) -> str:
    """The answer as it follows the prompt: after one space, unless there is no need of one."""
    joined = chat or not prompt or prompt[-1:].isspace() or answer[:1].isspace()
    return answer if joined else PLAIN_DELIMITER + answer


def answer_labels(
    prompt: str,
    prompt_ids: Sequence[int],
    answer: str,
    tokenizer: Any,
    chat: bool,
    encode: Encode | None = None,
    **template_options: Any,
) -> Labels:
    """The labels of METRICS: the answer's tokens, then exactly one end token.

    The end token is the template's end of turn with `chat`, else the tokenizer's end of sequence. Plain
    answers follow the prompt after one space, unless the prompt already ends in white space.
    """
    encode = encode or (lambda text: encode_prompt(text, tokenizer))
    spaced = after(prompt, answer, chat)
    ids = encode_answer(prompt, prompt_ids, spaced, tokenizer, encode) if answer.strip() else []
    end = end_of_turn(tokenizer, **template_options)[1] if chat else int(tokenizer.eos_token_id)
    return Labels((*ids, end), len(ids), answer)


def labels_after(ask: Asked, prompt: str, prompt_ids: Sequence[int], answer: str, tokenizer: Any, chat: bool) -> Labels:
    """The labels of an answer to what was asked, also where that begins the answer (see `shapes.following`).

    Args:
        ask: what was asked.
        prompt, prompt_ids: how the model reads it.
        answer: its text.
        tokenizer: of the model.
        chat: whether it goes through the chat template.
    """
    return answer_labels(prompt, prompt_ids, following(ask, answer, chat), tokenizer, chat)


def open_unlearning_labels(
    prompt: str, answer: str, tokenizer: Any, chat: bool, encode: Encode, **template_options: Any
) -> tuple[list[int], Labels]:
    """Prompt ids and labels as OpenUnlearning (2506.12618, d3d7cf9e) makes them, for cross-checks only.

    The conversation is encoded as one text and cut at the length of the encoded prompt, so a token that spans
    the seam is no label; whatever the template writes after the answer is a label; and an end of sequence is
    added unless the text already ends in one. Its plain prompt ends in a space.
    """
    if chat:  # the template alone says whether there is a BOS
        suffix = _after_answer(tokenizer, template_options)
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


def prompt_ids(question: str, tokenizer: Any, chat: bool, shape: str = QUESTION) -> tuple[int, ...]:
    """A question, or a text of another shape, as the prompt that the model is evaluated with."""
    return tuple(encode_prompt(render(asked(question, shape), tokenizer, chat), tokenizer))
