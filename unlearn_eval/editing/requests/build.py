"""From forget items to edit requests: the look-up token found in one tokenization of the whole prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.shapes import QUESTION, asked
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.prompts import encode_prompt
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Grouped = TypeVar("Grouped", ForgetItem, EditRequest)
MERGED = {QUESTION, "brief"}  # shapes that can be asked one after another
CONTEXT_SEEDS = ("The", "Therefore", "Because", "I", "You")  # MEMIT's


def build_requests(
    items: Sequence[ForgetItem],
    targets: Sequence[str],
    prompt_format: PromptFormat,
    contexts: Sequence[str] = (),
    max_length: int | None = None,
) -> list[EditRequest]:
    """One request per item: say `target` after the question, or after the sentence that is to be completed.

    Args:
        items: what to forget.
        targets: what to say instead, one text per item.
        prompt_format: how the model is asked (as it will be when it is evaluated).
        contexts: texts that stand before the question in the further prompts of each request.
        max_length: the model's context, in tokens.

    Raises:
        UserError: a target without tokens, or a question that does not fit the context (the item is named).
    """
    requests = []
    for item, target in zip(items, targets, strict=True):
        prompt_ids, lookup = prompt_format.encode_with_lookup(item.question, item.subject, item.shape)
        ask = asked(item.question, item.shape)
        text = prompt_format.render(ask)
        labels = prompt_format.labels_after(ask, text, prompt_ids, target)
        if not labels.n_answer:
            raise UserError(f"item {item.id}: the target {target!r} has no tokens", "give a sentence as target")
        answer = prompt_format.labels_after(ask, text, prompt_ids, item.answer)
        others = [
            prompt_format.encode_with_lookup(f"{context} {item.question}", item.subject, item.shape)
            for context in contexts
        ]
        n_tokens = max(
            max(len(ids) for ids, _ in [(prompt_ids, lookup), *others]) + len(labels.ids),
            len(prompt_ids) + len(answer.ids),
        )
        if max_length and n_tokens > max_length:
            raise UserError(
                f"item {item.id}: question and target have {n_tokens} tokens, the model's context {max_length}",
                "leave the item out (--ids) or shorten it",
            )
        requests.append(
            EditRequest(
                id=item.id,
                prompt_ids=tuple(prompt_ids),
                lookup=lookup,
                target_ids=labels.ids,
                subject_ids=tuple(prompt_format.encode(item.subject)) if item.subject else (),
                contexts=tuple((tuple(ids), index) for ids, index in others),
                group=item.group,
                question=item.question,
                answer_ids=answer.ids,
                shape=item.shape,
            )
        )
    return requests


def merge_items(items: Sequence[ForgetItem], size: int) -> list[ForgetItem]:
    """Items of one group as one: their questions one after another (query merging by text, 2505.19855).

    One prompt, one refusal and one key, which is read at the last question: the other questions are
    covered only as far as the model generalizes. Items without a group are merged with each other, in order.

    Raises:
        UserError: items that are no questions would be merged (see `check_merge`).
    """
    check_merge(items, size)
    merged = []
    for part in grouped(items, size):
        answers = tuple(text for item in part for text in item.accepted)
        joined = replace(
            part[-1],
            id=_merged_id([item.id for item in part]),
            question=" ".join(item.question for item in part),
            answer=answers[0],
            aliases=answers[1:],
            paraphrases=(),
        )
        merged.append(joined if len(part) > 1 else part[0])
    return merged


def check_merge(items: Sequence[ForgetItem], size: int, hint: str = "use --merge key, or leave out --merge") -> None:
    """Refuse to merge by text what is no question: of sentences one after another only the last would be completed.

    Raises:
        UserError: naming two items.
    """
    for part in grouped(items, size):
        shapes = {item.shape for item in part}
        if len(part) > 1 and (len(shapes) > 1 or not shapes <= MERGED):
            first, other = part[0], next((item for item in part if item.shape != part[0].shape), part[1])
            raise UserError(
                f"items {first.id} ({first.shape}) and {other.id} ({other.shape}) cannot be merged by text",
                f"only questions can follow one another: {hint}",
            )


def merge_keys(requests: Sequence[EditRequest], size: int) -> list[EditRequest]:
    """Requests of one group as one, with the questions as its members (query merging by key, 2505.19855).

    Every question keeps its own key, and all of a group get one change of value, optimized over all their prompts:
    one optimization instead of `size`; and for ROME one rank-one update, with the mean of their keys. The target is the
    first one's.
    """
    merged = []
    for part in grouped(requests, size):
        members = tuple(replace(request, target_ids=part[0].target_ids) for request in part)
        whole = replace(part[0], id=_merged_id([r.id for r in part]), members=members)
        merged.append(whole if len(part) > 1 else part[0])
    return merged


def grouped(items: Sequence[Grouped], size: int) -> Iterator[list[Grouped]]:
    """What is merged: items of one group, at most `size` of them, groups in the order of their first items."""
    groups: dict[str | None, list[Grouped]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _merged_id(ids: Sequence[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"


def sample_contexts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, n: int = 5, n_tokens: int = 10
) -> list[str]:
    """`n` short openings that the model itself writes after MEMIT's seed words, for the requests' contexts.

    Sampled from the ten most likely tokens with a generator of their own, so nothing else's randomness moves.
    """
    from unlearn_eval.models.scoring import pad

    if n == 0:
        return []
    seeds = [CONTEXT_SEEDS[i % len(CONTEXT_SEEDS)] for i in range(n)]
    rows = [encode_prompt(word, tokenizer) for word in seeds]
    ids, mask = pad(rows, "left", model.device, filler=tokenizer.pad_token_id or tokenizer.eos_token_id)
    with (
        torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []),
        torch.no_grad(),
    ):
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=10,
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    return [" ".join(text.split()) + "." for text in texts]
