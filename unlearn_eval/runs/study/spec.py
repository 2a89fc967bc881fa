"""What a study is made of, checked: every name known, every value of its kind, before anything is loaded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unlearn_eval.editing.from_file import editor_label
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.harness.backends import check_backend
from unlearn_eval.models.load import DTYPES
from unlearn_eval.utils.errors import UserError, unknown_name

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "self": {"target": "self"},
    "merge": {"merge": "text"},
    "self+merge": {"target": "self", "merge": "text"},
}


@dataclass(frozen=True)
class ModelSpec:
    """A base model.

    Attributes:
        name: in tables and folder names.
        model: hub id, folder, GGUF file, or `default`.
        dtype: in which it is loaded.
        revision: of the hub.
    """

    name: str
    model: str
    dtype: str = "float32"
    revision: str | None = None


@dataclass(frozen=True)
class Finetune:
    """What a model is taught before anything is forgotten.

    Attributes:
        on: the set that it is to know.
        preset: as for `unlearn-eval finetune`; None is the data's own.
        settings: of training, as text.
    """

    on: str
    preset: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EditorSpec:
    """A method with its settings.

    Attributes:
        name: in tables and folder names.
        editor: the method, or the path of a file that holds one (`my_editor.py`).
        settings: as text, over its presets; `text: others` takes second moments of what the model says to the items
            of the set that are neither forgotten nor kept (of studies with `known: true`).
        recipes: the names of the recipes that it is run with; None is all.
    """

    name: str
    editor: str
    settings: Mapping[str, str] = field(default_factory=dict)
    recipes: tuple[str, ...] | None = None


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
        kept: how many other items of the set are asked as kept, of tasks that ask such.
        chat: whether questions go through the chat template; None does if there is one.
        backends: what answers: "hf", or "vllm", whose engine serves the edit (attacks stay with Hugging Face).
        attacks: what is tried on every edit after its tasks.
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


_WHOLE = {"name", "description", "batch_size", "device", "keep_edits", "show", "parts"}
_PART = {f.name for f in dataclasses.fields(Part)} - {"name"} | {"dtype", "include_path"}


def study_of(content: Mapping[str, Any], path: Path) -> Study:
    """The study that a file's content describes.

    Raises:
        UserError: an unknown key, name or kind of value; or what is missing.
    """
    _known_keys(content, _WHOLE | _PART, f"key of {path.name}")
    shared = {key: value for key, value in content.items() if key in _PART}
    given = content.get("parts") or {"": {}}
    for name, own in given.items():
        _known_keys(own, _PART, f"key of the part '{name}'")
    whole = Study(
        name=_slug(_text(content.get("name", path.stem), "name")),
        parts=tuple(_part(str(name), {**shared, **own}) for name, own in given.items()),
        batch_size=_whole(content.get("batch_size", 16), "batch_size"),
        device=None if content.get("device") is None else _text(content["device"], "device"),
        keep_edits=_bool(content.get("keep_edits", True), "keep_edits"),
        show=tuple(_text(name, "show") for name in _list(content.get("show") or [])),
    )
    return whole


def _part(name: str, own: Mapping[str, Any]) -> Part:
    for key in ("forget", "tasks"):
        if not own.get(key):
            where = f" of the part '{name}'" if name else ""
            raise UserError(
                f"the study{where} has no {key}", f"give it {key}: [{'facts' if key == 'forget' else ''}...]"
            )
    dtype = _text(own.get("dtype", "float32"), "dtype")
    recipes = _distinct([_recipe(entry) for entry in _list(own.get("recipes", "plain"))], "recipe")
    editors = _distinct([spec for entry in _list(own.get("editors", [])) for spec in _editors(entry)], "editor")
    return Part(
        name=name,
        models=_distinct([_model(entry, dtype) for entry in _list(own.get("models", "default"))], "model"),
        editors=editors,
        recipes=recipes,
        forget=tuple(dict.fromkeys(_text(entry, "forget") for entry in _list(own["forget"]))),
        sizes=tuple(dict.fromkeys(_size(entry) for entry in _list(own.get("sizes", "all")))),
        seeds=tuple(dict.fromkeys(_whole(entry, "seeds", 0) for entry in _list(own.get("seeds", 0)))),
        tasks=tuple(_task(entry, own.get("include_path")) for entry in _list(own["tasks"])),
        retain=None if own.get("retain") is None else _text(own["retain"], "retain"),
        finetune=None if own.get("finetune") is None else _finetune(own["finetune"]),
        known=_bool(own.get("known", False), "known"),
        kept=None if own.get("kept", 48) is None else _whole(own.get("kept", 48), "kept", 0),
        chat=None if own.get("chat") is None else _bool(own["chat"], "chat"),
        backends=tuple(dict.fromkeys(check_backend(str(entry)) for entry in _list(own.get("backends", "hf")))),
        attacks=_distinct([_attack(entry) for entry in _list(own.get("attacks") or [])], "attack"),
    )


def _model(entry: Any, dtype: str) -> ModelSpec:
    table = _table(entry, "model", ("name", "model", "dtype", "revision"))
    model = _text(table["model"], "model")
    name = _text(table.get("name", Path(model).name if "/" in model else model), "name of a model")
    found = ModelSpec(_slug(name), model, _text(table.get("dtype", dtype), "dtype"), table.get("revision"))
    if found.dtype not in DTYPES:
        raise unknown_name("dtype", found.dtype, DTYPES)
    return found


def _finetune(entry: Any) -> Finetune:
    table = _table(entry, "on", ("on", "preset", "settings"))
    return Finetune(
        _text(table["on"], "finetune"), table.get("preset"), settings_as_text(table.get("settings"), "finetune")
    )


def _editors(entry: Any) -> list[EditorSpec]:
    """An editor, once for each of its `components` if it has some: where it trains or edits, with the same settings."""
    if not isinstance(entry, dict) or "components" not in entry:
        return [_editor(entry)]
    plain = _editor({key: value for key, value in entry.items() if key != "components"})
    found: list[EditorSpec] = []
    for where in _list(entry["components"]):
        text = _text(where, f"components of {plain.name}")
        short = Path(text).stem if text.endswith(".json") else text.partition("(")[0] or text
        name = _slug(f"{plain.name}-{short}")
        if name in [spec.name for spec in found]:  # the same method with other settings
            name = _slug(f"{plain.name}-{text}")
        found.append(replace(plain, name=name, settings={**plain.settings, "components": text}))
    return found


def _editor(entry: Any) -> EditorSpec:
    table = _table(entry, "editor", ("name", "editor", "settings", "recipes"))
    editor = _text(table["editor"], "editor")
    recipes = table.get("recipes")
    return EditorSpec(
        _slug(_text(table.get("name", editor_label(editor)), "name of an editor")),
        editor,
        settings_as_text(table.get("settings"), editor),
        None if recipes is None else tuple(_text(name, "recipes") for name in _list(recipes)),
    )


def _recipe(entry: Any) -> RecipeSpec:
    if isinstance(entry, str):
        if entry not in RECIPES:
            raise unknown_name("recipe", entry, RECIPES)
        return RecipeSpec(entry, Recipe(**RECIPES[entry]))
    fields = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("seed", "chat")]
    if not isinstance(entry, dict) or "name" not in entry:
        raise UserError(f"the recipe {entry!r} has no name", "write {name: NAME, target: ..., merge: ...}")
    _known_keys(entry, {"name", *fields}, f"setting of the recipe '{entry['name']}'")
    own = {key: value for key, value in entry.items() if key != "name"}
    defaults = Recipe()
    for key, value in own.items():
        if type(value) is not type(getattr(defaults, key)):
            raise UserError(
                f"the recipe '{entry['name']}' has {key}: {value!r}", f"its default is {getattr(defaults, key)!r}"
            )
    return RecipeSpec(_slug(str(entry["name"])), replace(defaults, **own))


def _attack(entry: Any) -> AttackSpec:
    table = _table(entry, "attack", tuple(f.name for f in dataclasses.fields(AttackSpec)))
    attack = _text(table["attack"], "attack")
    retain, reference = (
        None if table.get(key) is None else _text(table[key], f"{key} of {attack}") for key in ("retain", "reference")
    )
    name = _slug(_text(table.get("name", attack), "name of an attack"))
    length = _whole(table.get("max_new_tokens", 24), f"max_new_tokens of {attack}")
    return AttackSpec(name, attack, settings_as_text(table.get("settings"), attack), retain, reference, length)


def _task(entry: Any, include_path: Any) -> TaskSpec:
    table = {"include_path": include_path} | _table(entry, "task", tuple(f.name for f in dataclasses.fields(TaskSpec)))
    if table["include_path"] is not None:
        _text(table["include_path"], "include_path")
    for key in ("gen_kwargs", "metadata"):
        if not isinstance(table.get(key, {}), dict):
            raise UserError(f"the {key} of {table['task']} is {table[key]!r}", f"write {key}: {{NAME: VALUE}}")
    limit = table.get("limit")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or limit <= 0):
        raise UserError(f"the limit of {table['task']} is {limit!r}", "give a number above 0")
    return TaskSpec(**{**table, "task": _text(table["task"], "task")})


def settings_as_text(settings: Any, what: str) -> dict[str, str]:
    """Settings as `--set` takes them."""
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UserError(f"the settings of {what} are {settings!r}", "write settings: {NAME: VALUE}")
    return dict(_flat(settings))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            found.append((f"{prefix}{name}", str(value).lower()))
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((f"{prefix}{name}", text))
    return found


# Kinds of values -------------------------------------------------------------------------------------------


def _table(entry: Any, first: str, allowed: Sequence[str]) -> dict[str, Any]:
    """An entry as a table; a bare text is its `first` key."""
    if isinstance(entry, str):
        return {first: entry}
    if not isinstance(entry, dict) or first not in entry:
        raise UserError(f"{entry!r} names no {first}", f"write a name, or {{{first}: NAME, ...}}")
    _known_keys(entry, allowed, f"key of the {first} '{entry[first]}'")
    return entry


def _known_keys(table: Mapping[str, Any], allowed: Any, what: str) -> None:
    for key in table:
        if key not in allowed:
            raise unknown_name(what, str(key), allowed)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{what} is {value!r}, not a text", f"give {what} a name")
    return value.strip()


def _bool(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{what} is {value!r}", "write true or false")
    return value


def _whole(value: Any, what: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{what} is {value!r}", f"give a whole number of at least {least}")
    return value


def _size(value: Any) -> int | None:
    return None if value == "all" else _whole(value, "sizes")


def _distinct(specs: list[Any], what: str) -> tuple[Any, ...]:
    names = [spec.name for spec in specs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"the {what} '{twice[0]}' stands in the study twice", "give one of them another name: NAME")
    return tuple(specs)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "unnamed"
