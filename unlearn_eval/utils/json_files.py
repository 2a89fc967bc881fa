"""Strict JSON on disk: files written whole or not at all, read with the place of every mistake."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unlearn_eval.utils.errors import UserError

Record = dict[str, Any]
_MAY_BE_VAST = re.compile(r"\d[eE]\+?\d{3}|\d{200}")  # other numbers are finite, and `json` reads them faster alone
_MAY_BE_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")


def dumps(content: object, indent: int | None = None) -> str:
    """Strict JSON text; NaN and infinity are a `ValueError`."""
    return json.dumps(content, allow_nan=False, ensure_ascii=False, indent=indent)


def json_place(text: str, what: str) -> Path:
    """The path of a JSON file that is to be written, before the work that fills it.

    Args:
        text: the path.
        what: it will be, for errors: "result".

    Raises:
        UserError: it does not end in `.json`, or is a folder.
    """
    path = Path(text).expanduser()
    if path.suffix != ".json" or path.is_dir():
        raise UserError(f"a {what} is a .json file, not {path}", f"name a file, such as {path.with_suffix('')}.json")
    return path


def plain(value: object, key: str) -> Any:
    """`value` as what JSON knows; NumPy scalars and arrays are converted; errors name the key."""
    if value is None or isinstance(value, bool | int | str) and not hasattr(value, "tolist"):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{key} is {value}; what is undefined is None with a reason")
        return float(value)
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if wrong := [name for name in value if not isinstance(name, str)]:
            raise ValueError(f"{key} has the key {wrong[0]!r}, which is not text")
        return {str(name): plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "tolist"):
        return plain(value.tolist(), key)
    raise ValueError(f"{key} is a {type(value).__name__}, which JSON does not know")


def write_all(files: Mapping[str, str | bytes], folder: Path) -> None:
    """All files of one folder, each whole, texts as UTF-8; on failure the temporary ones are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.{uuid.uuid4().hex[:8]}.tmp" for name in files}
    try:
        for name, content in files.items():
            with open(temporary[name], "xb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
        with held(folder):
            for name in files:
                os.replace(temporary[name], folder / name)
        _sync_folder(folder)
    finally:
        for left in temporary.values():
            left.unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from moving files into a folder within a `with` block, where the system can do that.

    Of two runs with one output the files of one are then there, and not some of each.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with suppress(OSError):  # some network drives have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def nobody_holds(folder: Path) -> bool:
    """Whether no process is in a `with held(folder)` block; False where the system cannot say."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives sync no folders
            raise
    finally:
        os.close(descriptor)


def read_jsonl(path: str | Path, required_fields: Sequence[str] = ()) -> list[Record]:
    """The objects of a JSON-lines file, or of one JSON array; blank lines are skipped.

    Raises:
        UserError: naming file and line, if the file is missing or empty, a line is not strict JSON or not an
            object, or a required field is missing.
    """
    return [record for _, record in placed_records(path, required_fields)]


def placed_records(path: str | Path, required_fields: Sequence[str] = ()) -> list[tuple[str, Record]]:
    """The same with each record's place, "FILE, line N" or "FILE, record N" of an array; errors as in `read_jsonl`."""
    path = Path(path).expanduser()
    text = read_text(path, "file")
    one_per_line = "write one JSON object on each line"
    if text.lstrip()[:1] == "[":
        content = parse(text, path, "a file that begins with '[' is read as one JSON array")
        records = [(f"{path}, record {i}", record) for i, record in enumerate(content, 1)]
    else:
        # Not splitlines(): U+2028 and its like may stand inside a JSON text.
        lines = ((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip())
        records = [(f"{path}, line {i}", parse(line, path, one_per_line, line=i)) for i, line in lines]
    if not records:
        raise UserError(f"{path} has no records", one_per_line)
    for where, record in records:
        if not isinstance(record, dict):
            raise UserError(f"{where} is a {type(record).__name__}, not an object", one_per_line)
        if missing := [name for name in required_fields if name not in record]:
            raise UserError(f"{where} lacks the field '{missing[0]}'", f"its fields: {', '.join(record) or 'none'}")
    return records


def read_text(path: Path, what: str) -> str:
    """The text of a file that is there, is UTF-8 and is not empty; `what` names it in the error."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    except OSError as error:
        near = sorted(p.name for p in path.parent.glob(f"*{path.suffix}"))[:5] if path.parent.is_dir() else []
        hint = f"in {path.parent} there is: {', '.join(near)}" if near else "check the path"
        reason = f"no {what} at {path}" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
        raise UserError(reason, hint) from error
    if not text.strip():
        raise UserError(f"{path} is empty ({len(text)} bytes)", "the program that wrote it was cut off")
    return text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is more than a number may be")
    return value


def _whole(number: str) -> int:
    _finite(number)
    return int(number)


_PLAIN = json.JSONDecoder(parse_constant=_refuse)
_FINITE = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
_VAST = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def parse(text: str, path: Path, hint: str, line: int | None = None, vast: bool = False) -> Any:
    """What a JSON text says; the error names file, line, column and, for a whole file, the byte.

    Whole numbers beyond floats are refused unless they may be `vast`, because a schema will name them with their place.
    """
    decoder = _PLAIN if not _MAY_BE_VAST.search(text) else _VAST if vast else _FINITE
    try:
        content = decoder.decode(text)
        if _MAY_BE_HALF.search(text) and (half := _HALF.search(json.dumps(content, ensure_ascii=False))):
            raise ValueError(f"{half[0].encode('unicode_escape').decode()} is half a character")
        return content
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode())
        place = f"line {line or error.lineno}, column {error.colno}" + ("" if line else f", byte {byte}")
        raise UserError(f"{path}, {place}: not JSON ({error.msg})", hint) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}{f', line {line}' if line else ''}: not JSON ({error})", hint) from error
