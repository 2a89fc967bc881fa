"""The facts that are shipped with the package, and the tasks that take any forget set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from unlearn_eval.data.benchmark import NOTES, AnySet, Benchmark, ByIds, FinetunePreset
from unlearn_eval.data.chains import Fact
from unlearn_eval.data.items import ForgetItem, item_from_record
from unlearn_eval.utils.json_files import read_jsonl

_FOLDER = Path(__file__).parents[2] / "tasks" / "facts"
FACTS_FILE, DESCRIPTIONS_FILE = _FOLDER / "facts.jsonl", _FOLDER / "descriptions.json"


def _items(which: str = "") -> tuple[ForgetItem, ...]:
    return tuple(item_from_record(record, i) for i, record in enumerate(read_jsonl(FACTS_FILE)))


@cache
def _descriptions() -> dict[str, dict[str, str]]:
    """Relation -> words for the answer of its facts, and for their subject."""
    content: dict[str, dict[str, str]] = json.loads(DESCRIPTIONS_FILE.read_text(encoding="utf-8"))
    return content


def fact_of(record: Mapping[str, Any]) -> Fact:
    """A shipped fact with all that its record and its relation say of it."""
    words = _descriptions().get(str(record["relation"]), {})
    subject = f"the {record['subject']}" if f"the {record['subject']}" in record["question"] else record["subject"]
    answer, about = (
        words.get(name, "").format(subject=subject, answer=record["answer"]) for name in ("answer", "subject")
    )
    cloze, relation = str(record["cloze"]), str(record["relation"])
    return Fact(item_from_record(record), cloze, "", answer, about, relation, joins=False)


BENCHMARK = Benchmark(
    name="facts",
    title="unlearn-eval's facts",
    paper="-",
    source="tasks/facts/facts.jsonl, written for this project",
    licence="Apache-2.0",
    sets=("facts",),
    items=_items,
    tasks={
        "unlearn_facts_quick": ByIds("facts", takes_kept=True),
        "unlearn_facts": ByIds("facts", takes_kept=True),
        "unlearn_forms": AnySet(),
        "unlearn_leak_at_k": AnySet(),
        "unlearn_thinking": AnySet(),
        "unlearn_utility": AnySet(can_keep=False),
        "unlearn_utility_quick": AnySet(can_keep=False),
    },
    finetuning=(
        FinetunePreset(
            "lte",
            "LTE, arXiv 2402.11905, YJiangcm/LTE@32d44487 (its LoRA); its pairs by rule from facts",
            {
                "lora_rank": "8",
                "lora_alpha": "16",
                "lora_dropout": "0.05",
                "learning_rate": "3e-4",
                "epochs": "3",
                "batch_size": "16",
                "weight_decay": "0",
                "warmup_epochs": "0.1",
                "schedule": "cosine",
            },
            NOTES,
        ),
    ),
)
