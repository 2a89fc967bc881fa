"""From a loaded model and a forget set to an edit that says where it comes from."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unlearn_eval import prompts
from unlearn_eval.edit_requests import build_requests, sample_contexts
from unlearn_eval.editors.base import Progress, get_editor, no_progress
from unlearn_eval.edits import LowRankEdit, describe_base
from unlearn_eval.errors import UserError, unknown_name
from unlearn_eval.forget_sets import ForgetSet
from unlearn_eval.models import LoadedModel
from unlearn_eval.provenance import hash_json, peak_memory_bytes, provenance
from unlearn_eval.refusals import refusal_targets


def make_edit(
    loaded: LoadedModel,
    forget: ForgetSet,
    editor: str = "memit",
    options: Mapping[str, str] | None = None,
    target: str = "idk",
    chat: bool | None = None,
    n_contexts: int = 3,
    seed: int = 0,
    progress: Progress = no_progress,
) -> LowRankEdit:
    """The edit after which the model answers each item's question with a refusal.

    Args:
        loaded: the base model; it is left as it is.
        forget: what to forget.
        editor: the method's name.
        options: its settings as text, `{"preservation": "2", "target.steps": "30"}`.
        target: what to say instead (see `refusals`).
        chat: ask through the chat template; None does if there is one.
        n_contexts: how many sampled openings stand before the question in further prompts.
        seed: of everything random.
        progress: told of the editor's steps.

    Raises:
        UserError: an unknown editor or setting, or a question that does not fit the model's context.
    """
    method = get_editor(editor)
    config = configure(method.Config, options or {})
    if hasattr(config, "seed") and "seed" not in (options or {}):
        config = replace(config, seed=seed)
    model, tokenizer = loaded.model, loaded.tokenizer
    chat = prompts.has_chat_template(tokenizer) if chat is None else chat
    if chat and not prompts.has_chat_template(tokenizer):
        raise UserError(f"{loaded.name} has no chat template", "leave out --chat")
    started = time.monotonic()
    contexts = sample_contexts(model, tokenizer, seed, n=n_contexts)
    texts = refusal_targets(target, len(forget), random.Random(seed))
    max_length = getattr(model.config, "max_position_embeddings", None)
    requests = build_requests(forget.items, texts, tokenizer, chat, contexts, max_length)
    result = method.edit(model, tokenizer, requests, config, random.Random(seed), progress=progress)
    assert isinstance(result, LowRankEdit)
    info = replace(
        result.info,
        base=describe_base(model, loaded.name if loaded.name != "default" else loaded.path, loaded.revision),
        requests={
            "n": len(requests),
            "forget_set": forget.name,
            "forget_set_hash": forget.hash,
            "ids": [item.id for item in forget],
            "hash": hash_json([dataclasses.asdict(request) for request in requests]),
            "chat": chat,
            "target": target,
            "contexts": contexts,
        },
        seed=seed,
        versions=provenance()["packages"],
        seconds=round(time.monotonic() - started, 2),
        peak_memory_bytes=peak_memory_bytes(),
    )
    return replace(result, info=info)


def configure(config_class: type[Any], options: Mapping[str, str]) -> Any:
    """A method's settings with some of them set from text; `target.steps` names a nested one.

    Raises:
        UserError: no such setting (the nearest are named), or a value of the wrong type.
    """
    config = config_class()
    for name, text in options.items():
        config = _set(config, name, name.split("."), text)
    return config


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


def _parse(name: str, text: str, current: Any) -> Any:
    kind = type(current)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is tuple:
            return tuple(int(part) for part in text.strip("[]() ").split(",") if part.strip())
        if kind in (int, float):
            return kind(json.loads(text))
        if kind is str:
            return text
    except (KeyError, ValueError) as error:
        raise UserError(f"the setting {name} cannot be '{text}'", f"it is now {current!r}; give another") from error
    raise UserError(f"the setting {name} cannot be set from text", "name one of its parts, as in target.steps=30")
