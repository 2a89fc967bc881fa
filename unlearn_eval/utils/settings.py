"""Settings from text, as `--set NAME=VALUE` gives them, for whatever has a frozen dataclass of settings."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unlearn_eval.utils.errors import UserError, unknown_name


def configure(config_class: type[Any], options: Mapping[str, str]) -> Any:
    """A method's settings with some of them set from text; `target.steps` names a nested one.

    Raises:
        UserError: no such setting (the nearest are named), or a value of the wrong type.
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
    return replace(config, **{path[0]: _parse(name, text, current)})


def _parse(name: str, text: str, current: object) -> Any:
    kind = type(current)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if isinstance(current, tuple):
            element = type(current[0]) if current else int
            return tuple(element(part.strip()) for part in text.strip("[]() ").split(",") if part.strip())
        if kind in (int, float):
            return kind(json.loads(text))
        if kind is str:
            return text
    except (KeyError, ValueError) as error:
        raise UserError(f"the setting {name} cannot be '{text}'", f"it is now {current!r}; give another") from error
    raise UserError(f"the setting {name} cannot be set from text", "name one of its parts, as in target.steps=30")
