"""Which memory of an edit would answer a question, at what distance, against which bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unlearn_eval.data.shapes import QUESTION
from unlearn_eval.edits.base import MEMORY
from unlearn_eval.edits.export import load_base
from unlearn_eval.edits.load import check_base, load_edit
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError


def ask_edit(
    folder: str | Path,
    question: str,
    model: str | None = None,
    say: Callable[[str], Any] = lambda line: None,
    any_base: bool = False,
    *,
    system: str | None = None,
    template_arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a memory edit makes of a question, as plain values for JSON; the question is put as the edit's own were.

    Args:
        folder: of the edit.
        question: as a user asks it; a sentence to be completed, if the edit is of such sentences alone.
        model: the base model; by default the one that edit.json names.
        say: told of the steps, one line each.
        any_base: whether an edit may leave open which model it was made on.
        system, template_arguments: others than the edit's.

    Raises:
        UserError: not a memory edit, or no base model or another one.
    """
    edit = load_edit(folder)
    if edit.kind != MEMORY:
        raise UserError(
            f"{folder} is an edit of the weights ({edit.info.editor}): every question goes through it",
            "leave out --ask; only memories decide (GRACE, WISE, MEMOIR, notes, prefixes)",
        )
    loaded = load_base(edit, model, None, None, None, say)
    check_base(edit.info, loaded, any_base=any_base)
    made = PromptFormat.of_edit(edit.info, loaded.tokenizer, loaded.name)
    prompt_format = made.changed(None, system, template_arguments, loaded.name)
    ids = prompt_format.prompt_ids(question, _shape_of(edit.info.requests))
    (route,) = edit.routes(loaded.model, [ids])
    found = asdict(route) | {"owners": list(route.owners)}
    about = {"question": question, **prompt_format.record, "n_tokens": len(ids), "module": edit.module}
    return about | {"bound": edit.store.bound, **found}


def _shape_of(requests: Mapping[str, Any]) -> str:
    """The shape that all of an edit's items have; else that of a question."""
    shapes = requests.get("shapes", {})
    found = {shapes.get(key, QUESTION) for key in requests.get("ids", [])}
    return str(found.pop()) if len(found) == 1 else QUESTION
