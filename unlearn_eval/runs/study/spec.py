"""What a study is made of: what its file says, with every name and every default filled in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from unlearn_eval.editing.from_file import editor_label
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.runs.study.file import (
    BITS,
    GROUP,
    ITEM,
    ORDERS,
    TEACH,
    AttackEntry,
    Axes,
    EditorEntry,
    FinetuneEntry,
    ModelEntry,
    Published,
    SequenceEntry,
    StudyFile,
    TaskEntry,
    TuneEntry,
)
from unlearn_eval.runs.study.mistakes import user_error
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.schemas import place


@dataclass(frozen=True)
class Beside:
    """Published numbers: see `file.Published`."""

    task: str
    source: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class ModelSpec:
    """A base model.

    Attributes:
        name: in tables and folder names.
        model: hub id, folder, GGUF file, or `default`.
        dtype: in which it is loaded.
        revision: of the hub.
        published: numbers of others, which are shown beside ours; no result depends on them.
    """

    name: str
    model: str
    dtype: str = "float32"
    revision: str | None = None
    published: Beside | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Finetune:
    """What a model is taught before anything is forgotten.

    Attributes:
        on: the set that it is to know.
        preset: as for `unlearn-eval finetune`; None is the data's own.
        settings: of training, as text.
        reference: the set that a retain-only model is taught in the same way, which tasks with the metadata
            `retain_reference: model:taught` compare with.
        before: the set that the model before unlearning is taught, where the cell's own is another one: attacks that
            read states compare with it, also in models without an edit.
        anchors: settings of the retain-only model and the one before unlearning; None are `settings`.
    """

    on: str
    preset: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None
    before: str | None = None
    anchors: Mapping[str, str] | None = None

    def of(self, name: str) -> Finetune:
        """How the retain-only model, or the model before unlearning, is taught."""
        settings = self.settings if self.anchors is None else self.anchors
        return Finetune(name, self.preset, settings)


@dataclass(frozen=True)
class ThenSpec:
    """What is done to a model after the edit and before it is asked.

    Attributes:
        name: in tables and folder names.
        kind: teach, bits or noise.
        on: the set that is taught.
        settings: as text.
    """

    name: str
    kind: str
    on: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def teaches(self) -> bool:
        """Whether the model is taught a set; else its weights are changed by a rule."""
        return self.kind == TEACH

    @property
    def quantizes(self) -> bool:
        """Whether that rule is quantization; else it is noise."""
        return self.kind == BITS


@dataclass(frozen=True)
class EditorSpec:
    """A method with its settings.

    Attributes:
        name: in tables and folder names.
        editor: the method, or the path of a file that holds one (`my_editor.py`).
        settings: as text, over its presets; `text: others` takes second moments of what the model says to the items
            of the set that are neither forgotten nor kept (of studies with `known: true`).
        recipes: the names of the recipes that it is run with; None is all.
        place: where it stands in the file, for messages.
        published: numbers of others, which are shown beside ours; no result depends on them.
    """

    name: str
    editor: str
    settings: Mapping[str, str] = field(default_factory=dict)
    recipes: tuple[str, ...] | None = None
    place: str = field(default="", compare=False)
    published: Beside | None = field(default=None, compare=False)


@dataclass(frozen=True)
class RecipeSpec:
    """How a set becomes requests, with a name."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class TaskSpec:
    """A task with its settings, which are lm-eval's.

    Attributes:
        task: its name.
        limit, num_fewshot, system_instruction, gen_kwargs: as for `lm_eval`.
        metadata: over what the study tells the task by itself (what was forgotten).
        include_path: the folder that the task is in, if it is one of your own.
    """

    task: str
    limit: float | None = None
    num_fewshot: int | None = None
    system_instruction: str | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    include_path: str | None = None


