"""What is to be forgotten: items, sets of items, and where they come from."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unlearn_eval.data.shapes import QUESTION, check_shape
from unlearn_eval.utils.errors import UserError, unknown_name

FACTS_FILE = Path(__file__).parents[1] / "tasks" / "facts" / "facts.jsonl"


@dataclass(frozen=True)
class ForgetItem:
    """One question and what is known of it.

    Attributes:
        id: unique within its set.
        question, answer: the fact.
        aliases: other ways to write the answer, which would give it away as well.
        subject: what the question is about, verbatim as in the question; None if there is no such span.
        paraphrases: the question in other words.
        perturbed_answers: wrong answers of the same type.
        group: what items belong together (author, edge, person), for query merging.
        shape: how `question` and its paraphrases are put to a model: as a `question`, a `sentence` (a beginning, which
            the answer completes), a `text` (which goes on), a `blank` (with a gap), or `brief` (for a short answer).
    """

    id: str
    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    subject: str | None = None
    paraphrases: tuple[str, ...] = ()
    perturbed_answers: tuple[str, ...] = ()
    group: str | None = None
    shape: str = QUESTION

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answer and its aliases."""
        return (self.answer, *self.aliases)

    @property
    def record(self) -> dict[str, Any]:
        """The fields by name; `shape` only of what is no question, so that sets of questions keep their hashes."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("shape", QUESTION)}


@dataclass(frozen=True)
class ForgetSet:
    """A named, ordered set of items with distinct ids."""

    name: str
    items: tuple[ForgetItem, ...]

    def __post_init__(self) -> None:
        if not self.items:
            raise UserError(f"the forget set '{self.name}' is empty", "give it at least one item")
        twice = [key for key, n in Counter(item.id for item in self.items).items() if n > 1]
        if twice:
            raise UserError(f"the forget set '{self.name}' has the id {twice[0]!r} more than once", "make ids unique")

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[ForgetItem]:
        return iter(self.items)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the items."""
        content = json.dumps([item.record for item in self.items], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    def select(self, ids: Iterable[str]) -> ForgetSet:
        """The items with these ids, in the given order."""
        known = {item.id: item for item in self.items}
        ids = list(ids)
        missing = [key for key in ids if key not in known]
        if missing:
            raise unknown_name(f"id in the set '{self.name}':", missing[0], known)
        return replace(self, items=tuple(known[key] for key in ids))

    def sample(self, n: int, seed: int) -> ForgetSet:
        """`n` items (all if there are fewer), chosen by a seeded shuffle, in the set's own order."""
        if n <= 0:
            raise UserError(f"cannot take {n} items of '{self.name}'", "give a number above 0")
        chosen = sorted(random.Random(seed).sample(range(len(self.items)), min(n, len(self.items))))
        return replace(self, items=tuple(self.items[i] for i in chosen))


def check_disjoint(forget: Iterable[str], retain: Iterable[str]) -> None:
    """Refuse ids that are both forgotten and retained."""
    both = sorted(set(forget) & set(retain))
    if both:
        raise UserError(
            f"{len(both)} items are both in forget and in retain, e.g. {both[0]!r}",
            "take them out of one of the two",
        )


def load_forget_set(name: str) -> ForgetSet:
    """The set of that name, or in that file.

    Args:
        name: `facts` (shipped with the package), `tofu:forget01`, `tofu:forget05`, `tofu:forget10`,
            `tofu:factual` (its real authors and world facts), `tofu:full`, `tofu:retain90`, `tofu:retain95`,
            `tofu:retain99` (the whole without what is to be forgotten), `pistol:A_B` (the contract A_B of PISTOL;
            several are joined with `+`, as in `pistol:A_B+A_C2`), `pistol:all` (its first sample), `rwku:PERSON`,
            `lume:creative|personal|biography|all`, `knowundo:all`, `counterfact:100`, `zsre:100` (so many from the
            start), `sports:SPORT` or `sports:all`, or the path of a JSONL or CSV file with the columns of `ForgetItem`
            (`question` and `answer` are needed; lists in a CSV are separated by `|`).

    Raises:
        UserError: an unknown name, a missing or malformed file (with its line), or an empty set.
    """
    if name == "facts":
        return facts()
    if name.startswith("tofu:"):
        return _tofu(name)
    if name.startswith("pistol:"):
        return _pistol(name)
    prefix, colon, which = name.partition(":")
    if colon and prefix in _BENCHMARKS:
        return _benchmark(name, prefix, which)
    path = Path(name).expanduser()
    if path.suffix in (".jsonl", ".json", ".csv"):
        return _from_file(path)
    raise unknown_name("forget set", name, [*set_names(), "a .jsonl or .csv file"])


def facts() -> ForgetSet:
    """The shipped facts."""
    from unlearn_eval.utils.json_files import read_jsonl

    return ForgetSet("facts", tuple(item_from_record(r, i) for i, r in enumerate(read_jsonl(FACTS_FILE))))


def item_from_record(record: Mapping[str, Any], position: int = 0) -> ForgetItem:
    """An item from a record of our facts, of TOFU, or with the field names of `ForgetItem`."""
    perturbed = record.get("perturbed_answers") or record.get("wrong_answers") or record.get("perturbed_answer") or ()
    paraphrases = record.get("paraphrases") or record.get("paraphrased_question") or ()
    own_id = record.get("id")
    name = str(position if own_id in (None, "") else own_id)
    for field in ("question", "answer"):
        if record[field] is None or not str(record[field]).strip():
            raise UserError(f"item {name}: its {field} is empty", "every item needs question and answer")
    subject = str(record.get("subject") or "").strip()
    if subject not in str(record["question"]):
        raise UserError(
            f"item {name}: its subject {subject!r} does not stand in its question",
            "write the subject exactly as in the question, or leave it out",
        )
    try:
        shape = check_shape(str(record.get("shape") or QUESTION).strip())
    except UserError as error:
        raise UserError(f"item {name}: {error.message}", error.hint) from error
    return ForgetItem(
        id=name,
        question=str(record["question"]),
        answer=str(record["answer"]),
        aliases=_texts(record.get("aliases")),
        subject=subject or None,
        paraphrases=_texts(paraphrases),
        perturbed_answers=_texts(perturbed),
        group=str(record["group"]) if record.get("group") else None,
        shape=shape,
    )


def _texts(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    if isinstance(value, str):
        value = value.split("|")
    texts = (str(part).strip() for part in (value if isinstance(value, list | tuple) else [value]))
    return tuple(text for text in texts if text)  # an empty alias would stand in every answer


def _from_file(path: Path) -> ForgetSet:
    from unlearn_eval.utils.json_files import read_jsonl

    if path.suffix != ".csv":
        records: Sequence[Mapping[str, Any]] = read_jsonl(path, required_fields=("question", "answer"))
        return ForgetSet(str(path), tuple(item_from_record(r, i) for i, r in enumerate(records)))
    if not path.is_file():
        raise UserError(f"the forget set {path} does not exist", "give the path of a JSONL or CSV file")
    rows = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if missing := [field for field in ("question", "answer") if not (row.get(field) or "").strip()]:
                    raise UserError(
                        f"{path}, line {reader.line_num}: no {missing[0]}", "every row needs question and answer"
                    )
                rows.append(row)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"{path}, after line {reader.line_num}: not CSV in UTF-8 ({error})", "save it as UTF-8"
            ) from error
    return ForgetSet(str(path), tuple(item_from_record(row, i) for i, row in enumerate(rows)))


_TOFU_RETAIN = {"full": 0, "retain90": 400, "retain95": 200, "retain99": 40}  # of the whole, without its last so many
_TOFU = {
    "forget01": ("forget01_perturbed",),
    "forget05": ("forget05_perturbed",),
    "forget10": ("forget10_perturbed",),
    "factual": ("real_authors_perturbed", "world_facts_perturbed"),
}


def _tofu(name: str) -> ForgetSet:
    from unlearn_eval.data.sources import load_split

    split = name.partition(":")[2]
    if split in _TOFU_RETAIN:
        return ForgetSet(name, tuple(_tofu_without(_TOFU_RETAIN[split])))
    if split not in _TOFU:
        raise unknown_name("TOFU set", split, [*_TOFU, *_TOFU_RETAIN])
    items = []
    for part in _TOFU[split]:
        records = load_split("tofu", part, "locuslab/TOFU", ("question", "answer"))
        stem = "forget" if part.startswith("forget") else part.removesuffix("_perturbed")
        # TOFU's authors have 20 questions each, one after another; the factual questions have no common subject.
        items += [
            item_from_record({**r, "id": f"{stem}/{i}", "group": f"author {i // 20}" if stem == "forget" else None})
            for i, r in enumerate(records)
        ]
    return ForgetSet(name, tuple(items))


def _tofu_without(n_last: int) -> list[ForgetItem]:
    """TOFU's questions in their order, 20 for each author, without the last so many: those that are to be forgotten."""
    from unlearn_eval.data.sources import load_split

    records = load_split("tofu", "full", "locuslab/TOFU", ("question", "answer"))
    kept = records[: len(records) - n_last]
    return [item_from_record({**r, "id": f"full/{i}", "group": f"author {i // 20}"}) for i, r in enumerate(kept)]


_BENCHMARKS = {
    "rwku": "rwku:PERSON",
    "lume": "lume:TASK",
    "knowundo": "knowundo:all",
    "counterfact": "counterfact:NUMBER",
    "zsre": "zsre:NUMBER",
    "sports": "sports:SPORT",
}


def _benchmark(name: str, prefix: str, which: str) -> ForgetSet:
    """What a benchmark's task asks as to be forgotten."""
    from unlearn_eval.data.benchmarks import items_to_forget

    return ForgetSet(
        name,
        tuple(
            item_from_record(
                {
                    **own,
                    "id": f"{prefix}/{own['id']}",
                    "perturbed_answers": own["wrong_answers"],
                    "subject": own["subject"] if own["subject"] in own["question"] else "",
                }
            )
            for own in items_to_forget(prefix, which)
        ),
    )


PISTOL_FILES = ("sample_data_1.json", "sample_data_2.json")


def _pistol(name: str) -> ForgetSet:
    """The questions on some edges of PISTOL (arXiv 2406.16810), each a contract between two companies."""
    edges = list(dict.fromkeys(edge.strip() for edge in name.partition(":")[2].split("+")))
    known: dict[str, list[Mapping[str, Any]]] = {}
    for file in PISTOL_FILES:
        if set(edges) <= set(known):
            break  # the second file need not be there
        if edges == ["all"] and known:
            break  # of the first sample, as in the paper
        for edge, records in pistol_edges(file, needed=file == PISTOL_FILES[0]).items():
            known.setdefault(edge, records)
    if edges == ["all"]:
        edges = list(known)
    for edge in edges:
        if edge not in known:
            raise unknown_name("PISTOL edge", edge, [*known, "all"])
    return ForgetSet(
        name,
        tuple(
            item_from_record({**record, "id": f"pistol/{edge}/{i}", "group": edge})
            for edge in edges
            for i, record in enumerate(known[edge])
        ),
    )


def pistol_edges(file: str, needed: bool) -> dict[str, list[Mapping[str, Any]]]:
    """PISTOL's questions by edge, from one of its files; none if the file is not there and not needed."""
    from unlearn_eval.data.sources import DATA_VARIABLE
    from unlearn_eval.utils.json_files import read_jsonl

    root = os.environ.get(DATA_VARIABLE)
    path = Path(root or "").expanduser() / "pistol" / file
    if not root or not path.is_file():
        if root and not needed:
            return {}
        raise UserError(
            f"no PISTOL data: {path} is not there" if root else f"no PISTOL data: {DATA_VARIABLE} is not set",
            "it has no licence, so it is not shipped: put data/ of github.com/bill-shen-BS/PISTOL into a folder as"
            f" pistol/, and set {DATA_VARIABLE} to that folder",
        )
    edges: dict[str, list[Mapping[str, Any]]] = {}
    for record in read_jsonl(path, required_fields=("question", "answer", "edge")):
        edges.setdefault(str(record["edge"]), []).append(record)
    return edges


def set_names() -> list[str]:
    """The names that `load_forget_set` knows; EDGE stands for any edge of PISTOL, PERSON for one of RWKU, ..."""
    tofu = [f"tofu:{split}" for split in (*_TOFU, *_TOFU_RETAIN)]
    return ["facts", *tofu, "pistol:all", "pistol:EDGE", *_BENCHMARKS.values()]
