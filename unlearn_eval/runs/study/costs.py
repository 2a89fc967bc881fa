"""What a cell will cost: from what earlier cells of the folder did, else from a rule of thumb by parameter count.

The rule: 2 N operations per token forward, three times that with gradients; 600 tokens for a document; for an item
4,000 with gradients by an editor, and by a method that is trained as many as the item (and one to retain) has, each
epoch; a core computes 4e10 operations a second, a GPU 1e14. Attacks say how many rows they train on, answer and read on
one model; models without an edit are attacked once, by the first cell that needs it. Localizations say how many passes
a fact takes them; cells with the same one pay once. Memory is that of the plan (`runs.memory`), for which the model's
configuration is enough, and what the process has for itself.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from unlearn_eval.models.assets import cache_dir
from unlearn_eval.models.places import resolve_model
from unlearn_eval.results.schema import Result
from unlearn_eval.runs.study.attacked import Try, config_of_attack
from unlearn_eval.runs.study.cells.told import forget_set
from unlearn_eval.runs.study.identity import Identities, code_of_cell
from unlearn_eval.runs.study.located import Located, n_layers_of
from unlearn_eval.runs.study.plan import Cell
from unlearn_eval.runs.study.spec import ModelSpec
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import write_all
from unlearn_eval.utils.provenance import hash_json

if TYPE_CHECKING:
    from unlearn_eval.runs.memory import Sized

TOKENS_PER_DOCUMENT, TOKENS_PER_EDIT = 600, 3 * 4_000
CHARACTERS_PER_TOKEN, TOKENS_AROUND = 4, 24  # of a question with its answer, and what a template puts around it
WITH_GRADIENTS = 3  # as much as forward alone
PER_CORE, PER_GPU = 4e10, 1e14  # operations a second
RULE = "a rule of thumb by parameter count"
RECORDED = "what cells of this folder took"


@dataclass(frozen=True)
class Cost:
    """An estimate.

    Attributes:
        seconds: of computing.
        memory_bytes: at most at once; None where the model's configuration is not known.
        source: what it rests on.
    """

    seconds: float
    memory_bytes: float | None
    source: str


@dataclass(frozen=True)
class _Rates:
    """What cells of the same kind took, on average, and the most memory."""

    seconds_per_document: float
    seconds_per_item: float
    seconds_per_located_item: float
    memory_bytes: int


_Kind = tuple[str, str | None, str]  # model, editor, attacks
_OF_A_MODEL = "of a model, whatever was done to it"


class Costs:
    """Estimates for the cells of a folder.

    Args:
        results: those that are there.
        on_gpu: whether a GPU computes.
    """

    def __init__(self, results: Iterable[Result], on_gpu: bool) -> None:
        kinds: dict[_Kind, list[Result]] = {}
        for result in results:
            if result.status == "complete" and "cell" in result.config:
                cell = result.config["cell"]
                attacks = _attacks((own["attack"], own.get("settings", {})) for own in cell.get("attacks", ()))
                kinds.setdefault((cell["model"], cell["editor"], attacks), []).append(result)
                kinds.setdefault((cell["model"], None, _OF_A_MODEL), []).append(result)
        self._recorded = {kind: _rates(same) for kind, same in kinds.items()}
        self.rate = PER_GPU if on_gpu else PER_CORE * (os.cpu_count() or 1)
        self.on_gpu = on_gpu
        self._sizes: dict[ModelSpec, int | None] = {}
        self._memories: dict[tuple[Any, ...], float | None] = {}

    def of(self, cell: Cell, n_items: int, first: Sequence[str] = ()) -> Cost | None:
        """The estimate for a cell that forgets so many items; None if nothing is known of its model.

        Args:
            cell: the cell.
            n_items: how many it forgets.
            first: keys of what it shares with later cells and has to make itself (see `shared_by`).
        """
        kind: _Kind = (cell.model.name, None, _OF_A_MODEL)
        if cell.editor is not None:
            attacks = _attacks((own.attack.attack, own.attack.settings) for own in cell.tries)
            kind = (cell.model.name, cell.editor.name, attacks)
        n_documents = sum(ask.n_documents or 0 for ask in cell.asks)
        if kind in self._recorded:
            return _as_recorded(cell, self._recorded[kind], n_items, n_documents, first)
        if cell.model not in self._sizes:
            self._sizes[cell.model] = n_parameters(cell.model)
        size = self._sizes[cell.model]
        return None if size is None else self._rule(cell, size, n_items, n_documents, first)

    def _rule(self, cell: Cell, size: int, n_items: int, n_documents: int, first: Sequence[str]) -> Cost:
        tokens = float(TOKENS_PER_DOCUMENT * n_documents)
        item = tokens_of(cell.forget)
        if cell.editor is not None:
            epochs = _epochs(cell, n_items)
            row = item + (0 if cell.retain is None else tokens_of(cell.retain))
            tokens += n_items * (WITH_GRADIENTS * row * epochs if epochs else TOKENS_PER_EDIT)
        if cell.located is not None and cell.located.key in first:
            tokens += n_items * item * passes_of(cell.located, cell.model)
        for own in cell.tries:
            others = 1 + (own.attack.reference is not None)
            n_models = 1 + (others if not own.control_key or own.control_key in first else 0)
            tokens += n_models * attack_tokens(own, cell, n_items, item)
        return Cost(tokens * 2 * size / self.rate, self._memory(cell, n_items), RULE)

    def _memory(self, cell: Cell, n_items: int) -> float | None:
        """The most that a cell has in memory, by the plans of what it does.

        Cells that do the same with other items have one plan, of the items of the first one: ask for the largest first.
        """
        from unlearn_eval.runs.memory import CONTEXT_BYTES, without_writing

        tries = tuple(
            (own.attack.attack, tuple(own.attack.settings.items()), own.attack.reference) for own in cell.tries
        )
        recipe = None if cell.recipe is None else repr(without_writing(cell.recipe.recipe))
        key = (cell.model, None if cell.editor is None else cell.editor.name, recipe, cell.forget, tries)
        if key not in self._memories:
            device = "cuda" if self.on_gpu else "cpu"
            try:
                peak = _remembered(cell, n_items, device, lambda: _peak_bytes(cell, n_items, device))
                self._memories[key] = CONTEXT_BYTES + peak
            except UserError:  # no configuration, or where it edits needs the weights
                self._memories[key] = None
        return self._memories[key]


def _remembered(cell: Cell, n_items: int, device: str, plan: Callable[[], int]) -> int:
    """The largest peak of a cell's plans, as it was planned before with the same model, settings, items and code."""
    contents = Identities({})
    about = {
        "model": [cell.model_key, cell.model.dtype],
        "editor": None
        if cell.editor is None
        else [contents.settings(cell.editor.editor, bare=False), contents.settings(cell.editor.settings)],
        "recipe": None if cell.recipe is None else repr(cell.recipe.recipe),
        "sets": [forget_set(name).hash for name in (cell.forget, cell.retain) if name is not None],
        "attacks": [
            [own.attack.attack, contents.settings(own.attack.settings), own.attack.reference is not None]
            for own in cell.tries
        ],
        "n_items": n_items,
        "device": device,
        "code": code_of_cell(["attacks"] if cell.tries else []),
    }
    path = cache_dir() / "plans" / hash_json(about)
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        peak = plan()
    with suppress(OSError):
        write_all({path.name: str(peak)}, path.parent)
    return peak


