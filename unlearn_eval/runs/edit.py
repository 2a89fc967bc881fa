"""From a loaded model and a forget set to an edit that says where it comes from."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.data.items import ForgetSet
from unlearn_eval.data.recast import is_of_nearest
from unlearn_eval.data.shapes import QUESTION
from unlearn_eval.editing.editor import MOMENTS, OTHERS, EditJob, Editor, check_state, get_editor
from unlearn_eval.editing.locate_then_edit.second_moments import SecondMoments
from unlearn_eval.editing.memory.calibration import calibrated, other_prompts
from unlearn_eval.editing.presets import DEFAULT_EDITOR, preset_for
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.requests.build import (
    build_requests,
    check_merge,
    grouped,
    merge_items,
    merge_keys,
    sample_contexts,
)
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editing.requests.targets import Target, make_targets, targets_jsonl
from unlearn_eval.editing.similarity import nearest
from unlearn_eval.editing.training.presets import unlearning_preset
from unlearn_eval.edits.base import Edit, applied
from unlearn_eval.edits.folder import TARGETS
from unlearn_eval.edits.forgotten import forgotten_entries, forgotten_texts
from unlearn_eval.edits.load import READERS, AnyEdit, check_base, describe_base
from unlearn_eval.edits.memory.read import AnyMemoryEdit
from unlearn_eval.edits.records import RequestSummary, SelfCheck
from unlearn_eval.localization.components import Components
from unlearn_eval.localization.locate import (
    check_name,
    checked_settings,
    localization_spec,
    resolve,
    settings_for,
    source_of,
)
from unlearn_eval.localization.sites import sites
from unlearn_eval.models.load import Check, LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.runs.unrelated import ask_unrelated
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.notebooks import usual_progress
from unlearn_eval.utils.progress import Progress
from unlearn_eval.utils.provenance import hash_json, peak_memory_bytes, provenance
from unlearn_eval.utils.settings import as_texts, configure

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


NEAREST_PER_ITEM = 4  # items that are retained for each one to forget, where the nearest are


def make_edit(
    loaded: LoadedModel,
    forget: ForgetSet,
    editor: str = DEFAULT_EDITOR,
    options: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    state: AnyEdit | None = None,
    progress: Progress | None = None,
    retain: ForgetSet | None = None,
    unrelated: bool = True,
) -> AnyEdit:
    """The edit after which the model answers each item's question with a refusal.

    Args:
        loaded: the base model; it is left as it is.
        forget: what to forget.
        editor: the method's name, or the path of a file that holds one.
        options: its settings, as values or as text: `{"preservation": 2, "target.steps": 30}`. `components` is, of
            every method, also a localization (`fact_lookup(budget=6)`) or a file of components: what is trained, or
            which layers.
        recipe: how the set becomes requests.
        state: an earlier edit of this model by this method, to go on from.
        progress: called as (what, done, total) with the editor's steps; None is a bar in a notebook, nothing elsewhere.
        retain: what to keep, for methods that are trained; items that are also to be forgotten are left out. Of a set
            `nearest(SET)`, for each item to forget the four whose keys are nearest.
        unrelated: Whether ten unrelated questions are asked before and after, to see what the edit broke.

    Returns:
        A `LowRankEdit`; a `DenseEdit` of a method that trains weights in place; a `MemoryEdit` of one that decides at
        run time.

    Raises:
        UserError: an unknown editor or setting, a retain set for a method that takes none, a question that does not fit
            the model's context, an item that the earlier edit holds already, or an earlier edit of another model or
            method.
    """
    progress, given = progress or usual_progress(), as_texts(options or {})
    plan = _check(loaded, forget, get_editor(editor), given, recipe or Recipe(), state, progress, retain)
    started = time.monotonic()
    inputs = _prepare(plan)
    edit = _edit_in_steps(plan, inputs)
    edit, check = _calibrate_and_check(plan, inputs, edit, unrelated)
    return _describe(plan, inputs, edit, check, started)


@dataclass(frozen=True)
class _Plan:
    """An edit that can be made: everything that was asked for, checked and resolved.

    Attributes:
        loaded: the base model.
        forget, retain: what to forget, and what to retain if that was given.
        method: the editor.
        config: its settings.
        recipe: how the set becomes requests.
        prompt_format: how questions are put to the model.
        previous: the edit to continue.
        preset: whose published settings are used.
        located: the components that a localization or a file named, and the text that named them.
        progress: called with what is done.
    """

    loaded: LoadedModel
    forget: ForgetSet
    retain: ForgetSet | None
    method: Editor
    config: Any
    recipe: Recipe
    prompt_format: PromptFormat
    previous: AnyEdit | None
    preset: Any
    located: tuple[Components, str] | None
    progress: Progress


@dataclass(frozen=True)
class _Inputs:
    """What an editor is asked for.

    Attributes:
        targets: what the model should say instead, for each item.
        contexts: openings before further prompts.
        requests: of what to forget, merged as the recipe says.
        retain: requests of what to retain.
        others: prompts of questions that are neither.
    """

    targets: Sequence[Target]
    contexts: list[str]
    requests: list[EditRequest]
    retain: list[EditRequest]
    others: list[tuple[int, ...]]


# 1. Check --------------------------------------------------------------------------------------------------


def _check(
    loaded: LoadedModel,
    forget: ForgetSet,
    method: Editor,
    options: dict[str, str],
    recipe: Recipe,
    previous: AnyEdit | None,
    progress: Progress,
    retain: ForgetSet | None,
) -> _Plan:
    """Refuse what cannot be done before anything is done; resolve settings and where to edit."""
    check_recipe(method, recipe, retain)
    if recipe.merge == "text":
        check_merge(forget.items, recipe.merge_size)
    preset, published = _preset(loaded.model, method, forget.name) if recipe.preset else (None, {})
    given = checked_settings(method, options)
    model_check(method, options)(loaded.model)
    place = options.get("components", "")
    components = resolve(place, loaded, forget, recipe.seed, retain, progress)
    where = {} if components is None else settings_for(method, components)
    config = _stopping(configure(method.Config, {**published, **given, **where}))
    if retain is not None and method.needs_retain(config) is False and not {"components", "masks"} & options.keys():
        raise UserError(
            f"{method.name} retains nothing with these settings, and {retain.name} would not be used",
            "leave out --retain, or set a retain_term and a retain_weight",
        )
    if "seed" in method.settings and "seed" not in options:
        config = replace(config, seed=recipe.seed)
    prompt_format = _prompt_format(loaded, recipe, previous)
    _check_previous(previous, method, forget, loaded)
    located = None if components is None else (components, place)
    return _Plan(loaded, forget, retain, method, config, recipe, prompt_format, previous, preset, located, progress)


def _stopping(config: Any) -> Any:
    """The settings with a retain-only model's probability as `stop_probability`, if they name its folder or result.

    Raises:
        UserError: it cannot be read, or does not have the probability.
    """
    named = getattr(config, "stop_probability", "")
    try:
        float(named or "nan")
        return config
    except ValueError:
        pass
    from unlearn_eval.harness.reference import read_reference

    reference = read_reference(Path(named).expanduser())
    if reference.probability is None:
        raise UserError(
            f"{reference.path} does not say how probable the forget answers are to the retain-only model",
            "evaluate it with unlearn_tofu and name that result, or give stop_probability as a number",
        )
    return replace(config, stop_probability=repr(reference.probability))


def _prompt_format(loaded: LoadedModel, recipe: Recipe, previous: AnyEdit | None) -> PromptFormat:
    """How questions are put to the model: as the recipe says, and as those of the edit to continue were.

    Raises:
        UserError: the recipe differs from the edit to continue, all of whose questions are evaluated in one format.
    """
    named = recipe.chat, recipe.system, recipe.chat_template_kwargs or None
    if previous is None or previous.info.requests.get("chat") is None:
        return loaded.prompt_format(*named)
    made = PromptFormat.of_edit(previous.info, loaded.tokenizer, loaded.name)
    found = made.changed(*named, loaded.name)
    if found.record != made.record:
        raise UserError(
            f"the earlier edit's prompts have the format {made.record}, not {found.record}",
            "leave out --chat, --system_instruction and --chat_template_kwargs, or make another edit",
        )
    return found


def published_settings(
    model: PreTrainedModel, method: Editor, forget_set: str, recipe: Recipe, options: Mapping[str, str]
) -> Any:
    """The settings of an edit whose components are no localization; the model may have no weights.

    Raises:
        UserError: an unknown setting, or a localization, which needs the weights.
    """
    given = checked_settings(method, options)
    place = options.get("components", "")
    if place and localization_spec(place) is not None:
        raise UserError(
            f"where {place} edits is not known without the weights",
            "name layers or modules (--set layers=5, --components mlp.down_proj)",
        )
    published = _preset(model, method, forget_set)[1] if recipe.preset else {}
    return configure(method.Config, {**published, **given})


def model_check(method: Editor, options: Mapping[str, str]) -> Check:
    """A check of an architecture, for `load_model`: whether a method can edit it with these settings, as text."""
    given = checked_settings(method, options)
    place = options.get("components", "")
    located = place and localization_spec(place) is not None
    config = configure(method.Config, {key: own for key, own in given.items() if not (located and key == "components")})

    def check(model: nn.Module) -> None:
        if located:
            sites(model)
        elif place:
            check_name(place, model)
        method.check_model(config, model)

    return check


def check_recipe(method: Editor, recipe: Recipe, retain: ForgetSet | None, hint: str = "leave out --merge") -> None:
    """Refuse a retain set for a method that takes none, and merging for one that is trained."""
    if retain is not None and not method.retains:
        raise UserError(f"{method.name} takes no retain set: it computes its change without one", "leave out --retain")
    if method.trained and recipe.merge != "none":
        raise UserError(f"{method.name} is trained on every question: there is nothing to merge", hint)


def _preset(model: PreTrainedModel, method: Editor, forget_set: str) -> tuple[Any, Mapping[str, str]]:
    """Published settings: by the model, of a method that is trained by the benchmark too; a user's file has none."""
    if method.trained:
        trained = None if method.file else unlearning_preset(method.name, forget_set, model)
        return trained, {} if trained is None else trained.settings
    found = preset_for(model)
    return found, {} if found is None or method.file else found.settings(method.name)


