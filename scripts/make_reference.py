"""The pages of docs/reference/ and docs/architecture.md, written from the code.

    python scripts/make_reference.py            writes them
    python scripts/make_reference.py --check    lists the stale ones; exits with 1 if any

And the JSON schemas of study files, policies and certificates, from which editors of text complete.

Everything here is read from where it is said once: typer's options, docstrings of dataclasses, tables of presets. Tasks
are built on the few invented records of the tests, so that no benchmark has to be there.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
WRITTEN = "<!-- Written by scripts/make_reference.py: change the code, not this page. -->"


# What code says of itself ----------------------------------------------------------------------------------


def attributes(kind: type[Any]) -> dict[str, str]:
    """Field -> what the docstring says under `Attributes:`, those that are inherited among them.

    `a, b: text` is said of both.
    """
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        block = (inspect.cleandoc(owner.__doc__ or "")).partition("Attributes:\n")[2]
        name = ""
        for line in block.splitlines():
            if not line.strip():
                break
            entry = re.match(r"    (\w[\w, ]*): (.*)", line)
            if entry:
                name = entry[1]
                found[name] = entry[2]
            elif re.match(r"    \w[\w, ]*,$", line):  # a list of names that goes on in the next line
                name = line.strip()
                found[name] = ""
            elif ":" in line and not found.get(name) and name.endswith(","):
                more, _, text = line.strip().partition(": ")
                found.pop(name)
                name = f"{name} {more}"
                found[name] = text
            else:
                found[name] = f"{found[name]} {line.strip()}"
    return {own.strip(): text for names, text in found.items() for own in names.split(",")}


def first_sentence(text: str | None) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


def code(value: Any) -> str:
    """A default as it is typed, or a dash."""
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, tuple | list):
        value = ",".join(map(str, value))
    return f"`{value}`" if value not in (None, "") else "–"


# Commands --------------------------------------------------------------------------------------------------


_COMMANDS_HEAD = (
    "`unlearn-eval COMMAND --help` says the same. Exit codes: 0 done, 1 a mistake or a failed run (two lines on "
    "stderr), 2 wrong usage, 130 interrupted."
)


def commands() -> str:
    """Every command with its arguments and options."""
    import typer

    from unlearn_eval.cli.app import app

    group: Any = typer.main.get_command(app)
    parts = ["# Commands", WRITTEN, _COMMANDS_HEAD]
    for name, command in _all_commands(group):
        parts += [f"## `unlearn-eval {name}`", inspect.cleandoc(command.help or "")]
        rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            parts.append(table(("option", "default", "what it is"), rows))
    return "\n\n".join(parts)


def _all_commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its words, those of a group behind it."""
    for name, command in group.commands.items():
        yield before + name, command
        if hasattr(command, "commands"):
            yield from _all_commands(command, f"{before}{name} ")


def _parameter(parameter: Any) -> tuple[str, str, str]:
    said = str(getattr(parameter, "help", None) or "")
    named = re.search(r" ?\[default: (.*?)\]$", said)
    if parameter.param_type_name == "argument":
        names = f"`{(parameter.metavar or parameter.name).upper().strip('[]')}`"
    else:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = named[1] if named else "needed" if parameter.required else _plain_default(parameter.default)
    return names, default, said[: named.start()] if named else said


def _plain_default(value: Any) -> str:
    return "–" if value is None or value is False or callable(value) else code(value)


# Editors ---------------------------------------------------------------------------------------------------


EDITOR_FAMILIES = {
    "closed_form": "Closed-form editors",
    "memory": "Memory editors",
    "gradient": "Gradient methods",
}


