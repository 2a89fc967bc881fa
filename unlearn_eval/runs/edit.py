"""From a loaded model and a forget set to an edit that says where it comes from."""

from __future__ import annotations

import inspect
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from unlearn_eval.data.forget_sets import ForgetSet
from unlearn_eval.data.shapes import QUESTION
from unlearn_eval.editing.editor import EditRequest, Progress, check_state, get_editor, no_progress
from unlearn_eval.editing.from_file import editor_file, editor_label
from unlearn_eval.editing.locate_then_edit.second_moments import SecondMoments
from unlearn_eval.editing.memory.calibration import calibrated, other_prompts
from unlearn_eval.editing.presets import preset_for
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.requests.build import (
    build_requests,
    check_merge,
    grouped,
    merge_items,
    merge_keys,
    sample_contexts,
)
from unlearn_eval.editing.requests.targets import Target, make_targets, targets_jsonl
from unlearn_eval.editing.training.presets import unlearning_preset
from unlearn_eval.edits.base import Edit, applied
from unlearn_eval.edits.dense import DenseEdit
from unlearn_eval.edits.folder import TARGETS
from unlearn_eval.edits.forgotten import forgotten_entries, forgotten_texts
from unlearn_eval.edits.load import check_base, describe_base
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.edits.memory.edit import MemoryEdit
from unlearn_eval.edits.records import SelfCheck
from unlearn_eval.localization.components import Components
from unlearn_eval.localization.locate import checked_settings, resolve, settings_for, source_of
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import hash_json, peak_memory_bytes, provenance
from unlearn_eval.utils.settings import configure

AnyEdit = LowRankEdit | DenseEdit | MemoryEdit


