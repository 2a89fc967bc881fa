"""What a model knows of a set: every question asked freely, every answer kept as it comes."""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_eval.data.items import ForgetSet
from unlearn_eval.data.shapes import asked
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.json_files import Record, read_jsonl, write_all
from unlearn_eval.utils.progress import Progress, no_progress

if TYPE_CHECKING:
    from unlearn_eval.harness.lm import LM


def known_items(
    path: Path,
    items: ForgetSet,
    lm: LM,
    prompt_format: PromptFormat,
    batch_size: int,
    max_new_tokens: int = 24,
    progress: Progress = no_progress,
) -> list[str]:
    """The ids of the items whose answer, or an alias of it, stands in what the model says.

    Args:
        path: where the answers are kept; those that are there are not asked for again.
        items: what is asked.
        lm: lm-eval's model.
        prompt_format: how it is asked.
        batch_size: questions at a time.
        max_new_tokens: length of an answer.
        progress: told how many are asked.
    """
    from unlearn_eval.harness.run import ask
    from unlearn_eval.metrics import contains_answer

    answers = {r["id"]: r["generated"] for r in _whole_lines(path)}
    left = [item for item in items if item.id not in answers]
    left.sort(key=lambda item: len(item.question))
    for start in range(0, len(left), batch_size):
        batch = left[start : start + batch_size]
        texts = ask(lm, [asked(item.question, item.shape) for item in batch], prompt_format, max_new_tokens)
        with path.open("a", encoding="utf-8") as file:
            for item, text in zip(batch, texts, strict=True):
                file.write(json.dumps({"id": item.id, "generated": text}, ensure_ascii=False) + "\n")
        answers |= {item.id: text for item, text in zip(batch, texts, strict=True)}
        progress("facts asked", len(answers), len(items))
    return [item.id for item in items if contains_answer(answers[item.id], item.accepted)]


def conversations(path: Path, items: ForgetSet, used: Collection[str], seed: int) -> str:
    """What was answered to the items that are not `used`, in a seeded order, as JSONL with `question` and `answer`.

    What is no question also has its `shape`. It is text for second moments (see `corpus`): what an edit should leave
    alone, as far as the set can show it.

    Args:
        path: the answers, as `known_items` keeps them.
        items: what was asked.
        used: ids of the items that are left out, because they are forgotten, or asked as kept.
        seed: of the order.
    """
    shown = {item.id: {key: item.record[key] for key in ("question", "shape") if key in item.record} for item in items}
    others = [record for record in _whole_lines(path) if record["id"] not in used]
    random.Random(seed).shuffle(others)
    lines = [{**shown[r["id"]], "answer": r["generated"]} for r in others if r["generated"]]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _whole_lines(path: Path) -> list[Record]:
    """The records of a file whose last line may have been cut off."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_all({path.name: whole}, path.parent)
    return read_jsonl(path, required_fields=("id", "generated")) if whole else []
