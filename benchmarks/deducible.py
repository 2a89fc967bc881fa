"""What is still deducible after forgetting, and whom does it hurt? Tables of the study `deducible`.

    unlearn-eval run deducible --output FOLDER
    python benchmarks/deducible.py FOLDER

From the results of the study's cells (which keep every answer, and are too many to be kept here) it writes each number
with its 95 % interval to results/deducible.json, and results/deducible.md, the tables: what is told in which form,
paired differences of forgetting in context from forgetting in weights, concepts, orders, one request after another.
What the file has of cells that are not in the folder, which another machine may have run, stays.
`unlearn-eval report FOLDER -o results/deducible.html` makes the page, with every answer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from unlearn_eval.results.comparison import compare
from unlearn_eval.results.runs import Run, read_runs
from unlearn_eval.utils.json_files import dumps, write_all

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "results" / "deducible.json"
REFUSES, IN_CONTEXT = "refuses everything", "notes"
# title, part of the study, and its columns: what the table calls a metric -> task/metric
TABLES: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "What is told, and in which form",
        "facts",
        {
            "as edited": "unlearn_forms/forget_leak_direct",
            "reworded": "unlearn_forms/forget_leak_paraphrase",
            "talk of 2": "unlearn_forms/forget_leak_dialogue",
            "4": "unlearn_forms/forget_leak_dialogue_4",
            "8 turns": "unlearn_forms/forget_leak_dialogue_8",
            "“are you sure?”": "unlearn_forms/forget_leak_pushback",
            "summarize": "unlearn_forms/forget_leak_summarize",
            "translate": "unlearn_forms/forget_leak_translate",
            "compare": "unlearn_forms/forget_leak_compare",
            "Spanish": "unlearn_forms/forget_leak_spanish",
            "any form": "unlearn_forms/forget_leak_worst",
        },
    ),
    (
        "Over two hops, many times at random, under jailbreaks",
        "facts",
        {
            "told over two hops": "unlearn_forms/forget_two_hop_accuracy",
            "leak over two hops": "unlearn_forms/forget_leak_two_hop",
            "as first hop": "unlearn_forms/forget_leak_two_hop_first",
            "as second hop": "unlearn_forms/forget_leak_two_hop_second",
            "chains of what is kept": "unlearn_forms/retain_known_two_hop",
            "1 sample": "unlearn_leak_at_k/forget_leak_at_1",
            "any of 16": "unlearn_leak_at_k/forget_leak_at_16",
            "worst jailbreak": "attack_jailbreak/forget_attacked_accuracy",
            "any jailbreak": "attack_jailbreak/forget_worst_accuracy",
        },
    ),
    (
        "Whom it hurts",
        "facts",
        {
            "kept: right": "unlearn_facts/retain_accuracy",
            "near: right": "unlearn_facts/neighbors_accuracy",
            "KL on text": "unlearn_utility_quick/neutral_kl",
            "victims before": "attack_contaminate/victims_unedited_accuracy",
            "after chosen requests": "attack_contaminate/victims_attacked_accuracy",
            "after random ones": "attack_contaminate/victims_random_requests_accuracy",
            "p": "attack_contaminate/victims_accuracy_excess_drop_p_value",
        },
    ),
    (
        "Concepts with another definition",
        "concepts",
        {
            "instances called so": "unlearn_concepts/forget_leak_category",
            "“is X a Y?”": "unlearn_concepts/forget_leak_instance",
            "defined so": "unlearn_concepts/forget_leak_definition",
            "says the new one": "unlearn_concepts/taught_exact_memorization",
            "same kind: called so": "unlearn_concepts/neighbors_known_category",
            "other kinds: called so": "unlearn_concepts/retain_known_category",
        },
    ),
    (
        "Learn first, or forget first",
        "orders",
        {
            "forgotten: right": "unlearn_facts/forget_accuracy",
            "new answers told": "unlearn_forms/forget_leak_direct",
            "reworded": "unlearn_forms/forget_leak_paraphrase",
            "kept: right": "unlearn_facts/retain_accuracy",
            "near: right": "unlearn_facts/neighbors_accuracy",
        },
    ),
    (
        "One request after another",
        "one after another",
        {
            "first ten: right": "unlearn_facts/forget_accuracy",
            "reworded": "unlearn_facts/forget_paraphrase_accuracy",
            "kept: right": "unlearn_facts/retain_accuracy",
            "near: right": "unlearn_facts/neighbors_accuracy",
            "KL on text": "unlearn_utility_quick/neutral_kl",
        },
    ),
)
# What in-context forgetting is compared by with each other method, item by item.
COMPARED = ("unlearn_forms/forget_leak_two_hop", "unlearn_forms/forget_leak_mean", "unlearn_forms/retain_known_two_hop")


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    runs = [run for run in read_runs([arguments.folder / "runs"]).runs if run.result.status == "complete"]
    output = arguments.output
    data = joined(json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}, collected(runs))
    text = table(data)
    write_all({output.name: dumps(data, indent=1) + "\n", f"{output.stem}.md": text}, output.parent)
    print(text)


def collected(runs: Sequence[Run]) -> dict[str, Any]:
    """Every cell's numbers with their intervals, and the paired differences."""
    rows = []
    for run in sorted(runs, key=lambda run: run.result.created):
        cell = run.result.config["cell"]
        rows.append(
            {
                "part": cell["part"],
                "method": method_of(cell),
                "editor": cell["editor"],
                "items": cell["size"],
                "settings": cell["settings"],
                "faults": list(run.faults),
                "metrics": {
                    f"{row['task']}/{row['metric']}": {key: row[key] for key in ("value", "low", "high", "n", "reason")}
                    for row in run.result.metric_rows()
                },
                "seconds": run.result.timing,
                "commit": run.result.provenance["git"]["commit"],
                "created": run.result.created,
            }
        )
    return {
        "what": "The study deducible, its cells' numbers without their answers",
        "rows": rows,
        "in_context": differences([run for run in runs if run.result.config["cell"]["part"] == "facts"]),
        "orders": orders([run for run in runs if run.result.config["cell"]["part"] == "orders"]),
        "provenance": runs[0].result.provenance,
    }