def make_edit(
    loaded: LoadedModel,
    forget: ForgetSet,
    editor: str = "memit",
    options: Mapping[str, str] | None = None,
    recipe: Recipe | None = None,
    state: AnyEdit | None = None,
    progress: Progress = no_progress,
    retain: ForgetSet | None = None,
) -> AnyEdit:
    """The edit after which the model answers each item's question with a refusal.

    Args:
        loaded: the base model; it is left as it is.
        forget: what to forget.
        editor: the method's name, or the path of a file that holds one.
        options: its settings as text, `{"preservation": "2", "target.steps": "30"}`. `components` is, of every method,
            also a localisation (`fact_lookup(budget=6)`) or a file of components: what is trained, or which layers.
        recipe: how the set becomes requests.
        state: an earlier edit of this model by this method, to go on from.
        progress: told of the editor's steps.
        retain: what to keep, for methods that are trained; items that are also to be forgotten are left out.

    Returns:
        A `LowRankEdit`; a `DenseEdit` of a method that trains weights in place; a `MemoryEdit` of one that decides at
        run time.

    Raises:
        UserError: an unknown editor or setting, a retain set for a method that takes none, a question that does not fit
            the model's context, an item that the earlier edit holds already, or an earlier edit of another model or
            method.
    """
    recipe = recipe or Recipe()
    method = get_editor(editor)
    model, tokenizer = loaded.model, loaded.tokenizer
    takes = inspect.signature(method.edit).parameters
    trains = "retain" in takes
    check_recipe(editor, trains, recipe, retain)
    if recipe.merge == "text":
        check_merge(forget.items, recipe.merge_size)
    preset, own = _preset(model, editor, trains, forget.name) if recipe.preset else (None, {})
    chosen, asked = _located(loaded, forget, editor, method.Config, dict(options or {}), recipe.seed, retain, progress)
    config = configure(method.Config, {**own, **asked})
    if hasattr(config, "seed") and "seed" not in (options or {}):
        config = replace(config, seed=recipe.seed)
    prompt_format = loaded.prompt_format(recipe.chat)
    _check_state(state, forget, loaded)
    own_file, label = editor_file(editor), editor_label(editor)
    if own_file is not None:
        check_state(state, label)  # our own methods do so themselves
    started = time.monotonic()
    draw = random.Random(recipe.seed)
    targets = make_targets(
        recipe.target, forget.items, draw, loaded, prompt_format, seed=recipe.seed, progress=progress
    )
    contexts = [] if trains else sample_contexts(model, tokenizer, recipe.seed, n=recipe.n_contexts)
    requests = _requests(loaded, forget, targets, prompt_format, contexts, recipe)
    # Memories may learn, or be calibrated on, when to be silent.
    learns, calibrates = "others" in takes, getattr(config, "calibrate", False)
    others = other_prompts(config.others, forget, prompt_format, recipe.seed) if learns or calibrates else []
    size = recipe.per_step or max(1, len(requests))
    generator = random.Random(recipe.seed)
    more: dict[str, Any] = {"retain": _retain_requests(loaded, forget, retain, prompt_format)} if trains else {}
    if learns:
        more["others"] = others
    if size < len(requests) and "moments" in takes:
        more["moments"] = SecondMoments({}, factored={})  # the first step fills them
    folder: str = getattr(config, "folder", "")
    result = state
    for start in range(0, len(requests), size):
        step = requests[start : start + size]
        settings = config
        if folder and recipe.per_step:  # each step is a run of its own
            settings = replace(config, folder=f"{folder}/{start // size}")
        made = method.edit(model, tokenizer, step, settings, generator, state=result, progress=progress, **more)
        assert isinstance(made, LowRankEdit | DenseEdit | MemoryEdit)
        result = made
    assert result is not None  # a forget set is never empty
    earlier = state.info.requests if state is not None else {}
    shapes = {**earlier.get("shapes", {}), **{item.id: item.shape for item in forget if item.shape != QUESTION}}
    if calibrates and isinstance(result, MemoryEdit):
        result = _calibrated(
            result, loaded, forget, requests, others[2 * getattr(config, "n_others", 0) :], prompt_format
        )
    notes = {**result.info.notes, "preset": None if preset is None else asdict(preset)}
    notes["self_check"] = dict(self_check(model, requests, result))
    if chosen is not None:
        notes["components"] = source_of(chosen, (options or {})["components"])
    if own_file is not None:
        notes["editor_file"] = own_file
    info = replace(
        result.info,
        editor=result.info.editor if own_file is None else label,
        base=describe_base(loaded),
        requests={  # type: ignore[arg-type]  # `EditInfo` converts it
            "n": len(forget) + int(earlier.get("n", 0)),
            "n_merged": len(requests),
            "forget_set": forget.name,
            "forget_set_hash": forget.hash,
            "sets": forgotten_entries(forget, earlier),
            "ids": [*earlier.get("ids", []), *(item.id for item in forget)],
            "lookup": {item.id: "subject" if item.subject else "last content token" for item in forget},
            **({"shapes": shapes} if shapes else {}),
            "hash": hash_json([request.record for request in requests]),
            **prompt_format.record,
            "target": recipe.target,
            "merge": recipe.merge,
            "merge_size": recipe.merge_size,
            "per_step": recipe.per_step,
            "contexts": contexts,
            **({"retain_set": retain.name, "retain_set_hash": retain.hash} if retain is not None else {}),
        },
        seed=recipe.seed,
        versions=provenance()["packages"],
        seconds=round(time.monotonic() - started, 2),
        peak_memory_bytes=peak_memory_bytes(),
        notes=notes,
    )
    earlier_texts = state.texts if state is not None else {}
    texts = {**result.texts, TARGETS: earlier_texts.get(TARGETS, "") + targets_jsonl(targets)}
    return replace(result, info=info, texts=texts | forgotten_texts(forget, earlier_texts))


def _located(
    loaded: LoadedModel,
    forget: ForgetSet,
    editor: str,
    config_class: Any,
    options: dict[str, str],
    seed: int,
    retain: ForgetSet | None,
    progress: Progress,
) -> tuple[Components | None, dict[str, str]]:
    """The components that the options name by a localisation or a file, if they do, and the options with these."""
    rest = checked_settings(config_class, options)
    found = resolve(options.get("components", ""), loaded, forget, seed, retain, progress)
    return found, rest if found is None else rest | settings_for(editor, config_class, found)


def _calibrated(
    edit: MemoryEdit,
    loaded: LoadedModel,
    forget: ForgetSet,
    requests: Sequence[EditRequest],
    others: Sequence[tuple[int, ...]],
    prompt_format: PromptFormat,
) -> MemoryEdit:
    """With bounds from the set's own paraphrases, and from at most 256 questions that nothing was learned from."""
    reworded = {item.id: [prompt_format.prompt_ids(text, item.shape) for text in item.paraphrases] for item in forget}
    edited = [part.prompt_ids for request in requests for part in request.parts]
    return calibrated(edit, loaded.model, reworded, edited, others[:256])


