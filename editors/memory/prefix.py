r"""Prefix: a gated soft prompt, a few vectors before the question, trained so that the target follows.

A soft prompt (Lester et al. 2021, arXiv 2104.08691) is L vectors in the space of the token embeddings, trained by
gradient through the frozen model. Here each request has one, put where a note would be put, and only before questions
that a gate finds to be the request's: the gates are those of `notes`. All other questions have the unedited model's
answers, bit for bit.

    P_i = argmin_P mean −ln p(target | prompt with P inserted)        Adam; started from the target's own embeddings
    P stands before a question q   where   gate(q, question i) reaches the threshold, i the nearest

`shared=true` trains one soft prompt for all requests of an edit: fewer numbers, for one kind of target.

Differs from the paper's method: its prompt is trained for a whole task, without a gate, and stands first; here it
stands inside the user's message, where a note does. It starts from embeddings of the target (the paper's "class
label" start), repeated to its length. The learning rate is in units of the start's size, and a prompt is done when its
target is the most likely answer and its loss below `stop_loss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn_eval.editing.editor import EditJob, Editor
from unlearn_eval.editing.memory.prefixes import Row, optimise
from unlearn_eval.editing.memory.questions import NOTE, Questions, read_questions
from unlearn_eval.editing.memory.replacements import check_names, check_prompts, with_past
from unlearn_eval.edits.base import MEMORY, EditInfo
from unlearn_eval.edits.memory.notes import NotesEdit
from unlearn_eval.edits.memory.notes_store import GATES, Note, encoder_of
from unlearn_eval.edits.memory.prefix_store import Prefixes
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Positive, Share, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Config:
    """Settings of prefix.

    Attributes:
        gate: When a prefix is used: `encoder` (where its question is near enough), `self` (where the model says that a
            note of the fact fits) or `none` (always, the nearest).
        similarity: Least cosine at which the gate `encoder` uses a prefix.
        agreement: Least ln p(Yes) − ln p(No) at which the gate `self` uses a prefix.
        length: Number of vectors in a prefix.
        shared: Train one prefix for all requests together, in place of one for each.
        contexts: Train on the prompts after sampled openings too.
        steps: Largest number of forward passes; there is one update less.
        learning_rate: Learning rate of Adam, in units of the root mean square of a prefix's first values.
        stop_loss: A prefix is done when its targets are the most likely answers and its loss is below this.
        tokens_per_batch: Number of tokens in one forward pass.
        note: Text that the gate `self` shows to the model, with `{question}` and `{answer}`.
        encoder: Sentence encoder: `default`, `multilingual`, a hub id or folder, or `words` (counts of words, without
            a model).
        calibrate: Choose the threshold from the forget set's paraphrases and from `others`.
        others: Questions for which no prefix is meant, for `calibrate`: a .jsonl with `question` in each line; by
            default the shipped facts that are not forgotten.
    """

    gate: str = "encoder"
    similarity: Share = 0.75
    agreement: float = 0.0
    length: Size = 5
    shared: bool = False
    contexts: bool = False
    steps: Size = 60
    learning_rate: Positive = 0.2
    stop_loss: float = 0.05
    tokens_per_batch: Size = 1024
    note: str = NOTE
    encoder: str = "default"
    calibrate: bool = False
    others: str = ""


def run(job: EditJob) -> NotesEdit:
    """The prefixes after which the model says each request's target; the model is as before.

    Raises:
        UserError: an unknown gate, requests that ask the same question, no tokenizer, a loss that is not finite, or an
            earlier edit with another encoder, length or gate.
    """
    config: Config = job.config
    check_names(config, gate=GATES)
    check_prompts(job.requests)
    earlier: Prefixes | None = None if job.previous is None else job.previous.store
    if earlier is not None:
        check_same("encoder", earlier.encoder, config.encoder)
        check_same("length", earlier.prompts.shape[1], config.length)
        check_same("gate", earlier.gate, config.gate)
    questions = read_questions(job, config.note, "prefixes are chosen by a question's text")
    groups = _groups(job, questions, config)
    first = [_initial(job.model, rows[0].target, config.length) for rows in groups]
    width = job.model.get_input_embeddings().weight.shape[1]
    start = torch.stack(first) if first else torch.zeros(0, config.length, width, device=job.model.device)
    found = optimise(
        job.model,
        groups,
        start,
        config.steps,
        config.learning_rate,
        config.stop_loss,
        config.tokens_per_batch,
        job.progress,
    )
    owner_of = {row.prompt: row.owner for rows in groups for row in rows}
    notes = [Note(note.question, note.ids if config.gate == "self" else (), ()) for note in questions.notes]
    own = Prefixes(
        vectors=torch.from_numpy(encoder_of(config.encoder)([note.question for note in notes])),
        threshold=torch.tensor([{"encoder": config.similarity, "self": config.agreement, "none": -1.0}[config.gate]]),
        notes=tuple(notes),
        owners=tuple(questions.owners),
        frame=questions.frame,
        asking=questions.asking,
        gate=config.gate,
        encoder=config.encoder,
        prompts=found.prompts,
        prompt_of=tuple(owner_of[part.prompt_ids] for part, _ in questions.parts),
    )
    told = {
        name: {part.id: values[i] for (part, _), i in zip(questions.parts, own.prompt_of, strict=True)}
        for name, values in (("target_nll", found.target_nll), ("said", found.said), ("steps", found.steps))
    }
    info = EditInfo(EDITOR.name, asdict(config), notes=with_past(job.previous, told))
    return NotesEdit(own if earlier is None else earlier.joined(own), info, tokenizer=job.tokenizer)


def check_same(setting: str, earlier: object, now: object) -> None:
    """Refuse to go on from an edit that was made with another value of a setting.

    Raises:
        UserError: naming both values.
    """
    if earlier != now:
        raise UserError(
            f"the prefixes to go on from were made with {setting}={earlier}, not {now}",
            f"give --set {setting}={earlier}, or start a new edit",
        )


def _groups(job: EditJob, questions: Questions, config: Config) -> list[list[Row]]:
    """The rows of each prefix: of one request each, or of all."""
    groups: list[list[Row]] = []
    for i, request in enumerate(job.requests):
        owner = 0 if config.shared else i
        own = groups[owner] if owner < len(groups) else []
        for part in request.parts:
            for ids, _ in part.rows if config.contexts else part.rows[:1]:
                own.append(Row(ids, questions.frame.parts(ids)[0], request.target_ids, owner))
        groups[owner:] = [own]
    return groups


@torch.no_grad()
def _initial(model: PreTrainedModel, target: Sequence[int], length: int) -> Tensor:
    """(length, d) the target's embeddings, as often as they are needed."""
    ids = [target[i % len(target)] for i in range(length)]
    found: Tensor = model.get_input_embeddings()(torch.tensor(ids, device=model.device)).float()
    return found


EDITOR = Editor("prefix", Config, run, makes=MEMORY, paper="2104.08691", calibrates=True)
