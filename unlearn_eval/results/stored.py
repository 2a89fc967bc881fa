"""What may stand in the files that runs leave: results, their samples, what they say of an edit, and localizations.

Everything that a reader relies on is here with its kind; what is only shown may be anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from unlearn_eval.results.schema import SCHEMA_VERSION, STATUSES, Metric
from unlearn_eval.utils.schemas import (
    Count,
    Digest,
    NotNegative,
    Number,
    OpenTable,
    PlainName,
    Size,
    Table,
    Whole,
    expected,
)

MOST_LAYERS = 10_000
Layer = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]
Level = Number | str | None  # of an attack; None is before it
Object = dict[str, Any]


# What an edit says of itself -------------------------------------------------------------------------------


class Base(OpenTable):
    """The model that was edited."""

    id: str | None = None
    revision: str | None = None
    canonical_hash: str | None = None
    architecture: str | None = None


class ForgottenSet(OpenTable):
    """One set that was forgotten."""

    name: str
    hash: str | None = None
    ids: list[str]


class Requests(OpenTable):
    """What was asked for."""

    n: Count | None = None
    n_merged: Count | None = None
    forget_set: str | None = None
    forget_set_hash: str | None = None
    sets: list[ForgottenSet] | None = None
    ids: list[str] = []
    lookup: dict[str, str] = {}
    shapes: dict[str, str] = {}
    hash: str | None = None
    chat: bool | None = None
    system: str | None = None
    chat_template_kwargs: Object = {}
    target: str | None = None
    merge: str | None = None
    merge_size: Count | None = None
    per_step: Count | None = None
    contexts: list[str] | None = None
    retain_set: str | None = None
    retain_set_hash: str | None = None


class Unrelated(OpenTable):
    """Counts over unrelated questions, as `metrics.edit_checks.Unrelated` has them."""

    n: Count
    refused_before: Count
    refused: Count
    repeats_before: Count
    repeats: Count
    right_before: Count
    right: Count
    changed: Count
    worse: Count


class Nothing(Table):
    """A table without any key."""


class Check(OpenTable):
    """The self-check."""

    n: Count = 0
    n_took: Count = 0
    target_probability_before: Number = 0.0
    target_probability_after: Number = 0.0
    answer_probability_before: Number | None = None
    answer_probability_after: Number | None = None
    unrelated: Unrelated | Nothing = Nothing()


class Change(OpenTable):
    """The norm of one tensor's change."""

    frobenius: NotNegative | None = None
    weight_norm: NotNegative | None = None


class LayersAndRoles(OpenTable):
    """Effects by kind of unit, (layers, roles)."""

    roles: list[str] = []
    attention: list[list[Number | None]] = []
    mlp: list[list[Number | None]] = []

    @model_validator(mode="after")
    def fit(self) -> Self:
        """Every row has a number for each role."""
        if any(len(row) != len(self.roles) for row in (*self.attention, *self.mlp)):
            raise expected("a table with a column for each role")
        return self


class FactsRead(OpenTable):
    """The facts that a localization read."""

    set: str | None = None
    hash: str | None = None
    n: Count | None = None
    skipped: dict[str, str] = {}


class ModelRead(OpenTable):
    """The model that a localization read."""

    id: str | None = None
    architecture: str | None = None
    weights: str | None = None


class Budget(OpenTable):
    """How much a localization might choose."""

    given: str
    n_weights: Count


class Head(OpenTable):
    """An attention head."""

    layer: Layer
    head: Count
    effect: Number


class LocalizationNotes(OpenTable):
    """What else a localization says."""

    way: str | None = None
    metric: str | None = None
    extraction_layer: Layer | None = None
    total_effect: Number | None = None
    heads: list[Head] = []