def editors() -> dict[str, str]:
    """A page for each family of editors with their settings, and one that leads there, with presets and spaces."""
    from unlearn_eval.editing.editor import METHODS, editor_names, get_editor
    from unlearn_eval.utils.registry import module_in

    families: dict[str, list[str]] = {family: [] for family in EDITOR_FAMILIES}
    about = {}
    for name in editor_names():
        module = module_in(METHODS, name, "editor")
        families[module.__name__.split(".")[-2]].append(name)
        about[name] = first_sentence(module.__doc__)
    rows = []
    pages = {}
    for family, names in families.items():
        shared: dict[type[Any], list[str]] = {}
        parts = [f"# {EDITOR_FAMILIES[family]}", WRITTEN, _EDITORS_HEAD]
        for name in names:
            editor = get_editor(name)
            base = next((kind for kind in editor.Config.__mro__[1:] if dataclasses.is_dataclass(kind)), None)
            if base is not None:
                shared.setdefault(base, []).append(name)
            parts += [f"## `{name}`", about[name], _declared(editor), _settings(editor.Config, base)]
            rows.append((f"[`{name}`]({family}.md#{name})", EDITOR_FAMILIES[family], about[name]))
        for base, own in shared.items():
            parts += [f"## {_heading(base)}", f"Of {', '.join(f'`{name}`' for name in own)}.", _settings(base, None)]
        pages[family] = parts
    pages["gradient"] += ["## Presets of benchmarks", _trained_presets()]
    head = ["# Editors and their settings", WRITTEN, table(("method", "family", "what it does"), rows)]
    pages["README"] = [*head, "## Presets of models", _model_presets(), "## Spaces", _SPACES_HEAD, _spaces()]
    return {f"editors/{family}": "\n\n".join(parts) for family, parts in pages.items()}


_SPACES_HEAD = "Where the `tune:` of a study looks for settings, unless it says otherwise."


def _spaces() -> str:
    from unlearn_eval.editing.spaces import SPACES, Range

    def written(values: Any) -> str:
        if not isinstance(values, Range):
            return ", ".join(values)
        return f"{' to '.join(values.ends)}{', by factors' if values.log else ''}"

    rows = [
        (f"`{method}`", "; ".join(f"`{name}` {written(values)}" for name, values in space.items()))
        for method, space in SPACES.items()
    ]
    return table(("method", "settings"), rows)


_EDITORS_HEAD = (
    "`unlearn-eval edit --editor NAME --set SETTING=VALUE`; in a study `{editor: NAME, settings: {SETTING: VALUE}}`. "
    "`target.steps` is a setting within a setting. Where a preset ([of models](README.md#presets-of-models), "
    "[of benchmarks](gradient.md#presets-of-benchmarks)) sets something, the default is not used; `--no-preset` leaves "
    "presets out. `unlearn-eval inspect EDIT` shows what was used. Your own: [a guide](../../guides/own_editor.md)."
)


_USED = {
    "retain": "items to retain",
    "others": "questions that are not to be forgotten",
    "moments": "second moments of keys, which all steps share",
}


def _declared(editor: Any) -> str:
    """What a method makes and uses, and its papers."""
    uses = [text for name, text in _USED.items() if name in editor.uses]
    papers = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in editor.paper.split(", "))
    parts = [f"Makes a `{editor.kind(editor.Config())}` edit by default.", f"arXiv: {papers}."]
    return " ".join([*parts[:1], *([f"Uses {' and '.join(uses)}."] if uses else []), *parts[1:]])


def _heading(base: type[Any]) -> str:
    return {
        "GradientConfig": "Settings of all methods that are trained",
        "MassEditConfig": "Settings of all batched methods that locate and edit",
        "LocateConfig": "Settings of all methods that locate and edit",
    }.get(base.__name__, f"Settings that come from `{base.__name__}`")


def _settings(config: type[Any], base: type[Any] | None) -> str:
    """The settings that are a method's own or have another default than in `base`."""
    rows = list(_rows(config, base))
    more = "" if base is None else f"And the [settings of the kind](#{_anchor(_heading(base))})."
    return "\n\n".join(
        part for part in (table(("setting", "default", "what it is"), rows) if rows else "", more) if part
    )


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _rows(config: type[Any], base: type[Any] | None, prefix: str = "") -> Iterator[tuple[str, ...]]:
    said, made = attributes(config), config()
    before = {} if base is None else {own.name: getattr(base(), own.name) for own in dataclasses.fields(base)}
    for own in dataclasses.fields(config):
        value = getattr(made, own.name)
        if own.name in before and before[own.name] == value:
            continue
        if dataclasses.is_dataclass(value):
            nested = type(before[own.name]) if own.name in before else None
            yield from _rows(type(value), nested, f"{prefix}{own.name}.")
        else:
            yield f"`{prefix}{own.name}`", code(value), said.get(own.name, "")