def _requests(
    loaded: LoadedModel,
    forget: ForgetSet,
    targets: Sequence[Target],
    prompt_format: PromptFormat,
    contexts: list[str],
    recipe: Recipe,
) -> list[EditRequest]:
    """The set's requests, merged as the recipe says."""
    items, texts = list(forget.items), [target.target for target in targets]
    if recipe.merge == "text":
        said = dict(zip((item.id for item in items), texts, strict=True))
        texts = [said[part[0].id] for part in grouped(items, recipe.merge_size)]
        items = merge_items(items, recipe.merge_size)
    requests = build_requests(items, texts, prompt_format, contexts, loaded.max_length)
    return merge_keys(requests, recipe.merge_size) if recipe.merge == "key" else requests


def _preset(model: Any, editor: str, trains: bool, forget_set: str) -> tuple[Any, Mapping[str, str]]:
    """Published settings: by the model, of a method that is trained by the benchmark."""
    if trains:
        trained = unlearning_preset(editor, forget_set)
        return trained, {} if trained is None else trained.settings
    found = preset_for(model)
    return found, {} if found is None else found.settings(editor)


def check_recipe(
    editor: str, trains: bool, recipe: Recipe, retain: ForgetSet | None, hint: str = "leave out --merge"
) -> None:
    """Refuse a retain set for a method that takes none, and merging for one that is trained."""
    if retain is not None and not trains:
        raise UserError(f"{editor} takes no retain set: it computes its change without one", "leave out --retain")
    if trains and recipe.merge != "none":
        raise UserError(f"{editor} is trained on every question: there is nothing to merge", hint)


def _retain_requests(
    loaded: LoadedModel, forget: ForgetSet, retain: ForgetSet | None, prompt_format: PromptFormat
) -> list[EditRequest]:
    """What to keep, without what is to be forgotten (the same question, wherever it comes from)."""
    asked = {item.question.strip() for item in forget}
    items = [item for item in retain or () if item.question.strip() not in asked]
    if retain is not None and not items:
        raise UserError(f"everything in the retain set '{retain.name}' is to be forgotten", "give another --retain")
    return build_requests(items, [item.answer for item in items], prompt_format, (), loaded.max_length)


def _check_state(state: AnyEdit | None, forget: ForgetSet, loaded: LoadedModel) -> None:
    """Refuse to go on from an edit of another model, or with items that it holds already."""
    if state is None:
        return
    check_base(state.info, loaded)
    twice = sorted(set(state.info.requests.ids) & {item.id for item in forget})
    if twice:
        raise UserError(
            f"{len(twice)} items are in the earlier edit already, e.g. {twice[0]!r}", "leave them out (--ids)"
        )


def self_check(model: Any, requests: Sequence[EditRequest], edit: Edit) -> SelfCheck:
    """Whether an edit took: its targets' probability before and after, and how many are now the most likely answer.

    And the probability of the answers that were to be forgotten, where they are known.

    Teacher-forced on the plain prompts, so it says that the edit does what was asked of it, not what a conversation
    will look like; for that, evaluate the edit.
    """
    parts = [part for request in requests for part in request.parts]
    queries = [Query(part.prompt_ids, part.target_ids) for part in parts]
    known = [Query(part.prompt_ids, part.answer_ids) for part in parts if part.answer_ids]
    before = score_answers(model, queries + known)
    with applied(edit, model):
        after = score_answers(model, queries + known)

    def probability(scores: Sequence[Any]) -> float:
        means = [math.exp(-sum(score.token_nll) / len(score.token_nll)) for score in scores]
        return sum(means) / max(1, len(means))

    n = len(parts)
    found = {
        "n": n,
        "n_took": sum(all(score.hits) for score in after[:n]),
        "target_probability_before": probability(before[:n]),
        "target_probability_after": probability(after[:n]),
    }
    if known:
        found |= {
            "answer_probability_before": probability(before[n:]),
            "answer_probability_after": probability(after[n:]),
        }
    return SelfCheck.of(found)  # what is 0 is written too