class Placed(OpenTable):
    """The localization that an edit's components come from."""

    method: str
    given: str = ""
    settings: Object = {}
    budget: Budget | None = None
    n_weights: Count | None = None
    n_weights_in_blocks: Count | None = None
    n_layers: Layer | None = None
    mlp_layers: list[Layer] = []
    modules: list[str] = []
    facts: FactsRead = FactsRead()
    model: ModelRead = ModelRead()
    seed: Whole | None = None
    scores: dict[str, list[Number | None]] = {}
    effects: LayersAndRoles | None = None
    notes: LocalizationNotes = LocalizationNotes()


class EditNotes(OpenTable):
    """What an editor noted."""

    self_check: Check | None = None
    weight_norms: dict[str, NotNegative] = {}
    changes: dict[str, Change] = {}
    components: Placed | None = None
    preset: Object | None = None
    training: Object | None = None
    editor_file: dict[str, str] | None = None


class EditSaid(Table):
    """What an edit is: `info` of its `edit.json`."""

    editor: Annotated[str, Field(min_length=1, max_length=200)]
    config: Object
    base: Base = Base()
    requests: Requests = Requests()
    seed: Whole | None = None
    versions: Object = {}
    seconds: NotNegative | None = None
    peak_memory_bytes: Count | None = None
    notes: EditNotes = EditNotes()


class EditOfResult(EditSaid):
    """The same, in the result of a run with the edit."""

    config: Object = {}
    folder: str | None = None


# Results ---------------------------------------------------------------------------------------------------


class StoredMetric(Table):
    """One number: as `Metric`, whose own checks hold too."""

    value: Number | None
    stderr: NotNegative | None
    n: Count | None
    n_unscored: Count
    reason: str | None
    higher_is_better: bool | None

    @model_validator(mode="after")
    def sound(self) -> Self:
        """Refuse what a `Metric` refuses."""
        self.metric()
        return self

    def metric(self) -> Metric:
        """The metric."""
        return Metric(**dict(self))


class Samples(Table):
    """Where a task's samples are."""

    file: PlainName | str
    sha256: Digest
    n: Count


class Data(OpenTable):
    """What a task asked."""

    hash: str | None = None


class Source(OpenTable):
    """Where a model is from."""

    name: str | None = None


class ModelOfResult(OpenTable):
    """The model of a result."""

    id: Annotated[str, Field(min_length=1)] | None = None
    revision: str | None = None
    canonical_weights_hash: str | None = None
    weights_hash: str | None = None
    source: Source | None = None


class Git(OpenTable):
    """The commit of a run."""

    commit: str | None = None
    dirty: bool | None = None
    reason: str | None = None


class Provenance(OpenTable):
    """Where a number comes from."""

    git: Git | None = None
    packages: Object | None = None


class Curve(OpenTable):
    """One curve of an attack: a list for each of its columns, equally long."""

    model: str
    condition: str
    value: str
    at: list[Level]
    mean: list[Number | None]
    low: list[Number | None]
    high: list[Number | None]
    n: Annotated[list[Count], Field(min_length=1)]

    @model_validator(mode="after")
    def fit(self) -> Self:
        """All lists are equally long."""
        if len({len(self.at), len(self.mean), len(self.low), len(self.high)}) > 1:
            raise expected("a curve whose lists are equally long")
        return self


class Observed(OpenTable):
    """One model at one level of an attack, as means over items."""

    model: str
    condition: str
    at: Level = None
    n: Count
    values: dict[str, Number | None]


class Skipped(OpenTable):
    """What an attack left out."""

    what: str
    reason: str


class Attacked(OpenTable):
    """What an attack left in `robustness`."""

    attack: str | None = None
    axis: str | None = None
    does: str | None = None
    headline: str | None = None
    level: Level = None
    curves: list[Curve] | None = None
    levels: list[Observed] | None = None
    intervals: dict[str, tuple[Number, Number]] | None = None
    skipped: list[Skipped] | None = None

    @model_validator(mode="before")
    @classmethod
    def pairs(cls, content: Any) -> Any:
        """Intervals as pairs: JSON has lists."""
        ends = content.get("intervals") if isinstance(content, dict) else None
        if not isinstance(ends, dict):
            return content
        made = {name: tuple(own) if isinstance(own, list) else own for name, own in ends.items()}
        return {**content, "intervals": made}


