"""What may stand in a study file, as pydantic models: its keys, the kinds of their values, and what may be left out.

`spec.py` makes of it what is run, `mistakes.py` says in two lines what does not fit, and the JSON schema from which
editors complete (`docs/reference/study.schema.json`) is made of the same models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from unlearn_eval.editing import recipe, spaces
from unlearn_eval.harness.backends import BACKENDS, check_backend
from unlearn_eval.models.load import DTYPES
from unlearn_eval.utils import schemas
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.schemas import expected
from unlearn_eval.utils.settings import as_texts

TEACH, BITS, NOISE = THEN_KINDS = "teach", "bits", "noise"
ITEM, GROUP = UNITS = "item", "group"
LEARN_FIRST, FORGET_FIRST, TOGETHER = ORDERS = "learn_first", "forget_first", "together"

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "self": {"target": "self"},
    "merge": {"merge": "text"},
    "self+merge": {"target": "self", "merge": "text"},
}

# Kinds of values -------------------------------------------------------------------------------------------

T = TypeVar("T")


@dataclass(frozen=True)
class _AloneToo:
    """In the schema: a list, or one entry by itself."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        many = handler(schema)
        return {"anyOf": [many["items"], many]}


def _listed(value: object) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)


def _dtype(name: str) -> str:
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return name


def _device(name: str) -> str:
    import torch

    try:
        return str(torch.device(name))
    except RuntimeError as error:
        raise expected("a device, such as cpu or cuda:0") from error


def _size(value: object) -> int | None:
    if value == "all":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise expected("all, or a whole number of at least 1")
    return value


def _limit(value: object) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
        raise expected("a number above 0")
    return value


def _as_text(value: object) -> Any:
    """Settings as `--set` takes them."""
    return as_texts(value) if isinstance(value, Mapping) else {} if value is None else value


Many = Annotated[tuple[T, ...], BeforeValidator(_listed), _AloneToo()]
Some = Annotated[tuple[T, ...], Field(min_length=1), BeforeValidator(_listed), _AloneToo()]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Whole = Annotated[int, Field(ge=0, le=schemas.MOST)]
Counted = Annotated[int, Field(ge=1, le=schemas.MOST)]
Size = Annotated[
    int | None,
    BeforeValidator(_size),
    WithJsonSchema({"anyOf": [{"const": "all"}, {"type": "integer", "minimum": 1}]}),
]
Limit = Annotated[
    int | float | None,
    BeforeValidator(_limit),
    WithJsonSchema({"type": ["number", "null"], "exclusiveMinimum": 0}),
]
Positive = Annotated[float, Field(gt=0)]
Dtype = Annotated[Text, AfterValidator(_dtype), WithJsonSchema({"enum": list(DTYPES)})]
Backend = Annotated[Text, AfterValidator(check_backend), WithJsonSchema({"enum": list(BACKENDS)})]
Merge = Annotated[Text, WithJsonSchema({"enum": list(recipe.MERGES)})]
Settings = Annotated[dict[str, str], BeforeValidator(_as_text), WithJsonSchema({"type": ["object", "null"]})]


# Entries ---------------------------------------------------------------------------------------------------


