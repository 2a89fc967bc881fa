"""Settings from text, as `--set NAME=VALUE` gives them, for whatever has a frozen dataclass of settings.

What a setting may be is said by its annotation: `Size`, `Positive`, `Share` and the like, or a plain type. Every number
is finite, and none is negative unless its default is.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

from unlearn_eval.utils.errors import UserError, unknown_name

MOST = 2**53  # whole numbers up to here are exact as floating ones
Size = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]
Dropped = Annotated[float, Ge(0), Lt(1)]
Sizes = tuple[Size, ...]
_BOUNDS = {
    Ge: (lambda value, bound: value >= bound.ge, lambda bound: f"of at least {bound.ge}"),
    Gt: (lambda value, bound: value > bound.gt, lambda bound: f"above {bound.gt}"),
    Le: (lambda value, bound: value <= bound.le, lambda bound: f"of at most {bound.le}"),
    Lt: (lambda value, bound: value < bound.lt, lambda bound: f"below {bound.lt}"),
}  # kind of bound -> whether it holds, and its words
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def as_texts(options: Mapping[str, object]) -> dict[str, str]:
    """Settings given as values, as the texts that `configure` takes.

    `True` is `true`, `[4, 5]` is `4,5`, and the setting `{"target": {"steps": 3}}` is `target.steps`.
    """
    found: dict[str, str] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": text for inner, text in as_texts(value).items()}
        else:
            found[str(name)] = as_text(value)
    return found


def as_text(value: object) -> str:
    """One such value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(as_text, value))
    return str(value)


def configure(config_class: type[Any], options: Mapping[str, str]) -> Any:
    """A method's settings with some of them set from text; `target.steps` names a nested one.

    Raises:
        UserError: no such setting (the nearest are named), or a value of the wrong type or out of its range.
    """
    config = config_class()
    for name, text in options.items():
        config = _set(config, name, name.split("."), text)
    return config


def check_batch_size(size: int | str, auto: bool = False) -> None:
    """Refuse a number of rows per forward pass that is none.

    Args:
        size: rows per forward pass.
        auto: whether lm-eval's `auto` and `auto:N` are sizes too.

    Raises:
        UserError: it is not a whole number above 0.
    """
    if auto and re.fullmatch(r"auto(:\d+)?", str(size)):
        return
    if isinstance(size, bool) or not re.fullmatch(r"0*[1-9]\d*", str(size)):
        raise UserError(
            f"the batch size is {size}", f"give a whole number above 0{', auto, or auto:N' if auto else ''}"
        )


def _set(config: Any, name: str, path: Sequence[str], text: str) -> Any:
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if path[0] not in fields:
        raise unknown_name("setting", name, fields)
    current = fields[path[0]]
    if len(path) > 1:
        if not dataclasses.is_dataclass(current):
            raise unknown_name("setting", name, fields)
        return replace(config, **{path[0]: _set(current, name, path[1:], text)})
    return replace(config, **{path[0]: _parse(name, text, type(config), path[0], current)})


def _parse(name: str, text: str, owner: type[Any], field: str, current: object) -> Any:
    kind = type(current)
    several = isinstance(current, tuple)
    one = (type(current[0]) if current else int) if isinstance(current, tuple) else kind
    if one not in _KINDS:
        raise UserError(f"the setting {name} cannot be set from text", "name one of its parts, as in target.steps=30")
    bounds = _bounds(owner, field)
    if not any(isinstance(bound, Ge | Gt) for bound in bounds) and one in (int, float):
        least = min([0, *(current if isinstance(current, tuple) else (current,))])  # type: ignore[type-var]
        bounds = (Ge(least if one is int or least == 0 else -math.inf), *bounds)
    words = " and ".join(_BOUNDS[type(bound)][1](bound) for bound in bounds if math.inf not in map(abs, _ends(bound)))
    wanted = f"{_KINDS[one]}{f' {words}' if words else ''}{', or several, separated by commas' if several else ''}"
    try:
        parts = [part.strip() for part in text.strip("[]() ").split(",") if part.strip()] if several else [text]
        values = tuple(_value(part, one) for part in parts)
        if all(_BOUNDS[type(bound)][0](value, bound) for value in values for bound in bounds):
            return values if several else values[0]
    except (KeyError, ValueError):
        pass
    raise UserError(f"the setting {name} cannot be '{text[:100]}'", f"give {wanted}; it is now {current!r}")


def _value(text: str, kind: type) -> Any:
    """A text as a value of a kind; KeyError or ValueError if it is none."""
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    if kind is str:
        if "\0" in text:
            raise ValueError("a text has no NUL")
        text.encode()
        return text
    value = json.loads(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > (MOST if kind is int else 1e300):
        raise ValueError("not a number, or too large")
    if not math.isfinite(value) or (kind is int and value != int(value)):
        raise ValueError("not finite, or not whole")
    return kind(value)


@lru_cache(maxsize=256)
def _hints(owner: type[Any]) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except Exception:  # whatever the annotations of a user's file do
        return {}


def _bounds(owner: type[Any], field: str) -> tuple[Any, ...]:
    """The bounds in a field's annotation, or in that of its elements."""
    return tuple(_bounds_in(_hints(owner).get(field)))  # type: ignore[arg-type]  # a class can be hashed


def _bounds_in(hint: Any) -> Iterator[Any]:
    for part in getattr(hint, "__metadata__", ()):
        if type(part) in _BOUNDS:
            yield part
    for inner in typing.get_args(hint):
        yield from _bounds_in(inner)


def _ends(bound: Any) -> list[float]:
    return [float(value) for value in dataclasses.asdict(bound).values()]
