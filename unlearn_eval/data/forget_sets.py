"""Forget sets by their names: those of the benchmarks, and files."""

from __future__ import annotations

from pathlib import Path

from unlearn_eval.data.benchmarks.facts import FACTS_FILE as FACTS_FILE
from unlearn_eval.data.files import ENDINGS, read_forget_set
from unlearn_eval.data.items import ForgetItem as ForgetItem
from unlearn_eval.data.items import ForgetSet as ForgetSet
from unlearn_eval.data.items import check_disjoint as check_disjoint
from unlearn_eval.data.items import item_from_record as item_from_record
from unlearn_eval.data.registry import benchmark_of_set, benchmarks, get_benchmark
from unlearn_eval.utils.errors import unknown_name


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
    own = benchmark_of_set(name)
    if own is not None:
        return own.forget_set(name)
    path = Path(name).expanduser()
    if path.suffix in ENDINGS:
        return read_forget_set(path)
    raise unknown_name("forget set", name, [*set_names(), "a .jsonl or .csv file"])


def facts() -> ForgetSet:
    """The shipped facts."""
    return get_benchmark("facts").forget_set("facts")


def set_names() -> list[str]:
    """The names that `load_forget_set` knows; EDGE stands for any edge of PISTOL, PERSON for one of RWKU, ..."""
    return [name for own in benchmarks() for name in own.sets]
