"""What a study shows: its plan, how far it is, and its results, as rich tables or as plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from unlearn_eval.results.groups import Spread
from unlearn_eval.results.report.table import DIRECTIONS, reasons, value_text
from unlearn_eval.results.runs import result_summary
from unlearn_eval.results.schema import Metric, Result
from unlearn_eval.runs.study.costs import Cost
from unlearn_eval.runs.study.orders import order_effects
from unlearn_eval.runs.study.over_seeds import SECONDS, Column, over_seeds, value_of
from unlearn_eval.runs.study.plan import Cell, Plan
from unlearn_eval.utils.fitted_tables import FittedTable
from unlearn_eval.utils.terminal import gigabytes, styled

if TYPE_CHECKING:
    from unlearn_eval.runs.study.tune import Search

# The first of these that a task reports are shown, if the study does not say which.
BEST_KNOWN = (
    "forget_accuracy",
    "forget_paraphrase_accuracy",
    "forget_refusal_rate",
    "retain_accuracy",
    "neighbors_accuracy",
    "combined",
    "paraphrase_combined",
    "forget_rouge1",
    "retain_rouge1",
    "forget_quality",
    "model_utility",
    "forget_leak_mean",
    "forget_leak_worst",
    "forget_worst_item_rate",
    "kl",
)
_MOST_COLUMNS, _FIRST_COLUMNS, _IN_A_LINE = 6, 4, 3


def method_of(cell: Cell) -> str:
    """The method with its recipe, as people read it."""
    then = "" if cell.then is None else f", then {cell.then.name}"
    if cell.editor is None:
        return f"unedited{then}"
    recipe = "" if cell.recipe is None or cell.recipe.name == "plain" else f", {cell.recipe.name}"
    order = f", {cell.stage.order.replace('_', ' ')}" if cell.stage is not None and cell.stage.order else ""
    return f"{cell.editor.name}{recipe}{order}{then}"


def line_of(cell: Cell) -> str:
    """A cell in a few words."""
    return f"{cell.model.name}: {method_of(cell)} on {size_of(cell)} of {cell.forget}, seed {cell.seed}"


def size_of(cell: Cell) -> str:
    """How many items are forgotten, in words; of a sequence how many requests there were so far."""
    if cell.stage is not None:
        return str(cell.stage.mark)
    return "all" if cell.size is None else str(cell.size)


# The plan --------------------------------------------------------------------------------------------------


def plan_table(plan: Plan, states: Mapping[str, str], costs: Mapping[str, Cost | None]) -> Table:
    """One row for each model, method, recipe and forget set: its cells, and what is left to do."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault((cell.part, cell.model.name, method_of(cell), cell.forget), []).append(cell)
    attacks = ["attacks"] if any(cell.tries for cell in plan.cells) else []
    columns = ["model", "method", "forget", "items", "seeds", "cells", *attacks, "done", "time", "memory"]
    has_parts = any(cell.part for cell in plan.cells)
    table = _table("", *(["part"] if has_parts else []), *columns)
    for (part, model, method, forget), cells in groups.items():
        left = [costs[cell.key] for cell in cells if states[cell.key] != "done"]
        states_here = [states[cell.key] for cell in cells]
        failed = f", {states_here.count('failed')} failed" if "failed" in states_here else ""
        table.add_row(
            *([part] if has_parts else []),
            model,
            method,
            forget,
            ",".join(dict.fromkeys(size_of(cell) for cell in cells)),
            ",".join(dict.fromkeys(str(cell.seed) for cell in cells)),
            str(len(cells)),
            *([str(sum(len(cell.tries) for cell in cells)) for _ in attacks]),
            f"{states_here.count('done')}{failed}",
            duration(sum(cost.seconds for cost in left if cost)) if any(left) else "–",
            _most(left),
        )
    return table


def _most(costs: Sequence[Cost | None]) -> str:
    """The most memory of some cells, as far as it is known."""
    known = [cost.memory_bytes for cost in costs if cost is not None and cost.memory_bytes is not None]
    return gigabytes(max(known)) if known else "–"


