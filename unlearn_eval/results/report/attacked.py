"""What was answered under attack, item by item: without the edit, with it, and with it at the attack's level."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from unlearn_eval.results.report.answers import DIRECT, Answers
from unlearn_eval.utils.json_files import Record

FULL, UNLEARNED, ATTACK = "full", "unlearned", "attack"
SPLIT = "forget"
NOT_OWN = ("unedited", "reference", "random_labels", "attacked", "format")


def add_attacked(answers: Answers, run: str, task: str, records: list[Record], level: float | str | None) -> None:
    """Adds an attack's samples: its questions, what the unlearned model said before it, and the columns beside.

    The columns are `{"model", "at", "said", "numbers", "name", "classes"}`, each list with an entry for each record: a
    text's index or -1, a number of the item or None, what that number is, and a letter of `ANSWER_CLASSES`.

    Args:
        answers: what the page holds; changed.
        run, task: whose samples they are.
        records: one for each item.
        level: that stands for the attack.
    """
    rows = [
        answers.row(task, str(record["id"]), SPLIT, record["question"], record["answer"], DIRECT) for record in records
    ]
    if not rows:
        return
    columns = [_column(answers, records, rows, model, at) for model, at in _levels(records, level)]
    if not columns:
        columns = _read_out(records, rows)
    answers.tried.setdefault(run, {})[task] = columns
    before = next((one for one in columns if (one["model"], one["at"]) == (UNLEARNED, None)), columns[-1])
    if any(said >= 0 for said in before["said"]) or before["name"]:
        answers.runs.setdefault(run, {})[task] = {"said": before["said"], "classes": before["classes"]}


def _levels(records: list[Record], level: float | str | None) -> list[tuple[str, Any]]:
    """Which of the models and levels at which something was said are shown."""
    wanted = [(FULL, None), (UNLEARNED, None), (UNLEARNED, level)]
    have = {
        (one["model"], one["at"])
        for record in records
        for one in record.get("observations", ())
        if one["condition"] == ATTACK and ("said" in one or "probability" in one)
    }
    return [own for i, own in enumerate(wanted) if own in have and own not in wanted[:i]]


def _column(
    answers: Answers, records: list[Record], rows: list[int], model: str, at: float | str | None
) -> dict[str, Any]:
    own = [_observed(record, model, at) for record in records]
    said = [answers.string(one["said"]) if one and isinstance(one.get("said"), str) else -1 for one in own]
    numbers = [_number(one.get("probability")) if one else None for one in own]
    classes = [_letter(one, model) for one in own]
    return _placed(rows, model, at, said, numbers, classes, "probability")


def _observed(record: Record, model: str, at: float | str | None) -> Record | None:
    """The first observation of a model at a level that is no control's."""
    for one in record.get("observations", ()):
        if (one["model"], one["at"], one["condition"]) == (model, at, ATTACK):
            return dict(one)
    return None


def _letter(one: Record | None, model: str) -> str:
    accuracy = None if one is None else one.get("accuracy")
    if accuracy is None:
        return "-"
    return ("k" if model == FULL else "l") if accuracy > 0.5 else "n"


def _read_out(records: list[Record], rows: list[int]) -> list[dict[str, Any]]:
    """Of a measure of depth, which says nothing: the item's own number of what was read."""
    names = list(dict.fromkeys(name for record in records for name in record.get("metrics", ())))
    own = [name for name in names if not any(f"_{other}_" in name for other in NOT_OWN)]
    if not own:
        return []
    name = next((name for name in own if name.endswith(("uds", "depth", "probe_accuracy"))), own[0])
    numbers = [_number(record.get("metrics", {}).get(name)) for record in records]
    none, dashes = [-1] * len(records), ["-"] * len(records)
    return [_placed(rows, UNLEARNED, None, none, numbers, dashes, name)]


def _number(value: float | str | None) -> float | None:
    return round(float(value), 3) if isinstance(value, int | float) else None


def _placed(
    rows: list[int],
    model: str,
    at: float | str | None,
    said: Iterable[int],
    numbers: Iterable[float | None],
    classes: Iterable[str],
    name: str,
) -> dict[str, Any]:
    """The column with an entry for each row of the task's questions up to the last that it has."""
    n = max(rows) + 1
    texts: list[int] = [-1] * n
    values: list[float | None] = [None] * n
    letters = ["-"] * n
    for row, text, number, letter in zip(rows, said, numbers, classes, strict=True):
        texts[row], values[row], letters[row] = text, number, letter
    return {"model": model, "at": at, "said": texts, "numbers": values, "name": name, "classes": "".join(letters)}
