"""The facts that are shipped with the package, and the tasks that take any forget set."""

from __future__ import annotations

from pathlib import Path

from unlearn_eval.data.benchmark import AnySet, Benchmark, ByIds
from unlearn_eval.data.items import ForgetItem, item_from_record
from unlearn_eval.utils.json_files import read_jsonl

FACTS_FILE = Path(__file__).parents[2] / "tasks" / "facts" / "facts.jsonl"


def _items(which: str = "") -> tuple[ForgetItem, ...]:
    return tuple(item_from_record(record, i) for i, record in enumerate(read_jsonl(FACTS_FILE)))


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
)
