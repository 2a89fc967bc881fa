"""From a study to its cells: every combination checked, and keyed by all that its result depends on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from unlearn_eval.data.benchmark import Chosen
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.editing.from_file import editor_file
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.spaces import SPACES
from unlearn_eval.harness.backends import check_vllm
from unlearn_eval.harness.options import REPORT
from unlearn_eval.runs.study.attacked import Try, check_facts, check_kinds, missing_references, tries_of
from unlearn_eval.runs.study.cells.told import (
    LEARNED,
    MODEL,
    OTHERS,
    REFERENCE,
    STOP,
    TAUGHT,
    asked_of,
    can_keep,
    choose,
    depends_on_set,
    forget_set,
    keeps_what_is_known,
    reference_model,
    told,
)
from unlearn_eval.runs.study.file import FORGET_FIRST, LEARN_FIRST, TOGETHER
from unlearn_eval.runs.study.identity import OF_SOME_CELLS, Identities, code_hash, code_of_cell
from unlearn_eval.runs.study.located import Located, check_located, located_of, names_components
from unlearn_eval.runs.study.spec import (
    Beside,
    EditorSpec,
    Finetune,
    ModelSpec,
    Part,
    RecipeSpec,
    RequestSequence,
    Study,
    TaskSpec,
    ThenSpec,
    Tune,
)
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.provenance import hash_json

_OF_CELLS = ("seed", "chat", "system", "chat_template_kwargs")  # of a recipe: a cell has its own
_VARIABLES = ("UNLEARN_EVAL_ENCODER", "UNLEARN_EVAL_RETAIN_REFERENCE")


@dataclass(frozen=True)
class Ask:
    """One task of a cell.

    Attributes:
        task: with its settings.
        key: of everything that the answers depend on.
        n_documents: how many there are, if that is known.
        reference: hash of what identifies the retain-only model that it compares with; None without such a model.
    """

    task: TaskSpec
    key: str
    n_documents: int | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Trial:
    """What a cell is to a search for settings.

    Attributes:
        of: the editor that is tuned.
        number: of the trial; None of a result that is reported.
        state: `trial`, or of what is reported `untuned` or `tuned`.
        settings: that were searched.
    """

    of: str
    number: int | None
    state: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """What of a sequence a cell's edit adds to that of the cell before it.

    Attributes:
        start, mark: the requests of the forget set from the one to the other; none are added if they are the same.
        learns: whether new facts are added.
        order: in which both come; empty if nothing is learned.
        previous: the cell whose edit this one goes on from.
        is_last: whether no other goes on from it.
    """

    start: int
    mark: int
    learns: bool = False
    order: str = ""
    previous: Cell | None = None
    is_last: bool = False

    @property
    def name(self) -> str:
        """A name for people and folders."""
        return "-".join(part for part in (self.order, f"after-{self.mark}", "learned" if self.learns else "") if part)


@dataclass(frozen=True)
class Cell:
    """One result: a model, unedited or edited, asked some tasks.

    Attributes:
        part: of the study; empty if it has no parts.
        model: the base model.
        model_key: identity of what is edited: of the model's files, and of what it was taught.
        commit: of the hub's model.
        editor, recipe: how it is edited; None leaves it as it is.
        forget, size, seed, kept, known: what is forgotten, as in `Part`.
        retain, finetune, chat, strict, system, chat_template_kwargs: as in `Part`; retain only of methods that use it.
        backend: what answers.
        then: what is done to the model after the edit.
        then_key: of everything that this depends on beside the model and the edit; None without it.
        reference_key, before_key: identities of the retain-only model and of the one before unlearning, if the study
            teaches them.
        trial: of which search it is, and which trial or outcome; None of a study without `tune`.
        asks: the tasks.
        tries: the attacks; none without an edit.
        located: the localization that says where the edit is made, if one does.
        edit_key: of everything that the edit depends on; None without one.
        key: of everything that the result depends on.
        code: hash of the code among this, for people to see why a result is another one.
        sequence, stage: requests one after another, and which of them this cell's edit adds.
    """

    part: str
    model: ModelSpec
    model_key: str
    commit: str | None
    editor: EditorSpec | None
    recipe: RecipeSpec | None
    forget: str
    size: int | None
    seed: int
    kept: int | None
    known: bool
    retain: str | None
    finetune: Finetune | None
    chat: bool | None
    asks: tuple[Ask, ...]
    edit_key: str | None
    key: str
    tries: tuple[Try, ...] = ()
    located: Located | None = None
    backend: str = "hf"
    code: str = ""
    strict: bool = False
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    trial: Trial | None = None
    then: ThenSpec | None = None
    then_key: str | None = None
    reference_key: str | None = None
    before_key: str | None = None
    sequence: RequestSequence | None = None
    stage: Stage | None = None

    @property
    def n_edited(self) -> int | None:
        """About how many requests the cell's own edit adds; None is the whole set."""
        if self.stage is None or self.sequence is None:
            return self.size
        learn = self.sequence.learn if self.stage.learns else None
        return self.stage.mark - self.stage.start + (0 if learn is None else learn.size or self.size or 0)

    @property
    def prompts(self) -> dict[str, Any]:
        """What of the prompt format is set beside `chat`."""
        named = {"system": self.system, "chat_template_kwargs": dict(self.chat_template_kwargs)}
        return {name: value for name, value in named.items() if value}

    @property
    def published(self) -> Beside | None:
        """Numbers of others: of the method, or of the unedited model."""
        return self.model.published if self.editor is None else self.editor.published

    @property
    def rooms(self) -> tuple[str, ...]:
        """What of the code not every cell depends on, and this one does."""
        needed = {
            "attacks": bool(self.tries) or (self.then is not None and not self.then.teaches),
            "localization": self.editor is not None and names_components(self.editor),
            "serving": self.backend == "vllm",
        }
        return tuple(room for room in OF_SOME_CELLS if needed[room])

    @property
    def name(self) -> str:
        """A name for people and folders."""
        method = "base" if self.editor is None else self.editor.name
        recipe = "" if self.recipe is None or self.recipe.name == "plain" else self.recipe.name
        what = re.sub(r"[^\w.+-]+", "-", Path(self.forget).name if "/" in self.forget else self.forget)[:40]
        return "_".join(
            part
            for part in (
                self.model.name,
                method,
                recipe,
                "" if self.then is None else self.then.name,
                f"{what}-{self.size or 'all'}",
                "" if self.stage is None else self.stage.name,
                f"s{self.seed}",
                "" if self.backend == "hf" else self.backend,
            )
            if part
        )


