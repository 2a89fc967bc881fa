"""The localizations of a study's edits: which are the same, and which cannot be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.data.items import ForgetSet
from unlearn_eval.models.places import resolve_model
from unlearn_eval.runs.study.spec import EditorSpec, ModelSpec
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import hash_json

if TYPE_CHECKING:
    from unlearn_eval.localization.locate import LocalizationSpec


@dataclass(frozen=True)
class Located:
    """The localization that says where an edit is made.

    Attributes:
        wanted: which one, as the study asks for it.
        key: of the model, the facts, the seed and the settings: edits with the same one share what was computed.
    """

    wanted: LocalizationSpec
    key: str


def located_of(editor: EditorSpec, common: Mapping[str, Any], seed: int, retain: str | None) -> Located | None:
    """The localization that says where an editor's edit is made; None if none does."""
    wanted = _wanted(editor)
    if wanted is None:
        return None
    own = [common["model"], common["dtype"], common["selection"], seed, retain]
    return Located(wanted, hash_json([*own, asdict(wanted)]))


def names_components(editor: EditorSpec) -> bool:
    """Whether a localization, or a file of one, says where an editor's edits are made."""
    from unlearn_eval.localization.locate import localization_spec

    return "components" in editor.settings and localization_spec(editor.settings["components"]) is not None


def _wanted(editor: EditorSpec) -> LocalizationSpec | None:
    """The localization of an editor's `components`; None where these are a file, patterns of modules, or not there."""
    from unlearn_eval.localization.locate import LocalizationSpec, localization_spec

    found = localization_spec(editor.settings.get("components", ""))
    return found if isinstance(found, LocalizationSpec) else None


def check_located(editor: EditorSpec, model: ModelSpec, items: ForgetSet, retain: ForgetSet | None) -> None:
    """Refuse a localization that the model or the facts do not allow, as far as that is seen without weights.

    Raises:
        UserError: facts without a subject, without another answer, or too few of each answer for a probe; an
            architecture whose parts are not found; a budget that is more than the model.
    """
    from unlearn_eval.localization.base import get_localizer
    from unlearn_eval.localization.budget import budget_of

    wanted = _wanted(editor)
    if wanted is None:
        return
    method = get_localizer(wanted.method)
    try:
        if method.needs_facts:
            _check_items(items)
        answers = {item.question: item.answer for item in (*items, *(retain or ()))}
        method.check(wanted.config(), list(answers.values()))
        found = _sites(model)
        if wanted.budget is not None and found is not None:
            budget_of(wanted.budget, found)
    except UserError as error:
        raise UserError(f"{editor.name} in {model.name}: {error.message}", error.hint) from error


def _check_items(items: ForgetSet) -> None:
    if not any(item.subject for item in items):
        raise UserError(
            f"none of the {len(items)} items of '{items.name}' has a subject, which is what is corrupted and looked at",
            "give items a subject that stands in the question word for word, or use random_mlps, all_mlps or none",
        )
    if len({item.answer for item in items}) < 2 and not any(item.perturbed_answers for item in items):
        raise UserError(
            f"all items of '{items.name}' have the same answer and no wrong ones",
            "give items perturbed_answers",
        )


@cache
def _sites(model: ModelSpec) -> Any:
    """Where the model's units are, found on a skeleton without weights; None where there is no configuration to read.

    Raises:
        UserError: the architecture's parts are not found.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from unlearn_eval.localization.sites import sites

    try:
        path = resolve_model(model.model)
        if Path(path).is_file():
            return None  # a GGUF file
        config = AutoConfig.from_pretrained(path, revision=model.revision)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, json.JSONDecodeError):
        return None  # not in the cache, or an architecture that only its own loader knows
    return sites(skeleton)


@cache
def n_layers_of(model: ModelSpec, usual: int = 32) -> int:
    """How many blocks a model has, by its configuration; `usual` where that cannot be read."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(resolve_model(model.model), revision=model.revision)
        return int(config.get_text_config().num_hidden_layers)
    except (UserError, OSError, ValueError, AttributeError):
        return usual