def search_lines(searches: Sequence[Search], costs: Mapping[str, Cost | None]) -> list[str]:
    """How much is searched, and about how long that takes.

    Args:
        searches: of the study.
        costs: of their untuned cells on the validation documents.
    """
    if not searches:
        return []
    tune, known = searches[0].tune, [cost for own in searches if (cost := costs[own.untuned.key]) is not None]
    each = f"{tune.trials} trials" if tune.trials is not None else f"about {duration(float(tune.seconds or 0))}"
    goal = f"{'most' if tune.maximizes else 'least'} {tune.goal[1]}"
    bar = f" at {tune.bar[2]:.0%} of {tune.bar[1]}" if tune.bar else ""
    lines = [f"tuning: {len(searches)} searches of {each} for {goal}{bar}, on {tune.validation:.0%} of the documents"]
    if tune.trials is None:
        lines.append(f"about {duration(float(tune.seconds or 0) * len(searches))} in all for the trials")
    elif len(known) == len(searches):
        total = sum(cost.seconds for cost in known) * tune.trials * (1 + tune.screen)
        lines.append(f"about {duration(total)} for the trials, and a cell for each seed of what is chosen")
    return lines


def plan_lines(
    plan: Plan, states: Mapping[str, str], costs: Mapping[str, Cost | None], warnings: Sequence[str] = ()
) -> list[str]:
    """The sum of the plan, and what its estimates rest on."""
    values = list(states.values())
    left = [key for key, state in states.items() if state == "to do"]
    known = [cost for key in left if (cost := costs[key]) is not None]
    failed = f", {values.count('failed')} failed before (--retry-failed runs them again)" if "failed" in values else ""
    lines = [f"{len(values)} cells: {values.count('done')} done, {len(left)} to do{failed}"]
    lines += [*_attack_lines(plan.cells), *_localization_lines(plan.cells)]
    if known:
        sources = " and ".join(dict.fromkeys(cost.source for cost in known))
        total = sum(cost.seconds for cost in known)
        lines.append(f"about {duration(total)} and up to {_most(known)}, by {sources}")
    if len(known) < len(left):
        lines.append(f"nothing is known of the cost of {len(left) - len(known)} cells: their model's size is not known")
    return lines + [f"note: {warning}" for warning in (*plan.warnings, *warnings)]


def _attack_lines(cells: Sequence[Cell]) -> list[str]:
    """How many attacks there are: on each edit, in all, and on models without an edit."""
    attacked = [cell for cell in cells if cell.tries]
    if not attacked:
        return []
    n = sum(len(cell.tries) for cell in attacked)
    alone = {own.control_key for cell in attacked for own in cell.tries} - {""}
    each = dict.fromkeys(len(cell.tries) for cell in attacked)
    names = dict.fromkeys(own.attack.name for cell in attacked for own in cell.tries)
    return [
        f"{n} attacks: {' or '.join(map(str, each))} on each of {len(attacked)} edits ({', '.join(names)}),"
        f" and {len(alone)} on models without an edit, once for all of theirs"
    ]


def _localization_lines(cells: Sequence[Cell]) -> list[str]:
    """How many localizations there are, and how many edits share them."""
    located = [cell.located for cell in cells if cell.located is not None]
    if not located:
        return []
    names = dict.fromkeys(own.wanted.method for own in located)
    return [f"{len({own.key for own in located})} localizations for {len(located)} edits ({', '.join(names)})"]


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# While it runs ---------------------------------------------------------------------------------------------