@dataclass(frozen=True)
class Plan:
    """The cells of a study in the order in which they run, and what should be said of them."""

    study: Study
    cells: tuple[Cell, ...]
    warnings: tuple[str, ...] = ()
    planner: Planner | None = field(default=None, compare=False, repr=False)


@dataclass
class Planner:
    """What planning reads more than once."""

    identities: Identities
    warnings: list[str] = field(default_factory=list)
    data: dict[tuple[str, str, int | None, Any], tuple[int | None, str]] = field(default_factory=dict)

    def reference_of(self, task: TaskSpec, taught: Finetune | None) -> dict[str, Any]:
        """The identity of the retain-only model that a task compares with, where its metadata name a model.

        Raises:
            UserError: it is to be taught, and the study does not say what.
        """
        named = reference_model(task.metadata)
        if named != TAUGHT:
            return {} if named is None else {"reference": self.identities.model(ModelSpec("reference", named))}
        if taught is None or taught.reference is None:
            raise UserError(
                f"{task.task} compares with the model that the study teaches, and it teaches none",
                "give finetune: {on: SET, reference: SET}, or another retain_reference",
            )
        settings = {} if taught.anchors is None else {"anchors": dict(taught.anchors)}
        return {"reference": forget_set(taught.reference).hash, **settings}


def plan(study: Study, remembered: dict[str, Any]) -> Plan:
    """The cells of a study.

    Args:
        study: the study.
        remembered: hashes of files from earlier plans (see `Identities`).

    Raises:
        UserError: an unknown editor, setting, task, recipe or set; a combination that cannot be; data or a model
            that is not there.
    """
    planner = Planner(Identities(remembered))
    cells: dict[str, Cell] = {}
    for part in study.parts:
        for cell in cells_of(reported(part), planner):
            if cell.key in cells:
                planner.warnings.append(f"{cell.name} stands in the study twice, and is run once")
            cells.setdefault(cell.key, cell)
    if not cells:
        raise UserError("the study has no cells", "give it editors, recipes and tasks that go together")
    return Plan(study, tuple(cells.values()), tuple(dict.fromkeys(planner.warnings)), planner)


