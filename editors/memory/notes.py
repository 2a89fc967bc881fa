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

from dataclasses import asdict, dataclass

import torch

from unlearn_eval.editing.editor import EditJob, Editor
from unlearn_eval.editing.memory.questions import NOTE, read_questions
from unlearn_eval.editing.memory.replacements import check_names, check_prompts, with_past
from unlearn_eval.edits.base import MEMORY, EditInfo
from unlearn_eval.edits.memory.notes import NotesEdit
from unlearn_eval.edits.memory.notes_store import GATES, Notes, encoder_of
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Share


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
    found = read_questions(job, config.note, "notes are text")
    notes, owners = list(found.notes), found.owners
    vectors = torch.from_numpy(encoder_of(config.encoder)([note.question for note in notes]))
    threshold = {"encoder": config.similarity, "self": config.agreement, "none": -1.0}[config.gate]  # no cosine is less
    if earlier is not None:
        notes, owners = [*earlier.notes, *notes], [*earlier.owners, *owners]
        vectors = torch.cat([earlier.vectors, vectors]) if found.parts else earlier.vectors
    store = Notes(
        vectors,
        torch.tensor([threshold]),
        tuple(notes),
        tuple(owners),
        found.frame,
        found.asking,
        config.gate,
        config.encoder,
        config.demonstrations,
    )
    lengths = {part.id: len(note.ids) for (part, _), note in zip(found.parts, found.notes, strict=True)}
    info = EditInfo(EDITOR.name, asdict(config), notes=with_past(job.previous, {"note_tokens": lengths}))
    return NotesEdit(store, info, tokenizer=job.tokenizer)


EDITOR = Editor("notes", Config, run, makes=MEMORY, paper="2403.17431, 2305.12740", calibrates=True)
