"""States of the residual stream where an answer is predicted, and which part of an answer is the fact."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from unlearn_eval.attacks.asking import Row
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.shapes import asked
from unlearn_eval.metrics import normalise
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_ends import prompt_lengths
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.tracing import block_outputs

_WORD = re.compile(r"\S+")
SHORT = 4  # words; an answer of no more is the fact as a whole


def answer_states(loaded: LoadedModel, rows: Sequence[Row], batch_size: int) -> list[Tensor]:
    """For each row (L, T, d) on the CPU: what every block hands on where the T tokens of the answer are predicted.

    Teacher-forced: the answer's own tokens stand before each. Blocks run in the model as it is, edits and all.
    """
    model, parts, found = loaded.model, loaded.blocks, []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        inputs = [(*row.prompt_ids, *row.answer_ids[:-1]) for row in batch]
        with prompt_lengths([len(row.prompt_ids) for row in batch]):
            states = block_outputs(model, parts, inputs)
        for i, row in enumerate(batch):
            first = len(row.prompt_ids) - 1
            found.append(states[:, i, first : first + len(row.answer_ids)].cpu())
    return found


def entity_tokens(row: Row, prompt_format: PromptFormat) -> slice:
    """Which of a row's answer tokens are the fact itself; at least one."""
    item = row.item
    start, end = entity_span(item)
    ask = asked(item.question, item.shape)
    text = prompt_format.render(ask)

    def n_tokens(answer: str) -> int:
        """How many of the whole answer's tokens its beginning has."""
        if not answer.strip():
            return 0
        ids = prompt_format.labels_after(ask, text, row.prompt_ids, answer)
        own = ids.ids[: ids.n_answer]
        return next((i for i, (a, b) in enumerate(zip(own, row.answer_ids, strict=False)) if a != b), len(own))

    first = min(n_tokens(item.answer[:start].rstrip()), len(row.answer_ids) - 1)
    whole = len(row.answer_ids) if end >= len(item.answer.rstrip()) else n_tokens(item.answer[:end])
    return slice(first, max(first + 1, min(whole, len(row.answer_ids))))


def entity_span(item: ForgetItem) -> tuple[int, int]:
    """Where in an item's answer the fact stands, as characters.

    An alias that stands in the answer; all of a short answer; else the longest run of words that are names or numbers,
    or, without any, of words, that the question does not have.
    """
    answer = item.answer
    for alias in sorted(item.aliases, key=len, reverse=True):
        if alias != answer and alias in answer:
            return answer.index(alias), answer.index(alias) + len(alias)
    words = list(_WORD.finditer(answer))
    if len(words) <= SHORT:
        return 0, len(answer)
    asked = set(normalise(item.question).split())
    new = [not set(normalise(word.group()).split()) <= asked for word in words]
    named = [
        own and (any(c.isdigit() for c in word.group()) or (i > 0 and word.group().lstrip("\"'“‘(")[:1].isupper()))
        for i, (own, word) in enumerate(zip(new, words, strict=True))
    ]
    for chosen in (named, new):
        if any(chosen):
            first, last = _longest_run(chosen, [len(word.group()) for word in words])
            end = words[last].end()
            while end > words[last].start() + 1 and not answer[end - 1].isalnum():
                end -= 1
            return words[first].start(), end
    return 0, len(answer)


def _longest_run(chosen: Sequence[bool], sizes: Sequence[int]) -> tuple[int, int]:
    """The first and last index of the run of chosen words with the most characters."""
    runs: list[tuple[int, int, int]] = []
    start: int | None = None
    for i, own in enumerate([*chosen, False]):
        if own and start is None:
            start = i
        elif not own and start is not None:
            runs.append((sum(sizes[start:i]), start, i - 1))
            start = None
    _, first, last = max(runs, key=lambda run: run[0])
    return first, last
