"""From a model and a forget set to components: a method ranks, a budget cuts, a file remembers."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.data.items import ForgetSet
from unlearn_eval.editing.editor import Editor
from unlearn_eval.editing.requests.build import build_requests
from unlearn_eval.editing.training.data import Row
from unlearn_eval.localization.base import Fact, Ranking, Run, get_localizer, localizer_names
from unlearn_eval.localization.budget import Budget, budget_of, chosen, usual_budget
from unlearn_eval.localization.components import MASKS, VERSION, Components, load_components, mlp_layers, scores_of
from unlearn_eval.localization.facts import check_some, facts_of, plain_words
from unlearn_eval.localization.mask_scores import MaskConfig, weight_masks
from unlearn_eval.localization.sites import MLP, Sites, sites
from unlearn_eval.models.assets import cache_dir
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.folders import check_output
from unlearn_eval.utils.notebooks import usual_progress
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.provenance import hash_json, provenance
from unlearn_eval.utils.settings import check_batch_size, configure

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LocalizationSpec:
    """A localization that is asked for.

    Attributes:
        method: its name.
        budget: as text; None is the method's own rule, or the usual one.
        settings: of the method, as text.
        masks: how single weights are chosen within the components, as text (`mask_scores.MaskConfig`); None: all are.
    """

    method: str
    budget: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    masks: Mapping[str, str] | None = None

    @classmethod
    def of(cls, method: str, budget: str | None, settings: Mapping[str, str]) -> LocalizationSpec:
        """With the settings of masks (`masks=WAY`, `masks.weights=...`) taken out of a method's."""
        own = {name: value for name, value in settings.items() if name.partition(".")[0] != "masks"}
        masks = {name.partition(".")[2] or "way": value for name, value in settings.items() if name not in own}
        return cls(method, budget, own, masks or None)

    def config(self) -> Any:
        """The method's settings, resolved.

        Raises:
            UserError: an unknown method or setting, with the nearest.
        """
        return configure(get_localizer(self.method).Config, self.settings)

    def check(self) -> None:
        """Refuse unknown settings.

        Raises:
            UserError: naming the nearest.
        """
        self.config()
        if self.masks is not None:
            configure(MaskConfig, self.masks)


def localize(
    loaded: LoadedModel,
    forget: ForgetSet,
    wanted: LocalizationSpec | str,
    seed: int = 0,
    retain: ForgetSet | None = None,
    prompt_format: PromptFormat | None = None,
    rows: int = 64,
    progress: Progress | None = None,
    cache: bool = True,
) -> Components:
    """The components of a model that a method names for the facts of a set.

    What was computed before, on the same weights and facts with the same settings, is read from the user's cache.

    Args:
        loaded: the model; it is left as it is.
        forget: whose facts are looked for; items without subject or wrong answer are left out, and named.
        wanted: the method, its settings, and how much it may choose; or all of it as text: `fact_lookup`,
            `fact_lookup(budget=6)`.
        seed: of everything random.
        retain: further facts for methods that tell answers apart (probes).
        prompt_format: how the model is asked; None is as plain questions. In a chat an answer seldom begins with its
            own first token.
        rows: prompts per forward pass.
        progress: called as (what, done, total); None is a bar in a notebook, nothing elsewhere.
        cache: whether the cache is read and written.

    Raises:
        UserError: an unknown method or setting, a budget that the method cannot fill, no item that can be used, or a
            model whose parts are not found.
    """
    check_batch_size(rows)
    wanted, progress = _spec_of(wanted), progress or usual_progress()
    method, config = get_localizer(wanted.method), wanted.config()
    model, found = loaded.model, sites(loaded.model)
    budget = None if wanted.budget is None else budget_of(wanted.budget, found)
    masks = None if wanted.masks is None else configure(MaskConfig, wanted.masks)
    learns = masks is not None and masks.way == "learned"
    needed = method.needs_facts or (masks is not None and not learns)
    prompt_format = prompt_format or loaded.prompt_format(False)
    facts, others, skipped = _facts(needed, loaded, forget, retain, prompt_format, seed)
    weights = loaded.weights.canonical
    key = {
        "version": VERSION,
        "method": wanted.method,
        "settings": asdict(config),
        "seed": seed,
        "weights": weights,
        "facts": [asdict(fact) for fact in facts],
        "others": [asdict(fact) for fact in others],
        "budget": None if budget is None else budget.n_weights,
        "dtype": str(model.dtype),
    }
    if masks is not None:
        key["masks"] = asdict(masks)
    if learns:
        key["rows"] = [forget.hash, None if retain is None else retain.hash, *prompt_format.record.values()]
    path = cache_dir() / "localization" / f"{wanted.method}-{hash_json(key)[:24]}.json"
    about = _about_facts(needed or learns, forget, retain, facts, skipped, prompt_format)
    if cache and path.is_file():
        return replace(load_components(path), facts=about)
    if cache or masks is not None:
        check_output(path, "localization", "UNLEARN_EVAL_CACHE")
    started = time.monotonic()
    words = plain_words(loaded.tokenizer, seed) if facts else []
    run = Run(model, found, facts, others, words, seed, rows, progress)
    ranking = method.run(run, config)
    modules, spent = _cut(ranking, found, budget)
    rows_to_learn = _rows(learns, loaded, forget, retain, prompt_format)
    single = None if masks is None else weight_masks(run, modules, masks, *rows_to_learn)
    made = Components(
        method=wanted.method,
        modules=tuple(modules),
        mlp_layers=mlp_layers(model, modules, [unit.layer for unit in ranking.units if unit.kind == MLP]),
        n_weights=sum(found.parameters[name] for name in modules) if single is None else single.n_weights,
        n_weights_in_blocks=sum(found.parameters.values()),
        n_layers=found.parts.n_layers,
        budget=spent,
        ranking=tuple(
            {"kind": unit.kind, "layer": unit.layer, "score": ranking.scores.get(unit)} for unit in ranking.units
        ),
        tables=ranking.tables,
        settings=asdict(config),
        seed=seed,
        model={"id": loaded.name, "architecture": type(model).__name__, "weights": weights},
        facts=about,
        notes=ranking.notes,
        seconds=round(time.monotonic() - started, 2),
        versions=provenance()["packages"],
    )
    if masks is not None and single is not None:
        place = path.with_suffix(MASKS)  # the cache holds it, whether or not it is read from there
        about_masks = {"file": place.name, "n_weights": single.n_weights, "settings": asdict(masks)}
        made = replace(made, mask={**about_masks, "sha256": single.save(place)}, folder=str(place.parent))
    if cache:
        made.save(path)
    return made


