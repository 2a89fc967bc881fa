"""One attack, from its settings to its result file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.attacks.base import UNDER_ATTACK, Attack, Case, ItemScore, Observation, get_attack
from unlearn_eval.attacks.controls import Controls, with_controls
from unlearn_eval.attacks.curves import curves
from unlearn_eval.attacks.folds import apart
from unlearn_eval.attacks.summary import Summary, Table, headline_level, summary
from unlearn_eval.data.forget_sets import facts, is_known, load_forget_set
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.edits.base import KINDS
from unlearn_eval.edits.export import load_base
from unlearn_eval.edits.forgotten import stored_items
from unlearn_eval.edits.load import check_base, load_edit
from unlearn_eval.edits.places import edit_name
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.results.files import name_of_run, read_result, write_result
from unlearn_eval.results.schema import Result, utc_now
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.folders import check_output
from unlearn_eval.utils.json_files import json_place
from unlearn_eval.utils.notebooks import usual_progress
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.settings import as_texts, check_batch_size, configure
from unlearn_eval.utils.terminal import say as say_on_terminal

if TYPE_CHECKING:
    from unlearn_eval.edits.base import Edit

Say = Callable[[str], Any]
IN_MEMORY = "in memory"


@dataclass(frozen=True)
class AttackConfig:
    """What `unlearn-eval attack` does.

    Attributes:
        attack: its name.
        edit: the folder of the edit.
        model: the model that it was made on; None is the one that edit.json names.
        forget: what was to be forgotten; None is what edit.json says.
        ids: only these items.
        limit: only so many items, chosen by the seed.
        retain: other facts, for controls and for training on; None is the rest of the forget set, or the shipped facts.
        reference: a model that never knew the items.
        settings: of the attack, as text.
        output: the result file; None makes one under `results/scratch`.
        chat: whether questions go through the chat template; None is as the edit's were.
        system, chat_template_kwargs: the system message and arguments of the chat template; None are the edit's.
        batch_size: rows per forward pass.
        max_new_tokens: length of an answer.
        dtype, device: of the models.
        seed: chooses items.
        any_base: whether the edit may leave open which model it was made on.
        only: which of the models are measured (unlearned, full, reference); empty is all.
    """

    attack: str
    edit: str
    model: str | None = None
    forget: str | None = None
    ids: tuple[str, ...] = ()
    limit: int | None = None
    retain: str | None = None
    reference: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    output: str | None = None
    chat: bool | None = None
    batch_size: int = 16
    max_new_tokens: int = 24
    dtype: str = "float32"
    device: str | None = None
    seed: int = 0
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    any_base: bool = False
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)


@dataclass(frozen=True)
class Attacked:
    """What an attack has measured.

    Attributes:
        name: of the attack.
        settings: as resolved.
        summary: metrics and intervals.
        observations: everything that was measured.
        skipped: what was not done -> why.
        notes: sentences for the reader.
        curves: means and intervals by level, as `curves.curves` has them.
        level: that stands for the attack; None where it has a summary of its own, or nothing was measured.
        items: what was measured.
    """

    name: str
    settings: dict[str, Any]
    summary: Summary
    observations: tuple[Observation, ...]
    skipped: dict[str, str]
    notes: tuple[str, ...]
    curves: tuple[dict[str, Any], ...] = ()
    level: float | str | None = None
    items: ForgetSet | None = None


def attack(
    edit: str | Path | Edit,
    method: str,
    model: str | LoadedModel | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    forget: str | Path | Iterable[object] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Try to bring back what an edit made a model forget; the result is written, too.

    Args:
        edit: the edit, or its folder.
        method: name of the attack: `relearn`, `quantize`, ...
        model: the base model, loaded or by name; None is the one that the edit names.
        settings: of the attack, as Python values.
        forget: what was to be forgotten, as `load_forget_set` takes it; None is what the edit says.
        progress: called as (what, done, total); None is a bar in a notebook, nothing elsewhere.
        options: further attributes of `AttackConfig`, such as `output`, `limit`, `retain` or `reference`.

    Raises:
        UserError: as `run_attack`, or an unknown option.
    """
    known = {own.name for own in fields(AttackConfig)} - {"attack", "edit", "model", "settings", "forget"}
    if unknown := [name for name in options if name not in known]:
        raise unknown_name("option", unknown[0], known)
    config = AttackConfig(
        attack=method,
        edit=str(edit) if isinstance(edit, str | Path) else IN_MEMORY,
        model=model if isinstance(model, str) else None,
        settings=as_texts(settings or {}),
        **options,
    )
    return run_attack(
        config,
        say_on_terminal,
        progress or usual_progress(),
        None if isinstance(edit, str | Path) else edit,
        None if model is None or isinstance(model, str) else model,
        None if forget is None else load_forget_set(forget),
    )