def cells_of(part: Part, planner: Planner) -> Iterator[Cell]:
    """The cells of a part, each with the code that it depends on."""
    for unnamed in _cells(part, planner):
        own = replace(unnamed, code=code_of_cell(unnamed.rooms))
        searched = own.editor is not None and is_tuned(part, own.editor)
        yield replace(own, trial=Trial(own.editor.name, None, "untuned")) if own.editor and searched else own


def reported(part: Part) -> Part:
    """A part with its tasks on the documents by which nothing is chosen; without `tune` on all of theirs."""
    return part if part.tune is None else replace(part, tasks=in_portion(part, REPORT))


def is_tuned(part: Part, editor: EditorSpec) -> bool:
    """Whether an editor's settings are searched."""
    if part.tune is None:
        return False
    named = part.tune.editors
    return editor.name in named if named else editor.editor in SPACES or bool(space_given(part.tune, editor))


def space_given(tune: Tune, editor: EditorSpec) -> Mapping[str, Any]:
    """What a study says of where to look for an editor's settings."""
    return tune.spaces.get(editor.name) or tune.spaces.get(editor.editor) or {}


def in_portion(part: Part, portion: str) -> tuple[TaskSpec, ...]:
    """The tasks of a part that is tuned, those of ours on one portion of their documents."""
    assert part.tune is not None
    own = {"portion": portion, "validation_share": part.tune.validation}
    return tuple(
        replace(task, metadata={**task.metadata, **own}) if takes_portions(task.task) else task
        for task in _expanded(part.tasks)
    )


def takes_portions(task: str) -> bool:
    """Whether a task is ours and can be asked one portion of its documents."""
    from unlearn_eval.data.registry import is_ours
    from unlearn_eval.harness.options import task_class
    from unlearn_eval.harness.task import UnlearningTask

    return is_ours(task) and issubclass(task_class(task)[0], UnlearningTask)


def _cells(part: Part, planner: Planner) -> Iterator[Cell]:
    tasks = _expanded(part.tasks)
    editors = [(editor, recipe) for editor in part.editors for recipe in _recipes(editor, part.recipes)]
    checked = [_checked(editor, recipe, part) for editor, recipe in editors]
    configs = [(editor, config_of(editor, recipe.recipe, part.forget[0])) for editor, recipe in editors]
    planner.warnings += check_kinds(part.attacks, configs) + (missing_references(part.attacks) if editors else [])
    planner.warnings += _not_used(part, tasks, editors, checked)
    if "vllm" in part.backends:
        check_vllm()
    for model in part.models:
        model_key, commit = _model_key(model, part, planner)
        reference_key, before_key = _anchor_keys(model, part, planner)
        for name in part.forget:
            items = forget_set(name)
            for (editor, _), retain in zip(editors, checked, strict=True):
                check_located(editor, model, items, None if retain is None else forget_set(retain))
            for size in _sizes(part):
                for seed in part.seeds:
                    chosen = choose(items, size, seed, part.kept, None, part.strict, part.sequence)
                    _enough(items, chosen, part)
                    check_facts(part.attacks, chosen, part.known)
                    selection = {"set": items.hash, "n": len(chosen.forget), "seed": seed, "known": part.known}
                    base = Cell(
                        part.name, model, model_key, commit, None, None, name, size, seed, part.kept, part.known,
                        None, part.finetune, part.chat, (), None, "", strict=part.strict, system=part.system,
                        chat_template_kwargs=part.chat_template_kwargs, reference_key=reference_key,
                        before_key=before_key, sequence=part.sequence,
                    )  # fmt: skip
                    common = {
                        "model": model_key,
                        "dtype": model.dtype,
                        "chat": part.chat,
                        **base.prompts,
                        "code": code_hash(),
                        "selection": selection,
                    }
                    for backend in part.backends:
                        own = replace(base, backend=backend)
                        yield from _answered(own, tasks, editors, checked, part, chosen, common, planner)


def _sizes(part: Part) -> tuple[int | None, ...]:
    """How much is forgotten: of a sequence with marks as many requests as the last one says."""
    return part.sequence.marks[-1:] if part.sequence is not None and part.sequence.marks else part.sizes


