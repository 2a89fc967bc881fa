"""Athletes and their sports (Guo et al. 2024, arXiv 2410.12949)."""

from __future__ import annotations

from pathlib import Path

from unlearn_eval.data.benchmark import Benchmark, ByIds, forgotten_items
from unlearn_eval.data.documents import Metadata, Splits, choose, distinct_ids, document, without_empty
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.sources import Source, load_source

ATHLETES = Path(__file__).parents[2] / "tasks" / "sports" / "athletes.csv"
PROMPT = "Fact: Tiger Woods plays the sport of golf\nFact: {athlete} plays the sport of"


def _splits(metadata: Metadata) -> Splits:
    """Athletes and their sports (arXiv 2410.12949): one sport, or some athletes, to be forgotten.

    Without the paper's file, athletes of our own: they are shipped, since the paper's have no licence.
    """
    records = load_source(Source("sports", "sports", shipped=ATHLETES, size=1559), ("athlete", "sport"))
    names = list(dict.fromkeys(str(record["sport"]).strip() for record in records))
    options = list(dict.fromkeys([*names, "golf"]))
    documents = [
        document(
            str(record["athlete"]).strip(),
            PROMPT.format(athlete=str(record["athlete"]).strip()),
            record["sport"],
            paraphrases=[f"{str(record['athlete']).strip()} is a professional athlete in the sport of"],
            wrong_answers=[sport for sport in options if sport != str(record["sport"]).strip()],
            subject=str(record["athlete"]).strip(),
            group=str(record["sport"]).strip(),
            shape="sentence",
        )
        for record in records
    ]
    forget, retain = choose(distinct_ids(documents), metadata, names[0], "sport or athlete")
    return without_empty({"forget": forget, "retain": retain})


def _items(which: str) -> tuple[ForgetItem, ...]:
    if which in ("", "all"):  # the task forgets one sport unless it is given others
        return forgotten_items("sports", _splits({}), also=("retain",))
    return forgotten_items("sports", _splits({"forget": int(which) if which.isdigit() else which}))


BENCHMARK = Benchmark(
    name="sports",
    title="athletes and sports",
    paper="arXiv 2410.12949",
    source="the paper's sports.csv, or tasks/sports/athletes.csv",
    licence="the paper's: none; ours: Apache-2.0",
    readers={"sports": _splits},
    sets=("sports:SPORT",),
    items=_items,
    tasks={"unlearn_sports": ByIds("sports:", "sports/")},
)
