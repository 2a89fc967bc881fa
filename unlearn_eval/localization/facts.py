"""From forget items to facts: prompts with the subject's place in them, and the two tokens that are told apart."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.data.shapes import asked
from unlearn_eval.localization.base import Fact
from unlearn_eval.models.prompt_format import PromptFormat, as_shown
from unlearn_eval.models.prompts import encode_prompt
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def facts_of(
    items: Sequence[ForgetItem], prompt_format: PromptFormat, seed: int = 0, max_length: int | None = None
) -> tuple[list[Fact], dict[str, str]]:
    """The facts of those items of which there is one, and of each other item why there is none.

    Each is put to the model as its shape says (see `shapes.asked`), so that the answer's first token comes next: what
    is the beginning of a sentence (CounterFact, the athletes) stands alone. The wrong answer is one of
    the item's own, else another item's of its group, else of the set: that which differs earliest. What the two begin
    with alike is part of the prompt.

    Args:
        items: what is looked for.
        prompt_format: how the model is asked.
        seed: of the choice among others' answers.
        max_length: the model's context, in tokens.
    """
    found, skipped = [], {}
    for i, item in enumerate(items):
        made = _fact(item, items, prompt_format, random.Random(f"{seed}/{i}"), max_length)
        if isinstance(made, Fact):
            found.append(made)
        else:
            skipped[item.id] = made
    return found, skipped


def check_some(facts: Sequence[Fact], skipped: dict[str, str], forget: ForgetSet) -> None:
    """Refuse a set none of whose items can be used."""
    if not facts:
        reasons = sorted(set(skipped.values()))
        raise UserError(
            f"none of the {len(skipped)} items of '{forget.name}' can be localized: {'; '.join(reasons[:3])}",
            "give items a subject that stands in the question word for word, and wrong answers",
        )


def _fact(
    item: ForgetItem,
    items: Sequence[ForgetItem],
    prompt_format: PromptFormat,
    rng: random.Random,
    longest: int | None,
) -> Fact | str:
    if not item.subject:
        return "it has no subject"
    ask = asked(item.question, item.shape)
    text = prompt_format.render(ask)
    ids = prompt_format.encode(text)
    span = prompt_format.subject_span(text, as_shown(item.question, item.shape, text), item.subject, ids)
    if span is None:
        return "its subject does not stand in the question"

    def labels(answer: str) -> tuple[int, ...]:
        return prompt_format.labels_after(ask, text, ids, answer).ids

    true, found = labels(item.answer), None
    others = [other for other in items if other.answer != item.answer]
    rng.shuffle(others)
    others.sort(key=lambda other: other.group is None or other.group != item.group)
    for answers in (item.perturbed_answers, [other.answer for other in others]):
        wrong = [own for answer in answers if answer.strip() and (own := labels(answer)) != true]
        if wrong:
            found = min(wrong, key=lambda own: _n_shared(own, true))  # of several the first
            break
    if found is None:
        return "it has no wrong answer, and neither has another item another answer"
    n = _n_shared(found, true)
    if longest and len(ids) + n > longest:
        return f"it does not fit the model's context of {longest} tokens"
    subject_ids = tuple(bare(item.subject, prompt_format.tokenizer))
    return Fact(item.id, (*ids, *true[:n]), span, true[n], found[n], item.answer, subject_ids)


def _n_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two answers begin with alike; both end in the same end token, so neither is all of the other."""
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def bare(subject: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The subject's ids after one token that begins a text.

    Where the tokenizer adds none it is its BOS or end token: attention rests on a text's first token, whose states say
    nothing.
    """
    ids = encode_prompt(subject, tokenizer)
    begin = getattr(tokenizer, "bos_token_id", None)
    begin = getattr(tokenizer, "eos_token_id", None) if begin is None else begin
    return ids if begin is None or ids[:1] == [begin] else [begin, *ids]


def plain_words(tokenizer: PreTrainedTokenizerBase, seed: int, n: int = 512) -> list[int]:
    """Ids of `n` random tokens (fewer of a small vocabulary) that read as plain letters, to stand in for subjects."""
    special = set(tokenizer.all_special_ids)
    ids = list(range(len(tokenizer)))
    random.Random(seed).shuffle(ids)
    found: list[int] = []
    for token in ids:
        text = str(tokenizer.decode([token]))
        if token not in special and text.isascii() and text.strip().isalpha():
            found.append(token)
        if len(found) == n:
            break
    return found