def _model_presets() -> str:
    from unlearn_eval.editing.presets import _MEMORY, PRESETS

    rows = []
    for key, preset in PRESETS.items():
        memory = ", ".join(f"{name} {layer}" for name, layer in _MEMORY.get(key, {}).items())
        rows.append((preset.name, code(preset.layers), code(preset.layer), memory or "by depth", preset.source))
    head = ("model", "layers (MEMIT, AlphaEdit)", "layer (ROME, EMMET)", "memories", "source")
    return table(head, rows) + "\n\nA model that is not here gets each method's layers by depth."


def _trained_presets() -> str:
    from unlearn_eval.editing.editor import trained_editor_names
    from unlearn_eval.editing.training.presets import unlearning_preset

    rows = []
    for method in trained_editor_names():
        for example, forget_set in (("TOFU", "tofu:forget01"), ("PISTOL", "pistol:A_B"), ("facts", "facts")):
            preset = unlearning_preset(method, forget_set)
            if preset is not None:
                settings = ", ".join(f"{name}={value}" for name, value in preset.settings.items())
                rows.append((f"`{method}`", example, code(settings), preset.source))
    return table(("method", "forget set", "settings", "source"), rows)


# Tasks -----------------------------------------------------------------------------------------------------


def tasks() -> dict[str, str]:
    """A page for each family of tasks with their metrics, directions and meanings, and one that leads there."""
    from unlearn_eval.harness.task_index import task_names
    from unlearn_eval.metrics.catalogue import meaning
    from unlearn_eval.results.badges import badges

    groups: dict[str, dict[tuple[Any, ...], list[str]]] = {}
    for name, loaded in _loaded(task_names()).items():
        family = groups.setdefault(_family_of(loaded), {})
        family.setdefault(tuple(loaded.higher_is_better().items()), []).append(name)
    pages, rows, known = {}, [], badges()
    for family, own in groups.items():
        page = f"tasks/{family}/README.md"
        title = (ROOT / page).read_text(encoding="utf-8").strip().removeprefix("# ").partition("\n")[0]
        parts = [
            f"# {title}: tasks and metrics",
            WRITTEN,
            f"{_TASKS_HEAD} Data and settings: [{page}](../../../{page}).",
        ]
        for directions, names in own.items():
            arrows = {True: "↑", False: "↓", None: ""}
            metrics = [
                (
                    f"`{name}`",
                    arrows[better],
                    f"{meaning(name).text} {known[name].words if name in known else ''}".strip(),
                )
                for name, better in directions
            ]
            parts.append(f"## {', '.join(f'`{name}`' for name in names)}")
            parts.append(table(("metric", "", "what it says"), metrics))
            if borrowed := _borrowed(names[0]):
                parts.append(f"And of lm-eval's own tasks, where their data is to be had: {', '.join(borrowed)}.")
        pages[f"tasks/{family}"] = "\n\n".join(parts)
        rows.append((f"[{title}]({family}.md)", ", ".join(f"`{name}`" for names in own.values() for name in names)))
    head = ["# Tasks and their metrics", WRITTEN, _TASKS_HEAD, table(("metrics of", "tasks"), rows)]
    return {**pages, "tasks/README": "\n\n".join(head)}


_TASKS_HEAD = (
    "`lm_eval --tasks NAME` or `unlearn-eval eval --tasks NAME`. ↑ higher is better, ↓ lower is better. Without a "
    "sentence encoder the alignment metrics are missing; a split that the data does not have has no metrics. How to "
    "read them: [a guide](../../guides/reading_the_numbers.md)."
)


# By default they forget more than the few invented records.
FEW = ("unlearn_counterfact", "unlearn_mquake", "unlearn_ripple", "unlearn_zsre")