def _spec_of(wanted: LocalizationSpec | str) -> LocalizationSpec:
    spec = localization_spec(wanted) if isinstance(wanted, str) else wanted
    if not isinstance(spec, LocalizationSpec):
        raise unknown_name("localization", str(wanted), localizer_names())
    return spec


def _rows(
    needed: bool, loaded: LoadedModel, forget: ForgetSet, retain: ForgetSet | None, prompt_format: PromptFormat
) -> tuple[list[Row], list[Row]]:
    """What masks are trained on: questions with their answers, to be forgotten and to be kept."""
    if not needed:
        return [], []
    longest = loaded.max_length
    asked = {item.question for item in forget}
    kept = [item for item in retain or () if item.question not in asked]
    forgotten, others = (
        [
            Row(request.prompt_ids, request.answer_ids)
            for request in build_requests(items, [item.answer for item in items], prompt_format, (), longest)
        ]
        for items in (list(forget.items), kept)
    )
    return forgotten, others


def _facts(
    needed: bool,
    loaded: LoadedModel,
    forget: ForgetSet,
    retain: ForgetSet | None,
    prompt_format: PromptFormat,
    seed: int,
) -> tuple[list[Fact], list[Fact], dict[str, str]]:
    """What is looked for, what else may be learned from, and what is left out and why."""
    if not needed:
        return [], [], {}
    longest = loaded.max_length
    facts, skipped = facts_of(forget.items, prompt_format, seed, longest)
    check_some(facts, skipped, forget)
    asked = {item.question for item in forget}
    kept = [item for item in retain or () if item.question not in asked]
    others, _ = facts_of(kept, prompt_format, seed, longest)
    return facts, others, skipped


def _about_facts(
    needed: bool,
    forget: ForgetSet,
    retain: ForgetSet | None,
    facts: list[Fact],
    skipped: dict[str, str],
    prompt_format: PromptFormat,
) -> dict[str, Any]:
    if not needed:
        return {}
    own = {"set": forget.name, "hash": forget.hash, "n": len(facts), "skipped": skipped, **prompt_format.record}
    return own | ({"retain_set": retain.name, "retain_set_hash": retain.hash} if retain is not None else {})


def _cut(ranking: Ranking, found: Sites, budget: Budget | None) -> tuple[list[str], dict[str, Any] | None]:
    """The chosen modules in the model's order, and the budget that was used."""
    if not ranking.takes_budget:
        names, spent = {name for unit in ranking.units for name in found.maps[unit]}, None
    elif budget is None and ranking.n_chosen is not None:
        names = {name for unit in ranking.units[: ranking.n_chosen] for name in found.maps[unit]}
        spent = {"given": "the method's own rule", "n_weights": sum(found.parameters[name] for name in names)}
    else:
        budget = budget or usual_budget(found)
        names = set(chosen(ranking.units, found, budget))
        spent = {"given": budget.text, "n_weights": budget.n_weights}
    return [name for name in found.parameters if name in names], spent


