"""The search for settings: trials of each method with the same budget, judged on documents that no result is of.

A trial is an ordinary cell: the method with sampled settings, asked the goal's and the bar's tasks on the validation
portion of their documents. So it runs where cells run, is computed once, and shares its edit with any other cell of the
same settings. Optuna samples (TPE, with the bar as a constraint) and drops trials that are worse than the median where
the study has a `screen`. Its journal lies in the study's folder, `shared/tune/NAME-KEY.log`. Each sampler's random
numbers follow the seed and the number of the trial: a search that was killed goes on with the trials that it would have
had, wherever its cells run.

The chosen settings are those of the best trial that kept the bar, the untuned ones among them; where none kept it, of
the trial that came nearest. They are reported as `NAME-tuned`, for every seed of the study, on the other documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from unlearn_eval.editing.editor import get_editor
from unlearn_eval.editing.spaces import Range, Space, samples_of, space_of, text_of
from unlearn_eval.harness.options import VALIDATION
from unlearn_eval.results.schema import Result
from unlearn_eval.runs.study.plan import (
    Cell,
    Plan,
    Planner,
    Trial,
    cells_of,
    in_portion,
    is_tuned,
    reported,
    space_given,
    takes_portions,
)
from unlearn_eval.runs.study.spec import EditorSpec, Part, TaskSpec, Tune
from unlearn_eval.runs.study.store import Store
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.json_files import dumps, write_all
from unlearn_eval.utils.provenance import hash_json
from unlearn_eval.utils.settings import configure

STARTUP, MEDIAN_OF = 6, 4  # trials that are drawn at random; trials before one can be dropped
Run = Callable[[list[Cell]], Any]


@dataclass(frozen=True)
class Search:
    """The search for one method's settings, on one model and set.

    Attributes:
        part: of the study, narrowed to this method, model, recipe, set and size, with the search's seed.
        whole: the same with all that is to be reported.
        editor: the method, untuned.
        space: where to look.
        base, untuned: the cells of the unedited model and of the untuned method on the validation documents.
        key: of everything that the search depends on but its budget.
    """

    part: Part
    whole: Part
    editor: EditorSpec
    space: Space
    base: Cell
    untuned: Cell
    key: str

    @property
    def tune(self) -> Tune:
        """What is searched, and how."""
        assert self.part.tune is not None
        return self.part.tune

    @property
    def name(self) -> str:
        """For files and people."""
        return self.untuned.name

    def cell(self, number: int, settings: Mapping[str, str], planner: Planner, screen: float = 0.0) -> Cell:
        """The cell of a trial, or that of its first look."""
        part = self.part if not screen else replace(self.part, tasks=tuple(_some(t, screen) for t in self.part.tasks))
        spec = replace(self.editor, name=f"{self.editor.name}-t{number}", settings={**self.editor.settings, **settings})
        *_, edited = cells_of(replace(part, editors=(spec,)), planner)
        return replace(edited, trial=Trial(self.editor.name, number, "trial", settings))

    def tuned(self, settings: Mapping[str, str], planner: Planner) -> list[Cell]:
        """The cells that report the chosen settings."""
        spec = replace(self.editor, name=f"{self.editor.name}-tuned", settings={**self.editor.settings, **settings})
        found = [cell for cell in cells_of(replace(self.whole, editors=(spec,)), planner) if cell.editor is not None]
        return [replace(cell, trial=Trial(self.editor.name, None, "tuned", settings)) for cell in found]


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Attributes:
        number: of the trial; -1 of the untuned settings.
        settings: that were searched.
        state: `complete`, `dropped` or `failed`.
        value: the goal's; None if it has none.
        excess: by how much the bar was kept (below 0: missed); 0 without one.
        seconds: what it took.
    """

    number: int
    settings: Mapping[str, str]
    state: str
    value: float | None = None
    excess: float = 0.0
    seconds: float = 0.0


# What is searched ------------------------------------------------------------------------------------------


def searches_of(plan: Plan) -> list[Search]:
    """The searches of a study, each method's space checked against the method.

    Raises:
        UserError: an editor that is not there, has no space or does not take a setting; a goal of a task that the study
            does not ask or whose documents cannot be divided.
    """
    assert plan.planner is not None
    return [search for part in plan.study.parts if part.tune for search in _searches(part, part.tune, plan.planner)]


