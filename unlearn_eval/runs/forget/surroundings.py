"""What should stay: shipped facts that the model knows, the same questions about others, and a user's own facts.

All of it is what the model says before anything is changed. A fact is retained if the model answers it rightly. The
same question about another subject counts with whatever the model answers to it: that should not change.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.attacks.folds import apart
from unlearn_eval.data.forget_sets import facts, load_forget_set
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.editing.locate_then_edit.corpus import conversation_ids
from unlearn_eval.metrics import contains_answer, normalise
from unlearn_eval.metrics.refusal import has_refusal_cue
from unlearn_eval.models.generation import written
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.runs.forget.request import MAX_NEW_TOKENS, answers_in
from unlearn_eval.runs.known_items import conversations, known_items
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps, write_all
from unlearn_eval.utils.progress import Progress, no_progress

if TYPE_CHECKING:
    from unlearn_eval.harness.lm import LM

N_ASKED, ROUND = 480, 96  # shipped facts that the model is asked at most, and at a time
KEYS_PER_DIMENSION = 8  # of the answers to them; FastMEMIT finds 10 enough
N_RETAIN, N_TRAINED, N_NEIGHBORS, N_NAMES = 32, 96, 32, 8
RETAIN, TRAINED, NEIGHBORS, CONVERSATIONS = "retain.jsonl", "trained.jsonl", "neighbors.jsonl", "conversations.jsonl"
_LIKE = "Name others that are like {subject}, separated by commas."


@dataclass(frozen=True)
class Surroundings:
    """What should stay, in files of a folder.

    Attributes:
        retain: facts that are measured; no method sees them.
        neighbors: the same questions about other subjects, with the model's own answers.
        trained: facts for methods that are trained; none of them is measured.
        conversations: a file of the model's answers to other facts, as text for second moments.
    """

    retain: ForgetSet | None
    neighbors: ForgetSet | None
    trained: ForgetSet | None
    conversations: Path


def surroundings(
    folder: Path,
    forget: ForgetSet,
    lm: LM,
    loaded: LoadedModel,
    prompt_format: PromptFormat,
    retain: str | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress = no_progress,
) -> Surroundings:
    """Ask the model what it knows beside a request; what is in the folder already is not asked again.

    Args:
        folder: of the files.
        forget: what is to be forgotten; nothing about its subjects is taken.
        lm: lm-eval's model around the same one.
        loaded, prompt_format: the model, and how it is asked.
        retain: a user's own set, all of it measured where the model knows it.
        seed: chooses facts and names.
        batch_size: rows per forward pass.
        progress: called as (what, done, total).
    """
    if not (folder / CONVERSATIONS).is_file():
        others = apart(forget, facts())
        assert others is not None
        others = ForgetSet("facts", tuple(own for own in others if not _names_an_answer(own, forget)))
        options = (lm, prompt_format, batch_size, MAX_NEW_TOKENS, progress)
        drawn, order = _drawn(folder / "asked.jsonl", others, loaded, seed, *options)
        measured, trained = order[:N_RETAIN], order[N_RETAIN : N_RETAIN + N_TRAINED]
        kept = list(drawn.select(measured)) if measured else []
        if retain is not None:
            own = apart(forget, load_forget_set(retain))
            if own is not None:
                names = known_items(folder / "asked_retain.jsonl", own, *options)
                kept = [replace(item, id=f"own/{item.id}") for item in (own.select(names) if names else ())] + kept
        near = neighbors_of(forget, loaded, prompt_format, seed, batch_size)
        sets = {RETAIN: kept, TRAINED: drawn.select(trained) if trained else (), NEIGHBORS: near}
        files = {name: "".join(dumps(item.record) + "\n" for item in items) for name, items in sets.items()}
        text = conversations(folder / "asked.jsonl", drawn, {*measured}, seed)
        write_all({**files, CONVERSATIONS: text}, folder)
    return stored_surroundings(folder)


def _drawn(path: Path, others: ForgetSet, loaded: LoadedModel, seed: int, *options: Any) -> tuple[ForgetSet, list[str]]:
    """The facts that the model was asked, and in random order the ids of those that it knows.

    Facts are drawn and asked in rounds, until enough are known and what was said is text enough for second moments; the
    text is not waited for where that of all facts would not do.
    """
    ids = random.Random(seed).sample([own.id for own in others], min(N_ASKED, len(others)))
    drawn, order = others.select(ids), []
    for n in range(ROUND, len(ids) + ROUND, ROUND):
        drawn = others.select(ids[:n])
        known = known_items(path, drawn, *options)
        order = random.Random(seed).sample(known, len(known))
        if len(order) >= N_RETAIN + N_TRAINED:
            share = share_of_text(conversations(path, drawn, {*order[:N_RETAIN]}, seed), loaded)
            if share >= 1 or share * len(ids) < len(drawn):
                break
    return drawn, order


def share_of_text(text: str, loaded: LoadedModel) -> float:
    """How many tokens conversations (JSONL) have for each that second moments need; 1 if the model has none."""
    try:
        needed = KEYS_PER_DIMENSION * loaded.anatomy.d_mlp
    except UserError:
        return 1.0
    rows, beginning = conversation_ids(map(json.loads, text.splitlines()), loaded.tokenizer)
    return sum(len(row) - beginning for row in rows) / needed


def stored_surroundings(folder: Path) -> Surroundings:
    """What should stay, from the files of a folder."""
    retain, neighbors, trained = (_stored(folder / name) for name in (RETAIN, NEIGHBORS, TRAINED))
    return Surroundings(retain, neighbors, trained, folder / CONVERSATIONS)


def _names_an_answer(item: ForgetItem, forget: ForgetSet) -> bool:
    """Whether a fact's answer is a subject of the request: it would be about what is forgotten."""
    return any(own.subject and contains_answer(item.answer, own.subject) for own in forget)


