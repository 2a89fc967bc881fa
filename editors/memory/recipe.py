r"""RECIPE: a fact becomes a short continuous prompt, and a knowledge sentinel decides when it is read.

Chen et al. 2024, arXiv 2405.03279. An encoder reads a fact's statement and gives its key k; a map turns the key into L
vectors, which are put before a question; a question's q is compared with all keys and with the sentinel Θ.

    k_i = h_K(r(question and target)),  q = h_Q(r(question)),  Θ = h_K(r_Θ)           r: a sentence encoder
    P_i = MLP(k_i)                                                                    L vectors
    answered by P_i   where   qᵀk_i/√d ≥ qᵀΘ/√d, i the nearest                        (equation 8)

    gate      −ln softmax over [k_1..k_B; Θ] of a fact's question at its key, of others' at Θ       (9, 10)
    prompts   −ln p(target | P, question) − ln p(target | P, paraphrase) + KL of other answers      (2 to 5)

Both are taught once, on facts that are not edited: `facts=facts` (shipped), `zsre:1000` where zsRE's file is present,
or a file. Editing is then a forward pass; `--continue` and `start=FOLDER` take over what an earlier edit was taught.

Differs from the paper and the authors' code (qizhou000/RECIPE@b8ff1fc): r is a frozen MiniLM (any sentence encoder),
for a trained RoBERTa whose token states are pooled in four ways; r_Θ is a learned vector, for ten learned tokens; d is
256, for 4,096. The gate is taught first and the prompts then, on keys that stay, where the paper adds up all losses; no
loss is hinged. Targets taught are those of the edit and, for a share of the facts, wrong answers; the paper's are new
answers of its datasets. Prompts start from the embeddings of a target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn_eval.editing.editor import EditJob, Editor
from unlearn_eval.editing.memory.lessons import Lesson, lessons, prefixes_of, teach_gate, teach_prompts
from unlearn_eval.editing.memory.prefixes import Row, prefixed_logits, target_losses
from unlearn_eval.editing.memory.questions import NOTE, Questions, read_questions
from unlearn_eval.editing.memory.replacements import check_names, check_prompts, with_past
from unlearn_eval.edits.base import MEMORY, EditInfo
from unlearn_eval.edits.load import check_base, load_edit
from unlearn_eval.edits.memory.notes import NotesEdit
from unlearn_eval.edits.memory.notes_store import Note, encoder_of
from unlearn_eval.edits.memory.prefix_store import SENTINEL, Head, Prefixes
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Positive, Share, Size

GATES = SENTINEL, "encoder", "none"


@dataclass(frozen=True)
class Config:
    """RECIPE's settings.

    Attributes:
        gate: When a prompt is used: `sentinel` (where its fact is nearer to the question than the sentinel is),
            `encoder` (where the encoder's cosine reaches `similarity`) or `none` (always, the nearest).
        similarity: Least cosine at which the gate `encoder` uses a prompt.
        facts: Facts to teach with: a set as `--forget` takes it (`facts`, `zsre:1000`) or a file; those that are edited
            are left out.
        n_facts: Largest number of facts to teach with.
        wrong: Share of these facts whose target is a wrong answer of theirs, in place of a target of the edit.
        start: Folder of an earlier edit of this method on the same model, whose heads and prompts are taken over.
        length: Number of vectors in a prompt.
        width: Number of dimensions in which questions and facts are compared.
        gate_steps: Number of steps of the gate, which the model takes no part in.
        gate_batch: Number of facts in each of them.
        gate_learning_rate: Learning rate of Adam for the gate.
        steps: Number of steps of the prompts, through the model.
        batch: Number of facts in each of them.
        learning_rate: Learning rate of Adam for the prompts, in units of the embeddings' root mean square.
        locality: Weight of the KL of other answers.
        encoder: Sentence encoder: `default`, `multilingual`, a hub id or folder, or `words` (counts of words, without
            a model).
        calibrate: Choose the threshold from the forget set's paraphrases and from `others`.
        others: Questions for which no prompt is meant, for `calibrate`: a .jsonl with `question` in each line; by
            default the shipped facts that are not forgotten.
        seed: Random seed of facts, weights and batches.
    """

    gate: str = SENTINEL
    similarity: Share = 0.75
    facts: str = "facts"
    n_facts: Size = 1000
    wrong: float = 0.25
    start: str = ""
    length: Size = 3
    width: Size = 256
    gate_steps: Size = 400
    gate_batch: Size = 64
    gate_learning_rate: Positive = 3e-4
    steps: Size = 100
    batch: Size = 4
    learning_rate: Positive = 0.05
    locality: float = 1.0
    encoder: str = "default"
    calibrate: bool = False
    others: str = ""
    seed: int = 0


@dataclass(frozen=True)
class _Taught:
    """What edits are made with: a store without facts, and what is noted of the teaching."""

    store: Prefixes
    about: Mapping[str, Any]


def run(job: EditJob) -> NotesEdit:
    """Prompts for the requests, by what is taught on other facts or was for an earlier edit; the model is as before.

    Raises:
        UserError: settings that do not fit each other or an earlier edit, requests that ask the same question, no
            tokenizer, too few facts, or a loss that is not finite.
    """
    config: Config = job.config
    check_names(config, gate=GATES)
    check_prompts(job.requests)
    if not 0 <= config.wrong <= 1 or config.locality < 0:
        raise UserError(
            f"wrong {config.wrong}, locality {config.locality} do not make sense",
            "give a share, and no negative weight",
        )
    questions = read_questions(job, NOTE, "prompts are chosen by a question's text")
    taught = _taught(job, config, questions)
    store = _edited(job, config, questions, taught.store)
    told = with_past(job.previous, _outcome(job, questions, store))
    if job.previous is not None:
        store = job.previous.store.joined(store)
    info = EditInfo(EDITOR.name, asdict(config), notes=told | {"taught": dict(taught.about)})
    return NotesEdit(store, info, tokenizer=job.tokenizer)


def _taught(job: EditJob, config: Config, questions: Questions) -> _Taught:
    """From the edit to go on from, from another one, or by teaching; without requests nothing has to be taught."""
    if job.previous is not None:
        return _Taught(_fitting(job.previous.store, config), job.previous.info.notes["taught"])
    if config.start:
        earlier = load_edit(config.start)
        if earlier.info.editor != EDITOR.name:
            raise UserError(
                f"{config.start} was made by {earlier.info.editor}, not by {EDITOR.name}", "name an edit of this method"
            )
        check_base(earlier.info, job.model, any_base=True)
        return _Taught(_fitting(earlier.store, config), earlier.info.notes["taught"])
    encode = encoder_of(config.encoder)
    about: dict[str, Any] = {}
    if job.requests:
        facts = lessons(job, config.facts, config.wrong, config.n_facts, config.seed)
        sizes = config.width, config.gate_steps, config.gate_batch, config.gate_learning_rate
        gate = teach_gate(facts, encode, *sizes, config.seed)
        keys = gate.key(torch.from_numpy(encode([fact.statement for fact in facts])))
        prompt_map, losses = _prompts(job, config, facts, keys, questions)
        query, key, sentinel = gate.query, gate.key, gate.sentinel
        tenth = max(1, len(losses) // 10)
        about = {"facts": len(facts), "gate_loss": gate.loss}
        about |= {"first_loss": sum(losses[:tenth]) / tenth, "last_loss": sum(losses[-tenth:]) / tenth}
    else:  # as they are before any step
        generator = torch.Generator().manual_seed(config.seed)
        d_in = encode(["a"]).shape[1]
        query = key = Head.new(d_in, config.width, 2 * config.width, generator)
        sentinel, d_out = torch.zeros(config.width), config.length * _width(job)
        prompt_map = {"prompt_up": torch.zeros(2 * config.width, config.width)}
        prompt_map |= {"prompt_up_bias": torch.zeros(2 * config.width)}
        prompt_map |= {"prompt_down": torch.zeros(d_out, 2 * config.width), "prompt_down_bias": torch.zeros(d_out)}
    d = config.width if config.gate == SENTINEL else query.weights[0].shape[1]
    store = Prefixes(
        vectors=torch.zeros(0, d),
        threshold=torch.zeros(1),
        notes=(),
        owners=(),
        frame=questions.frame,
        asking=questions.asking,
        gate=config.gate,
        encoder=config.encoder,
        prompts=torch.zeros(0, config.length, _width(job)),
        query=query if config.gate == SENTINEL else None,
        sentinel=sentinel if config.gate == SENTINEL else None,
        trained=key.named("key") | dict(prompt_map),
    )
    return _Taught(store, about)


def _prompts(
    job: EditJob, config: Config, facts: list[Lesson], keys: Tensor, questions: Questions
) -> tuple[Mapping[str, Tensor], list[float]]:
    steps = config.steps, config.batch, config.learning_rate, config.locality, config.seed
    return teach_prompts(job.model, facts, keys, questions.frame, config.length, *steps, job.progress)


def _fitting(store: Prefixes, config: Config) -> Prefixes:
    """What an earlier edit was taught, if these settings are its own.

    Raises:
        UserError: it has another gate, encoder or length, or was taught nothing.
    """
    if not store.trained or not store.n:
        raise UserError("the earlier edit has no facts, so nothing was taught for it", "start a new edit")
    earlier = {"gate": store.gate, "encoder": store.encoder, "length": store.prompts.shape[1]}
    for setting, value in earlier.items():
        if value != getattr(config, setting):
            raise UserError(
                f"the earlier edit was made with {setting}={value}, not {getattr(config, setting)}",
                f"give --set {setting}={value}, or start a new edit",
            )
    return store


def _edited(job: EditJob, config: Config, questions: Questions, taught: Prefixes) -> Prefixes:
    """The prompts of the requests, by what was taught."""
    assert taught.trained is not None
    encode, decode = encoder_of(config.encoder), getattr(job.tokenizer, "decode", None)
    texts = [note.question for note in questions.notes]
    answers = [str(decode(list(target), skip_special_tokens=True)).strip() for _, target in questions.parts]  # type: ignore[misc]
    statements = [f"{question} {answer}" for question, answer in zip(texts, answers, strict=True)]
    key = Head.read(taught.trained, "key")
    keys = key(torch.from_numpy(encode(statements))) if texts else torch.zeros(0, config.width)
    threshold = {SENTINEL: 0.0, "encoder": config.similarity, "none": -1.0}[config.gate]
    by_cosine = config.gate != SENTINEL
    return Prefixes(
        vectors=torch.from_numpy(encode(texts)) if by_cosine and texts else keys if texts else taught.vectors[:0],
        threshold=torch.tensor([threshold]),
        notes=tuple(Note(text, (), ()) for text in texts),
        owners=tuple(questions.owners),
        frame=questions.frame if texts else taught.frame,
        asking=questions.asking if texts else taught.asking,
        gate=config.gate,
        encoder=config.encoder,
        prompts=prefixes_of(taught.trained, keys, config.length) if texts else taught.prompts[:0],
        prompt_of=tuple(range(len(texts))),
        query=taught.query,
        sentinel=taught.sentinel,
        trained=taught.trained,
    )


@torch.no_grad()
def _outcome(job: EditJob, questions: Questions, store: Prefixes) -> dict[str, dict[str, Any]]:
    """By request: the loss of its target under its prompt, whether that is the most likely answer, the gate's value."""
    told: dict[str, dict[str, Any]] = {"target_nll": {}, "said": {}, "value": {}}
    for i, (part, target) in enumerate(questions.parts):
        row = Row(part.prompt_ids, questions.frame.parts(part.prompt_ids)[0], target, i)
        nll, said = target_losses(*prefixed_logits(job.model, [row], store.prompts[[i]].to(job.model.device)))
        told["target_nll"][part.id], told["said"][part.id] = float(nll), bool(said)
        told["value"][part.id] = float(store.similar(questions.notes[i].question)[i])
    return told


def _width(job: EditJob) -> int:
    return int(job.model.get_input_embeddings().weight.shape[1])


EDITOR = Editor("recipe", Config, run, makes=MEMORY, paper="2405.03279", calibrates=True)