def shared_by(cells: Iterable[Cell]) -> dict[str, tuple[str, ...]]:
    """Cell's key -> the keys of localizations and attacks on unedited models that it is the first to need."""
    seen: set[str] = set()
    found: dict[str, tuple[str, ...]] = {}
    for cell in cells:
        needed = [own.control_key for own in cell.tries if own.control_key] + (
            [] if cell.located is None else [cell.located.key]
        )
        found[cell.key] = tuple(key for key in dict.fromkeys(needed) if key not in seen)
        seen |= {*needed}
    return found


def attack_tokens(own: Try, cell: Cell, n_items: int, item: float) -> float:
    """About how many tokens an attack costs on one model, as tokens forward.

    Args:
        own: the attack.
        cell: its cell.
        n_items: how many are forgotten.
        item: tokens of one with its answer.
    """
    from unlearn_eval.attacks.base import get_attack

    work = get_attack(own.attack.attack).work(config_of_attack(own.attack), n_items, n_layers_of(cell.model))
    answer = 2 * item + own.attack.max_new_tokens  # written after the question, and the true one scored
    return WITH_GRADIENTS * work.trained * item + work.answered * answer + work.read * item


def passes_of(located: Located, model: ModelSpec) -> float:
    """Passes of a model for each fact of a localization."""
    from unlearn_eval.localization.base import get_localizer

    wanted = located.wanted
    return get_localizer(wanted.method).passes(wanted.config(), n_layers_of(model))


