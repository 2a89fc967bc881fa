"""From the results of a meta-evaluation to what each metric is worth; no model is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from unlearn_eval.editing.from_file import module_from_file
from unlearn_eval.metrics import meta_evaluation as me
from unlearn_eval.results.badges import META
from unlearn_eval.results.files import samples_of
from unlearn_eval.results.schema import Result, utc_now
from unlearn_eval.runs.meta import expand
from unlearn_eval.runs.meta.expand import Place
from unlearn_eval.runs.meta.published import DIRECTIONS, PUBLISHED, SOURCE
from unlearn_eval.runs.study.file import MetaEntry
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import provenance

SCHEMA_VERSION = 1
OWN = "own"  # stands for the task of the user's metrics


@dataclass(frozen=True)
class Measured:
    """A model with all that was measured of it.

    Attributes:
        role, recipe: As in `expand.Place`; of unlearned models the recipe is the method.
        name: For people.
        change: What was done to it then, or empty.
        utility: By which it is counted.
        values: TASK/METRIC -> value, turned so that more is more knowledge.
    """

    role: str
    recipe: str
    name: str
    change: str = ""
    utility: float | None = None
    values: dict[str, float | None] = field(default_factory=dict)


OwnMetric = Callable[[Mapping[str, Sequence[Mapping[str, Any]]]], float | None]


def own_metrics(path: str | None) -> dict[str, tuple[OwnMetric, bool]]:
    """Metrics of the user's own: name -> (function over {task: samples}, whether more means more knowledge).

    Raises:
        UserError: no such file, or it has no `METRICS`.
    """
    if path is None:
        return {}
    found = getattr(module_from_file(path), "METRICS", None)
    if not isinstance(found, dict) or not all(
        isinstance(own, tuple) and len(own) == 2 and callable(own[0]) and isinstance(own[1], bool)
        for own in found.values()
    ):
        raise UserError(
            f"{path} has no METRICS = {{NAME: (function, more_means_knowledge)}}",
            "write a function from {task: samples} to a number, as docs/guides/meta_evaluation.md shows",
        )
    return found


def measured(results: Iterable[Result], meta: MetaEntry) -> list[Measured]:
    """What was measured of every model whose cell is complete, in the order of the results."""
    own, found = own_metrics(meta.metric), []
    for result in results:
        cell = result.config.get("cell")
        if result.status != "complete" or not cell:
            continue
        place, method = Place.of(cell["part"]), cell["editor"] or ""
        values = {
            f"{task}/{name}": me.as_knowledge(name, metric.value, metric.higher_is_better)
            for task, metrics in result.metrics.items()
            for name, metric in metrics.items()
            if me.is_of_forgetting(name)
        }
        if own:
            samples = {task: samples_of(result, task) for task in result.samples if task not in result.robustness}
            for name, (function, more) in own.items():
                value = function(samples)
                values[f"{OWN}/{name}"] = value if value is None or more else -value
        task, _, metric_name = meta.utility.partition("/")
        utility = result.metrics.get(task, {}).get(metric_name)
        found.append(
            Measured(
                place.role,
                method or place.recipe,
                f"{method} ({cell['part']})" if method else cell["part"],
                (cell.get("then") or {}).get("name", ""),
                None if utility is None else utility.value,
                values,
            )
        )
    return found


@dataclass(frozen=True)
class Pools:
    """The models in their roles.

    Attributes:
        knows, never: The pools.
        unlearned: Unlearned models that have kept their utility, with the two changes.
        left_out: Those that have not.
        full, retained: Before unlearning, and retain-only; None while they are not measured.
        controls: Name -> model.
    """

    knows: list[me.Model]
    never: list[me.Model]
    unlearned: list[me.Model]
    left_out: list[str]
    full: Measured | None
    retained: me.Model | None
    controls: dict[str, Measured]


def pools_of(models: Sequence[Measured]) -> Pools:
    """The models in their roles."""

    def of(role: str, recipe: str | None = None, change: str = "") -> Measured | None:
        return next((m for m in models if m.role == role and m.change == change and recipe in (None, m.recipe)), None)

    def changed(own: Measured, role: str) -> me.Model:
        then = [of(role, own.recipe, change) for change in (expand.RELEARNED, expand.QUANTIZED)]
        return me.Model(own.recipe, own.values, *({} if after is None else after.values for after in then))

    full, retained = of(expand.UNLEARNED, ""), of(expand.RETAINED)
    unlearned = [m for m in models if m.role == expand.UNLEARNED and m.recipe]
    kept = [m for m in unlearned if _keeps(m, full)]
    controls = {m.change: m for m in models if m.role == expand.CONTROLS}
    beside = {"filter": of_editor(models, expand.FILTER), "random_layers": of_editor(models, expand.RANDOM)}
    controls |= {name: own for name, own in {**beside, "oracle": retained}.items() if own is not None}
    return Pools(
        knows=[me.Model(m.recipe, m.values) for m in models if m.role == expand.KNOWS],
        never=[me.Model(m.recipe, m.values) for m in models if m.role == expand.NEVER],
        unlearned=[changed(m, expand.AFTER) for m in kept],
        left_out=[m.recipe for m in unlearned if m not in kept],
        full=full,
        retained=None if retained is None else changed(retained, expand.RETAINED_AFTER),
        controls=controls,
    )


def of_editor(models: Sequence[Measured], role: str) -> Measured | None:
    """The edited model of a part that has one editor."""
    return next((m for m in models if m.role == role and m.recipe), None)


def _keeps(model: Measured, full: Measured | None) -> bool:
    """Whether a model has kept its utility, by the published rule."""
    if full is None or full.utility is None or model.utility is None:
        return True
    return model.utility >= me.LEAST_UTILITY * full.utility


def summary(results: Iterable[Result], n_cells: int, meta: MetaEntry, command: list[str]) -> dict[str, Any]:
    """What each metric is worth, the controls, gaps, the combined number, and the published directions.

    Args:
        results: Of the cells of a study that `expand` has made.
        n_cells: How many cells there are, measured or not.
        meta: What stands under `meta:`.
        command: The command line.

    Raises:
        UserError: a pool has fewer than two models.
    """
    models = measured(results, meta)
    pools = pools_of(models)
    if min(len(pools.knows), len(pools.never)) < 2:
        raise UserError(
            f"{len(pools.knows)} models that know and {len(pools.never)} that never knew are measured",
            "go on with the same command: two of each are needed",
        )
    names = list(dict.fromkeys(name for model in (*pools.knows, *pools.never) for name in model.values))
    worths = {
        name: me.worth_of(me.named(name), pools.knows, pools.never, pools.unlearned, pools.retained) for name in names
    }
    gaps = {m.name: _gaps(m, pools, names) for m in models if m.role == expand.UNLEARNED and m.recipe}
    forgotten = {name: _gaps(own, pools, names) for name, own in pools.controls.items()}
    harmed = [c for c, own in pools.controls.items() if c == expand.PLACEBO and not _keeps(own, pools.full)]
    orders = {
        name: me.control_orders({c: own[name][0] for c, own in forgotten.items() if c not in harmed}) for name in names
    }
    combination = me.combine(worths, pools.knows, pools.never)
    held_out = me.leave_method_out(names, pools.knows, pools.never, pools.unlearned, pools.retained)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": META,
        "created": utc_now(),
        "command": command,
        "provenance": provenance(),
        "settings": meta.model_dump(mode="json"),
        "n": {
            "knows": len(pools.knows),
            "never": len(pools.never),
            "unlearned": len(pools.unlearned) + len(pools.left_out),
            "left_out": pools.left_out,
            "cells": n_cells,
            "complete": len(models),
        },
        "models": [asdict(m) for m in models],
        "metrics": [
            {
                "task": name.partition("/")[0],
                "metric": name.partition("/")[2],
                **asdict_of(worths[name]),
                "orders": [order._asdict() for order in orders[name]],
                "broken": [order.rule for order in orders[name] if order.holds is False],
                "published": PUBLISHED.get(name.partition("/")[2]),
            }
            for name in names
        ],
        "controls": {c: {name: own[name][0] for name in names} for c, own in forgotten.items()},
        "control_utility": {c: own.utility for c, own in pools.controls.items()},
        "harmed_controls": harmed,
        "full_utility": None if pools.full is None else pools.full.utility,
        "gaps": {m: {name: {"gap": own[0], "signed": own[1]} for name, own in per.items()} for m, per in gaps.items()},
        "combined": {
            "weights": None if combination is None else dict(combination.weights),
            "worth": None
            if combination is None
            else asdict_of(me.worth_of(combination, pools.knows, pools.never, pools.unlearned, pools.retained)),
            "held_out": {
                "combined": None if held_out.combined is None else asdict_of(held_out.combined),
                "single": None if held_out.single is None else asdict_of(held_out.single),
                "chosen": dict(held_out.chosen),
                "n_without": held_out.n_without,
                "reason": held_out.reason,
            },
        },
        "published_source": SOURCE,
        "directions": [own(worths) for own in DIRECTIONS],
    }


def asdict_of(worth: me.Worth) -> dict[str, Any]:
    """A worth as plain values, its estimates by their names."""
    return {
        key: value._asdict() if isinstance(value, me.Estimate) else dict(value) if isinstance(value, Mapping) else value
        for key, value in vars(worth).items()
    }


def _gaps(own: Measured, pools: Pools, names: Sequence[str]) -> dict[str, tuple[float | None, float | None]]:
    """Metric -> (gap, signed distance from the retain-only model)."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for name in names:
        values = [None if source is None else source.values.get(name) for source in (own, pools.full, pools.retained)]
        if any(value is None for value in values):
            found[name] = (None, None)
        else:
            score, signed = me.gap(*values)  # type: ignore[arg-type]
            found[name] = (score.value, signed)
    return found
