"""RWKU (Jin et al. 2024, arXiv 2406.10890): famous people, asked in many ways, and their neighbors."""

from __future__ import annotations

import re

from unlearn_eval.data.benchmark import Benchmark, ByPart, forgotten_items
from unlearn_eval.data.documents import Metadata, Splits, document, only, slug
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.sources import Source, has_data_folder, is_there, load_source
from unlearn_eval.utils.errors import unknown_name

HUB_ID = "jinzhuoran/RWKU"
# Level -> the split that it is here, and how many records it has.
LEVELS = {
    "forget_level1": ("forget_blank", 3268),
    "forget_level2": ("forget_question", 2879),
    "forget_level3": ("forget_attack", 6984),
    "neighbor_level1": ("neighbors_blank", 5846),
    "neighbor_level2": ("neighbors_question", 5533),
}
# Texts of what a model was trained on, about the people and about others: the hub's name, and how many records it has.
TEXTS = {"forget_mia": ("mia_forget", "forget_texts", 6198), "retain_mia": ("mia_retain", "retain_texts", 7487)}


def _splits(metadata: Metadata) -> Splits:
    """RWKU's probes of some people or of all: blanks, questions, attacks of each kind, their neighbors, and texts."""
    wanted = metadata.get("forget")
    people = None if wanted is None else {wanted} if isinstance(wanted, str) else {str(name) for name in wanted}
    known: set[str] = set()
    splits: Splits = {}
    for level, (split, size) in LEVELS.items():
        fields = ("query", "answer", "subject", *(("type",) if level == "forget_level3" else ()))
        for i, record in enumerate(load_source(Source("rwku", level, HUB_ID, level, "test", size=size), fields)):
            if level.startswith("forget"):
                known.add(record["subject"])
            if people is not None and record["subject"] not in people:
                continue
            attack = kind_of_attack(str(record["type"])) if level == "forget_level3" else ""
            name = f"{split}_{attack}" if attack else split
            shape = "blank" if level.endswith("1") else "brief"
            if attack == "affirmative_suffix":
                shape = "brief_open"  # its query ends with the beginning of the answer
            elif attack.replace("_", "").startswith("incontext"):
                shape = "brief_examples"  # its query brings its own questions and answers
            own = document(
                f"{level}/{i}",
                record["query"],
                record["answer"],
                subject=record.get("neighbor") or record["subject"],
                group=record["subject"],
                shape=shape,
            )
            splits.setdefault(name, []).append(own)
    for file, (config, split, size) in TEXTS.items():
        source = Source("rwku", file, HUB_ID, config, "test", size=size, alternatives=(config,))
        if has_data_folder() and not is_there(source):
            continue  # who has the questions alone asks them alone
        for i, record in enumerate(load_source(source, ("text", "subject"))):
            if people is None or record["subject"] in people:
                person = record["subject"]
                own = document(f"{file}/{i}", "", record["text"], subject=person, group=person, shape="bare")
                splits.setdefault(split, []).append(own)
    for name in people or ():
        if name not in known:
            raise unknown_name("person of RWKU", name, known)
    return only(splits, metadata)


def kind_of_attack(written: str) -> str:
    """The kind of attack that a record's `type` says: one of nine, which the files write in sixteen ways.

    The language of a question in another one stands in brackets ("cross lingual (Spanish)"), with a hyphen or not.
    """
    return slug(re.sub(r"\(.*?\)", " ", written))


def _items(which: str) -> tuple[ForgetItem, ...]:
    splits = _splits({} if which in ("", "all") else {"forget": which})
    return forgotten_items("rwku", {name: own for name, own in splits.items() if not name.endswith("_texts")})


BENCHMARK = Benchmark(
    name="rwku",
    title="RWKU",
    paper="arXiv 2406.10890",
    source=f"the hub's {HUB_ID}",
    licence="CC-BY-4.0",
    readers={"rwku": _splits},
    sets=("rwku:PERSON",),
    items=_items,
    tasks={"unlearn_rwku": ByPart("rwku:", "forget", "rwku/", groups=True)},
)