def _answered(
    base: Cell,
    tasks: list[TaskSpec],
    editors: list[tuple[EditorSpec, RecipeSpec]],
    checked: list[str | None],
    part: Part,
    chosen: Chosen,
    common: Mapping[str, Any],
    planner: Planner,
) -> Iterator[Cell]:
    """The cells of one back end: the unedited model, then every edit of it, and each with what is done then."""
    models = [] if editors else [base]
    if not part.only_then:
        yield _whole(base, tasks, part, chosen, common, planner)
    for (editor, recipe), retain in zip(editors, checked, strict=True):
        own = replace(base, editor=editor, recipe=recipe, retain=retain)
        own = replace(own, edit_key=_edit_key(own, common, planner))
        own = replace(own, located=located_of(editor, common, base.seed, retain))
        edited = [own] if part.sequence is None else list(_in_stages(own, part.sequence, chosen, common, planner))
        models += edited
        if not part.only_then:
            yield from (_whole(cell, tasks, part, chosen, common, planner) for cell in edited)
    for own in models:
        for then in part.then:
            afterwards = replace(own, then=then, then_key=_then_key(then))
            yield _whole(afterwards, tasks, part, chosen, common, planner)


def _in_stages(
    cell: Cell, sequence: RequestSequence, chosen: Chosen, common: Mapping[str, Any], planner: Planner
) -> Iterator[Cell]:
    """The cells of a method's sequences, at each mark and in each order; each goes on from the edit of the one before.

    What an edit does not depend on is no part of its key: how many requests come after it, and how many are asked.
    """
    selection = {key: value for key, value in common["selection"].items() if key != "n"}
    of_set = _edit_key(cell, {**common, "selection": selection}, planner)
    n = len(chosen.requests)
    marks = list(sequence.marks) or [n]
    forgets = [Stage(start, mark) for start, mark in zip([0, *marks], marks, strict=False)]
    for order in sequence.orders or ("",):
        stages = {
            "": forgets,
            LEARN_FIRST: [Stage(0, 0, learns=True), *forgets],
            FORGET_FIRST: [*forgets, Stage(n, n, learns=True)],
            TOGETHER: [Stage(0, n, learns=True)],
        }[order]
        previous: Cell | None = None
        for stage in stages:
            inputs = {
                "edit": of_set,
                "requests": [stage.start, stage.mark],
                "of": [n, cell.kept] if stage.learns or cell.retain is not None or uses_kept(cell) else None,
                "by": sequence.by,
                "per_step": sequence.per_step,
                "order": order,
                "learned": chosen.learned.hash if stage.learns and chosen.learned is not None else None,
                "previous": None if previous is None else previous.edit_key,
            }
            own = replace(stage, order=order, previous=previous, is_last=stage is stages[-1])
            previous = replace(cell, stage=own, edit_key=hash_json(inputs))
            yield previous


def _whole(
    cell: Cell, tasks: list[TaskSpec], part: Part, chosen: Chosen, common: Mapping[str, Any], planner: Planner
) -> Cell:
    """The cell with its tasks and attacks."""
    attacks = part.attacks if cell.backend == part.backends[0] else ()
    key, shared = cell.edit_key, common
    if cell.before_key is not None:  # what is attacked is the model as it stands
        key = hash_json([cell.model_key, cell.edit_key, cell.then_key])
        shared = {**common, "model": [cell.before_key, cell.reference_key]}
    elif cell.editor is None or cell.then is not None:
        attacks = ()
    asked = _asked(cell, tasks, chosen, common, planner)
    if not attacks:
        return asked
    selection = [chosen.forget.hash, cell.seed, cell.known]
    reference = cell.reference_key
    return _tried(asked, tries_of(attacks, key, cell.model.dtype, selection, shared, planner.identities, reference))


def _then_key(then: ThenSpec) -> str:
    from unlearn_eval.runs.study.cells.afterwards import config_of_then

    on = None if then.on is None else forget_set(then.on).hash
    code = {} if then.teaches else {"attacks": code_hash("attacks")}
    return hash_json({"kind": then.kind, "on": on, "config": asdict(config_of_then(then)), **code})