def _loaded(names: list[str]) -> Mapping[str, Any]:
    """The tasks on invented data; bundles of lm-eval's own tasks as their own part."""
    sys.path[:0] = [str(ROOT / "tests" / "helpers")]
    from benchmark_data import write_benchmarks
    from lm_eval.tasks import TaskManager
    from tofu_files import write_tofu

    from unlearn_eval.harness.names import TASKS_FOLDER

    with tempfile.TemporaryDirectory() as folder:
        write_tofu(Path(folder))
        write_benchmarks(Path(folder))
        with mock.patch.dict(os.environ, {"UNLEARN_EVAL_DATA": folder, "UNLEARN_EVAL_ENCODER": "default"}):
            found = {}
            for name in names:
                metadata = {"forget": 1} if name in FEW else {"parts": []} if "utility" in name else {}
                manager = TaskManager(include_path=TASKS_FOLDER, include_defaults=False, metadata=metadata)
                found[name] = manager.load([name])["tasks"][name]
            return found


def _borrowed(name: str) -> list[str]:
    """The parts that a bundle takes from lm-eval, as its YAML names them."""
    from unlearn_eval.harness.options import task_class

    if not (ROOT / "tasks" / "utility" / f"{name}.yaml").is_file():
        return []
    return [f"`{part}`" for part in task_class(name)[1]["parts"]]


def _family_of(task: Any) -> str:
    name = task.config.task if hasattr(task, "config") else task.name
    (yaml,) = [path for path in (ROOT / "tasks").glob("*/*.yaml") if f"task: {name}\n" in path.read_text()]
    return yaml.parent.name


# Files -----------------------------------------------------------------------------------------------------


def _fields(kind: type[Any], defaults: Any = None) -> str:
    said = attributes(kind)
    rows = []
    for own in dataclasses.fields(kind):
        if own.name in ("path", "place"):  # where something was read from
            continue
        row: tuple[str, ...] = (f"`{own.name}`", str(own.type))
        if defaults is not None:
            row += (defaults.get(own.name, "–"),)
        rows.append((*row, said.get(own.name, "")))
    return table(("key", "type", *(("default",) if defaults is not None else ()), "what it is"), rows)


def results() -> str:
    """The schema of result files and of an edit's `edit.json`."""
    from unlearn_eval.edits.base import EditInfo
    from unlearn_eval.edits.folder import SCHEMA_VERSION as EDIT_VERSION
    from unlearn_eval.results.schema import SCHEMA_VERSION, STATUSES, Metric, Result

    return "\n\n".join(
        [
            "# Result files and edits",
            WRITTEN,
            f"A run is one JSON file, written whole or not at all, with `schema_version` {SCHEMA_VERSION} as its "
            "first key. Read it with `unlearn_eval.read_result`, a folder of them with "
            "`unlearn_eval.load_frame`. JSON is strict: what is undefined is `null` with a `reason`, never 0 "
            "or NaN.",
            "## The keys",
            _fields(Result),
            f"`status` is one of {', '.join(f'`{one}`' for one in STATUSES)}. Home folder and tokens are redacted.",
            "## A metric",
            "Under `metrics`, by task, then name.",
            _fields(Metric),
            "## Samples",
            "`<result>.<task>.samples.jsonl` beside the result, one line for each item, its SHA-256 in the result. "
            "`id`, `doc` (the item), `arguments` (every prompt as it was sent), `resps` (what came back: texts, or "
            "per-token scores), and each metric's own number for the item.",
            "## Under attack",
            "Under `robustness`, by attack (`attack_NAME`, as among the metrics): `axis` (what its levels count), "
            "`level` (the one that stands for it, or null), `levels` (means of each model, condition, fold, seed and "
            "level), `curves`, `intervals` (by metric), `skipped` (`what`, `reason`). A curve is "
            "`{model, condition, value, at, mean, low, high, n}`: lists with an entry for each level or layer, null "
            "being before the attack; means are over items and seeds, ends of 95 % intervals are null below two "
            "groups of items. Values of curves alone: `above_control` (a probe's accuracy above that of shuffled "
            "labels), `gap` (the lens, full minus unlearned, nats per token), `share` (what a layer adds to the "
            "depth; they sum to it). Samples of an attack hold the item's `observations`, one for each of these "
            "cells, with what was said; of readers of shuffled labels their mean. Files of earlier versions lack "
            "`level` and `curves`.",
            "## An edit's edit.json",
            f"`schema_version` ({EDIT_VERSION}), `kind` (`low_rank`, `dense` or `memory`), `info`, `texts`, and "
            "`files`: the SHA-256 of every file of the folder. `info` holds:",
            _fields(EditInfo),
        ]
    )


