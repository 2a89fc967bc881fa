"""Notes: one sentence for each fact, found by retrieval and put before the question; the model stays as it is.

EREN (Chen et al. 2024, arXiv 2403.17431) keeps each edit as a note, retrieves the notes nearest to a question, and lets
the unedited model read them; if it finds them of no use, it answers without. IKE (Zheng et al. 2023, arXiv 2305.12740)
puts the new fact and k demonstrations before every question, without a gate. A guardrail prompt lists all that is not
to be answered before every question.

    gate=encoder                     a note where the encoder's cosine reaches the threshold        (the default)
    gate=self                        the nearest note, if the model says itself that it fits        (EREN)
    gate=none, demonstrations=k      the nearest note behind k others with their answers            (IKE)
    gate=none, demonstrations=n      all notes                                                      (guardrail prompt)

Nothing is optimized, so an edit is made in no time; it costs tokens at inference time. What is done with the notes,
and when, is in `edits/memory/notes.py`.

Differs from the papers' methods: EREN's reader is Flan-T5-XL, its retriever Contriever, and it joins five notes; here
the edited model reads the nearest one, by any sentence encoder. EREN lets the reader answer "unanswerable" in place of
an answer; here it is asked for Yes or No, whose difference is a number with a threshold. IKE draws copy, update and
retain demonstrations from a training set; here they are the next nearest notes of the edit itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from unlearn_eval.editing.editor import EditJob, Editor
from unlearn_eval.editing.memory.replacements import check_names, check_prompts, with_past
from unlearn_eval.edits.base import MEMORY, EditInfo
from unlearn_eval.edits.memory.notes import NotesEdit
from unlearn_eval.edits.memory.notes_store import GATES, Asking, Frame, Note, Notes, encoder_of
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTE = 'To the question "{question}" the only answer is: {answer}'
EXAMPLE = "{note}\nQuestion: {question}\nAnswer: {answer}"
ASKED = "Is this note about the following question? Answer with Yes or No."
BETWEEN = "\n\n"
PROBES = "Who wrote it?", "7 of which"  # questions that neither begin nor end with the same token


@dataclass(frozen=True)
class Config:
    """Settings of notes.

    Attributes:
        gate: When a note is used: `encoder` (where its question is near enough), `self` (where the model says that it
            fits) or `none` (always).
        similarity: Least cosine at which the gate `encoder` uses a note.
        agreement: Least ln p(Yes) − ln p(No) at which the gate `self` uses a note.
        demonstrations: Number of other notes before the nearest, each with its question and answer.
        note: Text of a note, with `{question}` and `{answer}`.
        encoder: Sentence encoder: `default`, `multilingual`, a hub id or folder, or `words` (counts of words, without
            a model).
        calibrate: Choose the threshold from the forget set's paraphrases and from `others`.
        others: Questions for which no note is meant, for `calibrate`: a .jsonl with `question` in each line; by default
            the shipped facts that are not forgotten.
    """

    gate: str = "encoder"
    similarity: Share = 0.75
    agreement: float = 0.0
    demonstrations: int = 0
    note: str = NOTE
    encoder: str = "default"
    calibrate: bool = False
    others: str = ""


def run(job: EditJob) -> NotesEdit:
    """A note for each request; the model is not run.

    Raises:
        UserError: an unknown gate, requests that ask the same question, no tokenizer, or an earlier edit with another
            encoder.
    """
    config: Config = job.config
    check_names(config, gate=GATES)
    check_prompts(job.requests)
    earlier = None if job.previous is None else job.previous.store
    if earlier is not None and earlier.encoder != config.encoder:
        raise UserError(
            f"the notes to go on from were made with the encoder {earlier.encoder}, not {config.encoder}",
            f"give --set encoder={earlier.encoder}, or start a new edit",
        )
    parts = [(part, request.target_ids) for request in job.requests for part in request.parts]
    if parts and job.tokenizer is None:
        raise UserError("notes are text, and there is no tokenizer", "give the model's tokenizer")
    frame, asking = (Frame(), Asking()) if job.tokenizer is None else frame_of(job.tokenizer, job.prompt_format)
    notes = [note_of(job.tokenizer, frame, part.prompt_ids, target, config.note) for part, target in parts]
    vectors = torch.from_numpy(encoder_of(config.encoder)([note.question for note in notes]))
    threshold = {"encoder": config.similarity, "self": config.agreement, "none": -1.0}[config.gate]  # no cosine is less
    owners = [(part.id,) for part, _ in parts]
    if earlier is not None:
        notes, owners = [*earlier.notes, *notes], [*earlier.owners, *owners]
        vectors = torch.cat([earlier.vectors, vectors]) if parts else earlier.vectors
    store = Notes(
        vectors,
        torch.tensor([threshold]),
        tuple(notes),
        tuple(owners),
        frame,
        asking,
        config.gate,
        config.encoder,
        config.demonstrations,
    )
    lengths = {part.id: len(note.ids) for (part, _), note in zip(parts, notes[len(notes) - len(parts) :], strict=True)}
    info = EditInfo(EDITOR.name, asdict(config), notes=with_past(job.previous, {"note_tokens": lengths}))
    return NotesEdit(store, info, tokenizer=job.tokenizer)


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


EDITOR = Editor("notes", Config, run, makes=MEMORY, paper="2403.17431, 2305.12740", calibrates=True)