def _asked(cell: Cell, tasks: list[TaskSpec], chosen: Chosen, common: Mapping[str, Any], planner: Planner) -> Cell:
    """The cell with its tasks and its key."""
    asks = []
    for task in tasks:
        metadata, warning = told(task.task, chosen)
        if task.metadata.get("forget") == LEARNED:
            metadata = {**metadata, "learned": chosen.learned}
        if warning:
            planner.warnings.append(warning)
        n, data = _documents(task, cell, planner)
        plain = {key: value.hash if isinstance(value, ForgetSet) else value for key, value in metadata.items()}
        reference = planner.reference_of(task, cell.finetune)
        inputs = {
            **common,
            "selection": {**common["selection"], "kept": cell.kept} if depends_on_set(task.task) else None,
            "edit": cell.edit_key,
            **({} if cell.then_key is None else {"then": cell.then_key}),
            "task": planner.identities.settings({**asdict(task), "include_path": None}) | {"task": task.task},
            "own_tasks": None if task.include_path is None else planner.identities.folder(task.include_path),
            "told": planner.identities.settings(plain),
            "data": data,
            **({} if cell.backend == "hf" else {"backend": cell.backend}),
            **_code_of(cell, "serving"),
            **reference,
            "variables": {name: planner.identities.settings(os.environ.get(name)) for name in _VARIABLES},
        }
        asks.append(Ask(task, hash_json(inputs), n, hash_json(reference) if reference else None))
    then = [] if cell.then_key is None else [cell.then_key]
    key = hash_json([cell.edit_key, common["selection"], cell.kept, [ask.key for ask in asks], *then])
    return replace(cell, asks=tuple(asks), key=key)


def _tried(cell: Cell, tries: tuple[Try, ...]) -> Cell:
    """The cell with its attacks; without any its key is what it was."""
    if not tries:
        return cell
    return replace(cell, tries=tries, key=hash_json([cell.key, [own.key for own in tries]]))


def _code_of(cell: Cell, room: str) -> dict[str, str]:
    """The hash of a room as an input of a cell that depends on it."""
    return {room: code_hash(room)} if room in cell.rooms else {}


def _edit_key(cell: Cell, common: Mapping[str, Any], planner: Planner) -> str:
    assert cell.editor is not None and cell.recipe is not None  # noqa: PT018
    recipe = {key: value for key, value in asdict(cell.recipe.recipe).items() if key not in _OF_CELLS}
    config = config_of(cell.editor, cell.recipe.recipe, cell.forget)
    return hash_json(
        {
            **common,
            **_code_of(cell, "localization"),
            "editor": editor_file(cell.editor.editor) or cell.editor.editor,
            "config": planner.identities.settings(asdict(config), bare=False),
            "settings": planner.identities.settings(dict(cell.editor.settings)),
            "recipe": planner.identities.settings(recipe) if _names_file(cell.recipe.recipe) else recipe,
            **({"kept": cell.kept} if uses_kept(cell) else {}),
            "retain": None if cell.retain is None else forget_set(cell.retain).hash,
            **_taught_reference(cell),
        }
    )


def uses_kept(cell: Cell) -> bool:
    """Whether a cell's edit depends on what is asked as kept."""
    says_others = cell.editor is not None and cell.editor.settings.get("text") == OTHERS
    return says_others or keeps_what_is_known(cell.known, cell.retain, cell.forget)


def _taught_reference(cell: Cell) -> dict[str, str]:
    """What the retain-only model is taught, if the edit ends at its probability.

    Raises:
        UserError: the study teaches none.
    """
    assert cell.editor is not None
    if cell.editor.settings.get(STOP) != f"{MODEL}{TAUGHT}":
        return {}
    if cell.finetune is None or cell.finetune.reference is None:
        raise UserError(
            f"{cell.editor.name} stops at the probability of the model that the study teaches, and it teaches none",
            "give finetune: {on: SET, reference: SET}, or stop_probability as a number",
        )
    return {"reference": str(cell.reference_key)}


def config_of(editor: EditorSpec, recipe: Recipe, forget: str) -> Any:
    """An editor's settings, without what the model's own preset will set."""
    from unlearn_eval.editing.editor import get_editor
    from unlearn_eval.editing.training.presets import unlearning_preset
    from unlearn_eval.localization.locate import checked_settings
    from unlearn_eval.utils.settings import configure

    preset = unlearning_preset(editor.editor, forget) if recipe.preset else None
    method = get_editor(editor.editor)
    own = checked_settings(method, editor.settings)
    return configure(method.Config, {**(preset.settings if preset else {}), **own})


