"""A benchmark as one object: its data, its forget sets, and what its tasks need in order to ask one of them.

A benchmark is one file in `benchmarks/` that ends with `BENCHMARK = Benchmark(...)`. The file's name is that of the
benchmark, and stands before the colon in the names of its forget sets. `registry.py` finds the files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from unlearn_eval.data.documents import ALL, Document, Metadata, Splits, is_attack
from unlearn_eval.data.items import ForgetItem, ForgetSet, item_from_record
from unlearn_eval.utils.errors import UserError, unknown_name

Reader = Callable[[Metadata], Splits]
ANY = "any set"
ANSWERS, NOTES = "answers", "notes"  # what fine-tuning teaches


@dataclass(frozen=True)
class Chosen:
    """What is forgotten of a set.

    Attributes:
        forget: the items.
        kept: ids of others of the set that are asked as kept; empty if the task chooses.
        whole: whether `forget` is the whole set.
        control: what is asked as kept of tasks on any set: `kept` as items, or facts of another set.
        strict: whether benchmarks, too, ask `kept` in place of what they retain by themselves.
        requests: of a sequence, the ids of each request in turn; `forget` are the items of the first ones.
        learned: new facts that are edited in beside.
    """

    forget: ForgetSet
    kept: tuple[str, ...] = ()
    whole: bool = True
    control: ForgetSet | None = None
    strict: bool = False
    requests: tuple[tuple[str, ...], ...] = ()
    learned: ForgetSet | None = None

    @property
    def part(self) -> str:
        """What stands after the colon in the set's name."""
        return self.forget.name.partition(":")[2]

    def ids(self, prefix: str) -> list[str]:
        """The items' ids without a prefix, as a task's own documents are called."""
        return [item.id.removeprefix(prefix) for item in self.forget]


class Asking(Protocol):
    """How one task is given a forget set."""

    @property
    def sets(self) -> str:
        """The set that the task asks; `pistol:` stands for all that begin so, `ANY` for any."""

    def fits(self, name: str) -> bool:
        """Whether the task can be given a set of this name."""

    def metadata(self, chosen: Chosen) -> dict[str, Any]:
        """The task's metadata, which make it ask these items as forgotten. A `ForgetSet` in it becomes a file.

        Raises:
            UserError: the task cannot ask them.
        """

    def asks_more(self, chosen: Chosen) -> bool:
        """Whether the task asks more as forgotten than the items."""

    @property
    def can_keep(self) -> bool:
        """Whether the task can be given what is asked as kept."""


def _matches(sets: str, name: str) -> bool:
    return name == sets or sets.endswith(":") and name.startswith(sets)


@dataclass(frozen=True)
class ByIds:
    """A task that takes its own documents' ids.

    Attributes:
        sets: see `Asking`.
        prefix: what the items' ids have before the documents'.
        takes_kept: whether it is always given which others of the set are kept, and not only if that is `strict`.
        more: further metadata for these items.
    """

    sets: str
    prefix: str = ""
    takes_kept: bool = False
    more: Callable[[ForgetSet], Mapping[str, Any]] = lambda items: {}

    def fits(self, name: str) -> bool:
        """Whether it is one of its sets."""
        return _matches(self.sets, name)

    def metadata(self, chosen: Chosen) -> dict[str, Any]:
        """Ids to forget, and to keep."""
        kept = {"retain": [key.removeprefix(self.prefix) for key in chosen.kept]} if chosen.kept else {}
        given = kept if self.takes_kept or chosen.strict else {}
        return {"forget": chosen.ids(self.prefix), **given, **self.more(chosen.forget)}

    @property
    def can_keep(self) -> bool:
        """It takes ids to retain."""
        return True

    def asks_more(self, chosen: Chosen) -> bool:
        """It asks the items."""
        return False


@dataclass(frozen=True)
class ByPart:
    """A task that takes the name of a part, as the set's name has it after the colon, and ids for less than that.

    Attributes:
        sets: see `Asking`.
        key: under which it takes the part; empty if it has none.
        prefix: what the items' ids have before the documents'.
        groups: whether the groups of the items are parts.
    """

    sets: str
    key: str
    prefix: str
    groups: bool = False

    def fits(self, name: str) -> bool:
        """Whether it is one of its sets."""
        return _matches(self.sets, name)

    def metadata(self, chosen: Chosen) -> dict[str, Any]:
        """The part, and the documents in it."""
        everything = chosen.part in ("", "all")
        part: Any = None if everything else chosen.part
        if chosen.whole:
            return {self.key: part} if self.key and not everything else {}
        if everything and self.groups:
            part = list(dict.fromkeys(item.group for item in chosen.forget))
        return {**({self.key: part} if self.key and part else {}), "ids": chosen.ids(self.prefix)}

    def asks_more(self, chosen: Chosen) -> bool:
        """It asks the items; attacks on them are also asked, but are not items."""
        return False

    @property
    def can_keep(self) -> bool:
        """What it retains are splits of its own."""
        return False


