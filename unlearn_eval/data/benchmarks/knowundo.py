"""KnowUnDo (Tian et al. 2024, arXiv 2407.01920), its privacy part: what is private, and what looks like it."""

from __future__ import annotations

from unlearn_eval.data.benchmark import Benchmark, ByPart, forgotten_items
from unlearn_eval.data.documents import Metadata, Splits, document, only
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.sources import Source, load_source

SIZES = {"unlearn_train": 400, "unlearn_val": 110, "retention_train": 441, "retention_val": 108}
OBTAIN = "It is dataset/KnowUnDo/privacy/ of github.com/zjunlp/unlearn (MIT)."


def _splits(metadata: Metadata) -> Splits:
    """KnowUnDo's privacy part: what is private and what is not, as trained on and as validated."""
    files = {"forget": "unlearn", "retain": "retention"}
    splits = {
        f"{role}_{part}": [
            document(f"{role}_{part}/{i}", record["text"], record["labels"])
            for i, record in enumerate(load_source(_source(f"{file}_{part}"), ("text", "labels")))
        ]
        for role, file in files.items()
        for part in ("train", "val")
    }
    return only(splits, metadata)


def _source(file: str) -> Source:
    others = (f"privacy/{file}", file)  # as they lie in the authors' folder
    return Source("knowundo", f"privacy_{file}", obtain=OBTAIN, size=SIZES[file], alternatives=others)


def _items(which: str) -> tuple[ForgetItem, ...]:
    return forgotten_items("knowundo", _splits({}))


BENCHMARK = Benchmark(
    name="knowundo",
    title="KnowUnDo",
    paper="arXiv 2407.01920",
    source="dataset/KnowUnDo/privacy/ of github.com/zjunlp/unlearn",
    licence="MIT",
    readers={"knowundo": _splits},
    sets=("knowundo:all",),
    items=_items,
    tasks={"unlearn_knowundo": ByPart("knowundo:", "", "knowundo/")},
)