def _searches(part: Part, tune: Tune, planner: Planner) -> Iterator[Search]:
    known = [editor.name for editor in part.editors]
    for name in [*tune.editors, *(own for own in tune.spaces if own not in {e.editor for e in part.editors})]:
        if name not in known:
            raise unknown_name("editor in tune", name, known)
    for name in tune.recipes:
        if name not in {own.name for own in part.recipes}:
            raise unknown_name("recipe in tune", name, [own.name for own in part.recipes])
    asked = {task.task: task for task in in_portion(part, VALIDATION)}
    for task in tune.tasks:
        if task not in asked:
            raise unknown_name("task in tune", task, asked)
        if not takes_portions(task):
            raise UserError(
                f"tune: the documents of {task} cannot be divided for validation", "take another task as goal or bar"
            )
    tasks = tuple(asked[name] for name in tune.tasks)
    for editor in part.editors:
        if not is_tuned(part, editor):
            continue
        space = space_of(editor.editor, space_given(tune, editor))
        for settings in samples_of(space):
            _check(editor, settings)
        for cell in _places(part, editor):
            narrowed = replace(
                cell, tasks=tasks, seeds=(tune.seed,), backends=part.backends[:1], attacks=(), editors=(editor,)
            )
            for recipe in (own for own in narrowed.recipes if not tune.recipes or own.name in tune.recipes):
                own = replace(narrowed, recipes=(recipe,), editors=(replace(editor, recipes=None),))
                base, untuned = cells_of(own, planner)
                about = [untuned.key, {n: _plain(v) for n, v in space.items()}, tune.goal, tune.bar, tune.screen]
                yield Search(
                    part=own,
                    whole=replace(
                        reported(part), models=own.models, recipes=own.recipes, forget=own.forget, sizes=own.sizes
                    ),
                    editor=own.editors[0],
                    space=space,
                    base=replace(base, trial=Trial(editor.name, None, "trial")),
                    untuned=replace(untuned, trial=Trial(editor.name, -1, "trial")),
                    key=hash_json([*about, tune.seed]),
                )


def _places(part: Part, editor: EditorSpec) -> Iterator[Part]:
    """The part once for each model, set and size, with the recipes of an editor."""
    recipes = tuple(own for own in part.recipes if editor.recipes is None or own.name in editor.recipes)
    for model in part.models:
        for forget in part.forget:
            for size in part.sizes:
                yield replace(part, models=(model,), forget=(forget,), sizes=(size,), recipes=recipes)


def _check(editor: EditorSpec, settings: Mapping[str, str]) -> None:
    try:
        configure(get_editor(editor.editor).Config, settings)
    except UserError as error:
        raise UserError(f"tune: the space of {editor.name}: {error.message}", error.hint) from error


def _plain(values: Range | tuple[str, ...]) -> Any:
    return asdict(values) if isinstance(values, Range) else list(values)


def _some(task: TaskSpec, share: float) -> TaskSpec:
    """A task with a share of the documents that it would be asked."""
    if task.limit is None:
        return replace(task, limit=share)
    return replace(task, limit=max(1, int(task.limit * share)) if task.limit >= 1 else task.limit * share)


# The search ------------------------------------------------------------------------------------------------


