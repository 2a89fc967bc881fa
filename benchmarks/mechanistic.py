"""Does it matter where facts are forgotten? "Mechanistic Unlearning" on a small real model, over seeds.

    unlearn-eval run mechanistic_facts --output FOLDER
    python benchmarks/mechanistic.py FOLDER [FOLDER ...]

From the results of the study's cells (which keep every answer, and are too many to be kept here) it writes what each
localization reached with each seed to results/mechanistic_facts.json. results/mechanistic_facts.md is the table, with
differences from random MLPs of the same seed: the same facts, the same training, another place.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from unlearn_eval.results.runs import Run, read_runs
from unlearn_eval.runs.study.over_seeds import spread, value_of
from unlearn_eval.utils.json_files import dumps, write_all

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "results" / "mechanistic_facts.json"
CONTROL = "random_mlps"
UNEDITED = "unedited"
MODELS = {"default": "SmolLM2-135M-Instruct"}
TITLES = {
    "unlearning": "Facts made unlikely",
    "editing": "Facts replaced by wrong ones",
    "athletes": "Athletes' sports made unlikely",
    "athletes_editing": "Athletes' sports replaced by others",
}
# column -> where it stands, and whether higher is better. Of an attack: the answers under it.
COLUMNS: dict[str, tuple[str, str, bool]] = {
    "forgotten: right": ("unlearn_facts", "forget_accuracy", False),
    "forgotten: preferred": ("unlearn_sports", "forget_preference", False),
    "reworded": ("unlearn_facts", "forget_paraphrase_accuracy", False),
    "reworded: preferred": ("unlearn_sports", "forget_paraphrase_preference", False),
    "multiple choice": ("unlearn_forms", "forget_choice_debiased", False),
    "relearned": ("attack_relearn", "forget_attacked_accuracy", False),
    "probe over control": ("attack_probe", "forget_probe_selectivity", False),
    "logit lens gap": ("attack_logit_lens", "forget_logit_lens_gap", True),
    "kept: right": ("unlearn_facts", "retain_accuracy", True),
    "kept: preferred": ("unlearn_sports", "retain_preference", True),
    "near: right": ("unlearn_facts", "neighbors_accuracy", True),
    "KL on text": ("unlearn_utility_quick", "neutral_kl", False),
}
# Of the unedited model an attack tells what it does to that one.
OF_UNEDITED = {
    "relearned": ("attack_relearn", "forget_unedited_attacked_accuracy"),
    "probe over control": ("attack_probe", "forget_unedited_probe_selectivity"),
}
SECONDS = ("localization_seconds", "editing_seconds")


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    runs = read_runs([folder / "runs" for folder in arguments.folders]).runs
    data = collected([run for run in runs if run.result.status == "complete"])
    text = table(data)
    output = arguments.output
    write_all({output.name: dumps(data, indent=1) + "\n", f"{output.stem}.md": text}, output.parent)
    print(text)


def collected(runs: Sequence[Run]) -> dict[str, Any]:
    """Every cell's numbers, and where they come from."""
    cells = []
    for run in runs:
        cell = run.result.config["cell"]
        editor = cell["editor"]
        values = {name: value_of(run.result, (task, metric)) for name, (task, metric, _) in COLUMNS.items()}
        of_unedited = {name: value_of(run.result, own) for name, own in OF_UNEDITED.items()}
        cells.append(
            {
                "part": cell["part"],
                "localization": editor.partition("-")[2] if editor else UNEDITED,
                "editor": editor.partition("-")[0] if editor else None,
                "seed": cell["seed"],
                "items": cell["size"],
                "values": _known(values),
                "unedited": _known(of_unedited),
                "weights": ((run.result.edit or {}).get("config") or {}).get("components"),
                "seconds": {name: run.result.timing.get(name) for name in SECONDS},
                "commit": run.result.provenance["git"]["commit"],
                "created": run.result.created,
            }
        )
    cells.sort(key=lambda own: (list(TITLES).index(own["part"]), own["created"]))
    first = runs[0].result
    return {
        "what": "The study mechanistic_facts, its cells' numbers without their answers",
        "settings": {run.result.config["cell"]["part"]: _settings(run) for run in runs if run.result.edit},
        "cells": cells,
        "provenance": first.provenance,
    }


def _settings(run: Run) -> dict[str, Any]:
    cell = run.result.config["cell"]
    own = {key: value for key, value in cell["settings"].items() if key != "components"}
    said = {"editor": cell["editor"].partition("-")[0], "model": MODELS.get(cell["model"], cell["model"])}
    return {**said, **own, "recipe": cell["recipe"], "attacks": cell["attacks"]}


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


# The table -------------------------------------------------------------------------------------------------


