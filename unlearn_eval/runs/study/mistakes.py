"""What does not fit into a study file, in two lines: where it stands, what it is, and what may stand there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.schemas import place, shown

_UNKNOWN, _MISSING = "extra_forbidden", "missing"
_TABLE = "a table of keys and values, or a name where one may stand by itself"
_KINDS = {
    "string_type": "a text",
    "string_too_short": "a text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "greater_than_equal": "a whole number of at least {ge}",
    "less_than_equal": "a smaller whole number",
    "dict_type": "a table {{NAME: VALUE}}",
    "too_short": "at least one",
    "expected": "{what}",
}  # pydantic's name of a mistake -> what is expected instead


def user_error(error: ValidationError, content: Mapping[str, Any], file: str, model: type[BaseModel]) -> UserError:
    """The mistake to mend first, as `FILE: PLACE is VALUE` with what may stand there; other places are named.

    Args:
        error: all mistakes that pydantic found.
        content: of the file.
        file: its name.
        model: of the file.
    """
    found: dict[str, list[Any]] = {}
    for mistake in sorted(error.errors(include_url=False), key=lambda own: own["type"] != _UNKNOWN):
        own = mistake["loc"][:-1] if mistake["type"] in (_UNKNOWN, _MISSING) else mistake["loc"]
        found.setdefault(place(own, content), []).append(mistake)
    (where, mistakes), *others = found.items()
    message, hint = _said(where, mistakes, model)
    also = f" (also wrong: {', '.join(other or 'the top' for other, _ in others[:3])})" if others else ""
    return UserError(f"{file}: {message}", f"{hint}{also}")


def _said(where: str, mistakes: Sequence[Any], model: type[BaseModel]) -> tuple[str, str]:
    """Message and hint for the mistakes of one place."""
    first, before = mistakes[0], f"{where}: " if where else ""
    if first["type"] == _UNKNOWN:
        owner = _model_at(model, first["loc"][:-1])
        error = unknown_name("key", str(first["loc"][-1]), [] if owner is None else owner.model_fields)
        return f"{before}{error.message}", error.hint
    if first["type"] == _MISSING:
        name = first["loc"][-1]
        return f"{before}{first['input']!r} names no {name}", f"write a name, or {{{name}: NAME, ...}}"
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, UserError):
        return f"{before}{raised.message}", raised.hint
    kinds = dict.fromkeys(_KINDS.get(own["type"], _TABLE).format(**own.get("ctx", {})) for own in mistakes)
    value = list(first["input"]) if isinstance(first["input"], tuple) else first["input"]
    return f"{where} is {shown(value)}", f"give {' or '.join(kinds)}"


def _model_at(model: type[BaseModel] | None, loc: Sequence[Any]) -> type[BaseModel] | None:
    """The model of the table at a location."""
    steps = iter(loc)
    for step in steps:
        if model is not None and step in model.model_fields:
            model = next(_models(model.model_fields[step].annotation), None)
            if step == "parts":
                next(steps, None)  # a part's name
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for own in get_args(annotation):
        yield from _models(own)