def studies() -> str:
    """The keys of a study file."""
    from unlearn_eval.editing.recipe import Recipe
    from unlearn_eval.runs.study import file, spec

    study = spec.study_of({"forget": "facts", "tasks": ["unlearn_facts"]}, Path("study.yaml"))
    (part,) = study.parts
    whole = {own.name: code(getattr(study, own.name)) for own in dataclasses.fields(study)}
    whole |= {"name": "the file's name", "parts": "one, of all keys below"}
    axes = {own.name: code(getattr(part, own.name)) for own in dataclasses.fields(part)}
    axes |= {"name": "the key under `parts`", "models": "`default`", "recipes": "`plain`", "sizes": "`all`"}
    axes |= {"forget": "needed", "tasks": "needed"}

    def entry(kind: type[Any], first: str) -> str:
        given = {own.name: _field_default(own) for own in dataclasses.fields(kind)}
        named = {"name": f"as `{first}`"} if "name" in given else {}
        return _fields(kind, given | ({first: "needed"} if first else {}) | named)

    recipe = {own.name: code(getattr(Recipe(), own.name)) for own in dataclasses.fields(Recipe)}
    shipped = ", ".join(f"`{name}`" for name in file.RECIPES)
    return "\n\n".join(
        [
            "# Study files",
            WRITTEN,
            "`unlearn-eval run FILE.yaml`; `KEY=VALUE` on the command line is set over the file's, `PART.KEY=VALUE` "
            "over one part's, `parts=[A,B]` picks parts. Wherever a list stands, one entry may stand by itself. "
            "Examples: [studies/](../../studies).",
            f"Editors with a YAML language server complete keys and names from [{SCHEMA}]({SCHEMA}): make "
            f"`# yaml-language-server: $schema=PATH/{SCHEMA}` the first line of your file. A mistake is reported with "
            "its place in the file, as in `editors[2].settings`, before anything is run.",
            "## The whole study",
            _fields(spec.Study, whole),
            "Beside these, "
            + ", ".join(f"`{key}` ({text.rstrip('.')})" for key, text in _of_files_alone(file.StudyFile).items())
            + ".",
            "## Axes",
            "At the top for all parts, or under `parts: {NAME: {...}}`.",
            _fields(spec.Part, axes),
            "## An entry of `models`",
            "A name by itself is `model`.",
            entry(spec.ModelSpec, "model"),
            "## An entry of `editors`",
            "A name by itself, or the path of a file, is `editor`.",
            entry(spec.EditorSpec, "editor"),
            f"Beside these, `components`: {attributes(file.EditorEntry)['components']}",
            "## An entry of `recipes`",
            f"One of {shipped}, or a table with a `name` and any of these.",
            _fields(Recipe, {name: value for name, value in recipe.items() if name not in ("seed", "chat")}
                    | dict.fromkeys(("seed", "chat"), "of the study")),
            "## An entry of `tasks`",
            "A name or a pattern by itself is `task`.",
            entry(spec.TaskSpec, "task"),
            "## An entry of `attacks`",
            "A name by itself is `attack`.",
            entry(spec.AttackSpec, "attack"),
            "## `finetune`",
            "A set by itself is `on`.",
            entry(spec.Finetune, "on"),
            "## `sequence`",
            first_sentence(spec.RequestSequence.__doc__),
            entry(spec.RequestSequence, ""),
            "`learn` is a set, or a table:",
            entry(spec.Learn, "on"),
            "## An entry of `then`",
            first_sentence(file.ThenEntry.__doc__),
            table(("key", "what it is"), [(f"`{key}`", text) for key, text in _of_files_alone(file.ThenEntry).items()]),
            "## `meta`",
            first_sentence(file.MetaEntry.__doc__),
            table(("key", "what it is"), [(f"`{key}`", text) for key, text in _of_files_alone(file.MetaEntry).items()]),
            "## `tune`",
            first_sentence(file.TuneEntry.__doc__),
            table(("key", "what it is"), [(f"`{key}`", text) for key, text in _of_files_alone(file.TuneEntry).items()]),
            f"`subject_to`: `metric`, TASK/METRIC, and `at_least`. {first_sentence(file.Bar.__doc__)}",
        ]
    )  # fmt: skip