def _check_previous(previous: AnyEdit | None, method: Editor, forget: ForgetSet, loaded: LoadedModel) -> None:
    """Refuse to continue an edit of another model or method, or with items that it holds already."""
    if previous is None:
        return
    check_base(previous.info, loaded)  # without --any-base: the new edit would say that it holds
    twice = sorted(set(previous.info.requests.ids) & {item.id for item in forget})
    if twice:
        raise UserError(
            f"{len(twice)} items are in the earlier edit already, e.g. {twice[0]!r}", "leave them out (--ids)"
        )
    check_state(previous, method.name)


# 2. Requests -----------------------------------------------------------------------------------------------


def _prepare(plan: _Plan) -> _Inputs:
    """Targets and requests, and what the method uses beside them."""
    loaded, method, recipe, prompt_format = plan.loaded, plan.method, plan.recipe, plan.prompt_format
    targets = make_targets(
        recipe.target,
        plan.forget.items,
        random.Random(recipe.seed),
        loaded,
        prompt_format,
        seed=recipe.seed,
        progress=plan.progress,
    )
    contexts = []
    if not method.trained:
        contexts = sample_contexts(loaded.model, loaded.tokenizer, recipe.seed, n=recipe.n_contexts)
    requests = _requests(plan, targets, contexts)
    others = []
    if OTHERS in method.uses or _calibrates(plan):  # memories may learn, or be calibrated on, when to be silent
        others = other_prompts(plan.config.others, plan.forget, prompt_format, recipe.seed)
    retain = _retain_requests(plan, requests) if method.retains else []
    return _Inputs(targets, contexts, requests, retain, others)