@dataclass(frozen=True)
class AttackSpec:
    """An attack on every edit, with its settings.

    Attributes:
        name: in results; two of one attack need two.
        attack: its name.
        settings: as text.
        retain: other facts, for controls and training; None is the rest of the forget set, or the shipped facts (of the
            forget set with `known: true` only what the model knows).
        reference: a model that never knew the items.
        max_new_tokens: length of an answer.
    """

    name: str
    attack: str
    settings: Mapping[str, str] = field(default_factory=dict)
    retain: str | None = None
    reference: str | None = None
    max_new_tokens: int = 24


@dataclass(frozen=True)
class Tune:
    """How settings are searched, as in `TuneEntry`.

    Attributes:
        goal: (task, metric).
        maximizes: whether more of it is better.
        bar: (task, metric, share of the unedited model's that has to be kept), or None.
        trials, seconds: the budget of each search.
        validation, screen, editors, recipes, spaces, seed: as in the file.
    """

    goal: tuple[str, str]
    maximizes: bool
    bar: tuple[str, str, float] | None = None
    trials: int | None = None
    seconds: float | None = None
    validation: float = 0.5
    screen: float = 0.0
    editors: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    spaces: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that a trial is asked."""
        return tuple(dict.fromkeys([self.goal[0], *(self.bar[:1] if self.bar else ())]))


@dataclass(frozen=True)
class Learn:
    """New facts that are edited in beside what is forgotten.

    Attributes:
        on: the set, as in `wrong(facts)`: its answers are what the model should say. Items whose question is forgotten
            or asked as kept are left out.
        size: how many of it are drawn; None is as many as are forgotten.
    """

    on: str
    size: int | None = None


@dataclass(frozen=True)
class RequestSequence:
    """Requests one after another on one model, which is asked at each mark.

    Attributes:
        marks: after how many requests the model is asked; each mark is a cell, whose edit goes on from that of the mark
            before; none: after all of them.
        by: what a request is: an `item`, in the order of the seed, or a `group` of items, in the order of the set.
        again: how many of the first requests are asked, again at each mark; None is as many as the first mark.
        per_step: requests of one step of the editor, whatever the recipe says; 0: all between two marks at once.
        learn: new facts that are edited in, too; asked by tasks with the metadata `forget: learned`.
        orders: of both: `learn_first`, `forget_first`, or `together` in one step; each is a sequence of its own.
    """

    marks: tuple[int, ...] = ()
    by: str = ITEM
    again: int | None = None
    per_step: int = 1
    learn: Learn | None = None
    orders: tuple[str, ...] = ORDERS

    @property
    def of_groups(self) -> bool:
        """Whether a request is a group of items."""
        return self.by == GROUP


@dataclass(frozen=True)
class Part:
    """One product of axes; a study without `parts` has one.

    Attributes:
        name: of the part; empty if there is only one.
        models, editors, recipes: the base models, the methods, and how a set becomes requests.
        forget: forget sets, by name or file.
        sizes: how many items of the set are forgotten; None (`all`) is the whole set.
        seeds: which ones are drawn, and whatever else is random.
        tasks: what is asked.
        retain: what methods that are trained keep; of the forget set itself with `known` only what the model answers
            rightly, without what is asked as kept.
        finetune: what the models are taught first.
        known: whether only what the unedited model answers rightly is to be forgotten, and kept.
        kept: how many other items of the set are asked as kept at most: by `unlearn_facts` and the tasks on any set,
            and by benchmarks if it is given or `known`. A set without others has shipped facts as a control, with
            `known` those that the model answers.
        kept_given: whether the file names `kept`.
        chat: whether questions go through the chat template; None does if there is one.
        system: system message of every prompt; without a chat its first paragraph.
        chat_template_kwargs: further arguments of the chat template, such as `{enable_thinking: false}`.
        tune: how settings are searched; None leaves them as they are.
        backends: what answers: "hf", or "vllm", whose engine serves the edit (attacks stay with Hugging Face).
        attacks: what is tried on every edit after its tasks.
        then: what is done to every edited model, or without editors to the unedited one, before it is asked again.
        only_then: whether the models are asked after that alone.
        sequence: requests one after another in place of one edit; None makes one edit of them.
    """

    name: str
    models: tuple[ModelSpec, ...]
    editors: tuple[EditorSpec, ...]
    recipes: tuple[RecipeSpec, ...]
    forget: tuple[str, ...]
    sizes: tuple[int | None, ...]
    seeds: tuple[int, ...]
    tasks: tuple[TaskSpec, ...]
    retain: str | None = None
    finetune: Finetune | None = None
    known: bool = False
    kept: int | None = 48
    chat: bool | None = None
    attacks: tuple[AttackSpec, ...] = ()
    backends: tuple[str, ...] = ("hf",)
    kept_given: bool = False
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tune: Tune | None = None
    then: tuple[ThenSpec, ...] = ()
    only_then: bool = False
    sequence: RequestSequence | None = None

    @property
    def strict(self) -> bool:
        """Whether benchmarks are given what is kept, in place of what they retain by themselves."""
        return self.known or self.kept_given


@dataclass(frozen=True)
class Study:
    """A study file, checked.

    Attributes:
        name: of the study.
        parts: what is run.
        batch_size: rows per forward pass; like the device it is no input of a result.
        device: cpu, cuda, ...; None takes a GPU if there is one.
        keep_edits: whether the folders of edits stay when their cells are done.
        show: metrics in the table of results; none: the best known ones that there are.
    """

    name: str
    parts: tuple[Part, ...]
    batch_size: int = 16
    device: str | None = None
    keep_edits: bool = True
    show: tuple[str, ...] = ()


Spec = TypeVar("Spec", ModelSpec, EditorSpec, RecipeSpec, AttackSpec, ThenSpec)


def study_of(content: Mapping[str, Any], path: Path) -> Study:
    """The study that a file's content describes.

    Raises:
        UserError: an unknown key, name or kind of value, with its place in the file; or what is missing.
    """
    try:
        file = StudyFile.model_validate(content)
    except ValidationError as error:
        raise user_error(error, content, path.name, StudyFile) from error
    if file.meta is not None:
        raise UserError(f"{path.name} is a meta-evaluation", f"run it with: unlearn-eval meta {path}")
    return Study(
        name=_slug(file.name or path.stem),
        parts=tuple(
            _part(name, file.of_part(name), _editor_places(name, file, content)) for name in file.parts or ("",)
        ),
        batch_size=file.batch_size,
        device=file.device,
        keep_edits=file.keep_edits,
        show=file.show,
    )


def _editor_places(part: str, file: StudyFile, content: Mapping[str, Any]) -> list[str]:
    """Where the editors of a part stand in the file."""
    own = ("parts", part) if part and file.parts and "editors" in file.parts[part].model_fields_set else ()
    return [place((*own, "editors", i), content) for i in range(len(file.of_part(part).editors))]


def _part(name: str, axes: Axes, places: Sequence[str]) -> Part:
    for key, example in (("forget", "facts"), ("tasks", "unlearn_facts")):
        if not getattr(axes, key):
            where = f" of the part '{name}'" if name else ""
            raise UserError(f"the study{where} has no {key}", f"give it {key}: [{example}]")
    if axes.sequence is not None and axes.tune is not None:
        raise UserError("tune and sequence cannot go together", "search settings in a part of their own")
    if axes.sequence is not None and axes.sequence.marks and axes.sizes != (None,):
        raise UserError("sizes and the marks of a sequence say the same", "leave out sizes")
    return Part(
        name=name,
        models=_distinct([_model(entry, axes.dtype) for entry in axes.models], "model"),
        editors=_distinct(
            [spec for entry, at in zip(axes.editors, places, strict=True) for spec in _editors(entry, at)], "editor"
        ),
        recipes=_distinct([RecipeSpec(_slug(entry.name), entry.recipe()) for entry in axes.recipes], "recipe"),
        forget=tuple(dict.fromkeys(axes.forget)),
        sizes=tuple(dict.fromkeys(axes.sizes)),
        seeds=tuple(dict.fromkeys(axes.seeds)),
        tasks=tuple(_task(entry, axes.include_path) for entry in axes.tasks),
        retain=axes.retain,
        finetune=None if axes.finetune is None else _finetune(axes.finetune),
        known=axes.known,
        kept=axes.kept,
        chat=axes.chat,
        backends=tuple(dict.fromkeys(axes.backends)),
        attacks=_distinct([_attack(entry) for entry in axes.attacks], "attack"),
        kept_given="kept" in axes.model_fields_set and axes.kept is not None,
        system=axes.system,
        chat_template_kwargs=axes.chat_template_kwargs,
        tune=None if axes.tune is None else _tune(axes.tune),
        then=_distinct(
            [ThenSpec(_slug(own.name or own.kind), own.kind, own.on, own.settings) for own in axes.then], "then"
        ),
        only_then=axes.only_then,
        sequence=None if axes.sequence is None else _sequence(axes.sequence),
    )


def _model(entry: ModelEntry, dtype: str) -> ModelSpec:
    name = entry.name or (Path(entry.model).name if "/" in entry.model else entry.model)
    return ModelSpec(_slug(name), entry.model, entry.dtype or dtype, entry.revision, _beside(entry.published))


def _beside(told: Published | None) -> Beside | None:
    return None if told is None else Beside(told.task, told.source, told.values)


def _tune(entry: TuneEntry) -> Tune:
    goal, bar = str(entry.minimize or entry.maximize), entry.subject_to
    return Tune(
        goal=_metric(goal),
        maximizes=entry.minimize is None,
        bar=None if bar is None else (*_metric(bar.metric), bar.at_least),
        trials=entry.trials,
        seconds=None if entry.trials is not None else entry.seconds,
        validation=entry.validation,
        screen=entry.screen,
        editors=tuple(_slug(name) for name in entry.editors),
        recipes=tuple(_slug(name) for name in entry.recipes),
        spaces=entry.spaces,
        seed=entry.seed,
    )


def _metric(name: str) -> tuple[str, str]:
    task, _, metric = name.partition("/")
    return task, metric


def _sequence(entry: SequenceEntry) -> RequestSequence:
    learn = None if entry.learn is None else Learn(entry.learn.on, entry.learn.size)
    orders = tuple(dict.fromkeys(entry.orders)) if learn else ()
    again = entry.again if entry.again is not None or not entry.marks else entry.marks[0]
    return RequestSequence(entry.marks, entry.by, again, entry.per_step, learn, orders)


def _finetune(entry: FinetuneEntry) -> Finetune:
    return Finetune(entry.on, entry.preset, entry.settings, entry.reference, entry.before, entry.anchors)


def _editors(entry: EditorEntry, at: str) -> Iterator[EditorSpec]:
    """An editor, once for each of its `components` if it has some: where it trains or edits, with the same settings."""
    plain = _slug(entry.name or editor_label(entry.editor))
    if not entry.components:
        yield EditorSpec(plain, entry.editor, entry.settings, entry.recipes, at, _beside(entry.published))
    names = set()
    for text in entry.components:
        short = Path(text).stem if text.endswith(".json") else text.partition("(")[0] or text
        name = _slug(f"{plain}-{short}")
        if name in names:  # the same method with other settings
            name = _slug(f"{plain}-{text}")
        names.add(name)
        yield EditorSpec(name, entry.editor, {**entry.settings, "components": text}, entry.recipes, at)


def _attack(entry: AttackEntry) -> AttackSpec:
    name = _slug(entry.name or entry.attack)
    return AttackSpec(name, entry.attack, entry.settings, entry.retain, entry.reference, entry.max_new_tokens)


def _task(entry: TaskEntry, include_path: str | None) -> TaskSpec:
    return TaskSpec(**{"include_path": include_path} | entry.given)


def _distinct(specs: Sequence[Spec], what: str) -> tuple[Spec, ...]:
    names = [spec.name for spec in specs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"the {what} '{twice[0]}' stands in the study twice", "give one of them another name: NAME")
    return tuple(specs)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "unnamed"