@cache
def tokens_of(name: str) -> float:
    """About how many tokens a question of a set has with its answer, by their letters."""
    items = forget_set(name).items
    return TOKENS_AROUND + mean(len(item.question) + len(item.answer) for item in items) / CHARACTERS_PER_TOKEN


def _peak_bytes(cell: Cell, n_items: int, device: str) -> int:
    """The largest peak of a cell's plans: of its edit, its evaluation and its attacks.

    Raises:
        UserError: there is no plan.
    """
    from unlearn_eval.editing.editor import get_editor
    from unlearn_eval.runs.memory import plan_attack, plan_edit, plan_eval

    model = _sized(cell.model)
    items = forget_set(cell.forget)
    items = items.sample(n_items, 0) if n_items < len(items) else items
    plans = [plan_eval(model, items)]
    if cell.editor is not None and cell.recipe is not None:
        retain = None if cell.retain is None else forget_set(cell.retain)
        method, settings = get_editor(cell.editor.editor), cell.editor.settings
        plans.append(plan_edit(model, method, items, settings, cell.recipe.recipe, retain, device))
    for own in cell.tries:
        reference = own.attack.reference is not None
        plans.append(
            plan_attack(model, own.attack.attack, items, own.attack.settings, device=device, reference=reference)
        )
    return max(plan.peak_bytes for plan in plans)


@lru_cache(maxsize=2)
def _sized(model: ModelSpec) -> Sized:
    from unlearn_eval.runs.memory import sized

    return sized(model.model, model.dtype, model.revision)


def _as_recorded(cell: Cell, rates: _Rates, n_items: int, n_documents: int, first: Sequence[str]) -> Cost:
    """From what cells of the same model, method and attacks took."""
    seconds = rates.seconds_per_document * n_documents
    if cell.editor is not None:
        seconds += rates.seconds_per_item * n_items
    if cell.located is not None and cell.located.key in first:
        seconds += rates.seconds_per_located_item * n_items
    return Cost(seconds, rates.memory_bytes, RECORDED)


def _rates(same: Sequence[Result]) -> _Rates:
    """What results of the same kind say."""
    asked, edited, located = [], [], []
    for result in same:
        n_items = max(1, result.config.get("n_edited") or len(result.config["cell"].get("ids", ())))
        n_documents = max(1, sum(int(data.get("n_documents") or 0) for data in result.data.values()))
        attack_seconds = result.timing.get("attack_seconds", 0.0)
        asked.append((result.timing.get("evaluation_seconds", 0.0) - attack_seconds) / n_documents)
        edited.append((result.timing.get("editing_seconds", 0.0) + attack_seconds) / n_items)
        located.append(result.timing.get("localization_seconds", 0.0) / n_items)
    most = max(int(result.config.get("peak_memory_bytes", 0)) for result in same)
    return _Rates(mean(asked), mean(edited), mean(located), most)


def _attacks(attacks: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    """Names and settings, to compare."""
    return json.dumps([[name, dict(settings)] for name, settings in attacks], sort_keys=True)


def _epochs(cell: Cell, n_items: int) -> float:
    """The epochs of a method that is trained, else 0."""
    from unlearn_eval.editing.editor import get_editor
    from unlearn_eval.runs.study.plan import config_of

    assert cell.editor is not None and cell.recipe is not None  # noqa: PT018
    config = config_of(cell.editor, cell.recipe.recipe, cell.forget)
    epochs = float(config.epochs) if "epochs" in get_editor(cell.editor.editor).settings else 0.0
    if epochs and config.steps:
        epochs = config.steps * min(config.batch_size, n_items) / n_items
    return epochs


def n_parameters(spec: ModelSpec) -> int | None:
    """The parameters of a model, from its files or, for one that is not there, from its name (`7B`, `135M`)."""
    try:
        path = Path(resolve_model(spec.model))
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
        if files:
            return sum(_n_in_file(file) for file in files)
    except (UserError, OSError, ValueError):
        pass
    found = re.search(r"(\d+(?:\.\d+)?)\s*([bBmM])(?![a-zA-Z])", Path(spec.model).name)
    return None if found is None else int(float(found[1]) * {"b": 1e9, "m": 1e6}[found[2].lower()])


def _n_in_file(path: Path) -> int:
    """The numbers in a safetensors file, by its header."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            n = 1
            for side in entry["shape"]:
                n *= side
            total += n
    return total