def _requests(plan: _Plan, targets: Sequence[Target], contexts: list[str]) -> list[EditRequest]:
    """The set's requests, merged as the recipe says."""
    recipe = plan.recipe
    items, texts = list(plan.forget.items), [target.target for target in targets]
    if recipe.merge == "text":
        by_id = dict(zip((item.id for item in items), texts, strict=True))
        texts = [by_id[part[0].id] for part in grouped(items, recipe.merge_size)]
        items = merge_items(items, recipe.merge_size)
    requests = build_requests(items, texts, plan.prompt_format, contexts, plan.loaded.max_length)
    return merge_keys(requests, recipe.merge_size) if recipe.merge == "key" else requests


def _retain_requests(plan: _Plan, requests: Sequence[EditRequest]) -> list[EditRequest]:
    """What to keep, without what is to be forgotten (the same question, wherever it comes from); or what is nearest."""
    forgotten = {item.question.strip() for item in plan.forget}
    items = [item for item in plan.retain or () if item.question.strip() not in forgotten]
    if plan.retain is not None and not items:
        raise UserError(
            f"everything in the retain set '{plan.retain.name}' is to be forgotten", "give another --retain"
        )
    answers = [item.answer for item in items]
    found = build_requests(items, answers, plan.prompt_format, (), plan.loaded.max_length)
    if plan.retain is None or not is_of_nearest(plan.retain):
        return found
    own = [part for request in requests for part in request.parts]
    return [found[i] for i in nearest(plan.loaded.model, own, found, NEAREST_PER_ITEM * len(own))]


def _calibrates(plan: _Plan) -> bool:
    return plan.method.calibrates and bool(plan.config.calibrate)


# 3. Edit ---------------------------------------------------------------------------------------------------


