"""What a report's page shows of attacks and localizations, as plain data, from result files alone.

Older files have no curves: these follow from the levels then, without intervals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_eval.results.layers import few_digits, scores_by_layer
from unlearn_eval.results.runs import Run, Runs
from unlearn_eval.results.schema import Result

Record = dict[str, Any]
_EDIT_KEYS = ("editor", "config", "seed")

# Attacks ---------------------------------------------------------------------------------------------------


def attack_entries(runs: Runs) -> list[Record]:
    """One entry for each attack of each run, in the order of the files; runs without attacks have none.

    `{"run", "task", "attack", "axis", "does", "level", "edit", "where", "curves", "intervals", "skipped", "reason"}`:
    the run's place in `runs`, an edit's number (the same for all files on it), where it trained, and why nothing was
    measured, if nothing was.
    """
    edits = edit_numbers(runs)
    found = []
    for i, run in enumerate(runs.runs):
        for task, part in run.result.robustness.items():
            found.append(
                {
                    "run": i,
                    "task": task,
                    "attack": part.get("attack", task.removeprefix("attack_")),
                    "axis": part.get("axis") or "level",
                    "does": part.get("does") or "",
                    "level": headline_level(part),
                    "edit": edits[i],
                    "where": _where(run),
                    "curves": _curves(part),
                    "intervals": {name: _rounded(ends) for name, ends in (part.get("intervals") or {}).items()},
                    "skipped": part.get("skipped") or [],
                    "reason": _unmeasured(run.result, task),
                }
            )
    return found


def edit_numbers(runs: Runs) -> list[int | None]:
    """For each run a number that is the same for all runs of one edit; None without an edit."""
    numbers: dict[str, int] = {}
    found: list[int | None] = []
    for run in runs.runs:
        edit = run.result.edit
        if not edit:
            found.append(None)
            continue
        asked, base = edit.get("requests") or {}, edit.get("base") or {}
        own = [edit.get(key) for key in _EDIT_KEYS] + [asked.get("hash"), asked.get("ids"), base.get("canonical_hash")]
        key = json.dumps([*own, run.model, run.forget_set], sort_keys=True)
        found.append(numbers.setdefault(key, len(numbers)))
    return found


def headline_level(part: Mapping[str, Any]) -> Any:
    """The level that stands for an attack; found again in files that do not say it. None where there is none."""
    if part.get("level") is not None or not part.get("levels"):
        return part.get("level")
    means: dict[Any, list[float]] = {}
    for name in ("accuracy", "probability"):
        for curve in _from_levels(part["levels"]):
            if (curve["model"], curve["condition"], curve["value"]) == ("unlearned", "attack", name):
                for at, mean in zip(curve["at"], curve["mean"], strict=True):
                    if at is not None:
                        means.setdefault(at, []).append(mean)
    if not means:
        return None
    return list(means)[-1] if part.get("headline") == "last" else max(means, key=lambda at: means[at])


def _curves(part: Mapping[str, Any]) -> list[Record]:
    curves = part.get("curves")
    made = [dict(curve) for curve in (curves if curves is not None else _from_levels(part.get("levels") or []))]
    drawn = {curve["value"] for curve in made}
    kept = [curve for curve in made if curve["value"] != "log_probability" or "gap" not in drawn]
    for curve in kept:
        for key in ("mean", "low", "high"):
            curve[key] = _rounded(curve[key])
        curve["n"] = max(curve["n"])
    return kept


def _from_levels(levels: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Curves of means over folds and seeds, weighted by their items; of probes and lenses also their differences."""
    sums: dict[tuple[str, str, str], dict[Any, tuple[float, int]]] = {}
    for level in levels:
        for name, value in level["values"].items():
            if value is not None:
                curve = sums.setdefault((level["model"], level["condition"], name), {})
                total, n = curve.get(level["at"], (0.0, 0))
                curve[level["at"]] = (total + value * level["n"], n + level["n"])
    means = {key: {at: total / n for at, (total, n) in curve.items() if n} for key, curve in sums.items()}
    for model, condition, name in list(means):
        other = {"probe_accuracy": (model, "random_labels", name), "log_probability": ("full", "attack", name)}.get(
            name
        )
        if condition == "attack" and other in means and other != (model, condition, name):
            sign, to = (1, "above_control") if name == "probe_accuracy" else (-1, "gap")
            own, against = means[model, condition, name], means[other]
            means[model, condition, to] = {at: sign * (own[at] - against[at]) for at in own if at in against}
    return [_without_interval(key, curve, sums.get(key)) for key, curve in means.items() if curve]


def _without_interval(
    key: tuple[str, str, str], curve: Mapping[Any, float], sums: Mapping[Any, Sequence[float]] | None
) -> Record:
    order = sorted(curve, key=lambda at: at is not None)
    none = [None] * len(order)
    counts = [sums[at][1] if sums else 0 for at in order]
    names = dict(zip(("model", "condition", "value"), key, strict=True))
    return {**names, "at": order, "mean": [curve[at] for at in order], "low": none, "high": none, "n": counts}


