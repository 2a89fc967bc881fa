"""lm-eval's requests, as 0.4 and 0.5 make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lm_eval.api.instance import Instance

_TAKES = {field.name for field in fields(Instance)}
NAMES_ITS_DOCUMENT = "target" in _TAKES  # from 0.5 on: fields instead of a tuple `metadata`


def stops_of(settings: Mapping[str, Any]) -> list[str]:
    """The texts at which a generation with these settings ends: lm-eval takes one as well as a list of them."""
    until = settings.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def make_instance(kind: str, doc: Any, arguments: tuple[Any, ...], idx: int = 0, **given: Any) -> Instance:
    """A request to a model.

    Args:
        kind: the method of lm-eval's model that answers it.
        doc: the document that it belongs to.
        arguments: what the method is given.
        idx: its place among the document's requests.
        given: what lm-eval gives a task about the document, and `task_name`, `target` and `repeats`, which are left out
            where the installed lm-eval finds them by itself.
    """
    known = {name: value for name, value in given.items() if name in _TAKES}
    if NAMES_ITS_DOCUMENT:
        known = {"task_name": "", "doc_id": 0} | known
    else:  # 0.4 takes them out of `metadata`
        known = {name: value for name, value in known.items() if name not in ("task_name", "doc_id", "repeats")}
    return Instance(request_type=kind, doc=doc, arguments=arguments, idx=idx, **known)
