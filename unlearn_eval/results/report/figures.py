"""The frontier and the bars as SVG and PDF, for papers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.metrics.catalogue import headline, interval, meaning
from unlearn_eval.results.groups import frontier_axes, group_runs, run_labels
from unlearn_eval.results.runs import NO_EDIT, Place, Run, Runs, read_runs
from unlearn_eval.results.schema import Metric
from unlearn_eval.utils.errors import UserError, unknown_name

try:
    import matplotlib as mpl
except ImportError as error:
    raise UserError("figures need matplotlib", "pip install 'unlearn-eval[report]'") from error
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 40
_UNSAFE = re.compile(r"[^\w.-]+")
COLORS = ("#2857c4", "#c2410c", "#17703f", "#8b3fb5", "#a16207", "#0e7490", "#be185d", "#52525b")
MARKERS = ("o", "s", "D", "^")
STYLE = {
    "text.parse_math": False,  # names are text, whatever is in them
    "svg.hashsalt": "unlearn-eval",  # the same numbers give the same file
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_figures(runs: Runs, folder: str | Path) -> list[Path]:
    """Writes `frontier_TASK` and `bars_TASK` as .svg and .pdf; returns the paths.

    A task without a metric of forgetting and one of keeping has no frontier.

    Raises:
        UserError: the folder cannot be written.
    """
    folder, written = Path(folder).expanduser(), []
    tasks = dict.fromkeys(task for run in runs.runs for task in run.result.metrics)
    with mpl.rc_context(STYLE):
        for task in tasks:
            own = [run for run in runs.runs if task in run.result.metrics]
            drawn = _frontier(own, task)
            frontier: Any = None if drawn is None else drawn.figure
            for name, figure in (("frontier", frontier), ("bars", _bars(own, task))):
                if figure is not None:
                    written += _save(figure, folder / f"{name}_{re.sub(_UNSAFE, '_', task)}")
    return written


def plot_frontier(results: Runs | Place | Iterable[Place], task: str | None = None, ax: Axes | None = None) -> Axes:
    """Draws forgetting against what is kept, one point for each run; returns the matplotlib axes.

    Args:
        results: result files, folders of them, results, or what `read_runs` gave.
        task: the task; needed where there are several.
        ax: axes to draw on; None makes a figure.

    Raises:
        UserError: there is no result, no such task, or the task has no metric of forgetting or none of keeping.
    """
    runs, task = _of_task(results, task)
    with mpl.rc_context(STYLE):
        drawn = _frontier(runs, task, ax or _new_axes(5, 3.6))
    if drawn is None:
        raise UserError(f"{task} has no metric of forgetting with one of keeping", "use plot_bars")
    return drawn


def plot_bars(
    results: Runs | Place | Iterable[Place], metric: str | None = None, task: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draws one metric as a bar for each run, with its 95 % interval; returns the matplotlib axes.

    Args:
        results: result files, folders of them, results, or what `read_runs` gave.
        metric: the metric; None is the one that is looked at first.
        task: the task; needed where there are several.
        ax: axes to draw on; None makes a figure.

    Raises:
        UserError: there is no result, no such task, or no such metric.
    """
    runs, task = _of_task(results, task)
    names = _metrics(runs, task)
    if metric is not None and metric not in names:
        raise unknown_name("metric", metric, names)
    with mpl.rc_context(STYLE):
        plot = ax or _new_axes(5, 0.9 + 0.22 * len(runs))
        _panel(plot, runs, runs, task, metric or headline(names)[0], named=True)
    return plot


def _of_task(results: Runs | Place | Iterable[Place], task: str | None) -> tuple[list[Run], str]:
    runs = results if isinstance(results, Runs) else read_runs(results)
    tasks = list(dict.fromkeys(task for run in runs.runs for task in run.result.metrics))
    if task is None and len(tasks) > 1:
        raise UserError(f"the results are of several tasks: {', '.join(tasks)}", f"say which: task={tasks[0]!r}")
    task = tasks[0] if task is None else task
    if task not in tasks:
        raise unknown_name("task", task, tasks)
    return [run for run in runs.runs if task in run.result.metrics], task


def _new_axes(width: float, height: float) -> Axes:
    """Axes of a figure that a notebook shows."""
    import matplotlib.pyplot

    axes: Axes = matplotlib.pyplot.subplots(figsize=(width, height), layout="constrained")[1]
    return axes


def _metrics(runs: list[Run], task: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.result.metrics[task]))


def _save(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "pdf")]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for path in paths:
            date = "Date" if path.suffix == ".svg" else "CreationDate"
            figure.savefig(path, bbox_inches="tight", metadata={date: None})
    except OSError as error:
        raise UserError(f"cannot write {error.filename or stem}: {error.strerror}", "give another --figures") from error
    return paths


