"""RippleEdits (Cohen et al. 2023, arXiv 2307.12976): edits, and tests of what follows from them in six ways."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from unlearn_eval.data.benchmark import Benchmark, ByIds, file_and_first, file_of, forgotten_items
from unlearn_eval.data.documents import CONSEQUENCES, Document, Metadata, Splits, asking, choose, consequence, document
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.sources import Source, load_source
from unlearn_eval.utils.errors import UserError, unknown_name

OBTAIN = "It is in data/benchmark/ of github.com/edenbiran/RippleEdits (MIT)."
FILES = "popular random recent".split()
CRITERIA = (
    "Relation_Specificity Logical_Generalization Compositionality_I Compositionality_II Subject_Aliasing Forgetfulness"
).split()
OLD = "old_alias"  # a kind of test of our own: does the old answer come by another name of the subject?
_VERB = re.compile(r" (?:is followed by|follows|are|is)(?= )")  # with which the authors' prompts of a fact end


def _splits(metadata: Metadata) -> Splits:
    """The facts before the edits, to forget (with the tests of each) and to keep; of recent facts, the facts."""
    file = str(metadata.get("file") or FILES[0])
    if file not in FILES:
        raise unknown_name("file of RippleEdits", file, FILES)
    documents, tests = [], {}
    for i, record in enumerate(load_source(Source("ripple", file, obtain=OBTAIN), ("edit", *CRITERIA))):
        about = f"ripple/{file}, record {i + 1}"
        try:
            own = _fact(f"{file}/{i}", record["edit"], about)
            if own is not None:
                documents.append(own)
                tests[own["id"]] = list(_tests(record, own))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{about} is not as published ({error!r})", OBTAIN) from error
    forget, retain = choose(documents, metadata, 100, "edit")
    for own in forget:
        own[CONSEQUENCES] = tests[own["id"]]
    return {"forget": forget, "retain": retain}


def _fact(key: str, edit: Mapping[str, Any], about: str) -> Document | None:
    """What an edit is to change; None where an entity has no name, which the authors pass over too."""
    prompt, before = edit["prompt"], (edit.get("previous_fact") or {}).get("prompt")
    found = list(_VERB.finditer(os.path.commonprefix([prompt, before or prompt])))
    if not found:
        raise UserError(f"{about}: its fact {prompt!r} is not as published", OBTAIN)
    end = found[-1].end()
    new, old = (text[end:].strip().removesuffix(".").strip() for text in (prompt, before or prompt))
    if not new or not old:
        return None
    return document(key, prompt[:end], old, wrong_answers=[new] if before else [], shape="sentence")


def _tests(record: Mapping[str, Any], fact: Document) -> Iterator[Document]:
    for criterion in CRITERIA:
        for test in record[criterion]:
            questions, conditions = ([_query(one) for one in test[f"{name}_queries"]] for name in ("test", "condition"))
            if not questions or not all(one["answers"] for one in (*questions, *conditions)):
                continue  # without an answer that has a name, nothing can pass
            yield consequence(criterion.lower(), questions, conditions, every=test["test_condition"] == "AND")
            if criterion == "Subject_Aliasing" and fact["wrong_answers"]:
                yield consequence(OLD, [{**one, "answers": [[fact["answer"]]]} for one in questions], known=True)


def _query(own: Mapping[str, Any]) -> Document:
    groups = ([str(answer["value"]), *map(str, answer["aliases"])] for answer in own["answers"])
    named = [[text for text in group if len(text) > 1 or text.isdigit()] for group in groups]
    shape = "question" if own["prompt"].rstrip().endswith("?") else "sentence"
    return asking(own["prompt"], filter(None, named), shape)


def _items(which: str) -> tuple[ForgetItem, ...]:
    splits = _splits(file_and_first(which, FILES, "ripple"))
    return forgotten_items("ripple", {"forget": splits["forget"]})


BENCHMARK = Benchmark(
    name="ripple",
    title="RippleEdits",
    paper="arXiv 2307.12976",
    source="data/benchmark/ of github.com/edenbiran/RippleEdits",
    licence="MIT",
    readers={"ripple": _splits},
    sets=tuple(f"ripple:{file}" for file in FILES),
    items=_items,
    tasks={"unlearn_ripple": ByIds("ripple:", "ripple/", more=file_of)},
)
