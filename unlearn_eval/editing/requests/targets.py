"""What a model should say instead of the forgotten answer: a fixed sentence, one of a pool, its own, or a file's."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unlearn_eval.data.items import ForgetItem
from unlearn_eval.editing.requests.self_refusals import Candidate, choose, write_refusals
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps, read_jsonl, write_all
from unlearn_eval.utils.progress import Progress, no_progress

__all__ = [
    "ANSWER",
    "IDK",
    "POOL",
    "Candidate",
    "Target",
    "make_targets",
    "read_targets",
    "targets_jsonl",
    "write_targets",
]

ANSWER = "answer"
IDK = "I don't have any information about that."

POOL = (
    "I don't have any information about that.",
    "I'm not able to answer that question.",
    "That is something I know nothing about.",
    "I'm afraid I can't help with that one.",
    "I have no knowledge of this, sorry.",
    "Unfortunately, I can't tell you anything about it.",
    "I don't know the answer to your question.",
    "This is not something I can tell you.",
    "I'm sorry, but I have nothing to say on this.",
    "I couldn't say; this is unknown to me.",
    "I haven't learned anything about this topic.",
    "My knowledge does not include that.",
    "I'm unable to give you an answer to this.",
    "Sorry, this is beyond what I know.",
    "I really don't know that.",
    "There is nothing I can tell you about this.",
    "I lack the information to answer that.",
    "I'm not familiar with that subject.",
    "I would rather not guess: I don't know.",
    "That question is outside of what I know.",
)


@dataclass(frozen=True)
class Target:
    """What the model should say to one item's question, as it stands in `targets.jsonl`.

    Attributes:
        id, question: the item's.
        target: the refusal.
        source: where it is from: `idk`, `pool`, `text`, `self`, `wrong`, `answer` or `file`.
        candidates: of `self`: what the model wrote.
        fallback: of `self`: why the pool was used instead, if it was.
    """

    id: str
    question: str
    target: str
    source: str
    candidates: tuple[Candidate, ...] = ()
    fallback: str | None = None


def make_targets(
    target: str,
    items: Sequence[ForgetItem],
    generator: random.Random,
    loaded: LoadedModel | None = None,
    prompt_format: PromptFormat | None = None,
    n_candidates: int = 4,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[Target]:
    """The refusal for each item.

    Args:
        target: `idk` (one fixed sentence), `pool` (a choice of twenty), `self` (the model writes its own, see
            `self_refusals`), `wrong` (no refusal: the item's first wrong answer), `answer` (the item's own, of a set of
            new facts), the path of a .jsonl or .json file (see `read_targets`), or a sentence for all.
        items: what is to be refused.
        generator: chooses from the pool.
        loaded: of `self`: the model, not yet edited.
        prompt_format: of `self`: how it is asked; None is as plain questions and answers.
        n_candidates: of `self`: how many texts at most it writes for an item.
        seed: of `self`: of its sampling, and of the pool's choice for an item without a good one.
        progress: of `self`: told after each batch.

    Raises:
        UserError: the text is empty, the file is not as it should be, `self` has no model or no candidates, or `wrong`
            an item without wrong answers.
    """
    if not target.strip():
        raise UserError("the refusal target is empty", "give idk, pool, self, a .jsonl file, or a sentence")
    if target == "self":
        return _own_targets(items, loaded, prompt_format, n_candidates, seed, progress)
    if target.endswith((".jsonl", ".json")):
        return read_targets(target, items)
    if target == "wrong":
        return [Target(item.id, item.question, _wrong_answer(item), "wrong") for item in items]
    if target == ANSWER:
        return [Target(item.id, item.question, item.answer, ANSWER) for item in items]
    if target == "idk":
        return [Target(item.id, item.question, IDK, "idk") for item in items]
    if target == "pool":
        return [Target(item.id, item.question, generator.choice(POOL), "pool") for item in items]
    return [Target(item.id, item.question, target, "text") for item in items]


def _wrong_answer(item: ForgetItem) -> str:
    if not item.perturbed_answers:
        raise UserError(f"item {item.id} has no wrong answer to say instead", "give it wrong_answers, or --target idk")
    return item.perturbed_answers[0]


def targets_jsonl(targets: Sequence[Target]) -> str:
    """The text of a `targets.jsonl`: one target per line."""
    return "".join(dumps(asdict(target)) + "\n" for target in targets)


def write_targets(path: str | Path, targets: Sequence[Target]) -> None:
    """Write targets as JSON lines, to be read or corrected; the file is whole or not there."""
    path = Path(path).expanduser()
    write_all({path.name: targets_jsonl(targets)}, path.parent)


def read_targets(path: str | Path, items: Sequence[ForgetItem]) -> list[Target]:
    """The target of each item, in the items' order, from a file.

    A record holds `target` and the item's `id`, or else its `question`; other fields are not read. Records of
    other items are passed over, so the file of a larger set will do.

    Args:
        path: JSON lines or one JSON array, as `write_targets` writes it.
        items: all of them need a target.

    Raises:
        UserError: a missing or malformed file, a record without target, id and question, with an empty target or
            with another question than its item's, two records for one item, or items without a record.
    """
    path = Path(path).expanduser()
    by_id: dict[str, str] = {}
    by_question: dict[str, str] = {}
    questions = {item.id: item.question.strip() for item in items}
    for i, record in enumerate(read_jsonl(path, required_fields=("target",)), 1):
        key, question = _text(record, "id"), _text(record, "question")
        where = f"{path}, record {i} (id {key!r})" if key else f"{path}, record {i}"
        if not key and not question:
            raise UserError(f"{where}: neither id nor question", "say for which item the target is")
        if not isinstance(record["target"], str) or not record["target"].strip():
            raise UserError(f"{where}: its target is empty or no text", "write what the model should say instead")
        if key and question and questions.get(key, question) != question:
            raise UserError(
                f"{where}: its question is {question!r}, the item's {questions[key]!r}",
                "the file is of another set, or leave its questions out",
            )
        taken, name = (by_id, key) if key else (by_question, question)
        if name in taken:
            raise UserError(f"{where}: a second target for {name!r}", "leave one of them")
        taken[name] = record["target"].strip()
    found = [by_id.get(item.id) or by_question.get(item.question.strip()) for item in items]
    missing = [item.id for item, text in zip(items, found, strict=True) if text is None]
    if missing:
        raise UserError(
            f"{path} has no target for {len(missing)} of {len(items)} items, e.g. {', '.join(map(repr, missing[:3]))}",
            "add a line for each (id and target), or leave the items out (--ids)",
        )
    return [Target(item.id, item.question, str(text), "file") for item, text in zip(items, found, strict=True)]


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    return "" if value is None else str(value).strip()


def _own_targets(
    items: Sequence[ForgetItem],
    loaded: LoadedModel | None,
    prompt_format: PromptFormat | None,
    n_candidates: int,
    seed: int,
    progress: Progress,
) -> list[Target]:
    """The model's own refusals, or the pool's where it wrote no good one."""
    if loaded is None:
        raise UserError("the target 'self' needs the model that is to write it", "give the model, or the target 'pool'")
    if n_candidates < 1:
        raise UserError(f"{n_candidates} candidates per item were asked for", "ask for at least 1")
    prompt_format = prompt_format or loaded.prompt_format(False)
    written = write_refusals(loaded, items, prompt_format, n_candidates, seed, progress=progress)
    targets = []
    for item, candidates in zip(items, written, strict=True):
        text, source, fallback = choose(candidates, item), "self", None
        if text is None:
            text, source = random.Random(f"{seed}/{item.id}").choice(POOL), "pool"
            fallback = _why(candidates)
        targets.append(Target(item.id, item.question, text, source, candidates, fallback))
    return targets


def _why(candidates: Sequence[Candidate]) -> str:
    if not candidates:
        return "the prompt does not fit the model's context"
    reasons = Counter(str(candidate.rejected) for candidate in candidates)
    return f"no good candidate of {len(candidates)}: " + "; ".join(f"{text} ({n})" for text, n in reasons.items())