class Table(schemas.Table):
    """Keys and values of their kinds, and no others."""

    @property
    def given(self) -> dict[str, Any]:
        """What the file says, without what it leaves out."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class Entry(Table):
    """A table of which one key may stand by itself, as a text."""

    first: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def alone(cls, value: object) -> Any:
        """A text as the table for which it stands."""
        return {cls.first: value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """In the schema: the table, or the text."""
        return {"anyOf": [{"type": "string"}, handler(schema)]}


class Published(Table):
    """What others have measured of a model, or of a method on it.

    Attributes:
        task: by which the same is measured here.
        source: who has published it.
        values: metric of the task -> the published number.
    """

    task: Text
    source: Text
    values: dict[str, float]


class ModelEntry(Entry):
    """A base model."""

    first: ClassVar[str] = "model"
    model: Text
    name: Text | None = None
    dtype: Dtype | None = None
    revision: Text | None = None
    published: Published | None = None


class EditorEntry(Entry):
    """A method with its settings.

    Attributes:
        components: localizations, files or patterns of modules: one editor for each, with the same settings.
    """

    first: ClassVar[str] = "editor"
    editor: Text
    name: Text | None = None
    settings: Settings = {}
    components: Many[Text] = ()
    recipes: Many[Text] | None = None
    published: Published | None = None


class RecipeEntry(Entry):
    """How a set becomes requests, with a name; or the name of one that is shipped."""

    first: ClassVar[str] = "name"
    name: Text
    target: Text = recipe.Recipe.target
    merge: Merge = recipe.Recipe.merge
    merge_size: int = recipe.Recipe.merge_size
    per_step: int = recipe.Recipe.per_step
    n_contexts: int = recipe.Recipe.n_contexts
    preset: bool = recipe.Recipe.preset

    @model_validator(mode="before")
    @classmethod
    def alone(cls, value: object) -> Any:
        """A name as the recipe that is shipped."""
        if isinstance(value, str) and value not in RECIPES:
            raise unknown_name("recipe", value, RECIPES)
        return {"name": value, **RECIPES[value]} if isinstance(value, str) else value

    @model_validator(mode="after")
    def makes_sense(self) -> RecipeEntry:
        """Refuse what the recipe itself refuses."""
        self.recipe()
        return self

    def recipe(self) -> recipe.Recipe:
        """What the entry stands for."""
        return recipe.Recipe(**{name: value for name, value in self.given.items() if name != "name"})


class TaskEntry(Entry):
    """A task with its settings."""

    first: ClassVar[str] = "task"
    task: Text
    limit: Limit = None
    num_fewshot: Whole | None = None
    system_instruction: str | None = None
    gen_kwargs: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    include_path: Text | None = None


class AttackEntry(Entry):
    """An attack on every edit, with its settings."""

    first: ClassVar[str] = "attack"
    attack: Text
    name: Text | None = None
    settings: Settings = {}
    retain: Text | None = None
    reference: Text | None = None
    max_new_tokens: Counted = 24


class FinetuneEntry(Entry):
    """What the models are taught first.

    Attributes:
        reference: the set of a retain-only model.
        before: the set of the model before unlearning, where the cell's own is another one.
        anchors: settings of these two; none: as the models.
    """

    first: ClassVar[str] = "on"
    on: Text
    preset: Text | None = None
    settings: Settings = {}
    reference: Text | None = None
    before: Text | None = None
    anchors: Settings | None = None


class ThenEntry(Table):
    """What is done to a model after the edit and before it is asked.

    Attributes:
        kind: teach (fine-tuned on a set), bits (quantized), or noise.
        name: in results; two of one kind need two.
        on: the set that is taught.
        settings: of training, of quantization, or the noise's `scale` (in standard deviations of each weight matrix)
            and `seed`.
    """

    kind: Annotated[Text, WithJsonSchema({"enum": list(THEN_KINDS)})]
    name: Text | None = None
    on: Text | None = None
    settings: Settings = {}

    @model_validator(mode="after")
    def makes_sense(self) -> ThenEntry:
        """Refuse an unknown kind, and a set that is missing or not used."""
        if self.kind not in THEN_KINDS:
            raise unknown_name("kind", self.kind, THEN_KINDS)
        if (self.kind == TEACH) != (self.on is not None):
            raise UserError(f"then: {self.kind} {'needs' if self.on is None else 'takes no'} set", "see on: SET")
        return self


class LearnEntry(Entry):
    """New facts that are edited in beside what is forgotten."""

    first: ClassVar[str] = "on"
    on: Text
    size: Size = None


class SequenceEntry(Table):
    """Requests one after another on one model, which is asked at each mark."""

    marks: Many[Counted] = ()
    by: Annotated[Text, WithJsonSchema({"enum": list(UNITS)})] = ITEM
    again: Counted | None = None
    per_step: Whole = 1
    learn: LearnEntry | None = None
    orders: Some[Annotated[Text, WithJsonSchema({"enum": list(ORDERS)})]] = ORDERS

    @model_validator(mode="after")
    def makes_sense(self) -> SequenceEntry:
        """Refuse marks that do not rise, unknown words, and orders of nothing."""
        if self.by not in UNITS:
            raise unknown_name("kind of request", self.by, UNITS)
        if unknown := [order for order in self.orders if order not in ORDERS]:
            raise unknown_name("order", unknown[0], ORDERS)
        if list(self.marks) != sorted(set(self.marks)):
            raise UserError(f"the marks {list(self.marks)} do not rise", "write them as in [10, 100, 1000]")
        if self.learn is None and "orders" in self.model_fields_set:
            raise UserError("orders of learning and forgetting, and nothing is learned", "give learn: SET")
        return self


class Bar(Table):
    """What a trial has to keep, as a share of what the unedited model has.

    Attributes:
        metric: TASK/METRIC of which more is better.
        at_least: share of the unedited model's value.
    """

    metric: Text
    at_least: Annotated[float, Field(gt=0, le=1)]


class TuneEntry(Table):
    """How settings are searched for each method: the same budget for all, judged on a part of the documents.

    Attributes:
        trials, seconds: the budget of each search; the first of them counts if both are given.
        minimize, maximize: TASK/METRIC, one of the two.
        subject_to: what has to be kept.
        validation: share of each split's documents by which trials are judged; results are of the others.
        screen: share of these on which a trial is looked at first, to drop it if it is worse than the median; 0: none.
        editors: names of the editors that are tuned; none: all that have a space.
        recipes: names of the recipes with which they are tuned; none: all of theirs.
        spaces: by editor: settings with their values, over the shipped space.
        seed: of the search and of its trials.
    """

    trials: Counted | None = None
    seconds: Limit = None
    minimize: Text | None = None
    maximize: Text | None = None
    subject_to: Bar | None = None
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.5
    screen: Annotated[float, Field(ge=0, lt=1)] = 0.0
    editors: Many[Text] = ()
    recipes: Many[Text] = ()
    spaces: dict[str, dict[str, Any]] = {}
    seed: Whole = 0

    @model_validator(mode="after")
    def makes_sense(self) -> TuneEntry:
        """Refuse a search without budget or goal, and values that are none."""
        if self.trials is None and self.seconds is None:
            raise UserError("tune has no budget", "give it trials: 16, or seconds: 1800, for each method")
        if (self.minimize is None) == (self.maximize is None):
            raise UserError("tune needs one goal", "give it minimize: TASK/METRIC or maximize: TASK/METRIC")
        bar = None if self.subject_to is None else self.subject_to.metric
        for name in (self.minimize, self.maximize, bar):
            if name is not None and not all(name.partition("/")):
                raise UserError(f"tune: '{name}' names no metric of a task", "write TASK/METRIC")
        for editor, space in self.spaces.items():
            for setting, values in space.items():
                spaces.values_of(values, f"tune: spaces: {editor}: {setting}")
        return self


# Meta-evaluation -------------------------------------------------------------------------------------------


class MetaEntry(Table):
    """A meta-evaluation: pools of models that know and that never knew, unlearned models, and controls.

    Attributes:
        forget, retain, others: The sets that are forgotten, retained, and of somebody else.
        placebo: What another edit is made of.
        rates, epochs: The grid of learning rates and epochs; every recipe of a pool is taught with each pair.
        anchor: Settings of the two models that are compared with, before unlearning and retain-only, over `training`;
            they are in no pool, as some metrics are 0 and 1 for them by definition.
        training: Further settings of teaching.
        tasks: What every model is asked.
        utility: TASK/METRIC by which unlearned models are left out that have lost too much.
        utility_tasks: What unlearned models and controls are asked in place of `tasks`; none: the same.
        methods: Unlearning methods, as editors of a study.
        depth: Attacks that read states; their metrics take part as those of the tasks do.
        relearning, quantization: Settings of the two changes.
        noise: Scale of the noise of the collapsed control.
        filter: The editor that stands for a filter in front of an unchanged model: a memory in the last block, which
            leaves the states of all others as they are.
        random_layers: The method that is run on random layers as a control.
        knows, never: Models of your own in place of those that are taught.
        full, retained: Models of your own: before unlearning, and without what is forgotten.
        metric: A file with metrics of your own (`METRICS`, see the guide).
    """

    forget: Text = "tofu:forget01"
    retain: Text = "tofu:retain99[:20]"
    others: Text = "tofu:retain99[100:140]"
    placebo: Text = "wrong(tofu:factual[:20])"
    rates: Some[Positive] = (1e-3, 2e-3)
    epochs: Some[Positive] = (2.0, 4.0)
    anchor: Settings = {}
    training: Settings = {}
    tasks: Many[TaskEntry] = ()
    utility: Text = "unlearn_tofu_forget01/model_utility"
    utility_tasks: Many[TaskEntry] = ()
    methods: Many[EditorEntry] = ()
    depth: Many[Text] = ()
    relearning: Settings = {}
    quantization: Settings = {"scheme": "nf4"}
    noise: Positive = 1.0
    filter: EditorEntry | None = None
    random_layers: EditorEntry | None = None
    knows: Many[Text] = ()
    never: Many[Text] = ()
    full: Text | None = None
    retained: Text | None = None
    metric: Text | None = None

    @model_validator(mode="after")
    def makes_sense(self) -> MetaEntry:
        """Refuse pools of one side alone, and a utility that names no metric."""
        if bool(self.knows) != bool(self.never):
            raise UserError("meta: one of the pools is missing", "give both knows: and never:, or neither")
        if bool(self.full) != bool(self.retained):
            raise UserError("meta: one of the anchors is missing", "give both full: and retained:, or neither")
        if not all(self.utility.partition("/")):
            raise UserError(f"meta: '{self.utility}' names no metric of a task", "write utility: TASK/METRIC")
        return self


# The file --------------------------------------------------------------------------------------------------


class Axes(Table):
    """One product of axes: for the whole study, or for a part.

    Attributes:
        dtype: in which models are loaded that name none themselves.
        include_path: a folder of tasks of your own, for all tasks.
        then: what is done to every edited model, or without editors to the unedited one, before it is asked again.
        only_then: whether the models are asked after that alone.
    """

    models: Some[ModelEntry] = (ModelEntry(model="default"),)
    editors: Many[EditorEntry] = ()
    recipes: Some[RecipeEntry] = (RecipeEntry(name="plain"),)
    forget: Many[Text] = ()
    sizes: Some[Size] = (None,)
    seeds: Some[Whole] = (0,)
    tasks: Many[TaskEntry] = ()
    retain: Text | None = None
    finetune: FinetuneEntry | None = None
    known: bool = False
    kept: Whole | None = 48
    chat: bool | None = None
    system: str | None = None
    chat_template_kwargs: dict[str, Any] = {}
    attacks: Many[AttackEntry] = ()
    backends: Some[Backend] = ("hf",)
    dtype: Dtype = "float32"
    include_path: Text | None = None
    tune: TuneEntry | None = None
    then: Many[ThenEntry] = ()
    only_then: bool = False
    sequence: SequenceEntry | None = None


def _named(value: object) -> Any:
    """Parts by the texts of their names, which YAML may read as numbers."""
    return {str(name): part for name, part in value.items()} if isinstance(value, dict) else value


class StudyFile(Axes):
    """A study file.

    Attributes:
        description: for people; nothing depends on it.
        parts: by name: axes that hold for this part, over those of the whole study.
        meta: a meta-evaluation, in place of parts: what each metric is worth.
    """

    name: Text | None = None
    description: str | None = None
    batch_size: Counted = 16
    device: Annotated[Text, AfterValidator(_device)] | None = None
    keep_edits: bool = True
    show: Many[Text] = ()
    parts: Annotated[dict[str, Axes] | None, BeforeValidator(_named)] = None
    meta: MetaEntry | None = None

    def of_part(self, name: str) -> Axes:
        """A part's axes over those of the whole study; the empty name is a study without parts."""
        own = {} if self.parts is None or not self.parts else self.parts[name].given
        shared = {key: value for key, value in self.given.items() if key in Axes.model_fields}
        return Axes.model_construct(**(shared | own))
