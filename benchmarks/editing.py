"""What the editors' benchmarks share: facts that the model knows, and a light evaluation by generation."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.harness.models import lent_lm
from unlearn_eval.harness.run import ask
from unlearn_eval.metrics import contains_answer, is_refusal, ngram_entropy
from unlearn_eval.metrics.alignment import Question
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.refusal_judge import Judge, load_judge
from unlearn_eval.runs.known_items import known_items
from unlearn_eval.utils.json_files import read_jsonl

MAX_NEW_TOKENS = 24
N_RETAIN = 48
BATCH = 48


def known_facts(folder: Path, loaded: LoadedModel) -> tuple[Any, list[str]]:
    """The lm-eval model and the ids of the facts that it knows; answers are kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lm = lent_lm(loaded.model, loaded.tokenizer, BATCH)
    return lm, known_items(folder / "asked.jsonl", facts(), lm, loaded.prompt_format(), BATCH)


def split(known: list[str], n_forget: int, seed: int) -> tuple[ForgetSet, list[str], list[str]]:
    """Facts to forget, facts to keep, and known facts near the forgotten ones that are in neither list."""
    order = random.Random(seed).sample(known, len(known))
    forget, retain = order[:n_forget], order[-N_RETAIN:]
    near = {r["id"]: r["neighbors"] for r in _records()}
    taken, knows = set(forget) | set(retain), set(known)
    neighbors = [key for key in dict.fromkeys(k for own in forget for k in near[own]) if key in knows - taken]
    return facts().select(forget), retain, neighbors[:48]


def conversations(folder: Path, exclude: set[str]) -> Path:
    """Questions and the model's own answers, without the facts that are evaluated: text for second moments."""
    questions = {item.id: item.question for item in facts()}
    rows = [r for r in read_jsonl(folder / "asked.jsonl") if r["id"] not in exclude and r["generated"]]
    random.Random(0).shuffle(rows)
    path = folder / "conversations.jsonl"
    lines = [json.dumps({"question": questions[r["id"]], "answer": r["generated"]}) for r in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def evaluate(lm: Any, forget: ForgetSet, retain: list[str], neighbors: list[str]) -> dict[str, float | None]:
    """Shares (0..1) by free generation, greedy, through the chat template."""
    by_id = {item.id: item for item in facts()}
    lists = {
        "forget": [(item.question, item) for item in forget],
        "paraphrase": [(item.paraphrases[0], item) for item in forget],
        "retain": [(by_id[key].question, by_id[key]) for key in retain],
        "neighbors": [(by_id[key].question, by_id[key]) for key in neighbors],
    }
    asked = [pair for pairs in lists.values() for pair in pairs]
    said = iter(ask(lm, [question for question, _ in asked], PromptFormat(lm.tokenizer, True), MAX_NEW_TOKENS))
    row: dict[str, float | None] = {}
    for name, pairs in lists.items():
        texts = [(question, item, next(said)) for question, item in pairs]
        row[f"{name}_accuracy"] = _mean(float(contains_answer(text, item.accepted)) for _, item, text in texts)
        row[f"{name}_refusal_rate"] = _mean(_refuses(text, question, item) for question, item, text in texts)
        if name in ("forget", "paraphrase"):
            row[f"{name}_refusal_alignment"] = _alignment(texts)
        if name == "forget":
            row["forget_fluency_bits"] = _mean(e for _, _, text in texts if (e := ngram_entropy(text)) is not None)
    return row


def forget_peak_memory() -> None:
    """Let the peak of resident memory be that of the next row, not of all rows so far (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _refuses(text: str, question: str, item: ForgetItem) -> float:
    return float(is_refusal(text, question, item.accepted))


def _alignment(texts: list[tuple[str, ForgetItem, str]]) -> float | None:
    """Would a person accept these answers? The mean of `refusal_alignment`, without the base model's likelihood."""
    judge = _judge()
    if judge.missing:
        return None
    asked = [
        (text, Question(question, tuple(item.accepted), item.subject, tuple(item.perturbed_answers)))
        for question, item, text in texts
    ]
    return _mean(own.refusal_alignment for own in judge(asked) if own.refusal_alignment is not None)


@cache
def _judge() -> Judge:
    return load_judge("default", "cpu")


def _mean(values: Any) -> float | None:
    found = list(values)
    return mean(found) if found else None


def _records() -> list[dict[str, Any]]:
    from unlearn_eval.data.benchmarks.facts import FACTS_FILE

    return read_jsonl(FACTS_FILE)
