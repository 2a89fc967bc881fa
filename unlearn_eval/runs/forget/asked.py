"""The questions themselves: what a model answers to those of a request, to the same ones about others, and to others.

These are the numbers that no task of ours has for any set of a user's: whether the answers are still completed
(extraction strength), and whether what is near has stayed. One forward pass and one short answer for each question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_eval.attacks.asking import Answer, answered, rows_of
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.metrics import mean_and_stderr
from unlearn_eval.metrics.memorization import exact_memorization, extraction_strength
from unlearn_eval.metrics.refusal import is_refusal, repeats_itself
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.results.schema import Metric

FORGET, NEIGHBORS, RETAIN = "forget", "neighbors", "retain"
MAX_NEW_TOKENS = 24
NOTHING = {NEIGHBORS: "the request has no neighbors: no question names a subject", RETAIN: "no fact is retained"}


def ask_all(
    loaded: LoadedModel,
    prompt_format: PromptFormat,
    sets: Mapping[str, Sequence[ForgetItem]],
    batch_size: int = 16,
) -> tuple[dict[str, Metric], list[dict[str, Any]]]:
    """Metrics of each set, and a record for each question.

    Args:
        loaded: the model as it is now.
        prompt_format: how it is asked.
        sets: `forget`, `neighbors`, `retain` -> items.
        batch_size: rows per forward pass.
    """
    rows = {name: rows_of(items, prompt_format) for name, items in sets.items()}
    flat = [row for own in rows.values() for row in own]
    said = answered(loaded.model, prompt_format, flat, batch_size, MAX_NEW_TOKENS)
    splits = [name for name, own in rows.items() for _ in own]
    records = [
        {
            "id": f"{split}/{row.item.id}",
            "question": row.item.question,
            "answer": row.item.answer,
            "said": answer.said,
            "split": split,
            "metrics": _scores(row.item, answer),
        }
        for split, row, answer in zip(splits, flat, said, strict=True)
    ]
    return _metrics(records), records


def _scores(item: ForgetItem, answer: Answer) -> dict[str, Any]:
    said = answer.said
    return {
        "accuracy": answer.accuracy,
        "probability": answer.probability,
        "extraction_strength": extraction_strength(answer.hits),
        "exact_memorization": exact_memorization(answer.hits),
        "refusal_rate": float(is_refusal(said, item.question, item.accepted, item.perturbed_answers)),
        "repetition_rate": float(repeats_itself(said) or not said),
    }


_OF = {
    FORGET: {"accuracy": False, "probability": False, "extraction_strength": False, "exact_memorization": False}
    | {"refusal_rate": True, "repetition_rate": False},
    NEIGHBORS: {"accuracy": True, "probability": True, "refusal_rate": False, "repetition_rate": False},
    RETAIN: {"accuracy": True, "probability": True, "refusal_rate": False, "repetition_rate": False},
}


def _metrics(records: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    found = {}
    for split, wanted in _OF.items():
        own = [record["metrics"] for record in records if record["split"] == split]
        for key, better in wanted.items():
            mean, stderr, n = mean_and_stderr(scores[key] for scores in own)
            reason = None if mean is not None else NOTHING.get(split, "no question could be judged")
            found[f"{split}_{key}"] = Metric(mean, stderr, n, len(own) - n, reason, better)
    return found