def _edit_in_steps(plan: _Plan, inputs: _Inputs) -> AnyEdit:
    """The edit of all requests, `per_step` at a time, each step on the model as the ones before have edited it."""
    method, recipe, requests = plan.method, plan.recipe, inputs.requests
    size = recipe.per_step or max(1, len(requests))
    job = EditJob(
        plan.loaded.model,
        plan.loaded.tokenizer,
        requests,
        plan.config,
        random.Random(recipe.seed),
        plan.previous,
        inputs.retain,
        inputs.others if OTHERS in method.uses else (),
        SecondMoments({}, factored={}) if MOMENTS in method.uses and size < len(requests) else None,
        plan.progress,
        plan.prompt_format,
    )
    for start in range(0, len(requests), size):
        config = plan.config
        if recipe.per_step and "folder" in method.settings and config.folder:  # each step is a run of its own
            config = replace(config, folder=f"{config.folder}/{start // size}")
        made: Any = method.run(replace(job, requests=requests[start : start + size], config=config))
        if getattr(made, "kind", None) not in READERS:
            raise UserError(
                f"{method.name} returned a {type(made).__name__}, not an edit",
                "return a LowRankEdit, DenseEdit or MemoryEdit",
            )
        job = replace(job, previous=made)
    found: AnyEdit = job.previous  # a forget set is never empty
    return found


# 4. Calibrate and check ------------------------------------------------------------------------------------


def _calibrate_and_check(plan: _Plan, inputs: _Inputs, edit: AnyEdit, unrelated: bool) -> tuple[AnyEdit, SelfCheck]:
    """The edit, of a memory with calibrated bounds where that was asked for, and what its self-check found.

    Bounds are chosen from the set's own paraphrases, and from at most 256 questions that nothing was learned from.
    """
    model = plan.loaded.model
    if _calibrates(plan) and isinstance(edit, AnyMemoryEdit):
        paraphrases = {
            item.id: [plan.prompt_format.prompt_ids(text, item.shape) for text in item.paraphrases]
            for item in plan.forget
        }
        edited = [part.prompt_ids for request in inputs.requests for part in request.parts]
        unread = inputs.others[plan.method.others_read(plan.config) :]
        edit = calibrated(edit, model, paraphrases, edited, unread[:256])
    check = self_check(model, inputs.requests, edit)
    asked = [item.question for item in plan.forget]
    found = ask_unrelated(plan.loaded, plan.prompt_format, edit, asked) if unrelated else None
    return edit, check if found is None else SelfCheck.of(check | {"unrelated": found.record})


def self_check(model: PreTrainedModel, requests: Sequence[EditRequest], edit: Edit) -> SelfCheck:
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


# 5. Describe -----------------------------------------------------------------------------------------------


def _describe(plan: _Plan, inputs: _Inputs, edit: AnyEdit, check: SelfCheck, started: float) -> AnyEdit:
    """The edit with where it comes from: its base, requests, settings and cost."""
    method = plan.method
    notes = {**edit.info.notes, "preset": None if plan.preset is None else asdict(plan.preset)}
    notes["self_check"] = dict(check)
    if plan.located is not None:
        notes["components"] = source_of(*plan.located)
    if method.file is not None:
        notes["editor_file"] = dict(method.file)
    info = replace(
        edit.info,
        editor=method.name,
        base=describe_base(plan.loaded),
        requests=_about_requests(plan, inputs),
        seed=plan.recipe.seed,
        versions=provenance()["packages"],
        seconds=round(time.monotonic() - started, 2),
        peak_memory_bytes=peak_memory_bytes(),
        notes=notes,
    )
    earlier = plan.previous.texts if plan.previous is not None else {}
    texts = {**edit.texts, TARGETS: earlier.get(TARGETS, "") + targets_jsonl(inputs.targets)}
    return replace(edit, info=info, texts=texts | forgotten_texts(plan.forget, earlier))


def _about_requests(plan: _Plan, inputs: _Inputs) -> RequestSummary:
    """What was asked for, with what the earlier edit holds."""
    forget, retain, recipe = plan.forget, plan.retain, plan.recipe
    earlier = plan.previous.info.requests if plan.previous is not None else RequestSummary()
    return RequestSummary(
        n=len(forget) + (earlier.n or 0),
        n_merged=len(inputs.requests),
        forget_set=forget.name,
        forget_set_hash=forget.hash,
        sets=forgotten_entries(forget, earlier),
        ids=[*earlier.ids, *(item.id for item in forget)],
        lookup={item.id: "subject" if item.subject else "last content token" for item in forget},
        shapes={**earlier.shapes, **{item.id: item.shape for item in forget if item.shape != QUESTION}},
        hash=hash_json([request.record for request in inputs.requests]),
        **plan.prompt_format.record,
        target=recipe.target,
        merge=recipe.merge,
        merge_size=recipe.merge_size,
        per_step=recipe.per_step,
        contexts=inputs.contexts,
        retain_set=None if retain is None else retain.name,
        retain_set_hash=None if retain is None else retain.hash,
    )
