"""Benchmark data: from the folder in `UNLEARN_EVAL_DATA` if that is set, else from the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_eval.data.tables import listed_in, read_rows
from unlearn_eval.utils.errors import UserError

DATA_VARIABLE = "UNLEARN_EVAL_DATA"
ENDINGS = (".json", ".jsonl", ".parquet", ".csv")


@dataclass(frozen=True)
class Source:
    """Where one file of a benchmark is.

    Attributes:
        folder, file: below `UNLEARN_EVAL_DATA`, without ending; `file` may have a folder of its own
            (`knowmem/forget_qa`). What `datasets` writes there (`forget_qa-00000-of-00001.parquet`) is found too.
        hub: the dataset on the hub; without one the data must be in the folder.
        config, split: of the hub's dataset.
        obtain: where to get it, for the error message.
        shipped: a smaller file of our own, read where `UNLEARN_EVAL_DATA` is not set or its folder has no such file.
    """

    folder: str
    file: str
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    obtain: str = ""
    shipped: Path | None = None


def load_source(source: Source, required: Sequence[str], revision: str | None = None) -> list[dict[str, Any]]:
    """The records of one file, in their order.

    Raises:
        UserError: it is neither in the data folder nor on the hub, is malformed, or lacks a field.
    """
    root = os.environ.get(DATA_VARIABLE)
    if root and (source.shipped is None or _files(Path(root).expanduser(), source)):
        return _from_folder(Path(root).expanduser(), source, required)
    if source.shipped is not None:
        return _records(source.shipped, required)
    if source.hub is None:
        raise UserError(
            f"no {source.folder} data: {DATA_VARIABLE} is not set, and it is not read from the hub",
            f"put {source.folder}/{source.file}.json into a folder and name that folder there. {source.obtain}".strip(),
        )
    return from_hub(source.hub, source.config, required, revision, source.split)


def _from_folder(root: Path, source: Source, required: Sequence[str]) -> list[dict[str, Any]]:
    wanted = f"{source.folder}/{source.file}"
    or_hub = f", or unset {DATA_VARIABLE} to read from the hub" if source.hub else ""
    if not root.is_dir():
        raise UserError(
            f"{DATA_VARIABLE} names {root}, which is not a folder",
            f"set it to a folder that holds {wanted}.json{or_hub}",
        )
    found = _files(root, source)
    if not found:
        near = sorted(path.name for path in (root / source.folder).glob("*"))[:6]
        there = f"; there is: {', '.join(near)}" if near else ""
        raise UserError(
            f"no {wanted}.json in the data folder {root}{there}",
            f"put it there ({', '.join(ENDINGS)}){or_hub}. {source.obtain}".strip(),
        )
    return [record for path in found for record in _records(path, required)]


def _files(root: Path, source: Source) -> list[Path]:
    stem = root / source.folder / source.file
    found = [path for ending in ENDINGS if (path := stem.with_name(stem.name + ending)).is_file()]
    return found[:1] or sorted(stem.parent.glob(f"{stem.name}-*-of-*.parquet"))


def _records(path: Path, required: Sequence[str]) -> list[dict[str, Any]]:
    rows = read_rows(path, required)
    return [
        {
            name: (listed_in(cell) or cell) if row.split and isinstance(cell, str) else cell
            for name, cell in row.record.items()
        }
        for row in rows
    ]


def load_split(
    folder: str, name: str, hub_id: str, required: Sequence[str], revision: str | None = None
) -> list[dict[str, Any]]:
    """The records of one split, in their order.

    Args:
        folder: the benchmark's folder below `UNLEARN_EVAL_DATA`, e.g. `tofu`.
        name: the split, e.g. `forget10_perturbed` (the file's stem, and the hub's configuration name).
        hub_id: the dataset on the hub, e.g. `locuslab/TOFU`.
        required: fields that every record must have.
        revision: of the hub's dataset.

    Raises:
        UserError: no such folder or file, a malformed line (file and line are named), a field is missing,
            or the hub cannot be reached.
    """
    return load_source(Source(folder, name, hub_id, config=name), required, revision)


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
