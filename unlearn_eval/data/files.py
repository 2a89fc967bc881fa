"""Forget sets in files that people have: with our fields, or those of EasyEdit, KnowEdit, MEND or CounterFact."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_eval.data import tables
from unlearn_eval.data.items import OF_ANSWER, OF_NEW, OF_OTHER, ForgetItem, ForgetSet, item_from_record
from unlearn_eval.data.tables import Row, kind_of, read_rows
from unlearn_eval.utils.errors import UserError

JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
# What only some tasks read of a record, beside the fields of an item.
EXTRAS = ("cloze", "description", "answer_described", "subject_described")
ENDINGS = tables.ENDINGS
HUB = "hub:"  # before the name of a dataset on the hub, which may be followed by :SPLIT
NEEDED = ("question", "answer")
KNOWN = (
    *(field.name for field in dataclasses.fields(ForgetItem)),
    "prompt",
    "ground_truth",
    "target_new",
    "src",
    "answers",
)


def read_forget_set(place: str | Path, fields: Mapping[str, str] | None = None) -> ForgetSet:
    """The items of a file, a folder or a dataset of the hub, with the place as their set's name.

    Args:
        place: What `tables.read_rows` reads, or `hub:OWNER/NAME[:SPLIT]`. The fields are those of `ForgetItem`; lists
            in a CSV cell are separated by `|`. An answer that is a list is the answer and its aliases. Records of
            EasyEdit (`prompt`, `ground_truth`, `target_new`), MEND's zsRE (`src`, `answers`) and CounterFact
            (`requested_rewrite`) are read as they are.
        fields: Field of `ForgetItem` -> its name in the file.

    Raises:
        UserError: A missing or malformed file (with its line), or one without items.
    """
    rows = _from_hub(str(place)) if str(place).startswith(HUB) else read_rows(place, fields=fields, known=KNOWN)
    return _set_of(rows, str(place), "--fields {}=NAME")


def forget_set_of(data: object, name: str, fields: Mapping[str, str] | None = None) -> ForgetSet:
    """The items of objects in memory.

    Args:
        data: An iterable of records (as `read_forget_set` reads them from files) or of `ForgetItem`s, a pandas
            DataFrame, or a split of `datasets`.
        name: Name of the set.
        fields: Field of `ForgetItem` -> its name in the records.

    Raises:
        UserError: It is none of these, or a record is not as needed (its place is named).
    """
    if hasattr(data, "to_dict") and hasattr(data, "notna") and hasattr(data, "astype"):  # a DataFrame
        data = data.astype(object).where(data.notna(), None).to_dict("records")  # missing cells are None
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise UserError(
            f"a forget set cannot be made of {kind_of(data)}",
            "give a list of records or ForgetItems, a DataFrame, or one split of a dataset",
        )
    records = list(data)
    if records and all(isinstance(record, ForgetItem) for record in records):
        return ForgetSet(name, tuple(records))
    found = [record.record if isinstance(record, ForgetItem) else record for record in records]
    return _set_of(tables.rows_of(found, name, fields, KNOWN), name, 'fields={{"{}": NAME}}')


def _set_of(rows: Sequence[Row], name: str, cure: str) -> ForgetSet:
    """The set of some records, whose fields may be those of other projects."""
    rows = [own._replace(record=as_ours(own)) for row in rows for own in _rewrites(row)]
    tables.check_fields(rows, NEEDED, f"; rename them, or give {cure}")
    return ForgetSet(name, tuple(_item(row, key) for row, key in zip(rows, _ids(rows), strict=True)))


def is_place(name: str) -> bool:
    """Whether a name is that of a file or a folder, and not of a forget set."""
    path = Path(name).expanduser()
    return path.suffix.lower() in ENDINGS or (os.sep in name and path.is_dir())


def extras_in(place: str | Path) -> dict[str, dict[str, str]]:
    """Id of an item -> the `EXTRAS` of its record; only JSON files have them."""
    path = Path(place).expanduser()
    if path.suffix.lower() not in JSON_ENDINGS or not path.is_file():
        return {}
    rows = read_rows(path, known=KNOWN)
    return {
        key: {name: str(row.record[name]) for name in EXTRAS if row.record.get(name)}
        for key, row in zip(_ids(rows), rows, strict=True)
    }


def _ids(rows: Sequence[Row]) -> list[str]:
    """The records' ids, or their places."""
    ids = [row.record.get("id") for row in rows]
    taken = {str(key) for key in ids if key not in (None, "")}
    places = [str(i) if str(i) not in taken else f"row {i}" for i in range(len(rows))]
    return [place if key in (None, "") else str(key) for key, place in zip(ids, places, strict=True)]