@dataclass
class Board:
    """Shows how far a study is: a table that is drawn anew on a terminal, else a line for each thing.

    Attributes:
        console: where.
        cells: all of the plan.
        states: by key: done, failed, to do, running.
        shown: metrics to be shown; none: the best known.
        costs: estimates, to say how long it will still take.
        log: is given each result as it comes, and its cell's name.
    """

    console: Console
    cells: Sequence[Cell]
    states: dict[str, str]
    shown: tuple[str, ...] = ()
    costs: Mapping[str, Cost | None] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    running: dict[str, tuple[str, float]] = field(default_factory=dict)
    log: Callable[[Result, str], None] | None = None
    _live: Live | None = None
    _told: float = 0.0

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw within a `with` block."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, get_renderable=self._draw, refresh_per_second=4, transient=True) as self._live:
            yield
        self._live = None

    def add(self, cells: Sequence[Cell], states: Mapping[str, str], results: Mapping[str, Result]) -> None:
        """Cells that were planned while others ran."""
        known = {own.key for own in self.cells}
        self.cells = (*self.cells, *(cell for cell in cells if cell.key not in known))
        self.states.update(states)
        self.results.update(results)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(styled(text), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line where lines are written, and nothing where a table is drawn anew."""
        self._line(text)

    def begin(self, cell: Cell) -> None:
        """A cell is begun."""
        self.states[cell.key] = "running"
        self.running[cell.key] = ("", time.monotonic())
        self._line(f"[{self._place(cell)}] {line_of(cell)}")

    def step(self, cell: Cell, text: str) -> None:
        """A cell is at another step."""
        self.running[cell.key] = (text, self.running[cell.key][1])
        self._line(f"    {text}")

    def progress(self, cell: Cell, what: str, done: int, total: int) -> None:
        """How far that step is; a line at most every ten seconds."""
        if self._live is not None:
            self.running[cell.key] = (f"{what}: {done} of {total}", self.running[cell.key][1])
        elif total > 1 and time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            self._line(f"    {what}: {done} of {total}")

    def done(self, cell: Cell, result: Result) -> None:
        """A cell has its result, or has failed."""
        _, began = self.running.pop(cell.key, ("", None))
        self.states[cell.key] = "done" if result.status == "complete" else "failed"
        self.results[cell.key] = result
        what = line_of(cell) if began is None else f"in {duration(time.monotonic() - began)}"
        said = headline(result, self.shown) if result.status == "complete" else f"failed: {result.notes[0]}"
        self._line(f"[{self._place(cell)}] {what}: {said}")
        if self.log is not None:
            self.log(result, cell.name)

    def _place(self, cell: Cell) -> str:
        return f"{[own.key for own in self.cells].index(cell.key) + 1}/{len(self.cells)}"

    def _line(self, text: str) -> None:
        if self._live is None:
            self.console.print(styled(text), soft_wrap=True)

    def _draw(self) -> Any:
        """The newest results, what is running, and how much is left, as much as fits on the screen."""
        table = _table("", "cell", "state", "so far")
        widest = max(len(line_of(cell)) for cell in self.cells)  # the last column is what a narrow screen cuts
        table.columns[0].min_width, table.columns[1].min_width = min(widest, self.console.width // 2), len("failed")
        room = max(4, self.console.size.height - 8)
        finished = [cell for cell in self.cells if cell.key in self.results]
        for cell in finished[-room:]:
            result = self.results[cell.key]
            good = result.status == "complete"
            said = headline(result, self.shown) if good else result.notes[0]
            table.add_row(
                line_of(cell),
                styled("done", "green") if good else styled("failed", "red"),
                styled(said, overflow="ellipsis"),
            )
        for cell in self.cells:
            if cell.key in self.running:
                step, began = self.running[cell.key]
                table.add_row(
                    line_of(cell), styled("runs", "yellow"), styled(f"{duration(time.monotonic() - began)}  {step}")
                )
        states = list(self.states.values())
        counts = f"{states.count('done')} of {len(states)} cells done"
        failed = f", {states.count('failed')} failed" if "failed" in states else ""
        left = sum(
            cost.seconds for key, cost in self.costs.items() if cost and self.states[key] in ("to do", "running")
        )
        about = f", about {duration(left)} left" if left else ""
        return Group(table, styled(counts + failed + about + "; Ctrl-C stops, the same command goes on"))


# The results -----------------------------------------------------------------------------------------------


def result_tables(cells: Sequence[Cell], results: Mapping[str, Result], shown: tuple[str, ...] = ()) -> list[Any]:
    """One table for each part, task and forget set: a row for each cell, a column for each of the shown metrics."""
    tables: list[Any] = []
    groups: dict[tuple[str, str, str], list[tuple[Cell, Result]]] = {}
    for cell in cells:
        result = results.get(cell.key)
        if result is not None and result.status == "complete":
            for task in result.metrics:
                groups.setdefault((cell.part, cell.forget, task), []).append((cell, result))
    models, seeds = {cell.model.name for cell in cells}, {cell.seed for cell in cells}
    for (part, forget, task), rows in groups.items():
        first = rows[0][1].metrics[task]
        names = metrics_shown(task, first, shown)
        titles = [f"{name.replace('_', ' ')} {DIRECTIONS[first[name].higher_is_better]}".strip() for name in names]
        title = " · ".join(text for text in (part, task, forget) if text)
        who = [*(["model"] if len(models) > 1 else []), "method", "items", *(["seed"] if len(seeds) > 1 else [])]
        table = _table(title, *who, *titles)
        for cell, result in rows:
            own = {"model": cell.model.name, "method": method_of(cell), "items": size_of(cell), "seed": str(cell.seed)}
            values = [_number(result.metrics[task].get(name)) for name in names]
            table.add_row(*(own[column] for column in who), *values)
        tables.append(table)
    tables += _published_tables(cells, results)
    tables += _order_tables(cells, results, shown)
    missing = reasons([_only(result, shown) for result in results.values()])
    tables += seed_tables(cells, results, shown) if len(seeds) > 1 else []
    return [*tables, *(styled(line) for line in missing)]


def _order_tables(cells: Sequence[Cell], results: Mapping[str, Result], shown: tuple[str, ...]) -> list[Any]:
    """The shown metrics at the ends of two orders of learning and forgetting, with the paired test of their change."""
    table = _table("does the order matter?", "method", "metric", "first", "second", "change", "p", "n")
    for effect in order_effects(cells, results):
        for row in effect.rows:
            first = results[effect.first.key].metrics.get(row.task, {})
            if row.difference is None or row.metric not in metrics_shown(row.task, first, shown):
                continue
            name = f"{method_of(effect.first)}, then {method_of(effect.second).rpartition(', ')[2]}"
            p = "–" if row.paired is None or row.paired.p_value is None else f"{row.paired.p_value:.3f}"
            n = "–" if row.paired is None else str(row.paired.n)
            metric = f"{row.task.removeprefix('unlearn_')} {row.metric}".replace("_", " ")
            table.add_row(name, metric, _number(row.before), _number(row.after), f"{row.difference:+.3f}", p, n)
    return [table] if table.row_count else []


def _published_tables(cells: Sequence[Cell], results: Mapping[str, Result]) -> list[Any]:
    """Each number that others have published of an unedited model or of a method, beside ours."""
    rows = []
    for cell in cells:
        beside, result = cell.published, results.get(cell.key)
        if beside is None or result is None or result.status != "complete":
            continue
        name = cell.model.name if cell.editor is None else f"{cell.model.name}, {method_of(cell)}"
        for metric, theirs in beside.values.items():
            ours = value_of(result, (beside.task, metric))
            numbers = ("–", "–") if ours is None else (f"{ours:.3f}", f"{ours - theirs:+.3f}")
            rows.append((name, metric.replace("_", " "), numbers[0], f"{theirs:.3f}", numbers[1]))
    if not rows:
        return []
    sources = dict.fromkeys(cell.published.source for cell in cells if cell.published)
    table = _table(
        f"beside what is published: {', '.join(sources)}", "model", "metric", "here", "published", "difference"
    )
    for row in rows:
        table.add_row(*row)
    return [table]


def seed_tables(cells: Sequence[Cell], results: Mapping[str, Result], shown: tuple[str, ...] = ()) -> list[Any]:
    """One table for each part and forget set: a row for each method with means over seeds, all tasks beside each other.

    Behind each mean stands the standard deviation over seeds; of what it costs there are seconds.
    """
    tables: list[Any] = []
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.key in results and results[cell.key].status == "complete":
            groups.setdefault((cell.part, cell.forget), []).append(cell)
    models = {cell.model.name for cell in cells}
    for (part, forget), own in groups.items():
        headings = _columns([results[cell.key] for cell in own], shown)
        title = " · ".join(text for text in (part, forget, "mean ± standard deviation over seeds") if text)
        who = [*(["model"] if len(models) > 1 else []), "method", "items", "seeds"]
        table = _table(title, *who, *headings.values())
        for row in over_seeds(own, results, list(headings)):
            cell = row.cell
            words = {"model": cell.model.name, "method": method_of(cell), "items": size_of(cell), "seeds": str(row.n)}
            values = [_with_deviation(row.values[column], not column[0]) for column in headings]
            table.add_row(*(words[column] for column in who), *values)
        tables.append(table)
    return tables


def _columns(results: Sequence[Result], shown: tuple[str, ...]) -> dict[Column, str]:
    """What is shown of all tasks together, with its heading: the metric, and the task where two have it.

    In the order in which the study names them, if it does.
    """
    directions: dict[Column, bool | None] = {}
    for result in results:
        for task, metrics in result.metrics.items():
            names = _named(task, metrics, shown) if shown else metrics_shown(task, metrics, shown)
            directions |= {(task, name): metrics[name].higher_is_better for name in names}
    if shown:
        place = {name: i for i, name in reversed(list(enumerate(shown)))}
        order = sorted(directions, key=lambda own: place.get("/".join(own), place.get(own[1], len(shown))))
        directions = {column: directions[column] for column in order}
    names = [name for _, name in directions]
    headings = {
        (task, name): " ".join(
            [*([task.removeprefix("unlearn_")] if names.count(name) > 1 else []), name, DIRECTIONS[better]]
        ).replace("_", " ").strip()
        for (task, name), better in directions.items()
    }  # fmt: skip
    timed = [name for name in SECONDS if any(value_of(result, ("", name)) is not None for result in results)]
    return headings | {("", name): SECONDS[name] for name in timed}


def _with_deviation(found: Spread, seconds: bool) -> str:
    """`0.123 ±0.045`; of seconds whole ones; a dash for what is undefined."""
    if found.mean is None:
        return "–"
    digits = 0 if seconds else 3
    deviation = "" if found.deviation is None else f" ±{found.deviation:.{digits}f}"
    return f"{found.mean:.{digits}f}{deviation}"


def plan_summary(cells: Sequence[Cell], states: Mapping[str, str], costs: Mapping[str, Cost | None]) -> dict[str, Any]:
    """The plan as JSON has it."""
    known = {
        key: None if cost is None else {"seconds": cost.seconds, "bytes": cost.memory_bytes}
        for key, cost in costs.items()
    }
    return {"cells": [{**_about(cell), "state": states[cell.key], "cost": known.get(cell.key)} for cell in cells]}


def study_summary(cells: Sequence[Cell], states: Mapping[str, str], results: Mapping[str, Result]) -> dict[str, Any]:
    """The results of a study as JSON has them."""
    found = []
    for cell in cells:
        result = results.get(cell.key)
        found.append(
            {**_about(cell), "state": states[cell.key], "result": None if result is None else result_summary(result)}
        )
    orders = [
        {"first": effect.first.key, "second": effect.second.key, "metrics": [row.record for row in effect.rows]}
        for effect in order_effects(cells, results)
    ]
    return {"cells": found, **({"orders": orders} if orders else {})}


def _about(cell: Cell) -> dict[str, Any]:
    own = {"key": cell.key, "name": cell.name, "model": cell.model.name, "method": method_of(cell)}
    return {**own, "forget": cell.forget, "size": cell.size, "seed": cell.seed}


def metrics_shown(task: str, metrics: Mapping[str, Metric], shown: tuple[str, ...]) -> list[str]:
    """The metrics of a task that are shown: those that are named alone, or as `TASK/METRIC`."""
    if shown:
        return _named(task, metrics, shown) or list(metrics)[:_FIRST_COLUMNS]
    return [name for name in BEST_KNOWN if name in metrics][:_MOST_COLUMNS] or list(metrics)[:_FIRST_COLUMNS]


def _named(task: str, metrics: Mapping[str, Metric], shown: tuple[str, ...]) -> list[str]:
    return [own for name in shown if (own := name.removeprefix(f"{task}/")) in metrics]


def headline(result: Result, shown: tuple[str, ...]) -> str:
    """The first of the shown metrics of each task, in a line."""
    parts = []
    for task, metrics in result.metrics.items():
        names = metrics_shown(task, metrics, shown)
        parts += [f"{name} {_number(metrics[name])}" for name in names if metrics[name].value is not None][:_IN_A_LINE]
    return ", ".join(parts)


def _number(metric: Metric | None) -> str:
    """`0.123`; the standard errors are in the result files."""
    return value_text(metric).partition(" ")[0]


def _only(result: Result, shown: tuple[str, ...]) -> Result:
    """A result with its shown metrics alone."""
    metrics = {
        task: {name: own[name] for name in metrics_shown(task, own, shown)} for task, own in result.metrics.items()
    }
    return replace(result, metrics=metrics)


def _table(title: str, *columns: str) -> Table:
    table = FittedTable(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in columns:
        words = column in ("part", "model", "method", "forget", "cell", "state", "so far")
        wraps = " " in column and not words  # the name of a metric
        table.add_column(
            column, justify="left" if words else "right", no_wrap=not wraps, max_width=12 if wraps else None
        )
        table.n_names = max(table.n_names, len(table.columns) if words else 1)
    return table