def _checked(editor: EditorSpec, recipe: RecipeSpec, part: Part) -> str | None:
    """The retain set of an editor with a recipe, if it uses one; refuses what cannot go together."""
    from unlearn_eval.editing.editor import get_editor
    from unlearn_eval.editing.requests.build import check_merge
    from unlearn_eval.runs.edit import check_recipe

    try:
        config_of(editor, recipe.recipe, part.forget[0])
    except UserError as error:
        raise UserError(f"{editor.place or editor.name}: {error.message}", error.hint) from error
    if editor.settings.get("text") == OTHERS and not part.known:
        raise UserError(
            f"{editor.name} has text: {OTHERS}, which is what the model says when it is asked what it knows",
            "give the study known: true, or name a text file",
        )
    method = get_editor(editor.editor)
    check_recipe(method, recipe.recipe, None, "keep the recipe from it with recipes: [plain]")
    target = Path(recipe.recipe.target).expanduser()
    if _names_file(recipe.recipe) and not target.is_file():
        raise UserError(f"the recipe '{recipe.name}' has no file {target}", "write it with `unlearn-eval targets`")
    for forget in part.forget:
        config = config_of(editor, recipe.recipe, forget)
        if recipe.recipe.merge == "text":
            hint = "keep the recipe from it with recipes: [plain]"
            check_merge(forget_set(forget).items, recipe.recipe.merge_size, hint)
    if part.sequence is not None and part.sequence.learn is not None and not method.says_targets:
        raise UserError(
            f"{editor.name} makes the answers of requests unlikely, and cannot edit new facts in",
            "put it into a part whose sequence has no learn",
        )
    needed = method.needs_retain(config)
    keeps = part.retain is not None if needed is None else needed
    if keeps and part.retain is None:
        raise UserError(
            f"{editor.name} needs items to retain, and the study names none",
            "give it retain: SET (tofu:retain99, facts, a file), or the editor settings: {retain_term: none}",
        )
    if keeps:
        forget_set(str(part.retain))
    return part.retain if keeps else None


def _not_used(
    part: Part, tasks: list[TaskSpec], editors: list[tuple[EditorSpec, RecipeSpec]], checked: list[str | None]
) -> list[str]:
    """What the file names and some or all of its cells do not use, a sentence each."""
    found = []
    retained = [spec for (spec, _), retain in zip(editors, checked, strict=True) if retain is not None]
    says_others = any(spec.settings.get("text") == OTHERS for spec, _ in editors)
    others = [task.task for task in tasks if can_keep(task.task) is False]
    if others and part.strict:
        found.append(f"{', '.join(others)}: what is retained is the task's own, whatever kept and known say")
    elsewhere = retained or says_others or any(can_keep(task.task) for task in tasks)
    if part.kept_given and part.kept and not elsewhere:
        found.append(f"kept: {part.kept} is not used: none of the tasks asks what a study keeps")
    if part.retain is not None and editors and not retained:
        found.append(f"retain: {part.retain} is not used: no editor of the study is trained on what is retained")
    used = {recipe.name for _, recipe in editors}
    if idle := [recipe.name for recipe in part.recipes if recipe.name not in used and editors]:
        found.append(f"recipes: no editor uses {', '.join(idle)}")
    if part.attacks and not editors and (part.finetune is None or part.finetune.before is None):
        found.append("attacks: there is no edit to attack without editors")
    return found


def _names_file(recipe: Recipe) -> bool:
    """Whether the targets of a recipe are in a file; any other text is a name or a sentence, whatever lies here."""
    return recipe.target.endswith((".jsonl", ".json"))


def _recipes(editor: EditorSpec, recipes: tuple[RecipeSpec, ...]) -> list[RecipeSpec]:
    from unlearn_eval.runs.study.file import RECIPES

    for name in editor.recipes or ():
        if name not in RECIPES and name not in {recipe.name for recipe in recipes}:
            raise unknown_name("recipe", name, [*RECIPES, *(recipe.name for recipe in recipes)])
    return [recipe for recipe in recipes if editor.recipes is None or recipe.name in editor.recipes]