def _of_files_alone(kind: type[Any]) -> dict[str, str]:
    """What a study file's own classes say of their keys, without what pydantic says of its own attributes."""
    return {name: text for name, text in attributes(kind).items() if name in kind.model_fields and name != "parts"}


SCHEMA = "study.schema.json"


def study_schema() -> str:
    """The JSON schema of study files, with what our docstrings say of the keys and the names that we know."""
    from unlearn_eval.editing.recipe import Recipe
    from unlearn_eval.runs.study import file, spec

    schema = file.StudyFile.model_json_schema()
    means: dict[str, tuple[type[Any], ...]] = {
        "StudyFile": (spec.Part, spec.Study),
        "Axes": (spec.Part,),
        "ModelEntry": (spec.ModelSpec,),
        "EditorEntry": (spec.EditorSpec,),
        "RecipeEntry": (Recipe,),
        "TaskEntry": (spec.TaskSpec,),
        "AttackEntry": (spec.AttackSpec,),
        "FinetuneEntry": (spec.Finetune,),
        "SequenceEntry": (spec.RequestSequence,),
        "LearnEntry": (spec.Learn,),
        "TuneEntry": (),
        "ThenEntry": (spec.ThenSpec,),
        "MetaEntry": (),
        "Bar": (),
        "Published": (),
    }
    names = _known_names()
    for title, own in {"StudyFile": schema, **schema["$defs"]}.items():
        kind = getattr(file, title)
        table = own["anyOf"][-1] if "anyOf" in own else own
        said = {key: text for kind in (*means[title], kind) for key, text in attributes(kind).items()}
        table["description"] = first_sentence(kind.__doc__)
        for key, value in table["properties"].items():
            value.pop("title", None)
            if key in said:
                value["description"] = said[key]
        if title in names:
            own["anyOf"][0] = names[title]
            if kind.first != "name":
                table["properties"][kind.first] = names[title] | {"description": said[kind.first]}
        table.pop("title")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1)


def _own_schema(kind: type[Any]) -> str:
    """The JSON schema of a kind of file, with what its docstrings say of the keys."""
    schema = kind.model_json_schema()
    modules = (sys.modules[kind.__module__], sys.modules["unlearn_eval.utils.schemas"])
    for title, table in {kind.__name__: schema, **schema.get("$defs", {})}.items():
        own = next(getattr(module, title) for module in modules if hasattr(module, title))
        said = attributes(own)
        table["description"] = first_sentence(own.__doc__)
        for key, value in table.get("properties", {}).items():
            value.pop("title", None)
            if key in said:
                value["description"] = said[key]
        table.pop("title", None)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1)


def certificate_schema() -> str:
    """The JSON schema of certificates."""
    from unlearn_eval.results.certificate import Certificate

    return _own_schema(Certificate)


def policy_schema() -> str:
    """The JSON schema of policy files."""
    from unlearn_eval.runs.forget.policy import Policy

    return _own_schema(Policy)


def _known_names() -> dict[str, dict[str, Any]]:
    """Model of an entry -> the names that may stand there: all of them, or those that can be listed."""
    from unlearn_eval.attacks.base import attack_names
    from unlearn_eval.editing.editor import editor_names
    from unlearn_eval.harness.task_index import task_names
    from unlearn_eval.runs.study.file import RECIPES

    def others_too(known: list[str]) -> dict[str, Any]:
        return {"anyOf": [{"enum": known}, {"type": "string"}]}

    return {
        "EditorEntry": others_too(editor_names()),
        "TaskEntry": others_too(task_names()),
        "AttackEntry": {"enum": attack_names()},
        "RecipeEntry": {"enum": list(RECIPES)},  # others are tables
    }


