"""Schemas of files that may come from strangers: kinds of values, and what does not fit, in two lines.

A schema is a pydantic model. Each kind of file has one, and is read through `validated` before anything else sees it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from unlearn_eval.utils.errors import UserError

MOST = 2**53  # whole numbers up to here are exact in every reader of JSON
SHOWN = 60  # characters of a value that does not fit
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Table(BaseModel):
    """Keys and values of their kinds, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class OpenTable(Table):
    """The same, with further keys whose values may be anything."""

    model_config = ConfigDict(extra="allow")


def expected(what: str) -> PydanticCustomError:
    """The error for a value that is not of its kind, which pydantic has no name for."""
    return PydanticCustomError("expected", "{what}", {"what": what})


def _plain_name(name: str) -> str:
    if not PLAIN_NAME.fullmatch(name) or len(name) > 255:
        raise expected("a plain file name")
    return name


def _inside(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or {"..", "."} & set(name.split("/")) or re.search(r"[\\:\x00-\x1f]", name):
        raise expected("the name of a file inside the folder")
    if len(name) > 1000:
        raise expected("a shorter name")
    return name


Whole = Annotated[int, Field(ge=-MOST, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Size = Annotated[int, Field(ge=1, le=MOST)]
Number = Annotated[float, Field(le=1e300, ge=-1e300)]
NotNegative = Annotated[float, Field(ge=0, le=1e300)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PlainName = Annotated[str, AfterValidator(_plain_name)]
NameInside = Annotated[str, AfterValidator(_inside)]

Schema = TypeVar("Schema", bound=BaseModel)
_KINDS = {"model_type": "should be a table of keys and values", "dict_type": "should be a table of keys and values"}


def validated(schema: type[Schema], content: object, where: str | Path, wrong: str, hint: str) -> Schema:
    """The content of a file as its schema has it.

    Args:
        schema: of the file.
        content: as JSON, or YAML, has it.
        where: the file, for the error.
        wrong: what is said of it, as in "is damaged".
        hint: what to do.

    Raises:
        UserError: something does not fit; the first such place is named, and where the others are.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        mistakes = sorted(error.errors(include_url=False), key=lambda own: own["type"] not in ("missing",))
        told = list(dict.fromkeys(_told(mistake, content) for mistake in mistakes))
        more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
        raise UserError(f"{where} {wrong}: {told[0]}{more}", hint) from error


def _told(mistake: Any, content: object) -> str:
    kind, loc = mistake["type"], mistake["loc"]
    if kind in ("missing", "extra_forbidden"):
        at = place(loc[:-1], content)
        which = "lacks the field" if kind == "missing" else "has the unknown field"
        return f"{at or 'it'} {which} {str(loc[-1])[:SHOWN]}"
    raised = mistake.get("ctx", {}).get("error")
    message = str(raised) if raised is not None else _KINDS.get(kind, mistake["msg"]).removeprefix("Input ")
    if kind == "expected":
        message = f"should be {message}"
    return f"{place(loc, content) or 'it'} is {shown(mistake['input'])}, and {message}"


def shown(value: object) -> str:
    """A value for an error: its beginning, on one line."""
    if isinstance(value, Mapping | list | tuple) and len(value) > 5:
        return f"a {'table' if isinstance(value, Mapping) else 'list'} of {len(value)}"
    text = "a whole number of many digits" if isinstance(value, int) and abs(value) > 1e30 else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def place(loc: Sequence[Any], content: Any) -> str:
    """Where pydantic's location is in a document, as in `editors[2].settings`.

    Steps that only pydantic takes are left out: an entry that stands by itself is in no list.
    """
    found = ""
    for step in loc:
        if isinstance(step, int):
            if isinstance(content, list) and step < len(content):
                found, content = f"{found}[{step}]", content[step]
            continue
        own = next((key for key in content if str(key) == step), None) if isinstance(content, Mapping) else None
        if own is not None:
            found, content = f"{found}.{step}" if found else str(step), content[own]
    return found
