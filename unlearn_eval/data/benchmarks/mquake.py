"""MQuAKE (Zhong et al. 2023, arXiv 2305.14795): edits, and questions over several hops whose answer they change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unlearn_eval.data.benchmark import Benchmark, ByIds, file_and_first, file_of, forgotten_items
from unlearn_eval.data.documents import (
    CONSEQUENCES,
    Document,
    Metadata,
    Splits,
    asking,
    choose,
    consequence,
    document,
    names_something,
    rewrite_of,
    without_empty,
)
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.sources import Source, load_source
from unlearn_eval.utils.errors import UserError, unknown_name

OBTAIN = "It is in datasets/ of github.com/princeton-nlp/MQuAKE (MIT)."
FILES = {
    "cf-3k": Source("mquake", "MQuAKE-CF-3k", obtain=OBTAIN, size=3000, alternatives=("MQuAKE-CF-3k-v2",)),
    "cf": Source("mquake", "MQuAKE-CF", obtain=OBTAIN, size=9218),
    "t": Source("mquake", "MQuAKE-T", obtain=OBTAIN),
}
FIELDS = ("case_id", "requested_rewrite", "questions", "answer", "new_answer", "single_hops", "new_single_hops")
NEW, HOPS, OLD = "multi_hop", "single_hops", "old_multi_hop"  # kinds of tests


def _splits(metadata: Metadata) -> Splits:
    """Edits to forget and to keep, and the cases all of whose edits are forgotten, or none.

    An edit that several cases have is one document. Of what is kept no case goes through a forgotten fact.
    """
    file = str(metadata.get("file") or "cf-3k")
    if file not in FILES:
        raise unknown_name("file of MQuAKE", file, FILES)
    edits: dict[tuple[str, str, str], Document] = {}
    cases: list[tuple[Document, set[str], set[tuple[str, str]]]] = []
    for record in load_source(FILES[file], FIELDS):
        key = f"{file}/{record['case_id']}"
        about = f"mquake, case {record['case_id']}"
        own = set()
        for i, rewrite in enumerate(record["requested_rewrite"]):
            text, subject, true, new = rewrite_of(rewrite, about, OBTAIN)
            made = {"wrong_answers": [new], "subject": subject, "shape": "sentence"}
            edit = edits.setdefault((text, true, new), document(f"{key}/{i}", text, true, **made))  # type: ignore[arg-type]
            own.add(edit["id"])
        case, passed = _case(key, about, record)
        cases.append((case, own, passed))
    forget, retain = choose(list(edits.values()), metadata, 100, "edit")
    gone, facts = {own["id"] for own in forget}, {(own["question"], own["answer"]) for own in forget}
    changed = [case for case, own, _ in cases if own and own <= gone]
    kept = [case for case, own, passed in cases if not own & gone and not facts & passed]
    return without_empty(
        {
            "forget": forget,
            "forget_cases": changed,
            "retain": retain,
            "retain_cases": kept[: metadata.get("n_retain")],
        }
    )


def _case(key: str, about: str, record: Mapping[str, Any]) -> tuple[Document, set[tuple[str, str]]]:
    """A question over several hops, in its wordings, with its tests; and the facts that it goes through before."""
    try:
        old = _accepted(record["answer"], record.get("answer_alias"), record.get("answer_extended"))
        new = _accepted(record["new_answer"], record.get("new_answer_alias"))
        hops = [
            asking(hop["question"], [_accepted(hop["answer"], hop.get("answer_alias"))])
            for hop in record["new_single_hops"]
        ]
        passed = {(str(hop["cloze"]), str(hop["answer"])) for hop in record["single_hops"]}
        texts = [str(text) for text in record["questions"]]
        own = document(key, texts[0], old[0], aliases=old[1:], wrong_answers=new[:1])
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{about} is not as published ({error!r})", OBTAIN) from error
    tests = [
        consequence(NEW, [asking(text, [new]) for text in texts]),
        consequence(HOPS, hops, every=True),
        consequence(OLD, [asking(text, [old]) for text in texts], known=True),
    ]
    return {**own, CONSEQUENCES: tests}, passed


def _accepted(answer: object, *aliases: Iterable[object] | None) -> list[str]:
    """An answer, and the other ways to write it that name something."""
    return [str(answer), *(str(text) for own in aliases for text in own or () if names_something(str(text)))]


def _items(which: str) -> tuple[ForgetItem, ...]:
    splits = _splits(file_and_first(which, FILES, "mquake"))
    return forgotten_items("mquake", {"forget": splits["forget"]})


BENCHMARK = Benchmark(
    name="mquake",
    title="MQuAKE",
    paper="arXiv 2305.14795",
    source="datasets/ of github.com/princeton-nlp/MQuAKE",
    licence="MIT",
    readers={"mquake": _splits},
    sets=tuple(f"mquake:{file}" for file in FILES),
    items=_items,
    tasks={"unlearn_mquake": ByIds("mquake:", "mquake/", more=file_of)},
)