def _field_default(own: Any) -> str:
    if own.default is not dataclasses.MISSING:
        return code(own.default)
    return "–" if own.default_factory is dataclasses.MISSING else code(own.default_factory() or None)


_PYTHON_HEAD = (
    "`from unlearn_eval import ...`: names are loaded when they are used, so that importing the package is light. "
    "The rest is importable too, and may change."
)


def python() -> str:
    """The public names, with signatures and docstrings."""
    import unlearn_eval

    parts = ["# Python", WRITTEN, _PYTHON_HEAD]
    for name in unlearn_eval.__all__:
        value = getattr(unlearn_eval, name)
        shown = _signature(name, value)
        text = inspect.cleandoc(value.__doc__ or "")
        parts += [f"## `{name}`", f"From `{value.__module__}`.", f"```\n{shown}\n\n{text}\n```"]
    return "\n\n".join(parts)


def _signature(name: str, value: Any) -> str:
    signature = inspect.signature(value)
    given = [
        re.sub(r"<factory>|<object object at 0x[0-9a-f]+>", "...", _parameter_text(p))
        for p in signature.parameters.values()
    ]
    returned = signature.return_annotation
    end = "" if returned is inspect.Signature.empty or inspect.isclass(value) else f" -> {returned}"
    line = f"{name}({', '.join(given)}){end}"
    if len(line) <= 110:
        return line
    return f"{name}(\n    " + ",\n    ".join(given) + f",\n){end}"