def table(data: Mapping[str, Any]) -> str:
    """Means over seeds as Markdown, a table for each part, and what they say."""
    cells = data["cells"]
    commits = ", ".join(dict.fromkeys(own["commit"][:8] for own in cells))
    lines = [
        "# Does it matter where facts are forgotten?",
        "",
        "In bfloat16. Each localization is trained with the same settings in as many weights (an eighth of all MLPs; "
        "`all_mlps` and `none` take what they take). Means over seeds, each with other facts, ± standard deviation. "
        "What is forgotten was known: the unedited model was asked before. *Relearned*: right after training on the "
        "other half of the forgotten facts. *Probe over control*: how much better a linear reader of the states is "
        "than one of shuffled labels. *Logit lens gap*: how much less likely the answer is when it is read from a "
        "layer, in nats per token, the mean over layers. *KL*: to the unedited model on passages of everyday life, "
        f"nats per token. Code: {commits}.",
    ]
    for part, title in TITLES.items():
        own = [cell for cell in cells if cell["part"] == part]
        if own:
            said = data["settings"][part]
            unsaid = ("editor", "model", "attacks")
            about = ", ".join(f"{key} {value}" for key, value in said.items() if key not in unsaid)
            n = next(cell["items"] for cell in own)
            lines += [
                "",
                f"## {title}",
                "",
                f"{said['model']}, `{said['editor']}`, {n} facts, {about}.",
                "",
                *part_table(own),
            ]
            lines += [*_reading(own)]
    return "\n".join(lines) + "\n"


def part_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each localization."""
    names = list(dict.fromkeys(cell["localization"] for cell in cells))
    names.sort(key=lambda name: name != UNEDITED)
    shown = [name for name in COLUMNS if any(name in cell["values"] for cell in cells)]
    arrows = {name: "↑" if COLUMNS[name][2] else "↓" for name in shown}
    head = ["trained in", "seeds", *(f"{name} {arrows[name]}" for name in shown), "seconds: locating, editing"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name in names:
        own = [cell for cell in cells if cell["localization"] == name]
        row = [_spread([*values(cells, name, column).values()], column) for column in shown]
        seconds = [[s for cell in own if (s := cell["seconds"][key]) is not None] for key in SECONDS]
        took = ", ".join(f"{mean(found):.0f}" if found and name != UNEDITED else "–" for found in seconds)
        lines.append("| " + " | ".join([name, str(len(own)), *row, took]) + " |")
    return lines


def values(cells: Sequence[Mapping[str, Any]], name: str, column: str) -> dict[int, float]:
    """Seed -> a localization's number."""
    if name == UNEDITED and column in OF_UNEDITED:
        return {cell["seed"]: cell["unedited"][column] for cell in cells if column in cell["unedited"]}
    own = [cell for cell in cells if cell["localization"] == name]
    return {cell["seed"]: cell["values"][column] for cell in own if column in cell["values"]}


def differences(cells: Sequence[Mapping[str, Any]], name: str, column: str) -> list[float]:
    """A localization's number minus that of random MLPs with the same seed, for each seed."""
    own, control = values(cells, name, column), values(cells, CONTROL, column)
    return [own[seed] - control[seed] for seed in sorted(own.keys() & control.keys())]


def _reading(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a localization differs from random MLPs in the same direction with every seed."""
    lines = []
    for name in dict.fromkeys(cell["localization"] for cell in cells):
        if name in (UNEDITED, CONTROL):
            continue
        better, worse = [], []
        for column, (_, _, higher) in COLUMNS.items():
            found = differences(cells, name, column)
            signs = {value > 0 for value in found}
            if len(found) < 2 or len(signs) > 1 or 0 in found:
                continue
            words = f"{column} ({mean(found):+.{3 if column.startswith('KL') else 2}f})".replace("-", "−")
            (better if (found[0] > 0) == higher else worse).append(words)
        said = [f"{word} in {', '.join(own)}" for word, own in (("better", better), ("worse", worse)) if own]
        lines.append(f"- {name}: {'; '.join(said) if said else 'nowhere the same sign'}.")
    n = len({cell["seed"] for cell in cells})
    if n < 2:
        return ["", "One seed: what differs from random MLPs may differ the other way with another."]
    return ["", f"Against random MLPs, with the same sign in all of {n} seeds (mean difference):", "", *lines]


def _spread(found: Sequence[float], column: str) -> str:
    over, digits = spread(found), 3 if column.startswith("KL") else 2
    if over.mean is None:
        return "–"
    deviation = "" if over.deviation is None else f" ±{over.deviation:.{digits}f}"
    return f"{over.mean:.{digits}f}{deviation}".replace("-", "−")


if __name__ == "__main__":
    main()
