"""Files of records as people have them: JSON lines, JSON, CSV and its kin, parquet, folders of `datasets`.

Every record comes with its place in the file, for errors. What cannot be read without guessing is refused, with what
was found and what is wanted.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import placed_records, read_text

TEXT_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
ENDINGS = (*TEXT_ENDINGS, ".parquet")
TEXT = "text"  # field of the records of a file that is a list of texts
_PART = re.compile(r"(.+)-\d+-of-\d+")  # how `datasets` calls the files of a split
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


class Row(NamedTuple):
    """One record and where it stands.

    Attributes:
        record: Field -> value; of CSV, text or None.
        where: File and line or record, for errors.
        split: Whether a text may hold a list, separated by `|` (a CSV cell).
    """

    record: dict[str, Any]
    where: str
    split: bool = False


def read_rows(
    path: str | Path,
    wanted: Sequence[str] = (),
    fields: Mapping[str, str] | None = None,
    known: Sequence[str] = (),
) -> list[Row]:
    """The records of a file or folder, in order.

    Args:
        path: A file whose ending, in upper or lower case, is one of `ENDINGS`; or a folder: what `datasets` saved
            (`save_to_disk`), or a snapshot of a dataset of the hub (`data/*.parquet`).
        wanted: Fields that every record must have.
        fields: Wanted field -> the name that the file has for it.
        known: Fields that records may have, by which a header is recognized whatever separates it and its case.

    Raises:
        UserError: The file is missing, empty, or not what its ending says; a record lacks a field, or cannot be told
            apart from its neighbors (file, line and field are named).
    """
    path, names = Path(path).expanduser(), [*wanted, *known]
    ending = path.suffix.lower()
    if path.is_dir():
        rows = _from_folder(path)
    elif ending == ".parquet":
        rows = _numbered(_parquet([path]), path)
    elif ending in (".csv", ".tsv"):
        rows = _from_csv(path, [(fields or {}).get(name, name) for name in names], ending)
    elif ending in TEXT_ENDINGS:
        rows = _from_json(path)
    else:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}", f"give one of {', '.join(ENDINGS)}, or a folder")
    if not rows:
        raise UserError(f"'{path}' is empty: it has no records", "the program that wrote it was cut off")
    rows = [row._replace(record=_renamed(row, names, fields or {})) for row in rows]
    check_fields(rows, wanted)
    return rows


def rows_of(
    records: Sequence[Any], name: str, fields: Mapping[str, str] | None = None, known: Sequence[str] = ()
) -> list[Row]:
    """Records in memory, in order, with the types of NumPy as those of Python; arguments as for `read_rows`.

    Raises:
        UserError: One is no record, or lacks a field that is to be renamed.
    """
    rows = _numbered([_plain(record) for record in records], name)
    return [row._replace(record=_renamed(row, known, fields or {})) for row in rows]


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def check_fields(rows: Sequence[Row], wanted: Sequence[str], cure: str = "") -> None:
    """Refuse records that lack a field; `cure` ends the hint, with the field's name for `{}`."""
    for row in rows:
        if missing := [name for name in wanted if name not in row.record]:
            raise UserError(
                f"{row.where} lacks the field '{missing[0]}'",
                f"its fields: {', '.join(map(str, row.record)) or 'none'}{cure.format(missing[0])}",
            )


def as_list(value: object, split: bool) -> list[Any]:
    """The parts of a field that may hold a list: of None none, of a CSV cell those between `|` or in brackets."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, str) and split:
        listed = listed_in(value)
        return value.split("|") if listed is None else listed
    return [value]


def listed_in(cell: str) -> list[Any] | None:
    """The list that a CSV cell holds as text, as pandas and JSON write it; None if it holds none."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list) and all(isinstance(part, str | int | float) for part in found):
            return found
    return None


def kind_of(value: object) -> str:
    """What a value is, in the words of JSON."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


# JSON ------------------------------------------------------------------------------------------------------


def _from_json(path: Path) -> list[Row]:
    text = read_text(path, "file")
    if text.lstrip()[:1] == "[" and (texts := _list_of_texts(text)):
        return _numbered([{TEXT: own} for own in texts], path)
    if text.lstrip()[:1] == "{" and (whole := _one_object(text)) is not None:
        rows = _of_object(whole, path)
        if rows is not None:
            return rows
    return [Row(record, where) for where, record in placed_records(path)]


def _one_object(text: str) -> dict[str, Any] | None:
    """The object that a whole file is; None where it holds several, or is not JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _list_of_texts(text: str) -> list[str] | None:
    """The texts of a file that is one list of them, as corpora are written; None of any other."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(own, str) for own in found) else None


def _of_object(whole: dict[str, Any], path: Path) -> list[Row] | None:
    """The rows of a file of columns, or of one that holds its records under a key; None of a single record."""
    columns = {name: _column(value) for name, value in whole.items()}
    if len(whole) > 1 and all(column is not None for column in columns.values()):
        lengths = {name: len(column) for name, column in columns.items() if column is not None}
        if len(set(lengths.values())) > 1:
            raise UserError(
                f"{path} holds columns of different lengths: "
                + ", ".join(f"{name} {length}" for name, length in lengths.items()),
                "write one object for each item, one on each line",
            )
        records = [
            {name: column[i] for name, column in columns.items() if column is not None}
            for i in range(next(iter(lengths.values())))
        ]
        return _numbered(records, path)
    held = [value for value in whole.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(held) == 1 and "question" not in whole:
        return _numbered(held[0], path)
    return None


def _column(value: object) -> list[Any] | None:
    """The values of a column, as a list or as pandas writes it ({"0": ..., "1": ...}); None of anything else."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and value and all(str(key).isdigit() for key in value):
        return [value[key] for key in sorted(value, key=int)]
    return None