def _utc(text: str) -> str:
    try:
        if datetime.fromisoformat(text).utcoffset() == timedelta(0):
            return text
    except ValueError:
        pass
    raise expected("a time in UTC")


def _in_seconds(timing: dict[str, float]) -> dict[str, float]:
    if wrong := [name for name in timing if not name.endswith("_seconds")]:
        raise expected(f"times by names that end in _seconds, not {wrong[0][:40]}")
    return timing


class StoredResult(Table):
    """A result file; see `Result`."""

    schema_version: Literal[SCHEMA_VERSION]  # type: ignore[valid-type]
    kind: str
    status: Literal[STATUSES]  # type: ignore[valid-type]
    created: Annotated[str, AfterValidator(_utc)]
    command: list[str]
    config_as_passed: Object
    config: Object
    model: ModelOfResult
    edit: EditOfResult | None
    data: dict[str, Data | None]
    metrics: dict[str, dict[str, StoredMetric]]
    samples: dict[str, Samples]
    provenance: Provenance
    seed: Whole | None
    timing: Annotated[dict[str, NotNegative], AfterValidator(_in_seconds)]
    notes: list[str]
    robustness: dict[str, Attacked] = {}

    def read_metrics(self) -> dict[str, dict[str, Metric]]:
        """The metrics by task and name."""
        return {task: {name: one.metric() for name, one in own.items()} for task, own in self.metrics.items()}


class ObservedItem(OpenTable):
    """What was measured of an item under attack."""

    model: str
    condition: str
    at: Level = None


class Sample(OpenTable):
    """One record of a file of samples."""

    id: str | Whole | None = None
    doc_id: str | Whole | None = None
    doc_hash: str | None = None
    resps: list[Any] | None = None
    observations: list[ObservedItem] = []


class AttackedSample(Sample):
    """One record of an attack's samples."""

    id: str | Whole
    question: str
    answer: str
    metrics: Object = {}


# Localizations ---------------------------------------------------------------------------------------------


class Ranked(OpenTable):
    """A unit that could be chosen."""

    kind: Literal["attention", "mlp"]
    layer: Layer
    score: Number | None = None


class MaskSettings(OpenTable):
    """How single weights were chosen."""

    way: str
    weights: str | Number


class Mask(OpenTable):
    """The file that says which weights may be trained."""

    file: PlainName
    sha256: Digest
    n_weights: Count
    settings: MaskSettings


class Tables(OpenTable):
    """What a localization measured."""

    effects: LayersAndRoles | None = None
    probe_accuracy: dict[str, list[Number]] = {}


class Localization(Table):
    """What `unlearn-eval localize` writes."""

    kind: Literal["components"]
    version: Literal[1]
    method: Annotated[str, Field(min_length=1, max_length=200)]
    modules: list[str]
    mlp_layers: list[Layer]
    n_weights: Count
    n_weights_in_blocks: Size
    n_layers: Annotated[int, Field(ge=1, lt=MOST_LAYERS)]
    budget: Budget | None = None
    ranking: list[Ranked] = []
    tables: Tables = Tables()
    settings: Object = {}
    seed: Whole = 0
    model: ModelRead
    facts: FactsRead | Mapping[str, Any] = {}
    notes: LocalizationNotes = LocalizationNotes()
    seconds: NotNegative | None = None
    versions: Object = {}
    mask: Mask | None = None

    @model_validator(mode="after")
    def fit(self) -> Self:
        """Layers are those of the model, modules are in layers."""
        if any(unit.layer >= self.n_layers for unit in self.ranking) or any(
            i >= self.n_layers for i in self.mlp_layers
        ):
            raise expected(f"of layers below n_layers, {self.n_layers}")
        if any(len(curve) != self.n_layers + 1 for curve in self.tables.probe_accuracy.values()):
            raise expected("with an accuracy for the embedding and each layer in tables.probe_accuracy")
        return self
