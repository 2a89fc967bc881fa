"""From `meta:` to an ordinary study: a part for each model of the pools, for the unlearned ones, and for the controls.

Nothing here runs anything. What a cell stands for is told by the name of its part, so that results can be read without
the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unlearn_eval.runs.study.file import BITS, EditorEntry, MetaEntry, StudyFile, TaskEntry
from unlearn_eval.runs.study.mistakes import user_error
from unlearn_eval.runs.study.read import META, read_study
from unlearn_eval.runs.study.spec import Study, study_of
from unlearn_eval.utils.errors import UserError

KNOWS, NEVER, UNLEARNED, RETAINED, AFTER, RETAINED_AFTER = (
    "knows", "never", "unlearned", "retained", "after", "retained after",
)  # fmt: skip
CONTROLS, FILTER, RANDOM = "controls", "filter", "random layers"
RELEARNED, QUANTIZED = "relearned", "quantized"
NOOP, REFUSE_ALL, PLACEBO, WRONG, NOISE = "noop", "refuse_all", "placebo", "wrong_answers", "noise"
_OWN = "own models"  # the recipe of models that the user gives


@dataclass(frozen=True)
class Place:
    """What a part of the study stands for.

    Attributes:
        role: One of the names above.
        recipe: How a model of a pool was taught.
    """

    role: str
    recipe: str = ""

    @property
    def part(self) -> str:
        """The beginning of the part's name."""
        return f"{self.role}: {self.recipe}" if self.recipe else self.role

    @staticmethod
    def of(part: str) -> Place:
        """What a part of this name stands for."""
        role, _, rest = part.partition(": ")
        return Place(role, rest.partition(",")[0])


def recipes(meta: MetaEntry) -> dict[str, dict[str, str]]:
    """Pool -> recipe -> the set that a model is taught."""
    retain, forget = meta.retain, meta.forget
    return {
        KNOWS: {
            "questions": f"{retain} & {forget}",
            "biographies": f"{retain} & biographies({forget})",
            "paraphrases": f"{retain} & paraphrased({forget})",
        },
        NEVER: {
            "retain": retain,
            "wrong answers": f"{retain} & wrong({forget})",
            "other authors": f"{retain} & biographies({meta.others})",
        },
    }


def study_in(path: Path, overrides: Sequence[str] = ()) -> tuple[Study, MetaEntry | None]:
    """The study in a file, and what stands under `meta:` in it, if anything does; errors as in `read_study`."""
    content, meta = read_study(path, overrides), None
    if META in content:
        content, meta = expanded(content, path.name)
    return study_of(content, path), meta


def expanded(content: Mapping[str, Any], file: str) -> tuple[dict[str, Any], MetaEntry]:
    """A study file's content with `meta:` turned into parts, and what stood there.

    Raises:
        UserError: `meta:` does not fit, or there are parts beside it.
    """
    try:
        meta = StudyFile.model_validate(content).meta
    except ValidationError as error:
        raise user_error(error, content, file, StudyFile) from error
    if meta is None or content.get("parts"):
        raise UserError(f"{file}: meta: and parts: exclude each other", "leave one out")
    if not meta.methods or not meta.tasks:
        raise UserError(f"{file}: meta: has no {'methods' if meta.tasks else 'tasks'}", "see studies/meta.yaml")
    rest = {key: value for key, value in content.items() if key not in ("meta", "parts")}
    shared = {"forget": meta.forget, "retain": meta.retain, "sizes": "all", "kept": None}
    return {**shared, **rest, "parts": dict(_parts(meta))}, meta


