"""Graphs of facts: triples (head, relation, tail), from the shipped facts or a table, and what stands around a name.

Names are the same if they differ in case and outer spaces only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from unlearn_eval.data.tables import read_rows
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import read_jsonl

SHIPPED = "facts"
FIELDS = ("head", "relation", "tail")


class Triple(NamedTuple):
    """One fact of a graph: France, capital of, Paris."""

    head: str
    relation: str
    tail: str

    @property
    def ends(self) -> tuple[str, str]:
        """Its two names, as they are compared."""
        return same(self.head), same(self.tail)


def same(name: str) -> str:
    """A name as it is compared."""
    return " ".join(name.split()).casefold()


def read_graph(name: str) -> tuple[Triple, ...]:
    """The graph of the shipped facts (`facts`), or of a table with the columns head, relation and tail.

    Rows that say the same are one.

    Raises:
        UserError: the table cannot be read (see `read_rows`), or a row lacks one of the three.
    """
    if name == SHIPPED:
        from unlearn_eval.data.benchmarks.facts import FACTS_FILE

        records = read_jsonl(FACTS_FILE)
        return tuple(
            Triple(str(own["subject"]), str(own["relation"]).replace("_", " "), str(own["answer"])) for own in records
        )
    if not Path(name).suffix:
        raise UserError(f"there is no graph '{name}'", f"give {SHIPPED}, or a .csv with {', '.join(FIELDS)}")
    found: dict[tuple[str, ...], Triple] = {}
    for row in read_rows(name, FIELDS):
        cells = [row.record[field] for field in FIELDS]
        for field, cell in zip(FIELDS, cells, strict=True):
            if not isinstance(cell, str) or not cell.strip():
                raise UserError(f"{row.where} has no {field}", f"give each row its {', '.join(FIELDS)} as text")
        triple = Triple(*(" ".join(cell.split()) for cell in cells))
        found.setdefault(tuple(map(same, triple)), triple)
    return tuple(found.values())


def around(
    graph: Sequence[Triple], names: Sequence[str], n_names: int, without: Collection[tuple[str, str]] = ()
) -> list[Triple]:
    """The triples among the names nearest to some names, by the number of steps, then in the graph's order.

    Args:
        graph: Triples.
        names: Where the search begins; they count.
        n_names: Number of names at most.
        without: Ends of triples that are left out, as in `Triple.ends`.
    """
    left_out = set(without)
    usable = [triple for triple in graph if triple.ends not in left_out]
    reached = list(dict.fromkeys(same(name) for name in names if name.strip()))[:n_names]
    last = set(reached)
    while last and len(reached) < n_names:
        new: list[str] = []
        for head, tail in (triple.ends for triple in usable):
            new += [other for own, other in ((head, tail), (tail, head)) if own in last]
        new = [name for name in dict.fromkeys(new) if name not in reached][: n_names - len(reached)]
        reached += new
        last = set(new)
    known = set(reached)
    return [triple for triple in usable if set(triple.ends) <= known]
