"""zsRE (Levy et al. 2017, arXiv 1706.04115), as MEND and ROME use it: questions, rephrasings, unrelated questions."""

from __future__ import annotations

from collections.abc import Iterator

from unlearn_eval.data.benchmark import Benchmark, ByIds, first_of, forgotten_items
from unlearn_eval.data.documents import Document, Metadata, Splits, choose, document, names_something, without_empty
from unlearn_eval.data.files import as_ours, linked_in
from unlearn_eval.data.items import OF_NEW, ForgetItem
from unlearn_eval.data.sources import Source, is_there, load_source
from unlearn_eval.data.tables import Row
from unlearn_eval.utils.errors import UserError

MEND = Source(
    "zsre",
    "zsre_mend_eval",
    obtain="It is zsre_mend_eval.json of rome.baulab.info/data/dsets.",
    size=19086,
    alternatives=("zsre_mend_eval_portability_gpt4",),  # of EasyEdit, with a question over a further fact each
)
KNOWEDIT = Source("zsre", "ZsRE-test-all")


def _splits(metadata: Metadata) -> Splits:
    """ZsRE's questions, their rephrasings, and an unrelated question each (which KnowEdit's file does not have)."""
    documents, neighbors = [], {}
    for own, unrelated in _of_knowedit() if is_there(KNOWEDIT) and not is_there(MEND) else _of_mend():
        documents.append(own)
        neighbors[own["id"]] = unrelated
    forget, retain = choose(documents, metadata, 100, "record")
    near = [one for own in forget for one in neighbors[own["id"]]]
    return without_empty({"forget": forget, "retain": retain, "neighbors": near})


def _of_knowedit() -> Iterator[tuple[Document, list[Document]]]:
    """The questions with KnowEdit's portability and locality."""
    fields = ("subject", "prompt", "target_new", "ground_truth", "portability", "locality")
    for i, record in enumerate(load_source(KNOWEDIT, fields)):
        own = as_ours(Row(record, f"zsre, record {i + 1}"))
        answers = own["answer"] if isinstance(own["answer"], list) else [own["answer"]]
        subject = str(own["subject"] or "")
        made = document(
            str(i),
            own["question"],
            answers[0],
            aliases=filter(names_something, map(str, answers[1:])),
            paraphrases=own["paraphrases"],
            wrong_answers=own["perturbed_answers"],
            subject=subject if subject in own["question"] else "",
            shape=own["shape"],
            linked=own.get("linked", ()),
        )
        yield made, []


def _of_mend() -> Iterator[tuple[Document, list[Document]]]:
    fields = ("subject", "src", "rephrase", "alt", "answers", "loc", "loc_ans")
    for i, record in enumerate(load_source(MEND, fields)):
        answers = [str(answer) for answer in record["answers"]]
        if not answers:
            raise UserError(f"zsre, record {i + 1}: no answers", "every record has at least one")
        made = document(
            str(i),
            record["src"],
            answers[0],
            aliases=filter(names_something, answers[1:]),
            paraphrases=[record["rephrase"]],
            wrong_answers=[record["alt"]] if record["alt"] else [],
            subject=record["subject"] if str(record["subject"]) in str(record["src"]) else "",
            linked=linked_in(record, OF_NEW),
        )
        unrelated = str(record["loc"]).removeprefix("nq question: ").strip()
        unrelated += "" if unrelated.endswith("?") else "?"
        yield made, [document(f"{i}/unrelated", unrelated, record["loc_ans"])]


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
