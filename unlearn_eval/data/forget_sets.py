"""Forget sets by their names: those of the benchmarks, and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_eval.data.files import HUB, forget_set_of, is_place, read_forget_set
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.data.recast import joined, parts_of_name, recast
from unlearn_eval.data.registry import benchmark_of_set, benchmarks, get_benchmark
from unlearn_eval.utils.errors import UserError, unknown_name


def load_forget_set(
    name: str | Path | Iterable[object], fields: Mapping[str, str] | None = None, called: str = "in memory"
) -> ForgetSet:
    """The set of that name, in that file, or of these records.

    Args:
        name: A list of records or of `ForgetItem`s, a pandas DataFrame, a split of `datasets`; or a name: `facts`
            (shipped with the package), `tofu:forget01`, `tofu:forget05`, `tofu:forget10`, `tofu:factual` (its real
            authors and world facts), `tofu:full`, `tofu:retain90`, `tofu:retain95`, `tofu:retain99` (the whole without
            what is to be forgotten; `+` joins several, and `[:N]` takes the first N, as in
            `tofu:forget01+retain99[:80]`), `pistol:A_B` (the contract A_B of PISTOL; several are joined with `+`, as in
            `pistol:A_B+A_C2`), `pistol:all` (its first sample), `rwku:PERSON`, `lume:creative|personal|biography|all`,
            `knowundo:all`, `counterfact:100`, `zsre:100` (so many from the start), `sports:SPORT` or `sports:all`,
            `hub:OWNER/NAME`; a set changed by a rule, as in `wrong(tofu:forget01)` (`paraphrased`, `wrong`, `refused`,
            `biographies`, `invented`, `nearest`: see `recast.py`); several joined by ` & `; or the path of a file or
            folder with the fields of `ForgetItem` (see `files.read_forget_set`; `question` and `answer` are needed).
        fields: Of a file or of records: field of `ForgetItem` -> the name that they have for it.
        called: Name of a set that is made of records.

    Raises:
        UserError: an unknown name, a missing or malformed file (with its line), or an empty set.
    """
    if isinstance(name, ForgetSet):
        return name
    if not isinstance(name, str | Path):
        if is_known(called):
            raise UserError(f"records cannot be called '{called}', as another set is", "give another called=")
        return forget_set_of(name, called, fields)
    if isinstance(name, Path):
        return read_forget_set(name.expanduser(), fields)
    if (parts := parts_of_name(name)) is not None:
        if isinstance(parts, tuple):
            return recast(parts[0], load_forget_set(parts[1], fields))
        return joined(name, [load_forget_set(part, fields) for part in parts])
    own = benchmark_of_set(name)
    if own is not None:
        return own.forget_set(name)
    if name.startswith(HUB):
        return read_forget_set(name, fields)
    if is_place(name):
        return read_forget_set(Path(name).expanduser(), fields)
    raise unknown_name("forget set", name, [*set_names(), "a .jsonl or .csv file"])


def is_known(name: str) -> bool:
    """Whether a name is that of a benchmark's set, or of a file, folder or dataset; other sets were made in memory."""
    parts = parts_of_name(name)
    if parts is not None:
        return all(is_known(part) for part in (parts[1:] if isinstance(parts, tuple) else parts))
    return benchmark_of_set(name) is not None or name.startswith(HUB) or is_place(name)


def parts_of(wanted: Any) -> list[ForgetSet] | None:
    """The sets, or parts of sets, of `{"set": NAME, "ids": [...]}` or of a list of such; None if it is not written so.

    Raises:
        UserError: an unknown set or id.
    """
    entries = [wanted] if isinstance(wanted, Mapping) else wanted
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        return None
    if not all(isinstance(entry, Mapping) for entry in entries):
        return None
    parts = []
    for entry in entries:
        if "set" not in entry:
            raise UserError(f"{dict(entry)} names no forget set", 'write {"set": NAME, "ids": [...]}')
        items = load_forget_set(str(entry["set"]))
        parts.append(items if entry.get("ids") is None else items.select(map(str, entry["ids"])))
    return parts


def facts() -> ForgetSet:
    """The shipped facts."""
    return get_benchmark("facts").forget_set("facts")


def set_names() -> list[str]:
    """The names that `load_forget_set` knows; EDGE stands for any edge of PISTOL, PERSON for one of RWKU, ..."""
    names = [name for own in benchmarks() for name in own.sets]
    return sorted(names, key=lambda name: ":" in name)  # first what is shipped whole