@dataclass(frozen=True)
class Whole:
    """A task that asks one whole set.

    Attributes:
        sets: see `Asking`: what it asks by itself.
        others: sets that it asks as well, if it is given their part under `key`.
        key: of its metadata.
    """

    sets: str
    others: tuple[str, ...] = ()
    key: str = ""

    def fits(self, name: str) -> bool:
        """Whether it is one of its sets."""
        return name == self.sets or name in self.others

    def metadata(self, chosen: Chosen) -> dict[str, Any]:
        """The part of a set that is not its own."""
        return {} if chosen.forget.name == self.sets else {self.key: chosen.part}

    def asks_more(self, chosen: Chosen) -> bool:
        """It asks all of the set."""
        return not chosen.whole

    @property
    def can_keep(self) -> bool:
        """What it retains are splits of its own."""
        return False


@dataclass(frozen=True)
class AnySet:
    """A task that asks any forget set.

    Attributes:
        sets: see `Asking`.
        can_keep: whether it is given what is kept as well.
    """

    sets: str = ANY
    can_keep: bool = True

    def fits(self, name: str) -> bool:
        """It is."""
        return True

    def metadata(self, chosen: Chosen) -> dict[str, Any]:
        """Shipped facts by their ids, a whole set by its name, else the items; what is kept by its set and ids."""
        kept: dict[str, Any] = {}
        if self.can_keep and chosen.control is not None:
            ids = [item.id for item in chosen.control]
            kept = {"retain": ids if chosen.control.name == "facts" else {"set": chosen.control.name, "ids": ids}}
        if chosen.forget.name == "facts":
            return {"forget": chosen.ids(""), **kept}
        return {"forget": chosen.forget.name if chosen.whole else chosen.forget, **kept}

    def asks_more(self, chosen: Chosen) -> bool:
        """It asks the items."""
        return False


@dataclass(frozen=True)
class FinetunePreset:
    """How somebody fine-tuned on a benchmark.

    Attributes:
        name: as `--preset` takes it; the first of a benchmark that teaches answers is its default.
        source: who published it.
        settings: as text, like `--set`.
        rows: what is learned of a set: its `answers`, or to follow `notes` about them.
    """

    name: str
    source: str
    settings: Mapping[str, str]
    rows: str = ANSWERS


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: of its file; it stands before the colon in the names of its sets.
        title: as its authors write it.
        paper: where it is described.
        source: where its data come from.
        licence: of the data.
        readers: family (a row of `harness.families.FAMILIES`) -> documents of each split for a run's metadata.
        sets: names of its forget sets; capitals after the colon stand for any part (`pistol:EDGE`).
        items: what stands after the colon -> the items. Raises `UserError` for an unknown part.
        tasks: name of a task -> how it is given a forget set; None if it cannot be. The first that asks a set is
            named where a set was forgotten.
        left_out: set of what is retained -> the part that is missing in it.
        finetuning: settings with which models were fine-tuned on it.
    """

    name: str
    title: str
    paper: str
    source: str
    licence: str
    readers: Mapping[str, Reader] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    items: Callable[[str], tuple[ForgetItem, ...]] | None = None
    tasks: Mapping[str, Asking | None] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    finetuning: tuple[FinetunePreset, ...] = ()

    def __post_init__(self) -> None:
        assert bool(self.sets) == (self.items is not None), self.name
        assert all(name.partition(":")[0] == self.name for name in self.sets), self.name

    def offers(self, name: str) -> bool:
        """Whether a forget set of this name would be this benchmark's: whether there is one, `items` says."""
        return name in self.sets or name.startswith(f"{self.name}:") and any(":" in own for own in self.sets)

    def forget_set(self, name: str) -> ForgetSet:
        """The forget set of a name that the benchmark offers.

        Raises:
            UserError: an unknown part, or data that cannot be read.
        """
        assert self.items is not None
        return ForgetSet(name, self.items(name.partition(":")[2]))


# Items of documents ----------------------------------------------------------------------------------------


def forgotten_items(name: str, splits: Splits, also: tuple[str, ...] = ()) -> tuple[ForgetItem, ...]:
    """What a benchmark's documents want forgotten as items, without the questions that only attack.

    Args:
        name: of the benchmark, which stands before the documents' ids.
        splits: the documents.
        also: splits that count as forgotten, too.
    """
    return tuple(
        _item(name, own)
        for split, documents in splits.items()
        if split.startswith("forget") and not is_attack(split) or split in also
        for own in documents
    )


def _item(name: str, own: Document) -> ForgetItem:
    return item_from_record(
        {
            **own,
            "id": f"{name}/{own['id']}",
            "perturbed_answers": own["wrong_answers"],
            "subject": own["subject"] if own["subject"] in own["question"] else "",
        }
    )


def file_and_first(which: str, files: Collection[str], name: str) -> Metadata:
    """Metadata for a file of a benchmark, and so many facts from its start: `popular`, `popular:100`.

    Raises:
        UserError: no such file, or no number.
    """
    file, _, number = which.partition(":")
    if file not in files:
        raise unknown_name(f"file of {name}", file, files)
    return {**first_of(number, f"{name}:{file}"), "file": file}


def file_of(items: ForgetSet) -> dict[str, str]:
    """Metadata that name the file in which the items are: it stands in their ids."""
    return {"file": items[0].id.split("/")[1]}


def first_of(which: str, name: str) -> Metadata:
    """Metadata for so many facts from a benchmark's start, or for all of them.

    Raises:
        UserError: no number.
    """
    if which in ("", ALL):
        return {"forget": ALL}
    if not which.isdigit():
        raise UserError(f"{name}:{which} is no number", f"{name}:100 are its first hundred facts, {name}:all are all")
    return {"forget": int(which)}
