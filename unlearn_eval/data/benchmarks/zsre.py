"""zsRE (Levy et al. 2017, arXiv 1706.04115), as MEND and ROME use it: questions, rephrasings, unrelated questions."""

from __future__ import annotations

from unlearn_eval.data.benchmark import Benchmark, ByIds, first_of, forgotten_items
from unlearn_eval.data.documents import Metadata, Splits, choose, document, names_something
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.sources import Source, load_source
from unlearn_eval.utils.errors import UserError


def _splits(metadata: Metadata) -> Splits:
    """ZsRE's questions, their rephrasings, and an unrelated question each."""
    obtain = "It is zsre_mend_eval.json of rome.baulab.info/data/dsets."
    documents, neighbors = [], {}
    fields = ("subject", "src", "rephrase", "alt", "answers", "loc", "loc_ans")
    for i, record in enumerate(load_source(Source("zsre", "zsre_mend_eval", obtain=obtain, size=19086), fields)):
        answers = [str(answer) for answer in record["answers"]]
        if not answers:
            raise UserError(f"zsre, record {i + 1}: no answers", "every record has at least one")
        documents.append(
            document(
                str(i),
                record["src"],
                answers[0],
                aliases=filter(names_something, answers[1:]),
                paraphrases=[record["rephrase"]],
                wrong_answers=[record["alt"]] if record["alt"] else [],
                subject=record["subject"] if str(record["subject"]) in str(record["src"]) else "",
            )
        )
        unrelated = str(record["loc"]).removeprefix("nq question: ").strip()
        unrelated += "" if unrelated.endswith("?") else "?"
        neighbors[str(i)] = document(f"{i}/unrelated", unrelated, record["loc_ans"])
    forget, retain = choose(documents, metadata, 100, "record")
    return {"forget": forget, "retain": retain, "neighbors": [neighbors[own["id"]] for own in forget]}


def _items(which: str) -> tuple[ForgetItem, ...]:
    return forgotten_items("zsre", _splits(first_of(which, "zsre")))


BENCHMARK = Benchmark(
    name="zsre",
    title="zsRE",
    paper="arXiv 1706.04115",
    source="zsre_mend_eval.json of rome.baulab.info/data/dsets",
    licence="not stated",
    readers={"zsre": _splits},
    sets=("zsre:NUMBER", "zsre:all"),
    items=_items,
    tasks={"unlearn_zsre": ByIds("zsre:", "zsre/")},
)
