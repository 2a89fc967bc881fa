"""Items as prompts, and what a model answers: by free generation, and by the probability of the true answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.shapes import AS_IT_IS, asked_otherwise, cut
from unlearn_eval.metrics import contains_answer
from unlearn_eval.models.generation import written
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Row:
    """One item as a model is asked it.

    Attributes:
        item: it.
        prompt_ids: the whole prompt.
        answer_ids: the true answer's tokens, without an end token; never none.
        opening: with which the model's answer begins, as part of the prompt; it is no answer of the model.
        stops: texts at which the answer is over (see `PromptFormat.stops`).
    """

    item: ForgetItem
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    opening: str = ""
    stops: tuple[str, ...] = ()


class Answer(NamedTuple):
    """What a model says to a row; None where its numbers are none.

    Attributes:
        accuracy, probability: whether the true answer stands in it, and how probable that is.
        said: it.
        hits: token by token of the true answer, whether it is the most likely one.
    """

    accuracy: float
    probability: float | None
    said: str
    hits: Sequence[bool]


def rows_of(
    items: Sequence[ForgetItem], prompt_format: PromptFormat, opening: str = "", wrap: str = AS_IT_IS
) -> list[Row]:
    """The items as prompts, in order, as their shapes say (see `shapes.asked_otherwise`).

    Args:
        items: what is asked.
        prompt_format: how the model is asked.
        opening: words with which the answer begins.
        wrap: text around the question, with `{question}` in it.

    Raises:
        UserError: an answer without tokens.
    """
    rows = []
    for item in items:
        ask = asked_otherwise(item.question, item.shape, opening, wrap=wrap)
        text = prompt_format.render_to_answer(ask)
        ids = prompt_format.encode(text)
        labels = prompt_format.labels_after(ask, text, ids, item.answer)
        if not labels.n_answer:
            raise UserError(f"item {item.id}: the answer {item.answer!r} has no tokens", "leave the item out (--ids)")
        rows.append(Row(item, tuple(ids), labels.ids[: labels.n_answer], opening, prompt_format.stops(ask)))
    return rows


def answered(
    model: PreTrainedModel,
    prompt_format: PromptFormat,
    rows: Sequence[Row],
    batch_size: int = 16,
    max_new_tokens: int = 24,
) -> list[Answer]:
    """What a model says to each row, greedily, whether the answer stands in it, and how probable the answer is.

    Args:
        model: a causal language model; its mode is as before afterwards.
        prompt_format: as the rows were made.
        rows: what it is asked.
        batch_size: rows per forward pass.
        max_new_tokens: length of an answer.
    """
    training = model.training
    model.eval()
    try:
        whole = written(model, prompt_format, [row.prompt_ids for row in rows], batch_size, max_new_tokens)
        scores = score_answers(model, [Query(row.prompt_ids, row.answer_ids) for row in rows], batch_size)
    finally:
        model.train(training)
    said = [cut(text, row.stops).strip() for row, text in zip(rows, whole, strict=True)]
    found = []
    for row, text, score in zip(rows, said, scores, strict=True):
        loss = sum(score.token_nll) / len(score.token_nll)
        probability = math.exp(-loss) if math.isfinite(loss) else None
        found.append(Answer(float(contains_answer(text, row.item.accepted)), probability, text, score.hits))
    return found
