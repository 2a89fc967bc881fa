"""LTE: what aligns a base model, once, to follow notes (Jiang et al. 2024, "Learning to Edit", arXiv 2402.11905).

Fine-tuning on three rows for each fact teaches that a note decides what it is about, and nothing else:

    in scope        a note about the fact, with a new answer, and its question, maybe reworded      the new answer
    out of scope    a note about another fact, the nearest one, and its question                    the own answer
    free            its question alone                                                              the own answer

The own answer is what the model writes by itself before it is aligned. A new answer is a refusal or a wrong answer,
each in half of the rows. Half of the notes stand alone, a quarter each behind one or two examples of the next nearest
facts, as the memory editor `notes` puts demonstrations. Rows hold the tokens that `notes` puts into a prompt of this
model: a base that was aligned is edited by `notes` as any other.

Facts that will be edited should be left out (`--without`), or it is measured on what it was trained on.

Differs from the authors' code (YJiangcm/LTE@32d44487) in the data: theirs is of ZsRE, RippleEdits, WikiBio and MQuAKE,
partly written by GPT-4, and its notes are "[Updated Information]"; ours are by rule from the facts of any set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.editing.memory.questions import frame_of, note_of
from unlearn_eval.editing.requests.build import build_requests
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editing.requests.targets import POOL
from unlearn_eval.edits.memory.notes_store import WORDS, Frame, Note, encoder_of
from unlearn_eval.models.generation import written
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.progress import Progress, no_progress

IN_SCOPE, OUT_OF_SCOPE, FREE = "in_scope", "out_of_scope", "free"
EXAMPLES = (0, 0, 1, 2)  # before a note, each as likely
OWN_TOKENS, ROWS_AT_ONCE = 64, 16
Write = Callable[[Sequence[Sequence[int]]], list[str]]


def alignment_requests(
    loaded: LoadedModel, data: ForgetSet, prompt_format: PromptFormat, seed: int = 0, progress: Progress = no_progress
) -> list[EditRequest]:
    """Three rows for each item, whose `answer_ids` are to be learned; ids end in what the row is.

    Args:
        loaded: the base model, which writes its own answers.
        data: the facts.
        prompt_format: how questions are put.
        seed: of new answers, words and examples.
        progress: told of the own answers.

    Raises:
        UserError: fewer than two items, items that are no questions, or a row that does not fit the model's context.
    """

    def write(rows: Sequence[Sequence[int]]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            texts += written(loaded.model, prompt_format, part, ROWS_AT_ONCE, OWN_TOKENS)
            progress("own answers", len(texts), len(rows))
        return texts

    return aligned_rows(data, prompt_format, write, seed, loaded.max_length)


def aligned_rows(
    data: ForgetSet, prompt_format: PromptFormat, write: Write, seed: int = 0, max_length: int | None = None
) -> list[EditRequest]:
    """The same with any author of own answers: `write` is given the ids of prompts."""
    if len(data) < 2:
        raise UserError(
            f"'{data.name}' has {len(data)} item, and a note about another fact needs two", "give a larger set"
        )
    new = [_new_answer(item, data, random.Random(f"{seed}/{item.id}/new")) for item in data]
    requests = partial(build_requests, prompt_format=prompt_format, max_length=max_length)
    plain = requests([replace(item, subject=None) for item in data], new)
    own = [
        text or item.answer for text, item in zip(write([own.prompt_ids for own in plain]), data, strict=True)
    ]  # a model that says nothing is given the fact's
    frame, _ = frame_of(prompt_format.tokenizer, prompt_format)
    notes = [note_of(prompt_format.tokenizer, frame, own.prompt_ids, own.target_ids) for own in plain]
    near = nearest([item.question for item in data])
    found = []
    for i, item in enumerate(data):
        draws = random.Random(f"{seed}/{item.id}")
        words = draws.choice([item.question, *item.paraphrases])
        for kind, question, answer, of in (
            (IN_SCOPE, words, new[i], [i, *near[i]]),
            (OUT_OF_SCOPE, item.question, own[i], near[i]),
            (FREE, item.question, own[i], []),
        ):
            asked = replace(item, id=f"{item.id}/{kind}", question=question, answer=answer, subject=None)
            (request,) = requests([asked], [answer])
            n = min(draws.choice(EXAMPLES), max(0, len(of) - 1)) if of else -1
            found.append(_noted(request, frame, [notes[j] for j in of[: n + 1]], max_length))
    return found


def nearest(questions: Sequence[str]) -> list[list[int]]:
    """For each question the others, by the cosine of their counts of words; ties in the given order."""
    vectors = np.asarray(encoder_of(WORDS)(list(questions)))
    order = np.argsort(-(vectors @ vectors.T).round(5), axis=1, kind="stable")
    return [[int(j) for j in row if j != i] for i, row in enumerate(order)]


def longest_rows(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Requests as long as rows are at most, for a plan: a note, two examples of twice its length, an own answer."""
    found = []
    for request in requests:
        room = (*request.prompt_ids * 6, *request.target_ids * 5, *request.prompt_ids[:1] * 40)
        answer = (request.answer_ids or request.target_ids)[:1] * OWN_TOKENS
        found += [replace(request, prompt_ids=room, answer_ids=answer)] * 3
    return found


def _new_answer(item: ForgetItem, data: ForgetSet, draws: random.Random) -> str:
    """A refusal, or a wrong answer: one of the item's, else another item's."""
    if draws.random() < 0.5:
        return draws.choice(POOL)
    others = [other.answer for other in data if other.answer not in item.accepted]
    return draws.choice(list(item.perturbed_answers) or others or list(POOL))


def _noted(request: EditRequest, frame: Frame, notes: Sequence[Note], max_length: int | None) -> EditRequest:
    """A request whose prompt has the first note before its question, and before that the others as examples.

    Raises:
        UserError: it does not fit the context.
    """
    if not notes:
        return request
    place, _ = frame.parts(request.prompt_ids)
    before = [token for note in reversed(notes[1:]) for token in note.example]
    ids = (*request.prompt_ids[:place], *before, *notes[0].ids, *request.prompt_ids[place:])
    n_tokens = len(ids) + len(request.answer_ids)
    if max_length and n_tokens > max_length:
        raise UserError(
            f"item {request.id}: note, question and answer have {n_tokens} tokens, the model's context {max_length}",
            "leave the item out, or shorten it",
        )
    return replace(request, prompt_ids=ids, lookup=len(ids) - 1)