def _figure(width: float, height: float, n_rows: int = 1, n_columns: int = 1) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _frontier(runs: list[Run], task: str, plot: Axes | None = None) -> Axes | None:
    """Forgetting against keeping, better being up and to the right; the line joins the runs that none beats in both."""
    forgets, keeps = frontier_axes(group_runs(runs), task)
    if forgets is None or keeps is None:
        return None
    points = []
    for run in runs:
        x, y = run.result.metrics[task].get(keeps), run.result.metrics[task].get(forgets)
        if x is not None and y is not None and x.value is not None and y.value is not None:
            points.append((run, x, y, x.value, y.value))
    if not points:
        return None
    plot = plot or _figure(5, 3.6)[1][0][0]
    assert plot is not None
    methods = _methods(runs)
    for run, x, y, x_value, y_value in points:
        style = methods.index(run.method)
        plot.errorbar(
            [x_value],
            [y_value],
            xerr=_arms(keeps, x),
            yerr=_arms(forgets, y),
            color=COLORS[style % 8],
            marker=MARKERS[style // 8 % 4],
            linestyle="none",
            ecolor=(COLORS[style % 8], 0.35),
            elinewidth=0.8,
            label=run.method,
        )
    edited = [point for point in points if point[0].method != NO_EDIT]
    line = pareto([(_up(x), _up(y)) for _, x, y, _, _ in edited])
    xs, ys = [edited[i][3] for i in line], [edited[i][4] for i in line]
    plot.plot(xs, ys, "--", color="0.45", linewidth=1, zorder=0)
    for inverted, axis in ((points[0][1], plot.xaxis), (points[0][2], plot.yaxis)):
        if inverted.higher_is_better is False:
            axis.set_inverted(True)
    plot.set_xlabel(f"{keeps}, better to the right")
    plot.set_ylabel(f"{forgets}, better upwards")
    plot.set_title(task)
    handles, labels = plot.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    plot.legend(list(known.values()), list(known), frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return plot


def pareto(points: list[tuple[float, float]]) -> list[int]:
    """The places of the points that no other one beats, larger being better in both, from right to left."""
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i)):
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept


def _bars(runs: list[Run], task: str) -> Figure:
    """One panel for each metric looked at first, one bar for each run, up to `MOST_BARS` of them."""
    names = headline(_metrics(runs, task))
    shown = runs[:MOST_BARS]
    n_columns = min(3, len(names)) or 1
    n_rows = -(-len(names) // n_columns) or 1
    figure, grid = _figure(3.0 * n_columns + 1, (0.5 + 0.22 * len(shown)) * n_rows + 0.4, n_rows, n_columns)
    for i in range(n_rows * n_columns):
        plot: Axes = grid[i // n_columns][i % n_columns]
        if i >= len(names):
            plot.set_axis_off()
            continue
        _panel(plot, runs, shown, task, names[i], named=i % n_columns == 0)
    more = f", the first {len(shown)} of {len(runs)} runs" if len(runs) > len(shown) else ""
    figure.suptitle(f"{task}{more}")
    return figure


def _panel(plot: Axes, runs: list[Run], shown: list[Run], task: str, name: str, named: bool) -> None:
    """One metric as bars, with the names of the runs if they are to be named."""
    methods = _methods(runs)
    for row, run in enumerate(shown):
        metric = run.result.metrics[task].get(name)
        if metric is None or metric.value is None:
            continue
        color = COLORS[methods.index(run.method) % 8]
        plot.barh(row, metric.value, color=color, alpha=0.75, xerr=_arms(name, metric), ecolor="0.2", height=0.7)
    first = next(run.result.metrics[task][name] for run in runs if name in run.result.metrics[task])
    arrow = {True: "↑", False: "↓", None: ""}[first.higher_is_better]
    plot.set_title(f"{name} {arrow}", fontsize=9, loc="left")
    labels = run_labels(group_runs(runs))
    plot.set_yticks(range(len(shown)), [labels[run.name] if named else "" for run in shown])
    plot.set_ylim(len(shown) - 0.4, -0.6)
    if meaning(name).bounds == (0, 1):
        plot.set_xlim(0, 1.02)


def _methods(runs: list[Run]) -> list[str]:
    return sorted({run.method for run in runs}, key=lambda method: (method != NO_EDIT, method))


def _up(metric: Metric) -> float:
    assert metric.value is not None
    return -metric.value if metric.higher_is_better is False else metric.value


def _arms(name: str, metric: Metric) -> list[list[float]] | None:
    """The two arms of the 95 % interval, as matplotlib wants them."""
    ends = interval(name, metric)
    if ends is None or metric.value is None:
        return None
    return [[metric.value - ends[0]], [ends[1] - metric.value]]
