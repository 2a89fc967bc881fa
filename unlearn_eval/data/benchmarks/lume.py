"""LUME (Ramakrishna et al. 2025, arXiv 2502.15097): creative texts, personal data and biographies, in two forms."""

from __future__ import annotations

import re

from unlearn_eval.data.benchmark import Benchmark, ByPart, forgotten_items
from unlearn_eval.data.documents import Metadata, Splits, distinct_ids, document, only
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.sources import Source, load_source
from unlearn_eval.utils.errors import UserError, unknown_name

OBTAIN = "It is data/ of github.com/amazon-science/lume-llm-unlearning (Apache-2.0)."
TASKS = {"Task1": "creative", "Task2": "personal", "Task3": "biography"}
FORMS = {"sc": "completion", "qa": "question"}


def _splits(metadata: Metadata) -> Splits:
    """LUME's three tasks, each as sentence completion and as questions, on what is forgotten and what is kept."""
    wanted = metadata.get("task")
    if wanted is not None and wanted not in TASKS.values():
        raise unknown_name("LUME task", str(wanted), TASKS.values())
    splits: Splits = {}
    for role, size in (("forget", 2732), ("retain", 2734)):
        source = Source("lume", role, obtain=OBTAIN, size=size)
        for i, record in enumerate(load_source(source, ("id", "input", "output", "task"))):
            key = str(record["id"])
            found = re.search(r"(sc|qa)\d+$", key)
            if found is None or record["task"] not in TASKS:
                raise UserError(
                    f"lume/{role}, record {i + 1}: id {key!r}, task {record['task']!r}",
                    f"ids end in sc or qa and a number, tasks are {', '.join(TASKS)}",
                )
            task, form = TASKS[record["task"]], FORMS[found.group(1)]
            if wanted in (None, task):
                own = document(
                    key,
                    record["input"],
                    record["output"],
                    group=key[: found.start()],
                    shape="text" if form == "completion" else "question",
                )
                splits.setdefault(f"{role}_{task}_{form}", []).append(own)
    return only({split: distinct_ids(own) for split, own in splits.items()}, metadata)


def _items(which: str) -> tuple[ForgetItem, ...]:
    return forgotten_items("lume", _splits({} if which in ("", "all") else {"task": which}))


BENCHMARK = Benchmark(
    name="lume",
    title="LUME",
    paper="arXiv 2502.15097",
    source="data/ of github.com/amazon-science/lume-llm-unlearning",
    licence="Apache-2.0",
    readers={"lume": _splits},
    sets=("lume:TASK",),
    items=_items,
    tasks={"unlearn_lume": ByPart("lume:", "task", "lume/")},
)
