"""Benchmark data: from the folder in `UNLEARN_EVAL_DATA` if that is set, else from the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearn_eval.errors import UserError

DATA_VARIABLE = "UNLEARN_EVAL_DATA"


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
    root = os.environ.get(DATA_VARIABLE)
    if root:
        return _from_folder(Path(root).expanduser(), folder, name, required)
    return _from_hub(hub_id, name, required, revision)


def _from_folder(root: Path, folder: str, name: str, required: Sequence[str]) -> list[dict[str, Any]]:
    from unlearn_eval.results import read_jsonl

    if not root.is_dir():
        raise UserError(
            f"{DATA_VARIABLE} names {root}, which is not a folder",
            f"set it to a folder that holds {folder}/{name}.json, or unset it to read from the hub",
        )
    for ending in (".json", ".jsonl"):
        path = root / folder / (name + ending)
        if path.is_file():
            return read_jsonl(path, required_fields=required)
    raise UserError(
        f"no {folder}/{name}.json in the data folder {root}",
        f"put it there, or unset {DATA_VARIABLE} to read from the hub",
    )


def _from_hub(hub_id: str, name: str, required: Sequence[str], revision: str | None) -> list[dict[str, Any]]:
    import datasets

    try:
        data = datasets.load_dataset(hub_id, name, split="train", revision=revision)
    except Exception as error:  # datasets raises many kinds of errors for "not there"
        raise UserError(
            f"could not read {hub_id} ({name}) from the hub: {type(error).__name__}: {error}".replace("\n", " "),
            f"check the network, or set {DATA_VARIABLE} to a folder with {name}.json",
        ) from error
    missing = [field for field in required if field not in data.column_names]
    if missing:
        raise UserError(f"{hub_id} ({name}) has no field {', '.join(missing)}", "it may have changed on the hub")
    return [dict(record) for record in data]