def neighbors_of(
    forget: Sequence[ForgetItem], loaded: LoadedModel, prompt_format: PromptFormat, seed: int, batch_size: int
) -> list[ForgetItem]:
    """The questions of a request about other subjects, with what the model answers; none of one without a subject.

    Only answers count that the model also gives to the paraphrase, where the request has one: others change easily.

    The others are those that the model names beside the subject, then persons of the shipped facts.
    """
    asked = [item for item in forget if item.subject and item.shape == "question"]
    if not asked:
        return []
    subjects = list(dict.fromkeys(str(item.subject) for item in asked))
    rows = [prompt_format.prompt_ids(_LIKE.format(subject=subject)) for subject in subjects]
    said = written(loaded.model, prompt_format, rows, batch_size, 2 * MAX_NEW_TOKENS)
    persons = [fact.answer for fact in facts() if fact.question.startswith("Who ") and " " in fact.answer]
    drawn = random.Random(seed).sample(sorted(set(persons)), 3 * N_NAMES)
    named = {
        subject: [name for name in answers_in(text, _LIKE.format(subject=subject)) if " " in name]
        for subject, text in zip(subjects, said, strict=True)
    }
    found: list[ForgetItem] = []
    for item in asked:
        subject = str(item.subject)
        names = [own for own in dict.fromkeys([*named[subject], *drawn]) if not _alike(own, subjects)][:N_NAMES]
        for name in names:
            question, *others = (text.replace(subject, name) for text in (item.question, *item.paraphrases[:1]))
            found.append(ForgetItem(f"{item.id}, {name}", question, "?", subject=name, paraphrases=tuple(others)))
    found = random.Random(seed).sample(found, min(N_NEIGHBORS, len(found)))
    again = [own.paraphrases[0] if own.paraphrases else own.question for own in found]
    rows = [prompt_format.prompt_ids(text) for text in [*(own.question for own in found), *again]]
    said = written(loaded.model, prompt_format, rows, batch_size, MAX_NEW_TOKENS)
    kept = []
    for item, first, second in zip(found, said, said[len(found) :], strict=False):
        firm = [own for own in answers_in(first, item.question) if contains_answer(second, own)]
        if firm and not has_refusal_cue(first):
            kept.append(replace(item, answer=firm[0]))
    return kept


def _alike(name: str, subjects: Sequence[str]) -> bool:
    return any(set(normalise(name).split()) & set(normalise(own).split()) for own in subjects)


def _stored(path: Path) -> ForgetSet | None:
    return load_forget_set(str(path)) if path.stat().st_size else None