def run_attack(
    config: AttackConfig,
    say: Say,
    progress: Progress = no_progress,
    edit: Edit | None = None,
    loaded: LoadedModel | None = None,
    forget: ForgetSet | None = None,
) -> Result:
    """Attack an edit and write the result.

    Args:
        config: the settings.
        say: called with each step in a line.
        progress: called as (what, done, total).
        edit, loaded, forget: what is in memory already, in place of what the settings name.

    Raises:
        UserError: an unknown attack or setting, no such edit, model or set, too few facts, or the result cannot be
            written.
    """
    created, started = utc_now(), time.monotonic()
    chosen = get_attack(config.attack)  # mistakes are found before a model is loaded
    settings = configure(chosen.Config, config.settings)
    path = _output(config)
    check_output(path, "result")
    edit = load_edit(config.edit) if edit is None else edit
    items = _items(config, edit, forget)
    others = others_of(items, config.retain)
    loaded = loaded or load_base(edit, config.model, config.dtype, None, config.device, say)
    check_base(edit.info, loaded, any_base=config.any_base)
    case = Case(
        loaded=loaded,
        edit=edit,
        items=items,
        prompt_format=_format_for(config, edit, loaded),
        others=others,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        open_reference=_reference(config, say),
        progress=progress,
        only=config.only,
    )
    weights = loaded.weights
    say(f"{config.attack} on {len(items)} items of {items.name}")
    began = time.monotonic()
    attacked = attack_case(chosen, case, settings)
    if hash_weights(loaded.model).exact != weights.exact:
        raise AssertionError("the attack was not undone bit for bit")
    asked = attacked.items or items
    timing = {"loading_seconds": round(began - started, 2), "attack_seconds": round(time.monotonic() - began, 2)}
    result = Result.new(
        "attack",
        created,
        device=loaded.model.device,
        notes=attacked.notes,
        peak="peak memory",
        config_as_passed={key: value for key, value in asdict(config).items() if value not in (None, "", {}, ())},
        config=described(attacked, case),
        model=loaded.describe(weights),
        edit={"folder": None if config.edit == IN_MEMORY else config.edit, **edit.info.as_stored()},
        data={asked.name: {"hash": asked.hash, "n": len(asked), "ids": [item.id for item in asked]}},
        metrics={task_name(config.attack): attacked.summary.metrics},
        seed=config.seed,
        timing=timing,
        robustness={task_name(config.attack): robustness(attacked)},
    )
    write_result(result, path, {task_name(config.attack): sample_lines(attacked, asked)})
    return read_result(path)


def attack_case(attack: Attack, case: Case, settings: Any, known: Controls | None = None) -> Attacked:
    """Attack a case; an edit of a kind that the attack cannot treat is skipped, with the reason.

    Args:
        attack: the attack.
        case: what is attacked.
        settings: the attack's.
        known: what it finds on the other models, if that was measured before (`controls.kept_controls`).

    Raises:
        UserError: as the attack does.
    """
    kinds, why = (KINDS if case.edit is None else (case.edit.kind,)), None
    observations: tuple[Observation, ...] = ()
    if missing := [own for own in kinds if own not in attack.kinds]:
        why = f"{attack.name} cannot treat {missing[0]} edits: {attack.why_not}"
        case.skipped[f"{missing[0]} edit"] = why
    else:
        case = attack.about(case, settings)
        if known is not None:
            observations = with_controls(attack, case, settings, known)
        else:
            observations = tuple(attack.run(case, settings))
    summarize = attack.summary or summary
    made = summarize(case.items, observations, attack, case.open_reference is not None, why)
    level = None
    if observations and attack.summary is None:
        level = headline_level(Table(case.items, observations), attack)
    more = attack.derived(case.items, observations) if observations else ()
    drawn = tuple(curves(case.items, (*observations, *more)))
    return Attacked(
        attack.name,
        asdict(settings),
        made,
        observations,
        dict(case.skipped),
        tuple(case.notes),
        drawn,
        level,
        case.items,
    )


def task_name(attack: str) -> str:
    """Under which name an attack stands among a result's metrics."""
    return f"attack_{attack}"


def described(attacked: Attacked, case: Case) -> dict[str, Any]:
    """The settings of an attack as resolved, for its result."""
    return {
        "attack": attacked.name,
        "settings": {name: value for name, value in attacked.settings.items() if name != "folder"},
        **case.prompt_format.record,
        "batch_size": case.batch_size,
        "max_new_tokens": case.max_new_tokens,
        "others": None if case.others is None else {"name": case.others.name, "n": len(case.others)},
        "models": list(case.names),
    }