# As a setting of editors: `components=TEXT` ----------------------------------------------------------------

_CALL = re.compile(r"(\w+)\s*(?:\((.*)\))?")


def localization_spec(text: str) -> LocalizationSpec | Path | None:
    """What `components=TEXT` asks for: a localization, a file of components, or (None) patterns of module names.

    A localization is written `NAME` or `NAME(budget=6, SETTING=VALUE, ...)`.

    Raises:
        UserError: a setting without a value.
    """
    text = text.strip()
    if text.endswith(".json"):
        return Path(text).expanduser()
    found = _CALL.fullmatch(text)
    if found is None or (found[1] not in localizer_names() and found[2] is None):
        return None
    settings = {}
    for part in filter(None, (part.strip() for part in (found[2] or "").split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"'{part}' in '{text}' has no value", "write NAME(budget=6, SETTING=VALUE)")
        settings[name.strip()] = value.strip()
    budget = settings.pop("budget", None)
    get_localizer(found[1])
    return LocalizationSpec.of(found[1], budget, settings)


def checked_settings(editor: Editor, settings: Mapping[str, str]) -> dict[str, str]:
    """An editor's settings without `components` where it is no setting of its own; all are checked.

    Raises:
        UserError: an unknown setting or value, or localization or setting of it, no such file, or patterns of module
            names where an editor takes none.
    """
    text = settings.get("components", "")
    wanted = localization_spec(text) if text else None
    if isinstance(wanted, LocalizationSpec):
        wanted.check()
    elif isinstance(wanted, Path):
        load_components(wanted)
    names = editor.settings
    if isinstance(wanted, LocalizationSpec) and wanted.masks is not None and "masks" not in names:
        raise _no_masks(wanted.method)
    if text and "components" not in names and wanted is None:
        raise unknown_name("localization", text, localizer_names())
    if text and not names & {"components", "layers"}:
        raise unknown_name("setting", "components", names)
    own = {name: value for name, value in settings.items() if name != "components" or name in names}
    configure(editor.Config, own)
    return own


def check_name(text: str, model: PreTrainedModel) -> None:
    """Refuse a single word that is neither a localization nor a part of a module's name.

    Raises:
        UserError: with the nearest localizations.
    """
    parts = {part for name, _ in model.named_parameters() for part in name.split(".")}
    if re.fullmatch(r"[a-z_]+", text.strip()) and text.strip() not in parts:
        raise unknown_name("localization or component", text.strip(), [*localizer_names(), *parts])


def resolve(
    text: str,
    loaded: LoadedModel,
    forget: ForgetSet,
    seed: int,
    retain: ForgetSet | None = None,
    progress: Progress = no_progress,
) -> Components | None:
    """The components that `components=TEXT` stands for; None where it is patterns of module names.

    Raises:
        UserError: as in `localize`; or a file that is missing, or of another model.
    """
    wanted = localization_spec(text)
    if wanted is None:
        if text:
            check_name(text, loaded.model)
        return None
    if isinstance(wanted, Path):
        components = load_components(wanted)
        components.check(loaded.model, loaded.name)
        return components
    return localize(loaded, forget, wanted, seed, retain, progress=progress)


def settings_for(editor: Editor, components: Components) -> dict[str, str]:
    """An editor's settings that put it where the components are: what it trains, or which layers it edits.

    Raises:
        UserError: the editor edits layers, and there is no MLP among the components.
    """
    names = editor.settings
    if components.mask and "masks" not in names:
        raise _no_masks(components.method)
    if "components" in names:
        return {"components": components.patterns} | ({"masks": components.mask_file} if components.mask else {})
    if not components.mlp_layers:
        raise UserError(
            f"{editor.name} edits MLPs, and {components.method} names none",
            f"give another, e.g. {components.method}_mlps",
        )
    layers = components.mlp_layers[: 1 if editor.one_layer else None]
    return {"layers": ",".join(map(str, sorted(layers)))}


def _no_masks(method: str) -> UserError:
    return UserError(
        f"{method} has masks of single weights, and this editor changes whole matrices",
        "use a method that is trained (unlikelihood, npo, ...), or leave out masks",
    )


def source_of(components: Components, given: str) -> dict[str, Any]:
    """Where an edit's components come from, for its notes."""
    return {
        "given": given,
        "method": components.method,
        "settings": dict(components.settings),
        "budget": None if components.budget is None else dict(components.budget),
        "n_weights": components.n_weights,
        "mlp_layers": list(components.mlp_layers),
        "modules": list(components.modules),
        "facts": {key: components.facts[key] for key in ("set", "hash", "n") if key in components.facts},
        "seed": components.seed,
        "seconds": components.seconds,
        **({"mask": {key: own for key, own in components.mask.items() if key != "file"}} if components.mask else {}),
        **scores_of(asdict(components)),
    }