@dataclass
class _Study:
    """A search with Optuna's study of it."""

    search: Search
    store: Store
    planner: Planner
    bar: float | None = None
    best: Outcome | None = None
    study: Any = None
    waiting: list[Any] = field(default_factory=list)

    def open(self) -> None:
        """Read the journal, or begin it; trials that were cut off come first."""
        optuna = _optuna()
        path = self.store.shared("tune", f"{self.search.name}-{self.search.key[:12]}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=_OnlyWriter())
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=self.search.key,
            load_if_exists=True,
            direction="maximize" if self.search.tune.maximizes else "minimize",
            sampler=self._sampler(0),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=MEDIAN_OF),
        )
        running = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        self.waiting = [optuna.trial.Trial(self.study, own._trial_id) for own in running]

    def _sampler(self, number: int) -> Any:
        optuna = _optuna()
        seed = int(hash_json([self.search.tune.seed, self.search.key, number])[:8], 16)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP, constraints_func=lambda trial: (-trial.user_attrs["excess"],)
        )

    def is_open(self) -> bool:
        """Whether the budget leaves another trial."""
        tune, done = self.search.tune, self.outcomes()
        if tune.trials is not None:
            return len(done) < tune.trials
        return sum(own.seconds for own in done) < (tune.seconds or 0)

    def ask(self) -> tuple[Any, dict[str, str]]:
        """The next trial and its settings."""
        if self.waiting:
            trial = self.waiting.pop(0)
            self.study.sampler = self._sampler(trial.number)
        else:
            self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
            trial = self.study.ask()
        return trial, {name: _suggested(trial, name, values) for name, values in self.search.space.items()}

    def screened(self, trial: Any, result: Result | None) -> bool:
        """Whether a trial goes on after its first look."""
        found = self._judged(trial.number, {}, result)
        if found.value is None:
            self._tell(trial, found)
            return False
        trial.report(self._rank(found), step=0)
        if trial.should_prune():
            self._tell(trial, replace(found, state="dropped"))
            return False
        return True

    def _rank(self, found: Outcome) -> float:
        """A number by which trials can be compared: what missed the bar is worse than whatever kept it."""
        assert found.value is not None
        worst = -1e6 if self.search.tune.maximizes else 1e6
        return found.value if found.excess >= 0 else worst * (1 - found.excess)

    def tell(self, trial: Any, settings: Mapping[str, str], result: Result | None) -> None:
        """What a trial came to."""
        self._tell(trial, self._judged(trial.number, settings, result))

    def _tell(self, trial: Any, found: Outcome) -> None:
        states = _optuna().trial.TrialState
        trial.set_user_attr("excess", found.excess)
        trial.set_user_attr("seconds", found.seconds)
        state = {"complete": states.COMPLETE, "dropped": states.PRUNED, "failed": states.FAIL}[found.state]
        self.study.tell(trial, found.value if found.state == "complete" else None, state=state)

    def _judged(self, number: int, settings: Mapping[str, str], result: Result | None) -> Outcome:
        if result is None or result.status != "complete":
            return Outcome(number, settings, "failed")
        tune, timing = self.search.tune, result.timing
        seconds = timing.get("editing_seconds", 0.0) + timing.get("evaluation_seconds", 0.0)
        value = value_of(result, tune.goal)
        if value is None:
            return Outcome(number, settings, "failed", seconds=seconds)
        excess = 0.0
        if tune.bar is not None and self.bar is not None:
            excess = (value_of(result, tune.bar[:2]) or 0.0) - self.bar
        return Outcome(number, settings, "complete", value, excess, seconds)

    def begin(self) -> None:
        """Read what the unedited model and the untuned method have on the validation documents.

        Raises:
            UserError: a metric is not there, or the unedited model failed or has none.
        """
        search, tune = self.search, self.search.tune
        base = self.store.result(search.base.name, search.base.key)
        if base is None or base.status != "complete":
            raise UserError(
                f"the unedited model of {search.name} has no result to tune by", "see why it failed, and --retry-failed"
            )
        for task, metric in (tune.goal, *([tune.bar[:2]] if tune.bar else [])):
            if metric not in base.metrics[task]:
                raise unknown_name(f"metric of {task} in tune", metric, base.metrics[task])
        if tune.bar is not None:
            value = value_of(base, tune.bar[:2])
            if value is None:
                raise UserError(f"the unedited model of {search.name} has no {tune.bar[1]}", "take another subject_to")
            self.bar = tune.bar[2] * value
        self.best = self._judged(-1, {}, self.store.result(search.untuned.name, search.untuned.key))

    def outcomes(self) -> list[Outcome]:
        """The trials that have ended."""
        names = {"COMPLETE": "complete", "PRUNED": "dropped", "FAIL": "failed"}
        found = []
        for own in self.study.get_trials(deepcopy=False):
            if own.state.name in names:
                about, state = own.user_attrs, names[own.state.name]
                value = own.value if state == "complete" else None
                settings = {name: _text(own.params[name], values) for name, values in self.search.space.items()}
                found.append(
                    Outcome(own.number, settings, state, value, about.get("excess", 0.0), about.get("seconds", 0.0))
                )
        return found

    def chosen(self) -> Outcome:
        """The best trial that kept the bar, or that came nearest; the untuned settings where no trial is better."""
        sign = -1 if self.search.tune.maximizes else 1
        able = [own for own in (self.best, *self.outcomes()) if own is not None and own.value is not None]
        if not able:
            return Outcome(-1, {}, "failed")
        return min(able, key=lambda own: (max(0.0, -own.excess), sign * float(own.value or 0.0)))

    def write(self) -> None:
        """The trials and the choice as JSON, for people."""
        search = self.search
        path = search_file(self.store, search)
        content = {
            "editor": search.editor.name,
            "goal": "/".join(search.tune.goal),
            "bar": self.bar,
            "untuned": None if self.best is None else asdict(self.best),
            "chosen": asdict(self.chosen()),
            "trials": [asdict(own) for own in self.outcomes()],
        }
        write_all({path.name: dumps(content, indent=2) + "\n"}, path.parent)

    def line(self) -> str:
        """What the search found, in a line."""
        tune, chosen, done = self.search.tune, self.chosen(), self.outcomes()
        counts = [f"{n} {state}" for state in ("dropped", "failed") if (n := sum(o.state == state for o in done))]
        told = f" ({', '.join(counts)})" if counts else ""
        head = f"{self.search.name}: {len(done)} trials{told}"
        if chosen.value is None:
            return f"{head}, none with a {tune.goal[1]}"
        was = "none" if self.best is None or self.best.value is None else f"{self.best.value:.3g}"
        values = f"{tune.goal[1]} {was} untuned, {chosen.value:.3g} tuned"
        missed = f"; {tune.bar[1]} is {-chosen.excess:.3g} below its bar" if tune.bar and chosen.excess < 0 else ""
        settings = " ".join(f"{name}={value}" for name, value in chosen.settings.items()) or "the untuned settings"
        return f"{head}: {values} on the validation documents{missed}; chosen: {settings}"


