"""Forget sets in a user's own file, JSONL or CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_eval.data.items import ForgetSet, item_from_record
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import read_jsonl

JSON_ENDINGS = (".jsonl", ".json")
ENDINGS = (*JSON_ENDINGS, ".csv")


def read_forget_set(path: Path) -> ForgetSet:
    """The items of a file, with the path as their set's name.

    Args:
        path: JSONL, a JSON array or CSV, with the fields of `ForgetItem`; lists in a CSV are separated by `|`.

    Raises:
        UserError: a missing or malformed file (with its line), or one without items.
    """
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
