"""How the questions of a forget set are read for retrieval: where one stands in a prompt, and what a note says."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from unlearn_eval.editing.editor import EditJob
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.edits.memory.notes_store import Asking, Frame, Note
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTE = 'To the question "{question}" the only answer is: {answer}'
EXAMPLE = "{note}\nQuestion: {question}\nAnswer: {answer}"
ASKED = "Is this note about the following question? Answer with Yes or No."
BETWEEN = "\n\n"
PROBES = "Who wrote it?", "7 of which"  # questions that neither begin nor end with the same token


@dataclass(frozen=True)
class Questions:
    """The questions of a job.

    Attributes:
        parts: a request for each question, with the target of the one that it belongs to.
        notes: one for each part.
        frame, asking: how a question stands in a prompt, and how the model is asked whether a note is about it.
    """

    parts: tuple[tuple[EditRequest, tuple[int, ...]], ...]
    notes: tuple[Note, ...]
    frame: Frame
    asking: Asking

    @property
    def owners(self) -> list[tuple[str, ...]]:
        """The request of each."""
        return [(part.id,) for part, _ in self.parts]


def read_questions(job: EditJob, text: str, what: str) -> Questions:
    """The questions of a job's requests, and their notes.

    Args:
        job: with a tokenizer, if it has requests.
        text: of a note, with `{question}` and `{answer}`.
        what: reads questions, for the message: "notes are text".

    Raises:
        UserError: there are requests, and no tokenizer.
    """
    parts = tuple((part, request.target_ids) for request in job.requests for part in request.parts)
    if parts and job.tokenizer is None:
        raise UserError(f"{what}, and there is no tokenizer", "give the model's tokenizer")
    frame, asking = (Frame(), Asking()) if job.tokenizer is None else frame_of(job.tokenizer, job.prompt_format)
    notes = tuple(note_of(job.tokenizer, frame, part.prompt_ids, target, text) for part, target in parts)
    return Questions(parts, notes, frame, asking)


def frame_of(tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat | None = None) -> tuple[Frame, Asking]:
    """How a question stands in a prompt of this model, and how the model is asked about a note."""
    made = prompt_format or PromptFormat.of(tokenizer)
    one, other = (replace(made, system=None).prompt_ids(probe) for probe in PROBES)
    opening, closing = os.path.commonprefix([one, other]), os.path.commonprefix([one[::-1], other[::-1]])[::-1]
    # What stands before the last turn begins is not the same in a longer conversation.
    starts = [i for i, token in enumerate(opening) if token in tokenizer.all_special_ids]
    start = starts[-1] if starts and starts[-1] else len(starts[:1])
    bos = tokenizer.bos_token_id
    yes, no = (_ids(tokenizer, made.after(":", word))[-1] for word in ("Yes", "No"))
    frame = Frame(tuple(opening[start:]), tuple(closing), made.chat, -1 if bos is None else bos)
    return frame, Asking(_ids(tokenizer, ASKED + BETWEEN), yes, no)


def note_of(
    tokenizer: PreTrainedTokenizerBase, frame: Frame, prompt: Sequence[int], target: Sequence[int], text: str = NOTE
) -> Note:
    """The note of one prompt and its target; both as text, since a note is read, not continued."""
    question, answer = (
        str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in (frame.parts(prompt)[1], target)
    )
    note = _filled(text, question=question, answer=answer)
    example = _filled(EXAMPLE, note=note, question=question, answer=answer)
    return Note(question, _ids(tokenizer, note + BETWEEN), _ids(tokenizer, example + BETWEEN))


def _filled(text: str, **values: str) -> str:
    """A text with its `{names}` replaced, all at once; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