def search_file(store: Store, search: Search) -> Path:
    """Where a search's trials and choice are written."""
    return store.shared("tune", f"{search.name}-{search.key[:12]}.json")


def tune_all(
    plan: Plan, store: Store, run: Run, say: Callable[[str], Any], progress: Callable[[str], Any]
) -> list[Cell]:
    """Search for every method; the cells that report what was chosen, not yet run.

    Args:
        plan: the study's plan.
        store: its folder.
        run: runs those of some cells that have no result.
        say: told what each search has found.
        progress: told how far the searches are.

    Raises:
        UserError: Optuna is not installed, or as in `searches_of`.
    """
    assert plan.planner is not None
    studies = [_Study(search, store, plan.planner) for search in searches_of(plan)]
    run([cell for own in studies for cell in (own.search.base, own.search.untuned)])
    for own in studies:
        own.begin()
        own.open()
    while at_work := [own for own in studies if own.is_open()]:
        n = [len(own.outcomes()) for own in studies]
        progress(f"tuning: {sum(n)} trials of {len(studies)} searches are done")
        _round(at_work, store, run)
    cells: list[Cell] = []
    for own in studies:
        own.write()
        say(own.line())
        if own.chosen().settings:
            cells += own.search.tuned(own.chosen().settings, plan.planner)
    return cells


def _round(studies: Sequence[_Study], store: Store, run: Run) -> None:
    """One trial of each search."""
    asked = [(own, *own.ask()) for own in studies]
    screens = []
    for own, trial, settings in asked:
        screen = own.search.tune.screen
        screens.append(own.search.cell(trial.number, settings, own.planner, screen) if screen else None)
    run([cell for cell in screens if cell is not None])
    left = [
        (own, trial, settings)
        for (own, trial, settings), cell in zip(asked, screens, strict=True)
        if cell is None or own.screened(trial, store.result(cell.name, cell.key))
    ]
    cells = [own.search.cell(trial.number, settings, own.planner) for own, trial, settings in left]
    run(cells)
    for (own, trial, settings), cell in zip(left, cells, strict=True):
        own.tell(trial, settings, store.result(cell.name, cell.key))


def value_of(result: Result, column: tuple[str, ...]) -> float | None:
    """A metric's value."""
    task, name = column
    metric = result.metrics.get(task, {}).get(name)
    return None if metric is None else metric.value


def _suggested(trial: Any, name: str, values: Range | tuple[str, ...]) -> str:
    if not isinstance(values, Range):
        return str(trial.suggest_categorical(name, values))
    if values.whole:
        return _text(trial.suggest_int(name, int(values.low), int(values.high), log=values.log), values)
    return _text(trial.suggest_float(name, values.low, values.high, log=values.log), values)


def _text(value: Any, values: Range | tuple[str, ...]) -> str:
    return text_of(value, values.whole) if isinstance(values, Range) else str(value)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("tune needs Optuna, which is not installed", "pip install 'unlearn-eval[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class _OnlyWriter:
    """No lock: who runs a study holds that of its folder, which a killed process does not leave behind."""

    def acquire(self) -> bool:
        """Nothing to wait for."""
        return True

    def release(self) -> None:
        """Nothing to let go."""


def _mend(path: Path) -> None:
    """Take away a last line that was being written when the process was killed."""
    if path.is_file():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            path.write_bytes(whole)