def _parameter_text(parameter: inspect.Parameter) -> str:
    default, stars = parameter.default, {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    named = f"{stars.get(parameter.kind, '')}{parameter.name}: {parameter.annotation}"
    if default is inspect.Parameter.empty:
        return named
    return f"{named} = {getattr(default, '__name__', repr(default))}"


# The architecture ------------------------------------------------------------------------------------------


_ARCHITECTURE_HEAD = (
    "The package is a stack of floors. A room may import from the floors below it and from no other; a rule that "
    "`make check` enforces with import-linter, from the layers in `pyproject.toml`."
)
_FLOW = """```
forget set ──requests──▶ editor ──▶ edit ──apply / serve──▶ lm-eval model ──tasks──▶ samples ──metrics──▶ result

result files ──▶ report, compare, check
```"""
_BESIDE = """Beside the package:

| folder | what lives there |
|---|---|
| `editors/` | The editing methods, linked into the package as `unlearn_eval/editors`. |
| `tasks/` | lm-eval YAML, data and a README for each family of tasks, linked as `unlearn_eval/tasks`. |
| `studies/` | Studies that are run by name, linked as `unlearn_eval/studies`. |
| `examples/` | Notebooks, shell scripts, and a workflow for CI. |
| `results/` | Committed evidence: one JSON file per run, an index and a leaderboard. |
| `benchmarks/` | Scripts that measure speed and compare methods, and write into `results/`. |
| `scripts/` | Scripts that build data and write generated pages. |
| `tests/` | Tests in the same rooms; what they share is in `tests/helpers/`. |
| `docs/` | Guides, concepts and errors by hand; this page and `reference/` from the code. |"""


def architecture() -> str:
    """The floors and rooms of the package, from import-linter's layers and the docstrings of the rooms."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layered = [own for own in contracts if own["type"] == "layers"]
    house = max(layered, key=lambda own: len(own["layers"]))  # the others order files within a room
    floors = [[_room(name) for name in floor.split("|")] for floor in reversed(house["layers"])]
    parts = ["# Architecture", WRITTEN, _package_text().partition("\n\n")[2].partition("\n\n")[0].replace("\n", " ")]
    parts += [_FLOW, "## Floors and rooms", _ARCHITECTURE_HEAD, _floor_plan(floors), _rooms_table(floors)]
    if rules := [own["name"] for own in contracts if own is not house]:
        parts += ["Further rules, enforced in the same way:", "\n".join(f"- {rule}." for rule in rules)]
    return "\n\n".join([*parts, _BESIDE, "How to add to it: [CONTRIBUTING.md](../CONTRIBUTING.md)."])


def _room(module: str) -> Path:
    return ROOT.joinpath(*module.strip().split("."))


def _docstring(path: Path) -> str:
    return inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")


def _package_text() -> str:
    return _docstring(ROOT / "unlearn_eval" / "__init__.py")


def _floor_plan(floors: list[list[Path]]) -> str:
    """A Mermaid picture: a box for each floor, from the roof to the ground."""
    boxes = [f'    f{i}["{i}: {" · ".join(room.name for room in floor)}"]' for i, floor in enumerate(floors, 1)]
    arrows = "    " + " --> ".join(f"f{i}" for i in range(len(floors), 0, -1))
    return "\n".join(["```mermaid", "flowchart TB", *reversed(boxes), arrows, "```"])


def _rooms_table(floors: list[list[Path]]) -> str:
    rows = []
    for i in range(len(floors), 0, -1):
        below = "–" if i == 1 else "floor 1" if i == 2 else f"floors 1 to {i - 1}"
        for room in floors[i - 1]:
            rows.append((str(i), f"`{room.name}/`", first_sentence(_docstring(room / "__init__.py")), below))
            for part in sorted(path.parent for path in room.glob("*/__init__.py")):
                rows.append(("", f"`{room.name}/{part.name}/`", first_sentence(_docstring(part / "__init__.py")), ""))
    rows.append(("–", "`autoload.py`", first_sentence(_docstring(ROOT / "unlearn_eval" / "autoload.py")), "nothing"))
    return table(("floor", "room", "what lives there", "may import"), rows)


# The pages -------------------------------------------------------------------------------------------------

PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "results": results,
    "studies": studies,
    "python": python,
    "../architecture": architecture,
}
SPLIT: tuple[Callable[[], dict[str, str]], ...] = (editors, tasks)  # pages by family


TRUST = "../../unlearn_eval/results/report/trust.json"


def trust() -> str:
    """Of results/meta.json what is shipped: what each metric was measured to be worth."""
    from unlearn_eval.results.badges import compact

    content = json.loads((ROOT / "results" / "meta.json").read_text(encoding="utf-8"))
    return json.dumps(compact(content), indent=1, ensure_ascii=False)


def files() -> dict[str, str]:
    """Every file that is written here, by its name below docs/reference/, and what it holds."""
    pages = {name: page() for name, page in PAGES.items()}
    for family in SPLIT:
        pages |= family()
    worth = {TRUST: trust()} if (ROOT / "results" / "meta.json").is_file() else {}
    return (
        worth
        | {f"{name}.md": text for name, text in pages.items()}
        | {
            SCHEMA: study_schema(),
            "certificate.schema.json": certificate_schema(),
            "policy.schema.json": policy_schema(),
        }
    )


def _left_over(folder: Path, names: Mapping[str, str]) -> list[Path]:
    """Pages of families that no longer exist."""
    return [path for path in folder.glob("*/*.md") if path.relative_to(folder).as_posix() not in names]


def stale(folder: Path = FOLDER) -> list[str]:
    """The pages that are not as the code has them."""
    made = files()
    wrong = [Path(os.path.normpath(folder / name)) for name in made]
    wrong = [
        path
        for path, text in zip(wrong, made.values(), strict=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text + "\n"
    ]
    return [
        f"{path.relative_to(folder.parents[1])} is not what the code says: python scripts/make_reference.py"
        for path in (*wrong, *_left_over(folder, made))
    ]


def main() -> int:
    """Write the pages, or check them."""
    if "--check" in sys.argv[1:]:
        found = stale()
        print("\n".join(found), end="\n" if found else "")
        return 1 if found else 0
    made = files()
    for path in _left_over(FOLDER, made):
        path.unlink()
    for name, text in made.items():
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
