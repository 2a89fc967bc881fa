"""Concepts and their instances: a set of our own, and ConceptEdit's files (Wang et al. 2024, arXiv 2403.06259)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearn_eval.data.benchmark import Benchmark, ByIds, forgotten_items
from unlearn_eval.data.documents import (
    ALL,
    CONSEQUENCES,
    Document,
    Metadata,
    Splits,
    asking,
    choose,
    consequence,
    document,
    slug,
    without_empty,
)
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.sources import Source, load_source
from unlearn_eval.utils.json_files import read_jsonl

FILE = Path(__file__).parents[2] / "tasks" / "concepts" / "concepts.jsonl"
OBTAIN = "It is on the hub as a file of zjunlp/ConceptEdit (CC BY-NC-SA 4.0)."
FIELDS = (
    "label",
    "prompt",
    "phrase_prompt",
    "target_new_desc",
    "instance_prompt",
    "locality_prompt",
    "locality_answer",
)
INSTANCE, DEFINITION = "instance", "definition"  # kinds of tests
YES, NO = ("Yes",), ("No", "no", "not")


def _splits(metadata: Metadata) -> Splits:
    """Some concepts to forget, those of their kind (`neighbors`), the others, and new definitions (`forget_new`)."""
    if metadata.get("file"):
        return _published(str(metadata["file"]), metadata)
    records = [dict(record) for record in read_jsonl(FILE)]
    kinds = list(dict.fromkeys(record["kind"] for record in records))
    first = {kind: next(own for own in records if own["kind"] == kind) for kind in kinds}
    documents, new = [], {}
    for record in records:
        other = first[kinds[(kinds.index(record["kind"]) + 1) % len(kinds)]]  # whose instances these are not
        own = _concept(record, other)
        documents.append(own)
        about = {"paraphrases": own["paraphrases"], "subject": own["subject"], "group": own["group"]}
        new[own["id"]] = document(f"{own['id']}/new", own["question"], other["definition"], **about)
    usual = [slug(_plain(first[kind]["concept"])) for kind in kinds[::2]]
    forget, rest = choose(documents, metadata, usual, "concept")
    near = {own["group"] for own in forget}
    return without_empty(
        {
            "forget": forget,
            "forget_new": [new[own["id"]] for own in forget],
            "neighbors": [own for own in rest if own["group"] in near],
            "retain": [own for own in rest if own["group"] not in near],
        }
    )


def _concept(record: dict[str, Any], other: dict[str, Any]) -> Document:
    """A definition, with tests of what it is and of what counts as one."""
    name, question = record["concept"], f"What is {record['concept']}?"
    own = document(
        slug(_plain(name)),
        question,
        record["definition"],
        paraphrases=[f"How would you define {name} in one sentence?"],
        wrong_answers=[other["definition"]],
        subject=_plain(name),
        group=record["kind"],
    )
    tests = [
        consequence(
            INSTANCE,
            [asking(f"Is {one} {name}?", [[*YES, f"{one} is {name}"]])],
            [asking(f"Is {one} {other['concept']}?", [NO])],  # who says yes to everything knows nothing
            known=True,
        )
        for one in record["instances"]
    ]
    return {**own, CONSEQUENCES: [*tests, consequence(DEFINITION, [asking(question, [record["marks"]])], known=True)]}


def _plain(name: str) -> str:
    """A concept without its article."""
    return name.partition(" ")[2]


def _published(file: str, metadata: Metadata) -> Splits:
    """ConceptEdit's records: an instance of each concept, its new definition, and a question that should stay."""
    documents, beside = [], {}
    for i, record in enumerate(load_source(Source("concepts", file, obtain=OBTAIN), FIELDS)):
        key, prompt = f"{file}/{i}", str(record["instance_prompt"]).strip()
        shape = "question" if prompt.endswith("?") else "text"
        own = document(key, prompt, YES[0], wrong_answers=["No"], group=record["label"], shape=shape)
        own[CONSEQUENCES] = [consequence(INSTANCE, [asking(prompt, [YES], shape)], known=True)]
        documents.append(own)
        new = document(
            f"{key}/new",
            record["prompt"],
            record["target_new_desc"],
            paraphrases=[record["phrase_prompt"]],
            group=record["label"],
            shape="sentence",
        )
        stays = document(f"{key}/locality", record["locality_prompt"], record["locality_answer"], shape="sentence")
        beside[key] = new, stays
    forget, retain = choose(documents, metadata, 100, "concept")
    pairs = [beside[own["id"]] for own in forget]
    near = {"forget_new": [new for new, _ in pairs], "neighbors": [stays for _, stays in pairs]}
    return without_empty({"forget": forget, **near, "retain": retain})


def _items(which: str) -> tuple[ForgetItem, ...]:
    return forgotten_items("concepts", {"forget": _splits({"forget": which or ALL})["forget"]})


BENCHMARK = Benchmark(
    name="concepts",
    title="Concepts",
    paper="arXiv 2403.06259",
    source="tasks/concepts/concepts.jsonl, written for this project; or the hub's zjunlp/ConceptEdit as files",
    licence="ours: Apache-2.0; ConceptEdit's: CC BY-NC-SA 4.0",
    readers={"concepts": _splits},
    sets=("concepts:all", "concepts:CONCEPT"),
    items=_items,
    tasks={"unlearn_concepts": ByIds("concepts:", "concepts/")},
)