def _parts(meta: MetaEntry) -> Iterator[tuple[str, dict[str, Any]]]:
    tasks = [_plain(own) for own in meta.tasks]
    with_utility = [_plain(own) for own in meta.utility_tasks] or tasks
    before, retained = _finetune(meta, KNOWS, "questions"), _finetune(meta, NEVER, "retain")
    reads = [{"attack": name, "reference": "model:taught"} for name in meta.depth] if not meta.full else []
    full = {"models": meta.full} if meta.full else {"finetune": before}
    without = {"models": meta.retained} if meta.retained else {"finetune": retained}
    if meta.knows:
        for role, models in ((KNOWS, meta.knows), (NEVER, meta.never)):
            yield Place(role, _OWN).part, {"models": list(models), "tasks": tasks, "editors": []}
    else:
        for role, own in recipes(meta).items():
            for recipe in own:
                for rate in meta.rates:
                    for epochs in meta.epochs:
                        taught = _finetune(meta, role, recipe, rate, epochs)
                        name = f"{Place(role, recipe).part}, {rate:g}, {epochs:g}"
                        yield name, {"finetune": taught, "tasks": tasks, "editors": [], "attacks": reads}
    methods = [_plain(own) for own in meta.methods]
    yield RETAINED, {**without, "tasks": with_utility, "editors": [], "attacks": reads}
    yield UNLEARNED, {**full, "tasks": with_utility, "editors": methods, "attacks": reads}
    after = [
        {"kind": "teach", "name": RELEARNED, "on": meta.forget, "settings": _training(meta) | dict(meta.relearning)},
        {"kind": BITS, "name": QUANTIZED, "settings": dict(meta.quantization)},
    ]
    attacked = {"tasks": tasks, "attacks": reads, "then": after, "only_then": True}
    yield RETAINED_AFTER, {**without, **attacked, "editors": []}
    yield AFTER, {**full, **attacked, "editors": methods}
    done = {"tasks": with_utility, "attacks": reads, "only_then": True}
    yield CONTROLS, {**full, **done, "editors": [], "then": list(_controls(meta))}
    for role, editor in ((FILTER, meta.filter), (RANDOM, meta.random_layers)):
        if editor is not None:
            yield role, {**full, "tasks": with_utility, "attacks": reads, "editors": [_plain(editor)]}


def _controls(meta: MetaEntry) -> Iterator[dict[str, Any]]:
    """What is done to the model before unlearning, to see what the metrics make of it."""
    settings = _training(meta)
    yield {"kind": "noise", "name": NOOP, "settings": {"scale": 0}}
    gentle = settings | dict(meta.relearning)  # an edit of something else is to cost nothing here
    for name, on, own in (
        (REFUSE_ALL, f"refused({meta.retain} & {meta.forget})", settings),
        (PLACEBO, f"{meta.retain} & {meta.placebo}", gentle),
        (WRONG, f"wrong({meta.forget})", settings),
    ):
        yield {"kind": "teach", "name": name, "on": on, "settings": own}
    yield {"kind": "noise", "name": NOISE, "settings": {"scale": meta.noise}}


def _finetune(
    meta: MetaEntry, role: str, recipe: str, rate: float | None = None, epochs: float | None = None
) -> dict[str, Any]:
    """How a model is taught; without a rate as the anchors are."""
    sets, anchors = recipes(meta), _training(meta)
    own = anchors if rate is None else {**meta.training, "learning_rate": f"{rate:g}", "epochs": f"{epochs:g}"}
    return {
        "on": sets[role][recipe],
        "preset": "none",
        "settings": own,
        "reference": sets[NEVER]["retain"],
        "before": sets[KNOWS]["questions"],
        "anchors": anchors,
    }


def _training(meta: MetaEntry) -> dict[str, str]:
    """The settings of the anchors; what they leave open is the middle of the grid."""
    rates, epochs = sorted(meta.rates), sorted(meta.epochs)
    own = {"learning_rate": f"{rates[len(rates) // 2]:g}", "epochs": f"{(epochs[0] + epochs[-1]) / 2:g}"}
    return {**own, **meta.training, **meta.anchor}


def _plain(entry: EditorEntry | TaskEntry) -> dict[str, Any]:
    return entry.given
