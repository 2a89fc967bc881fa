"""MUSE (Shi et al. 2024, arXiv 2407.06460): texts of news and of books, asked verbatim, by questions and as members."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unlearn_eval.data.benchmark import Benchmark, Reader
from unlearn_eval.data.documents import Metadata, Splits, document
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.sources import Source, load_source
from unlearn_eval.utils.errors import unknown_name

# Requests for removal, of News only: `scal` nests (each fold holds those before it), `sust` does not. The first of both
# is the forget set of the other criteria. Published sizes, as far as a copy could be counted.
FOLDS: Mapping[str, Mapping[int, int | None]] = {
    "sust": {1: 889, 2: 889, 3: 889, 4: 887},
    "scal": {1: 889, 2: None, 3: None, 4: None},
}
PASSAGE, OPENING = 300, 32  # words of a passage, and of it those that are its question
NAMES = ("muse:news_sust", *(f"muse:news_{kind}_{fold}" for kind, folds in FOLDS.items() for fold in folds))


def _muse(name: str) -> Reader:
    folder, hub = f"muse_{name.casefold()}", f"muse-bench/MUSE-{name}"

    def read(metadata: Metadata) -> Splits:
        """MUSE's knowledge and verbatim memorization, and the texts for membership inference."""

        def load(config: str, split: str, fields: Sequence[str]) -> list[dict[str, Any]]:
            own = f"{config}/{split.replace('retain', 'retain2')}"  # as the authors' first repository calls it
            size = 10 if split.endswith("icl") else 100
            source = Source(folder, f"{config}/{split}", hub, config, split, size=size, alternatives=(own,))
            return load_source(source, fields)

        splits: Splits = {}
        for role in ("forget", "retain"):
            examples = load("knowmem", f"{role}_qa_icl", ("question", "answer"))
            turns = [str(record[field]) for record in examples for field in ("question", "answer")]
            splits[f"{role}_knowledge"] = [
                document(f"{role}_qa/{i}", record["question"], record["answer"], shape="short", turns=turns)
                for i, record in enumerate(load("knowmem", f"{role}_qa", ("question", "answer")))
            ]
        splits["forget_verbatim"] = [
            document(f"verbmem/{i}", record["prompt"], record["gt"], shape="text")
            for i, record in enumerate(load("verbmem", "forget", ("prompt", "gt")))
        ]
        for split, file in (("forget_texts", "forget"), ("holdout_texts", "holdout")):
            splits[split] = [
                document(f"{split}/{i}", "", record["text"], shape="bare")
                for i, record in enumerate(load("privleak", file, ("text",)))
            ]
        return splits

    return read


def _items(which: str) -> tuple[ForgetItem, ...]:
    """The texts of one fold, or of all that do not nest, in passages; the fold is an item's group."""
    if f"muse:{which}" not in NAMES:
        raise unknown_name("MUSE set", f"muse:{which}", NAMES)
    _, kind, *fold = which.split("_")
    found: list[ForgetItem] = []
    for n in map(int, fold or FOLDS[kind]):
        source = Source(
            "muse_news", f"{kind}/forget_{n}", "muse-bench/MUSE-News", kind, f"forget_{n}", size=FOLDS[kind][n]
        )
        for i, record in enumerate(load_source(source, ("text",))):
            passages = enumerate(_passages(str(record["text"])))
            found += [
                ForgetItem(f"muse/{kind}_{n}/{i}.{k}", question, answer, group=f"{kind}_{n}", shape="text")
                for k, (question, answer) in passages
            ]
    return tuple(found)


def _passages(text: str) -> Iterator[tuple[str, str]]:
    """A text in passages, each as its first words and what follows; a last one that is too short is left out."""
    words = [word.span() for word in re.finditer(r"\S+", text)]
    for start in range(0, len(words), PASSAGE):
        own = words[start : start + PASSAGE]
        cut = min(OPENING, len(own) // 2)
        if cut and (not start or len(own) > OPENING):
            yield text[own[0][0] : own[cut - 1][1]], text[own[cut][0] : own[-1][1]]


BENCHMARK = Benchmark(
    name="muse",
    title="MUSE",
    paper="arXiv 2407.06460",
    source="the hub's muse-bench/MUSE-News and muse-bench/MUSE-Books",
    licence="CC-BY-4.0",
    readers={"muse_news": _muse("News"), "muse_books": _muse("Books")},
    sets=NAMES,
    items=_items,
    tasks={"unlearn_muse_news": None, "unlearn_muse_books": None},
)
