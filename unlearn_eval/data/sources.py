"""Benchmark data: from the folder in `UNLEARN_EVAL_DATA` if that is set, else from the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from unlearn_eval.data.tables import Row, is_saved_to_disk, listed_in, read_rows
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.terminal import say

DATA_VARIABLE = "UNLEARN_EVAL_DATA"
_NUMBERED = re.compile(r"(\d+)_")
ENDINGS = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".ndjson")


@dataclass(frozen=True)
class Source:
    """Where one file of a benchmark is.

    Attributes:
        folder, file: below `UNLEARN_EVAL_DATA`, without ending; `file` may have a folder of its own
            (`knowmem/forget_qa`). Other forms are found too (see `_places`).
        hub: the dataset on the hub; without one the data must be in the folder.
        config, split: of the hub's dataset.
        obtain: where to get it, for the error message.
        shipped: a smaller file of our own, read where `UNLEARN_EVAL_DATA` is not set or its folder has no such file.
        size: how many records the published file has; another number is said.
        alternatives: what else the authors' repositories call `file`, below `folder`.
    """

    folder: str
    file: str
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    obtain: str = ""
    shipped: Path | None = None
    size: int | None = None
    alternatives: tuple[str, ...] = ()


def has_data_folder() -> bool:
    """Whether data are read from a folder rather than from the hub."""
    return bool(os.environ.get(DATA_VARIABLE))


def is_there(source: Source) -> bool:
    """Whether the data folder holds a source."""
    return place_of(source) is not None


def place_of(source: Source) -> Path | None:
    """The file of a source in the data folder, or the first of several; None if it holds none."""
    root = os.environ.get(DATA_VARIABLE)
    found = _places(Path(root).expanduser(), source) if root else []
    return found[0] if found else None


def load_source(source: Source, required: Sequence[str], revision: str | None = None) -> list[dict[str, Any]]:
    """The records of one file, in their order.

    Raises:
        UserError: it is neither in the data folder nor on the hub, is malformed, or lacks a field.
    """
    root = os.environ.get(DATA_VARIABLE)
    if root and (source.shipped is None or is_there(source)):
        records, place = _from_folder(Path(root).expanduser(), source, required), root
    elif source.shipped is not None:
        return _records(source.shipped, required)
    elif source.hub is None:
        raise UserError(
            f"no {source.folder} data: {DATA_VARIABLE} is not set, and it is not read from the hub",
            f"put {source.folder}/{source.file}.json into a folder and name that folder there. {source.obtain}".strip(),
        )
    else:
        records, place = from_hub(source.hub, source.config, required, revision, source.split), source.hub
    if source.size not in (None, len(records)) and os.environ.get("RANK", "0") == "0":
        _say(f"{source.folder}/{source.file} in {place} has {len(records)} records; the published one {source.size}")
    return records


def _from_folder(root: Path, source: Source, required: Sequence[str]) -> list[dict[str, Any]]:
    wanted = f"{source.folder}/{source.file}"
    or_hub = f", or unset {DATA_VARIABLE} to read from the hub" if source.hub else ""
    if not root.is_dir():
        raise UserError(
            f"{DATA_VARIABLE} names {root}, which is not a folder",
            f"set it to a folder that holds {wanted}.json{or_hub}",
        )
    found = _places(root, source)
    if not found:
        near = sorted(path.name for path in (root / source.folder).glob("*"))[:6]
        there = f"; there is: {', '.join(near)}" if near else ""
        raise UserError(
            f"no {wanted}.json in the data folder {root}{there}",
            f"put it there ({', '.join(ENDINGS)}){or_hub}. {source.obtain}".strip(),
        )
    return [record for path in found for record in _records(path, required)]


def _places(root: Path, source: Source) -> list[Path]:
    """The files or the folder that hold a source's records, in order; none if there are none.

    In the benchmark's folder, or in one called as its dataset on the hub, upper or lower case: a file; what `datasets`
    saved; a snapshot of the hub, where files lie by configuration and split (`wmdp-bio/test-00000-of-00001.parquet`),
    or, with one configuration, in `data/`; or a file in each of many numbered folders
    (`1_Stephen_King/forget_level1.json`).
    """
    names = {source.folder, *([source.hub.rpartition("/")[2]] if source.hub else [])}
    for folder in _folders(root, names):
        for file in (source.file, *source.alternatives):
            stem = folder / file
            found = _by_stem(stem) or _by_stem(stem / source.split) or _saved(stem, source.split)
            found = found or [path for own in _numbered_folders(folder) for path in _by_stem(own / file)]
            if found:
                return found
        if source.hub and source.config is None:
            found = _by_stem(folder / "data" / source.split) or _saved(folder, source.split)
            if found:
                return found
    return []


def _folders(root: Path, names: set[str]) -> Iterator[Path]:
    """The folders in `root` of these names, first those that are written so."""
    if not root.is_dir():
        return iter(())
    wanted = {name.casefold().replace("-", "_") for name in names}
    own = [path for path in root.iterdir() if path.name.casefold().replace("-", "_") in wanted and path.is_dir()]
    return iter(sorted(own, key=lambda path: (path.name not in names, path.name)))


def _by_stem(stem: Path) -> list[Path]:
    """The file of that name, whatever its ending, or the parts in which `datasets` writes it."""
    if not stem.parent.is_dir():
        return []
    there = {path.name.casefold(): path for path in stem.parent.iterdir() if path.is_file()}
    found = [there[name] for ending in ENDINGS if (name := f"{stem.name}{ending}".casefold()) in there]
    return found[:1] or sorted(stem.parent.glob(f"{stem.name}-*-of-*.parquet"))


def _saved(folder: Path, split: str) -> list[Path]:
    """The folder in which `datasets` saved a split, or the only one."""
    if not is_saved_to_disk(folder):
        return []
    return [folder / split] if (folder / split).is_dir() else [folder]


def _numbered_folders(folder: Path) -> list[Path]:
    """Folders like `1_Stephen_King`, in the order of their numbers."""
    found = [(int(number.group(1)), path) for path in folder.iterdir() if (number := _NUMBERED.match(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


@cache
def _say(line: str) -> None:
    """One line for a terminal, once."""
    say(line)


def _records(path: Path, required: Sequence[str]) -> list[dict[str, Any]]:
    return [_of_cells(row) for row in read_rows(path, required)]


def _of_cells(row: Row) -> dict[str, Any]:
    """The record, with the lists that cells of a CSV hold as text."""
    if not row.split:
        return row.record
    return {name: (isinstance(cell, str) and listed_in(cell)) or cell for name, cell in row.record.items()}


def load_split(
    folder: str,
    name: str,
    hub_id: str,
    required: Sequence[str],
    revision: str | None = None,
    size: int | None = None,
) -> list[dict[str, Any]]:
    """The records of one split, in their order.

    Args:
        folder: the benchmark's folder below `UNLEARN_EVAL_DATA`, e.g. `tofu`.
        name: the split, e.g. `forget10_perturbed` (the file's stem, and the hub's configuration name).
        hub_id: the dataset on the hub, e.g. `locuslab/TOFU`.
        required: fields that every record must have.
        revision: of the hub's dataset.
        size: how many records the published split has.

    Raises:
        UserError: no such folder or file, a malformed line (file and line are named), a field is missing,
            or the hub cannot be reached.
    """
    return load_source(Source(folder, name, hub_id, config=name, size=size), required, revision)


def from_hub(
    hub_id: str, name: str | None, required: Sequence[str], revision: str | None, split: str = "train"
) -> list[dict[str, Any]]:
    """The records of one split of a dataset of the hub, in their order; errors as in `load_split`."""
    import datasets

    try:
        data = datasets.load_dataset(hub_id, name, split=split, revision=revision)
    except Exception as error:  # datasets raises many kinds of errors for "not there"
        raise UserError(
            f"could not read {hub_id} ({name}) from the hub: {type(error).__name__}: {error}".replace("\n", " "),
            f"check the network, or set {DATA_VARIABLE} to a folder with {name}.json",
        ) from error
    missing = [field for field in required if field not in data.column_names]
    if missing:
        raise UserError(f"{hub_id} ({name}) has no field {', '.join(missing)}", "it may have changed on the hub")
    return [dict(record) for record in data]