def _item(row: Row, key: str) -> ForgetItem:
    record = {**row.record, "id": key}
    if row.split and (empty := [name for name in NEEDED if not str(record[name] or "").strip()]):
        raise UserError(f"{row.where}: no {empty[0]}", "every row needs question and answer")
    return item_from_record(record, where=row.where, split=row.split, own=True)


def _from_hub(name: str) -> list[Row]:
    from unlearn_eval.data.sources import from_hub

    dataset, _, split = name.removeprefix(HUB).partition(":")
    records = from_hub(dataset, None, (), None, split or "train")
    return [Row(record, f"{name}, record {i}") for i, record in enumerate(records, 1)]


# Others' fields --------------------------------------------------------------------------------------------


def _rewrites(row: Row) -> list[Row]:
    """A row for each of a record's rewrites, where it lists them, as MQuAKE does; else the row."""
    own = row.record.get("requested_rewrite")
    if not isinstance(own, list) or not all(isinstance(one, Mapping) for one in own):
        return [row]
    case = row.record.get("case_id")
    keys = [case] if len(own) == 1 else [None if case is None else f"{case}/{i}" for i in range(len(own))]
    return [
        row._replace(record={**row.record, "requested_rewrite": one, "case_id": key})
        for one, key in zip(own, keys, strict=True)
    ]


def as_ours(row: Row) -> dict[str, Any]:
    """The record with our fields, if it has those of a project that is known here.

    Raises:
        UserError: it has them, and not all that are needed.
    """
    record = row.record
    if "question" in record:
        return _with_linked(record, record, OF_ANSWER)
    if isinstance(record.get("requested_rewrite"), Mapping):
        return _with_linked(_counterfact(record, row.where), record, OF_NEW)
    if "src" in record and "answers" in record:
        return _with_linked(_mend(record), record, OF_NEW)
    if "prompt" in record and ("ground_truth" in record or "target_new" in record):
        return _with_linked(_easyedit(record, row.where), record, OF_NEW)
    return record


def _with_linked(own: dict[str, Any], record: Mapping[str, Any], follows: str) -> dict[str, Any]:
    """Our record with what the other one has of portability and locality."""
    linked = linked_in(record, follows)
    return {**own, "linked": linked} if linked and not own.get("linked") else own


def linked_in(record: Mapping[str, Any], follows: str) -> list[dict[str, Any]]:
    """The questions beside a record's own, as EasyEdit and KnowEdit have them, with the fields of `Linked`.

    Args:
        record: With `portability`, `locality`, `locality_prompt` or `portability_prompt`, where it has them.
        follows: What the answers of portability follow from: the record's answer, or a new one in its place.
    """
    found = []
    groups = (("portability", follows), ("locality", OF_OTHER))
    for name, of in groups:
        own = record.get(name)
        if isinstance(own, Mapping) and "New Question" in own:  # of zsRE and CounterFact
            found += [("reasoning", own["New Question"], own.get("New Answer"), of)]
        elif isinstance(own, Mapping):
            for kind, asked in own.items():
                for one in asked if isinstance(asked, list) else [asked]:
                    if isinstance(one, Mapping):
                        pairs = _paired(one.get("prompt"), one.get("ground_truth"))
                        found += [(str(kind), prompt, truth, of) for prompt, truth in pairs]
        pairs = _paired(record.get(f"{name}_prompt"), record.get(f"{name}_ground_truth"))
        found += [(name, prompt, truth, of) for prompt, truth in pairs]
    linked = []
    for kind, prompt, truth, of in found:
        if isinstance(prompt, str) and prompt.strip():
            kind = _kind(kind, of)
            answers = [] if kind == "alias" and of == OF_NEW else _flat(truth)
            shape = "question" if prompt.rstrip().endswith("?") else "sentence"
            of = OF_ANSWER if kind == "alias" else of  # whichever answer is taught, the old one must not come
            linked.append({"kind": kind, "question": prompt.strip(), "answers": answers, "shape": shape, "of": of})
    return linked