def _expanded(tasks: tuple[TaskSpec, ...]) -> list[TaskSpec]:
    """The tasks with patterns as the names that they stand for."""
    from unlearn_eval.harness.options import check_options
    from unlearn_eval.harness.run import names_of

    found = [replace(task, task=name) for task in tasks for name in names_of(task.task, task.include_path)]
    for task in found:
        check_options(
            [task.task],
            metadata=task.metadata,
            num_fewshot=task.num_fewshot,
            gen_kwargs=task.gen_kwargs or None,
            strict=True,
        )
    names = [task.task for task in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"the task '{twice[0]}' stands in the study twice", "leave one out")
    return found


def _documents(task: TaskSpec, cell: Cell, planner: Planner) -> tuple[int | None, str]:
    """How many documents a task has, and their hash, with the items of the first seed as those to forget.

    One seed stands for all, so that a task is loaded once; it is always the same one, so that a cell's key does not
    depend on which other cells are planned with it.
    """
    spec = hash_json(asdict(task))
    depends = depends_on_set(task.task)
    about = (cell.kept, cell.strict, cell.sequence)
    place = (spec, cell.forget, cell.size, about) if depends else (spec, "", None, None)
    if place not in planner.data:
        chosen = choose(forget_set(cell.forget), cell.size, 0, cell.kept, None, cell.strict, cell.sequence)
        planner.data[place] = _task_data(task, chosen, told(task.task, chosen)[0])
    return planner.data[place]


def _task_data(task: TaskSpec, chosen: Chosen, metadata: Mapping[str, Any]) -> tuple[int | None, str]:
    """How many documents a task has, and their hash; the task is loaded, so that missing data is found now."""
    from unlearn_eval.harness.run import task_data

    own = asked_of(task, metadata, chosen)
    own = {key: value for key, value in own.items() if not isinstance(value, ForgetSet)}
    if reference_model(own) is not None:
        del own[REFERENCE]  # it is scored when the first cell needs it
    n, data = task_data(task.task, own, task.include_path)
    if n is not None and task.limit:
        n = min(n, int(task.limit) if task.limit >= 1 else max(1, int(n * task.limit)))
    return n, data


def _anchor_keys(model: ModelSpec, part: Part, planner: Planner) -> tuple[str | None, str | None]:
    """The identities of the retain-only model and of the one before unlearning, if the study teaches them."""
    taught = part.finetune
    if taught is None:
        return None, None

    def key(name: str | None) -> str | None:
        return None if name is None else _model_key(model, replace(part, finetune=taught.of(name)), planner)[0]

    return key(taught.reference), key(taught.before)


def _model_key(model: ModelSpec, part: Part, planner: Planner) -> tuple[str, str | None]:
    identity, commit = planner.identities.model(model)
    if part.finetune is None:
        return identity, commit
    from unlearn_eval.editing.training.gradient import GradientConfig
    from unlearn_eval.runs.finetune import preset_of
    from unlearn_eval.utils.settings import configure

    data = forget_set(part.finetune.on)
    preset = preset_of(data, part.finetune.preset)
    configure(GradientConfig, {**(preset.settings if preset else {}), **part.finetune.settings})
    taught = {
        "model": identity,
        "dtype": model.dtype,
        "chat": part.chat,
        **({"system": part.system} if part.system else {}),
        **({"chat_template_kwargs": dict(part.chat_template_kwargs)} if part.chat_template_kwargs else {}),
        "on": data.hash,
        "preset": None if preset is None else asdict(preset),
        "settings": dict(part.finetune.settings),
        "code": code_hash(),
    }
    return f"finetuned:{hash_json(taught)}", commit


def _enough(items: ForgetSet, chosen: Chosen, part: Part) -> None:
    """Refuse more items to forget and to keep than there are, of a file that names how many are to be kept."""
    forgotten = [key for own in chosen.requests for key in own] or chosen.forget
    needed = len(forgotten) + (part.kept or 0)
    if part.known and part.kept_given and needed > len(items):
        raise UserError(
            f"{needed} items to forget and to keep are more than the {len(items)} of '{items.name}'",
            f"give smaller sizes or kept: {len(forgotten)} are forgotten and {part.kept} kept",
        )
