"""MUSE (Shi et al. 2024, arXiv 2407.06460): texts of news and of books, asked verbatim, by questions and as members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unlearn_eval.data.benchmark import Benchmark, Reader
from unlearn_eval.data.documents import Metadata, Splits, document
from unlearn_eval.data.sources import Source, load_source


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


BENCHMARK = Benchmark(
    name="muse",
    title="MUSE",
    paper="arXiv 2407.06460",
    source="the hub's muse-bench/MUSE-News and muse-bench/MUSE-Books",
    licence="CC-BY-4.0",
    readers={"muse_news": _muse("News"), "muse_books": _muse("Books")},
    tasks={"unlearn_muse_news": None, "unlearn_muse_books": None},
)