def _kind(written: str, of: str) -> str:
    """One of our kinds: `Subject_Aliasing`, `Reasoning`, `Logical_Generalization`, `Relation_Specificity`, ..."""
    plain = written.lower()
    if of == OF_OTHER:
        return "relation" if "relation" in plain else "other"
    return "alias" if "alias" in plain else "logical" if "logical" in plain else "reasoning"


def _paired(prompts: object, truths: object) -> list[tuple[Any, Any]]:
    """A prompt with its answers, or each of several with its own."""
    if not isinstance(prompts, list):
        return [] if prompts is None else [(prompts, truths)]
    own = truths if isinstance(truths, list) and len(truths) == len(prompts) else [truths] * len(prompts)
    return list(zip(prompts, own, strict=True))


def _flat(value: object) -> list[str]:
    """Texts, however deep they lie in lists."""
    if isinstance(value, list | tuple):
        return [text for one in value for text in _flat(one)]
    return [] if value in (None, "") else [str(value)]


def _easyedit(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """EasyEdit's and KnowEdit's: the answer to forget is `ground_truth`; `target_new` is a wrong one."""
    if record.get("ground_truth") in (None, "", []):
        raise UserError(
            f"{where} has no ground_truth, so that nothing says which answer is to be forgotten",
            "give --fields question=prompt,answer=target_new if that is the answer",
        )
    return {
        **_common(record, record["prompt"]),
        "answer": record["ground_truth"],
        "paraphrases": _listed(record.get("rephrase_prompt", record.get("rephrase"))),
        "perturbed_answers": _listed(record.get("target_new")),
    }


def _mend(record: Mapping[str, Any]) -> dict[str, Any]:
    """MEND's zsRE: `src`, the true `answers`, a paraphrase, and the edit's other answer `alt`."""
    return {
        **_common(record, record["src"]),
        "answer": record["answers"],
        "paraphrases": _listed(record.get("rephrase")),
        "perturbed_answers": _listed(record.get("alt")),
    }


def _counterfact(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    own = record["requested_rewrite"]
    try:
        prompt, subject = str(own["prompt"]).format(own["subject"]), own["subject"]
        true, new = own["target_true"]["str"], own["target_new"]["str"]
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{where}: its requested_rewrite lacks {error}", "it needs prompt, subject, target_true and target_new"
        ) from error
    about = {"id": record.get("case_id"), "subject": subject}
    return {
        **_common(about, prompt),
        "answer": true,
        "paraphrases": _listed(record.get("paraphrase_prompts")),
        "perturbed_answers": [new],
    }


def _common(record: Mapping[str, Any], prompt: Any) -> dict[str, Any]:
    if not isinstance(prompt, str):
        raise UserError(f"a prompt is {kind_of(prompt)}, not a text", "give one prompt for each record")
    shape = "question" if prompt.rstrip().endswith("?") else "sentence"
    kept = {name: record.get(name) for name in ("id", "subject", "group")}
    return {**kept, "question": prompt, "shape": record.get("shape") or shape}


def _listed(value: object) -> list[Any]:
    if value in (None, ""):
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