def _unmeasured(result: Result, task: str) -> str | None:
    """Why an attack has no number at all; None if it has one."""
    metrics = result.metrics.get(task) or {}
    if any(metric.value is not None for metric in metrics.values()):
        return None
    return next((metric.reason for metric in metrics.values() if metric.reason), "the file holds no metric of it")


def _where(run: Run) -> str | None:
    """The localization that placed a run's edit, if one did."""
    components = _components(run)
    return None if components is None else str(components.get("method"))


def _components(run: Run) -> Mapping[str, Any] | None:
    own = ((run.result.edit or {}).get("notes") or {}).get("components")
    return own if isinstance(own, dict) else None


# Localizations ---------------------------------------------------------------------------------------------


def maps(runs: Runs) -> list[Record]:
    """Every localization once, of edits and of files, with its scores by layer; controls come last.

    `{"method", "settings", "budget", "model", "facts", "seed", "n_layers", "n_weights", "n_weights_in_blocks",
    "scores", "is_control", "chosen", "effects", "notes", "runs", "file"}`: `chosen` is by kind and layer how many
    linear maps of a unit are trained, as (kind, layer, number); `runs` are those that use it. A control reads no
    facts, or scores no unit.
    """
    found: dict[str, Record] = {}
    for path, content in runs.localizations:
        own = _map_of_file(path, content)
        found.setdefault(_identity(own), own)
    for i, run in enumerate(runs.runs):
        components = _components(run)
        if components is not None:
            own = _map_of_edit(run, components)
            found.setdefault(_identity(own), own)["runs"].append(i)
    return sorted(found.values(), key=lambda one: (one["model"], one["facts"], one["is_control"]))


def _map_of_file(path: Path, content: Mapping[str, Any]) -> Record:
    facts, model = content.get("facts") or {}, content.get("model") or {}
    scores = scores_by_layer(content["ranking"], content["n_layers"])
    effects = (content.get("tables") or {}).get("effects")
    own = {**content, "scores": scores, "effects": effects}
    return _map(own, model.get("id"), facts.get("set"), facts.get("n"), path.name)


def _map_of_edit(run: Run, components: Mapping[str, Any]) -> Record:
    asked = (run.result.edit or {}).get("requests") or {}
    facts = components.get("facts") or {}
    model = (components.get("model") or {}).get("id") or run.model
    return _map(components, model, facts.get("set") or asked.get("forget_set"), asked.get("n"), None)


def _scored(layers: Iterable[Any]) -> bool:
    return any(score is not None for score in layers)


def _map(own: Mapping[str, Any], model: object, facts: object, n: object, file: str | None) -> Record:
    modules = list(own.get("modules") or ())
    chosen = chosen_units(modules)
    layers = [layer for _, layer, _ in chosen]
    effects, scores = own.get("effects") or None, few_digits(own.get("scores") or {})
    return {
        "method": str(own.get("method")),
        "settings": own.get("settings") or {},
        "budget": (own.get("budget") or {}).get("given"),
        "model": str(model or "unknown model"),
        "facts": "" if facts is None else f"{_file_name(facts)}{'' if n is None else f' ({n})'}",
        "seed": own.get("seed"),
        "n_layers": int(own.get("n_layers") or max(layers, default=-1) + 1),
        "n_weights": own.get("n_weights"),
        "n_weights_in_blocks": own.get("n_weights_in_blocks"),
        "scores": scores,
        "is_control": not own.get("facts") or (bool(scores) and not any(map(_scored, scores.values()))),
        "chosen": chosen,
        "effects": few_digits(effects) if effects else None,
        "notes": {key: value for key, value in (own.get("notes") or {}).items() if not isinstance(value, list | dict)},
        "runs": [],
        "file": file,
    }


def _file_name(name: object) -> str:
    """A set by its name; of a file without its folder."""
    return str(name) if ":" in str(name) else Path(str(name)).name


def _identity(own: Mapping[str, Any]) -> str:
    kept = ("method", "settings", "budget", "facts", "seed", "n_layers", "n_weights", "chosen")
    return json.dumps([own[key] for key in kept] + [Path(own["model"]).name], sort_keys=True)


def chosen_units(modules: Iterable[str]) -> list[tuple[str, int, int]]:
    """(kind, layer, how many linear maps of it) of every unit of which a map is chosen."""
    counts: dict[tuple[str, int], int] = {}
    for name in modules:
        parts = name.split(".")
        place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if place is None or place + 1 >= len(parts):
            continue
        inner = parts[place + 1]
        unit = ("attention" if "attn" in inner or "attention" in inner else "mlp", int(parts[place]))
        counts[unit] = counts.get(unit, 0) + 1
    return [(kind, layer, n) for (kind, layer), n in counts.items()]


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None or not math.isfinite(value) else few_digits(float(value)) for value in values]
