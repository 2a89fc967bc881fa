"""A comparison of two results as Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from unlearn_eval.results.comparison import COLUMNS, Comparison
from unlearn_eval.results.schema import Metric
from unlearn_eval.utils.json_files import dumps

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": r"$-$",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def comparison_csv(rows: Sequence[Comparison]) -> str:
    """Every number in full, one line for each metric; what is undefined is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.record.values() for row in rows)
    return stream.getvalue()


def comparison_markdown(rows: Sequence[Comparison]) -> str:
    """One table per task, for GitHub and its like."""
    parts = []
    for task, head, body in _tables(rows):
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        cells = [[c if i == 1 else escape_markdown(c) for c in line] for i, line in enumerate(lines)]
        parts.append(f"**{escape_markdown(task)}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in cells))
    return "\n\n".join(parts) + "\n"


def comparison_latex(rows: Sequence[Comparison]) -> str:
    r"""One `tabular` per task, with booktabs' rules: the document needs `\usepackage{booktabs}`."""
    parts = []
    for task, head, body in _tables(rows):
        lines = [" & ".join(map(escape_latex, line)) + r" \\" for line in (head, *body)]
        parts.append(
            "\n".join(
                [
                    f"% {' '.join(task.split())}",
                    rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
                    r"\toprule",
                    lines[0],
                    r"\midrule",
                    *lines[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def escape_markdown(text: str) -> str:
    """The text as it stands, in a cell of a Markdown table: no markup, no HTML, no new line."""
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", text)


def escape_latex(text: str) -> str:
    """The text as it stands, in a cell of a LaTeX table."""
    return "".join(_LATEX.get(c, c) for c in re.sub(r"\s+", " ", text))


def comparison_rows(rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Every number in full, by the names of `COLUMNS`; what is undefined is null."""
    return [row.record for row in rows]


def comparison_json(rows: Sequence[Comparison]) -> str:
    """The same as JSON."""
    return dumps(comparison_rows(rows), indent=2) + "\n"


FORMATS: dict[str, Callable[[Sequence[Comparison]], str]] = {
    "markdown": comparison_markdown,
    "latex": comparison_latex,
    "csv": comparison_csv,
    "json": comparison_json,
}


def _tables(rows: Sequence[Comparison]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(task, head, lines) for each task, as text that is not escaped yet."""
    head = ["metric", "before", "after", "change", "p", "n"]
    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task]
        tables.append((task, head, [_line(row) for row in own]))
    return tables


def _line(row: Comparison) -> list[str]:
    paired, known = row.paired, row.after or row.before
    stderr, p = (paired.stderr, paired.p_value) if paired else (None, None)
    return [
        f"{row.metric} {row.direction}".strip(),
        *(_text(*_numbers(metric)) for metric in (row.before, row.after)),
        _text(row.difference, stderr, signed=True),
        "–" if p is None else f"{p:.3f}" if p >= 1e-3 else f"{p:.0e}",
        "" if known is None else "–" if known.n is None else str(known.n),
    ]


def _numbers(metric: Metric | None) -> tuple[float | None, float | None]:
    return (None, None) if metric is None else (metric.value, metric.stderr)


def _text(value: float | None, stderr: float | None, signed: bool = False) -> str:
    if value is None:
        return "–"
    text = f"{value:{'+' if signed else ''}.3f}".replace("-", "−")
    return text if stderr is None else f"{text} ±{stderr:.3f}"