def robustness(attacked: Attacked) -> dict[str, Any]:
    """What an attack leaves in the `robustness` part of a result: levels, curves, intervals, and what was skipped."""
    attack = get_attack(attacked.name)
    return {
        "attack": attacked.name,
        "axis": attack.axis,
        "does": attack.does,
        "headline": attack.headline,
        "level": attacked.level,
        "curves": list(attacked.curves),
        "levels": [_level(one) for one in attacked.observations],
        "intervals": attacked.summary.intervals,
        "skipped": [{"what": what, "reason": reason} for what, reason in attacked.skipped.items()],
    }


def _level(one: Observation) -> dict[str, Any]:
    """One observation as means over its items; `at` is null before the attack, a mean without any value is null."""
    place = _place(one.model, one.condition, one.fold, one.seed, one.at)
    return {**place, "n": len(one.scores), "values": _means(one.scores)}


def sample_lines(attacked: Attacked, items: ForgetSet) -> list[dict[str, Any]]:
    """One record for each item: its value of every metric that is a mean, and everything that was measured of it.

    A control that says nothing, as readers of shuffled labels, is there as its mean over seeds, with the seed null.
    """
    seen: dict[str, list[dict[str, Any]]] = {item.id: [] for item in items}
    controls: dict[tuple[Any, ...], dict[str, list[ItemScore]]] = {}
    for one in attacked.observations:
        for score in one.scores:
            if one.condition != UNDER_ATTACK and score.said is None:
                where = (one.model, one.condition, one.fold, one.at)
                controls.setdefault(where, {}).setdefault(score.id, []).append(score)
                continue
            said = {} if score.said is None else {"said": score.said}
            seen[score.id].append(
                {**_place(one.model, one.condition, one.fold, one.seed, one.at), **score.values, **said}
            )
    for (model, condition, fold, at), scores in controls.items():
        for key, own in scores.items():
            seen[key].append({**_place(model, condition, fold, None, at), **_means(own)})
    return [
        {
            "id": item.id,
            "question": item.question,
            "answer": item.answer,
            "metrics": {name: own[item.id] for name, own in attacked.summary.by_item.items() if item.id in own},
            "observations": seen[item.id],
        }
        for item in items
    ]


def _place(model: str, condition: str, fold: int, seed: int | None, at: float | str | None) -> dict[str, Any]:
    return {"model": model, "condition": condition, "fold": fold, "seed": seed, "at": at}


def _means(scores: Sequence[ItemScore]) -> dict[str, float | None]:
    """The mean of each value where it is known."""
    names = dict.fromkeys(name for one in scores for name in one.values)
    known = {name: [v for one in scores if (v := one.values.get(name)) is not None] for name in names}
    return {name: sum(values) / len(values) if values else None for name, values in known.items()}


# What is attacked ------------------------------------------------------------------------------------------


def _format_for(config: AttackConfig, edit: Edit, loaded: LoadedModel) -> PromptFormat:
    """How the models are asked: as the user says, or as the edit was made."""
    made = PromptFormat.of_edit(edit.info, loaded.tokenizer, loaded.name)
    return made.changed(config.chat, config.system, config.chat_template_kwargs, loaded.name)


def _items(config: AttackConfig, edit: Edit, given: ForgetSet | None = None) -> ForgetSet:
    """What was to be forgotten: as given or named, or as the edit says."""
    asked = edit.info.requests
    name, ids = config.forget, config.ids
    if given is None and name is None:
        name = asked.forget_set
        ids = ids or tuple(asked.ids)
        if not name:
            raise UserError("edit.json does not say what was to be forgotten", "give it with --forget")
        given = None if is_known(name) else stored_items(edit.texts)
    items = load_forget_set(str(name)) if given is None else given
    items = items.select(ids) if ids else items
    return items if config.limit is None else items.sample(config.limit, config.seed)


def others_of(items: ForgetSet, retain: str | None) -> ForgetSet | None:
    """Other facts that have nothing in common with the items: of a set, or the rest of theirs, or the shipped facts."""
    if retain is not None:
        return apart(items, load_forget_set(retain))
    rest = apart(items, load_forget_set(items.name)) if is_known(items.name) else None
    return rest or apart(items, facts())


def _reference(config: AttackConfig, say: Say) -> Callable[[], LoadedModel] | None:
    name = config.reference
    if name is None:
        return None

    def load() -> LoadedModel:
        say(f"loading {name}")
        return load_model(name, config.dtype, config.device)

    return load


def _output(config: AttackConfig) -> Path:
    if config.output:
        return json_place(config.output, "result")
    edit = edit_name(config.edit)
    return Path("results") / "scratch" / name_of_run(f"{config.attack}_{edit}")
