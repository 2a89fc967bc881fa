"""Result files as terminal tables: values with standard errors, directions, and dashes with their reasons."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from unlearn_eval.results.badges import badges
from unlearn_eval.results.comparison import Comparison
from unlearn_eval.results.gaps import Gap
from unlearn_eval.results.requirements import Verdict
from unlearn_eval.results.runs import result_faults
from unlearn_eval.results.schema import Metric, Result
from unlearn_eval.utils.fitted_tables import FittedTable
from unlearn_eval.utils.terminal import new_console, styled

DIRECTIONS = {True: "↑", False: "↓", None: " "}


def value_text(metric: Metric | None) -> str:
    """`0.123 ±0.045`, or a dash for what is undefined."""
    if metric is None or metric.value is None:
        return "–"
    small = metric.value != 0 and abs(metric.value) < 5e-4
    text = f"{metric.value:.1e}" if small else f"{metric.value:.3f}"
    return text if metric.stderr is None else f"{text} ±{metric.stderr:.3f}"


def evaluation_tables(result: Result) -> list[Table]:
    """One table per task of one result."""
    tables, known = [], badges()
    for task, metrics in result.metrics.items():
        shown = [known[name].text if name in known else "" for name in metrics]
        table = _table(task, "metric", "value", "n", *(["worth"] if any(shown) else []))
        for (name, metric), worth in zip(metrics.items(), shown, strict=True):
            row = f"{name} {DIRECTIONS[metric.higher_is_better]}", value_text(metric), _count(metric)
            table.add_row(*row, *([worth] if any(shown) else []))
        tables.append(table)
    return tables


def comparison_tables(
    rows: Sequence[Comparison], names: tuple[str, str] = ("before", "after"), tests: bool = False
) -> list[Table]:
    """One table per task of what `compare` found; the change is the mean over the same items where there are samples.

    With `tests` also the p-value of each change, and the paired test that gave it.
    """
    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        table = _table(task, "metric", *names, "change", *(("p", "paired test") if tests else ()), "n")
        for row in rows:
            if row.task == task:
                table.add_row(
                    f"{row.metric} {row.direction or ' '}",
                    value_text(row.before),
                    value_text(row.after),
                    _change(row),
                    *(_test(row) if tests else ()),
                    _count(row.after or row.before),
                )
        tables.append(table)
    return tables


def gap_tables(rows: Sequence[Gap]) -> list[Table]:
    """One table per task of how far a model is from one that never knew."""
    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        table = _table(task, "metric", "before", "after", "reference", "gap", "side")
        for row in rows:
            if row.task == task:
                shown = ("–" if value is None else f"{value:.3f}" for value in (row.before, row.after, row.reference))
                side = "–" if row.signed is None else f"{row.signed:+.3f}"
                table.add_row(row.metric, *shown, "–" if row.gap is None else f"{row.gap:.2f}", side)
        tables.append(table)
    return tables


def reasons(results: Sequence[Result]) -> list[str]:
    """Why there are dashes, one line for each reason."""
    found: dict[str, list[str]] = {}
    for result in results:
        for metrics in result.metrics.values():
            for name, metric in metrics.items():
                if metric.reason and name not in found.setdefault(metric.reason, []):
                    found[metric.reason].append(name)
    return [f"– {', '.join(names)}: {reason}" for reason, names in found.items()]


def fault_lines(results: Sequence[Result]) -> list[Text]:
    """A warning for each fault of an edit that the results are of."""
    found = dict.fromkeys(fault for result in results for fault in result_faults(result))
    return [styled(f"warning: {fault}", "bold red") for fault in found]


def _table(title: str, *columns: str) -> Table:
    table = FittedTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _count(metric: Metric | None) -> str:
    if metric is None:
        return ""
    return f"{'–' if metric.n is None else metric.n}" + (
        f" (+{metric.n_unscored} unscored)" if metric.n_unscored else ""
    )


def _test(row: Comparison) -> tuple[str, str]:
    """P and the test's name; dashes where items could not be paired."""
    if row.paired is None or row.paired.p_value is None:
        return "–", "–"
    p = row.paired.p_value
    return f"{p:.3f}" if p >= 1e-3 else f"{p:.0e}", str(row.paired.test)


def unpaired(rows: Sequence[Comparison]) -> list[str]:
    """Why changes have no test, one line for each reason."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.difference is not None and row.paired is None:
            found.setdefault(str(row.reason), []).append(row.metric)
    return [f"no test of {', '.join(names)}: {reason}" for reason, names in found.items()]


def _change(row: Comparison) -> str | Text:
    if row.difference is None:
        return "–"
    text = f"{row.difference:+.3f}"
    if row.paired is not None and row.paired.stderr is not None:
        text += f" ±{row.paired.stderr:.3f}"
    better = (row.difference > 0) == (row.direction == "↑")
    noisy = row.paired is not None and row.paired.p_value is not None and row.paired.p_value > 0.05
    if not row.direction or row.difference == 0 or noisy:
        return text
    return styled(text, "green" if better else "red")


def show_result(result: Result, notes: Sequence[str] = ()) -> None:
    """Print a result: its tables, why numbers are missing, some notes, and where its file is."""
    console = new_console()
    for table in evaluation_tables(result):
        console.print(table)
    for line in (*fault_lines([result]), *reasons([result]), *notes):
        console.print(line)
    console.print(f"result: {result.path}", soft_wrap=True)


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """What holds and what failed, for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "required", "value", "bound", ""):
        table.add_column(
            column,
            justify="right" if column in ("value", "bound") else "left",
            overflow="fold",
            no_wrap=column in ("value", "bound"),
        )
    for verdict in verdicts:
        word = styled("holds", "green") if verdict.holds else styled("failed", "bold red")
        numbers = ("–" if number is None else f"{number:.4g}" for number in (verdict.value, verdict.bound))
        table.add_row(word, styled(verdict.requirement.text), *numbers, styled(verdict.reason))
    return table