def _numbered(records: Sequence[Any], path: Path | str) -> list[Row]:
    rows = []
    for i, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise UserError(f"{path}, record {i} is {kind_of(record)}, not an object", "write one object for each item")
        rows.append(Row(record, f"{path}, record {i}"))
    return rows


# CSV -------------------------------------------------------------------------------------------------------


def _from_csv(path: Path, known: Sequence[str], ending: str) -> list[Row]:
    if not path.is_file():
        raise UserError(f"{path} does not exist", "check the path")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not CSV in UTF-8 ({error.reason})", "save it as UTF-8") from error
    first, _, rest = text.partition("\n")
    skipped = 0
    separator = "\t" if ending == ".tsv" else None
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:  # as Excel writes it
        text, separator, skipped = rest, first.strip()[4], 1
    separator = separator or _separator(text, known)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = next((cells for cells in reader if any(cell.strip() for cell in cells)), None)
        if header is None:
            return []
        names = _names(header, path)
        return list(_csv_rows(reader, names, path, separator, skipped))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num + skipped}: not CSV ({error})", "put quotes around cells with line breaks"
        ) from error


def _csv_rows(reader: Any, names: Sequence[str], path: Path, separator: str, skipped: int) -> Iterator[Row]:
    for cells in reader:
        if not any(cell.strip() for cell in cells):  # rows that spreadsheets leave behind
            continue
        where = f"{path}, line {reader.line_num + skipped}"
        if any(cell.strip() for cell in cells[len(names) :]):
            raise UserError(
                f"{where} has {len(cells)} cells, and the header {len(names)}",
                f"put quotes around a cell that holds one of the {SEPARATORS.get(separator, repr(separator))}",
            )
        padded = [*cells, *[""] * (len(names) - len(cells))]
        yield Row({name: cell for name, cell in zip(names, padded, strict=False) if name}, where, split=True)


def _separator(text: str, known: Sequence[str]) -> str:
    """The one whose header has the most of the known names; a comma where none has any."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    names = {name.casefold() for name in known}

    def found(separator: str) -> int:
        cells = next(csv.reader([header], delimiter=separator), [])
        return len(names & {cell.strip().casefold() for cell in cells})

    return max(SEPARATORS, key=lambda separator: (found(separator), separator == ","))


def _names(header: Sequence[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in header]
    while names and not names[-1]:
        names.pop()
    twice = [name for name, n in Counter(name.casefold() for name in names if name).items() if n > 1]
    if twice:
        raise UserError(f"{path} has two columns called '{twice[0]}'", "rename one of them")
    return names


def _renamed(row: Row, wanted: Sequence[str], fields: Mapping[str, str]) -> dict[str, Any]:
    """The record under the wanted names; a field that differs in case or outer spaces only is the wanted one."""
    record = {str(name).strip(): value for name, value in row.record.items()}
    folded: dict[str, str] = {}
    for name in record:
        folded.setdefault(name.casefold(), name)
    out = dict(record)
    for name, own in fields.items():
        place = own if own in record else folded.get(own.casefold())
        if place is None:
            raise UserError(
                f"{row.where} has no field '{own}', which is to be its {name}", f"its fields: {', '.join(record)}"
            )
        out.pop(place, None)
        out[name] = record[place]
    for name in wanted:
        if name not in out and name.casefold() in folded and folded[name.casefold()] in out:
            out[name] = out.pop(folded[name.casefold()])
    return out


# Folders and parquet ---------------------------------------------------------------------------------------


def is_saved_to_disk(path: Path) -> bool:
    """Whether a folder is what `datasets` saved: one split, or several."""
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def _from_folder(path: Path) -> list[Row]:
    if is_saved_to_disk(path):
        return _saved_to_disk(path)
    for pattern in ("*.parquet", "data/*.parquet", "*/*.parquet"):
        if places := sorted(path.glob(pattern)):
            _check_one_part(path, places)
            return _numbered(_parquet(places), path)
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in TEXT_ENDINGS]
    if len(files) == 1:
        return read_rows(files[0])
    inside = ", ".join(sorted(file.name for file in path.iterdir())[:6]) or "nothing"
    raise UserError(
        f"{path} is a folder without a dataset; there is: {inside}",
        "name a file in it, or a folder that `datasets` saved, or one that holds parquet files",
    )


def _check_one_part(path: Path, places: Sequence[Path]) -> None:
    """Refuse a snapshot of the hub that holds several configurations or splits: they are not one set."""
    configurations = {place.parent.name: place.parent for place in places}
    splits = {found.group(1): place for place in places if (found := _PART.fullmatch(place.stem))}
    for parts, what in ((configurations, "configurations"), (splits, "splits")):
        if len(parts) > 1:
            first = next(iter(parts.values()))
            raise UserError(f"{path} holds several {what}: {', '.join(parts)}", f"name one of them, such as {first}")


def _saved_to_disk(path: Path) -> list[Row]:
    import datasets

    found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        if len(found) != 1:
            raise UserError(
                f"{path} holds several splits: {', '.join(found)}", f"name one of them: {path / next(iter(found))}"
            )
        found = next(iter(found.values()))
    return _numbered([dict(record) for record in found], path)


def _parquet(places: Sequence[Path]) -> list[dict[str, Any]]:
    import pyarrow.lib
    import pyarrow.parquet

    records: list[dict[str, Any]] = []
    for place in places:
        try:
            records += pyarrow.parquet.read_table(place).to_pylist()
        except FileNotFoundError as error:
            raise UserError(f"{place} does not exist", "check the path") from error
        except (pyarrow.lib.ArrowException, OSError) as error:
            raise UserError(f"{place} cannot be read as parquet: {error}", "write it again") from error
    return records