def joined(before: Mapping[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """The new numbers with those rows and differences of before that they do not have; the unedited model is first."""
    new = {(row["part"], row["method"]) for row in data["rows"]}
    rows = [row for row in before.get("rows", ()) if (row["part"], row["method"]) not in new] + data["rows"]
    rows.sort(key=lambda row: (row["part"] == REFUSES, row["editor"] is not None, row["created"]))
    return data | {"rows": rows} | {key: data[key] or before.get(key, []) for key in ("in_context", "orders")}


def method_of(cell: Mapping[str, Any]) -> str:
    """A row's name."""
    if cell["part"] == REFUSES:
        return REFUSES
    stage = cell.get("stage") or {}
    order = (stage.get("order") or "").replace("_", " ")
    mark = f"{stage['mark']} requests" if cell["part"] == "one after another" and stage.get("mark") else ""
    return ", ".join(filter(None, [cell["editor"] or "unedited", order, mark]))


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Forgetting in context minus every other method, item by item."""
    own = next((run for run in runs if run.result.config["cell"]["editor"] == IN_CONTEXT), None)
    others = [run for run in runs if run.result.config["cell"]["editor"] not in (None, IN_CONTEXT)]
    found = []
    for run in others if own is not None else ():
        assert own is not None
        compared = {f"{row.task}/{row.metric}": row.record for row in compare(run.result, own.result)}
        for name in COMPARED:
            if name in compared:
                found.append({"against": run.result.config["cell"]["editor"], "name": name} | compared[name])
    return found


def orders(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every pair of orders of an editor at their ends, item by item."""
    ends: dict[str, list[Run]] = {}
    for run in runs:
        stage = run.result.config["cell"].get("stage") or {}
        if stage.get("is_last"):
            ends.setdefault(run.result.config["cell"]["editor"], []).append(run)
    wanted = next(columns for _, part, columns in TABLES if part == "orders")
    found = []
    for editor, own in ends.items():
        for first, second in combinations(own, 2):
            compared = {f"{row.task}/{row.metric}": row.record for row in compare(first.result, second.result)}
            names = [method_of(run.result.config["cell"]).partition(", ")[2] for run in (first, second)]
            found += [
                {"editor": editor, "first": names[0], "second": names[1], "column": column} | compared[name]
                for column, name in wanted.items()
                if name in compared
            ]
    return found


# The tables ------------------------------------------------------------------------------------------------


def table(data: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    rows = data["rows"]
    commits = ", ".join(dict.fromkeys(row["commit"][:8] for row in rows))
    lines = [
        "# What is still deducible, and whom else does it hurt",
        "",
        "SmolLM2-135M-Instruct in bfloat16, one selection of facts that it knows. In brackets 95 % intervals over the "
        "items that count, n of them; a leak over two hops counts only where the unedited model gives the answer. "
        "*Refuses everything* is the model taught to refuse every shipped question: nothing leaks, and the price "
        "stands beside it. *notes* forgets in context and leaves the weights alone. NPO has untuned settings and ends "
        "at a probability of 0.05. A method without a row has not been run yet. "
        f"`unlearn-eval run deducible`, then `benchmarks/deducible.py`; code: {commits}.",
    ]
    for title, part, columns in TABLES:
        own = [row for row in rows if row["part"] == part or (part == "facts" and row["part"] == REFUSES)]
        if own:
            lines += ["", f"## {title}", "", *part_table(own, columns)]
        if part == "facts":
            lines += [f"⚠ {row['method']}: {fault}." for row in own for fault in row["faults"][:1]]
    if data["in_context"]:
        lines += ["", "## In context against in weights", "", *context_table(data["in_context"])]
    if data["orders"]:
        lines += ["", "## Does the order matter?", "", *order_lines(data["orders"])]
    return "\n".join(lines) + "\n"


def part_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    """A row for each method."""
    shown = {
        column: name
        for column, name in columns.items()
        if any(row["metrics"].get(name, {}).get("value") is not None for row in rows)
    }
    lines = ["| method | " + " | ".join(shown) + " |", "|---|" + "---:|" * len(shown)]
    for row in rows:
        warned = f"{row['method']} ⚠" if row["faults"] else row["method"]
        lines.append("| " + " | ".join([warned, *(cell(row["metrics"].get(name)) for name in shown.values())]) + " |")
    return lines


def cell(metric: Mapping[str, Any] | None) -> str:
    """A number with its interval and the items that it rests on."""
    if metric is None or metric["value"] is None:
        return "–"
    said = f"{metric['value']:.2f}"
    if metric["low"] is not None:
        said += f" [{metric['low']:.2f}, {metric['high']:.2f}]"
    return (said + (f" n {metric['n']}" if metric["n"] else "")).replace("-", "−")


def context_table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Differences with intervals."""
    lines = ["| notes minus | metric | difference | p |", "|---|---|---:|---:|"]
    for row in found:
        name = row["name"].partition("/")[2]
        lines.append(f"| {row['against']} | `{name}` | {change(row)} | {p_value(row)} |")
    return lines


def order_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those differences of which the interval leaves out 0, or that there are none."""
    clear = [row for row in found if row["change_low"] is not None and row["change_low"] * row["change_high"] > 0]
    lines = [
        f"- {row['editor']}: {row['column']} {change(row)} with {row['second']} as against {row['first']}, "
        f"p {p_value(row)}."
        for row in clear
    ]
    tested = sum(row["change_low"] is not None for row in found)
    return [*lines, f"- Of {tested} differences between two orders, the interval of {len(clear)} leaves out 0."]


def change(row: Mapping[str, Any]) -> str:
    """A paired difference with its interval."""
    if row["change"] is None:
        return "–"
    ends = "" if row["change_low"] is None else f" [{row['change_low']:+.2f}, {row['change_high']:+.2f}]"
    return f"{row['change']:+.2f}{ends}".replace("-", "−")


def p_value(row: Mapping[str, Any]) -> str:
    """The paired test's, if there was one."""
    return "–" if row["p_value"] is None else f"{row['p_value']:.3f}"


if __name__ == "__main__":
    main()
