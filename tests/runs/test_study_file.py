"""Study files: each mistake is reported with its place and what may stand there; the JSON schema agrees."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.runs.meta.expand import study_in
from unlearn_eval.runs.study import file, spec
from unlearn_eval.runs.study.read import STUDIES_FOLDER, read_study
from unlearn_eval.runs.study.spec import study_of
from unlearn_eval.utils.errors import UserError

ROOT = Path(__file__).parents[2]
LEAST = {"forget": "facts", "tasks": ["unlearn_facts"]}
SHIPPED = sorted(STUDIES_FOLDER.glob("*.yaml"))


def part_of(**changes):
    (part,) = study_of(LEAST | changes, Path("study.yaml")).parts
    return part


# What a file means -----------------------------------------------------------------------------------------


def test_a_name_by_itself_is_an_entry_and_an_entry_by_itself_a_list():
    alone = part_of(
        models="org/Name-7B", editors="memit", recipes="self", tasks="t", sizes=3, seeds=1, attacks="revert"
    )
    listed = part_of(
        models=[{"model": "org/Name-7B"}],
        editors=[{"editor": "memit"}],
        recipes=[{"name": "self", "target": "self"}],
        tasks=[{"task": "t"}],
        sizes=[3],
        seeds=[1],
        attacks=[{"attack": "revert"}],
    )
    assert alone == listed
    assert alone.models == (spec.ModelSpec("Name-7B", "org/Name-7B"),)
    assert alone.recipes == (spec.RecipeSpec("self", Recipe(target="self")),)


def test_what_is_left_out_has_its_default():
    part = part_of()
    assert part.models == (spec.ModelSpec("default", "default", "float32"),)
    assert part.recipes == (spec.RecipeSpec("plain", Recipe()),)
    assert (part.editors, part.sizes, part.seeds, part.kept, part.backends) == ((), (None,), (0,), 48, ("hf",))
    assert part_of(kept=None, show=None, attacks=None, retain=None).kept is None
    study = study_of(LEAST, Path("my study.yaml"))
    assert (study.name, study.batch_size, study.keep_edits, study.device) == ("my-study", 16, True, None)


def test_a_part_is_over_the_whole_study():
    content = {
        "forget": "facts",
        "tasks": ["a"],
        "dtype": "bfloat16",
        "retain": "facts",
        "models": ["x", {"model": "y", "dtype": "float16"}],
        "parts": {1: {"dtype": "float32", "retain": None}, "b": {"models": "z", "include_path": "own"}},
    }
    first, second = study_of(content, Path("study.yaml")).parts
    assert (first.name, second.name) == ("1", "b")
    assert [model.dtype for model in first.models] == ["float32", "float16"]
    assert [(model.name, model.dtype) for model in second.models] == [("z", "bfloat16")]
    assert (first.retain, second.retain) == (None, "facts")
    assert (first.tasks[0].include_path, second.tasks[0].include_path) == (None, "own")


def test_settings_are_as_the_command_line_takes_them():
    nested = {"layers": [1, 2], "target": {"steps": 2, "flag": True}, "rate": 1e-5, "text": "a"}
    part = part_of(editors={"editor": "memit", "settings": nested}, attacks={"attack": "prune", "settings": None})
    expected = {"layers": "1,2", "target.steps": "2", "target.flag": "true", "rate": "1e-05", "text": "a"}
    assert part.editors[0].settings == expected
    assert part.attacks[0].settings == {}
    limits = part_of(tasks=[{"task": "t", "limit": 2}, {"task": "u", "limit": 0.5}]).tasks
    assert [repr(task.limit) for task in limits] == ["2", "0.5"], "lm-eval takes 1 and 1.0 for different things"


def test_components_are_an_editor_each():
    places = ["random(budget=1)", "random(budget=2)", "found.json", "layers.1.mlp"]
    part = part_of(editors={"editor": "npo", "settings": {"steps": 2}, "components": places})
    assert [own.name for own in part.editors] == ["npo-random", "npo-random-budget-2", "npo-found", "npo-layers.1.mlp"]
    assert [own.settings["components"] for own in part.editors] == places
    assert {own.settings["steps"] for own in part.editors} == {"2"}


def test_entries_have_the_keys_of_what_they_stand_for():
    def names(kind):
        return {own.name for own in fields(kind)}

    assert set(file.RecipeEntry.model_fields) - {"name"} == names(Recipe) - {
        "seed", "chat", "system", "chat_template_kwargs",
    }  # fmt: skip
    assert set(file.ModelEntry.model_fields) == names(spec.ModelSpec)
    assert set(file.TaskEntry.model_fields) == names(spec.TaskSpec)
    assert set(file.AttackEntry.model_fields) == names(spec.AttackSpec)
    assert set(file.FinetuneEntry.model_fields) == names(spec.Finetune)
    assert set(file.SequenceEntry.model_fields) == names(spec.RequestSequence)
    assert set(file.LearnEntry.model_fields) == names(spec.Learn)
    assert set(file.EditorEntry.model_fields) - {"components"} == names(spec.EditorSpec) - {"place"}
    assert set(file.Axes.model_fields) - {"dtype", "include_path"} == names(spec.Part) - {"name", "kept_given"}
    defaults = spec.AttackSpec("a", "b"), spec.TaskSpec("t")
    for own, entry in zip(defaults, (file.AttackEntry(attack="b"), file.TaskEntry(task="t")), strict=True):
        for name in entry.model_fields_set ^ set(type(entry).model_fields):
            if name != "name":
                assert getattr(entry, name) == getattr(own, name), name


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_are_plain_data(path):
    study, _ = study_in(path)
    assert pickle.loads(pickle.dumps(study)) == study, "workers on other machines are sent parts of it"
    json.dumps(asdict(study))
    assert replace(study, name="other").parts == study.parts


# Mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"editers": []}, "unknown key 'editers'", "did you mean editors"),
        (
            {"editors": ["memit", {"editor": "npo", "setings": {}}]},
            "editors[1]: unknown key 'setings'",
            "mean settings?",
        ),
        ({"editors": {"editor": "npo", "setings": {}}}, "editors: unknown key 'setings'", "mean settings?"),
        (
            {"parts": {"a": {"tasks": ["t", {"task": "u", "limt": 1}]}}},
            "parts.a.tasks[1]: unknown key 'limt'",
            "limit?",
        ),
        ({"parts": {"tasks": {"sizs": 1}}}, "parts.tasks: unknown key 'sizs'", "did you mean sizes?"),
        ({"parts": {3: {"sizes": 0}}}, "parts.3.sizes is 0", "give all, or a whole number of at least 1"),
        ({"models": [{"name": "x"}]}, "models[0]: {'name': 'x'} names no model", "{model: NAME, ...}"),
        ({"models": [3]}, "models[0] is 3", "give a table of keys and values, or a name"),
        ({"models": []}, "models is []", "give at least one"),
        ({"models": {"model": "x", "dtype": "float23"}}, "models.dtype: unknown dtype 'float23'", "mean float32"),
        ({"models": {"model": "x", "revision": 12345}}, "models.revision is 12345", "give a text"),
        ({"forget": [""]}, "forget[0] is ''", "give a text"),
        ({"known": "yes"}, "known is 'yes'", "give true or false"),
        ({"kept": True}, "kept is True", "give a whole number"),
        ({"seeds": [0, -1]}, "seeds[1] is -1", "give a whole number of at least 0"),
        ({"batch_size": 0}, "batch_size is 0", "give a whole number of at least 1"),
        ({"tasks": [{"task": "t", "limit": 0}]}, "tasks[0].limit is 0", "give a number above 0"),
        ({"tasks": [{"task": "t", "gen_kwargs": "x=1"}]}, "tasks[0].gen_kwargs is 'x=1'", "give a table {NAME: VALUE}"),
        ({"editors": [{"editor": "npo", "settings": 3}]}, "editors[0].settings is 3", "give a table {NAME: VALUE}"),
        ({"recipes": ["plan"]}, "recipes[0]: unknown recipe 'plan'", "did you mean plain?"),
        ({"recipes": {"name": "x", "merge": "txt"}}, "recipes: unknown kind of merging 'txt'", "did you mean text?"),
        ({"recipes": {"name": "x", "merge_size": 0}}, "recipes: merge_size 0, per_step 0", "merge at least 1"),
        ({"backends": ["hf", "vlm"]}, "backends[1]: unknown backend 'vlm'", "did you mean vllm?"),
        ({"attacks": [{"attack": "prune", "max_new_tokens": 0}]}, "attacks[0].max_new_tokens is 0", "at least 1"),
        ({"finetune": {"on": "facts", "presett": "x"}}, "finetune: unknown key 'presett'", "did you mean preset"),
        ({"device": "gpu"}, "device is 'gpu'", "give a device, such as cpu or cuda:0"),
        ({"seeds": [10**400]}, "seeds[0] is a whole number of many digits", "give a smaller whole number"),
        ({"tasks": {"task": "t", "num_fewshot": 2.5}}, "tasks.num_fewshot is 2.5", "give a whole number"),
        ({"device": 1, "known": 1, "seeds": []}, "seeds is []", "at least one (also wrong: known, device)"),
    ],
)
def test_a_mistake_is_reported_with_its_place_and_what_may_stand_there(changes, message, hint):
    with pytest.raises(UserError) as caught:
        study_of(LEAST | changes, Path("folder/study.yaml"))
    assert caught.value.message.startswith(f"study.yaml: {message}")
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint, "two lines"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "the study has no tasks"),
        ({"forget": []}, "the study has no forget"),
        ({"tasks": [], "parts": {"a": {}}}, "the study of the part 'a' has no tasks"),
        ({"editors": ["memit", {"name": "memit", "editor": "rome"}]}, "the editor 'memit' stands in the study twice"),
        ({"models": ["a/x", "b/x"]}, "the model 'x' stands in the study twice"),
    ],
)
def test_what_is_missing_or_there_twice_is_reported(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        study_of(LEAST | changes, Path("study.yaml"))
    assert caught.value.hint


# The schema ------------------------------------------------------------------------------------------------


SCHEMA = ROOT / "docs" / "reference" / "study.schema.json"


def fits(value, schema, whole):
    """Whether a value is as a JSON schema says; of the words that ours uses."""
    if "$ref" in schema:
        return fits(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    kinds = {
        "string": str, "integer": int, "number": int | float, "boolean": bool, "array": list, "object": dict,
        "null": type(None),
    }  # fmt: skip
    named = schema.get("type", list(kinds))
    of_kind = [
        isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))
        for kind in ([named] if isinstance(named, str) else named)
    ]
    number = not isinstance(value, int | float) or (
        value >= schema.get("minimum", value) and (value > schema.get("exclusiveMinimum", value - 1))
    )
    inside = True
    if isinstance(value, list) and "items" in schema:
        inside = len(value) >= schema.get("minItems", 0) and all(fits(own, schema["items"], whole) for own in value)
    elif isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        inside = set(schema.get("required", ())) <= set(value) and all(
            fits(own, known[key], whole)
            if key in known
            else bool(others) if isinstance(others, bool) else fits(own, others, whole)
            for key, own in value.items()
        )  # fmt: skip
    elif isinstance(value, str):
        inside = len(value) >= schema.get("minLength", 0)
    return (
        any(of_kind)
        and number
        and inside
        and value in schema.get("enum", [value])
        and value == schema.get("const", value)
        and ("anyOf" not in schema or any(fits(value, own, whole) for own in schema["anyOf"]))
    )


@pytest.fixture(scope="module")
def schema():
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_name_the_schema_and_fit_it(path, schema):
    first = (ROOT / "studies" / path.name).read_text(encoding="utf-8").splitlines()[0]
    prefix, _, place = first.partition("$schema=")
    assert prefix == "# yaml-language-server: "
    assert (ROOT / "studies" / place).resolve() == SCHEMA
    assert fits(read_study(path), schema, schema)


@pytest.mark.parametrize(
    "changes",
    [
        {"editers": []},
        {"editors": [{"editor": "npo", "setings": {}}]},
        {"parts": {"a": {"tasks": [{"task": "u", "limt": 1}]}}},
        {"models": [{"name": "x"}]},
        {"models": [3]},
        {"models": []},
        {"dtype": "float23"},
        {"known": "yes"},
        {"kept": True},
        {"sizes": "many"},
        {"sizes": [0]},
        {"seeds": [-1]},
        {"tasks": [{"task": "t", "limit": 0}]},
        {"recipes": ["plan"]},
        {"recipes": {"name": "x", "merge": "txt"}},
        {"backends": "vlm"},
        {"attacks": ["relarn"]},
    ],
)
def test_the_schema_refuses_what_is_refused(changes, schema):
    assert fits(LEAST, schema, schema)
    assert not fits(LEAST | changes, schema, schema)


def test_the_schema_explains_every_key_and_lists_names(schema):
    tables = [schema, *(own["anyOf"][-1] if "anyOf" in own else own for own in schema["$defs"].values())]
    assert len(tables) == 15
    for table in tables:
        assert table["description"]
        for key, own in table["properties"].items():
            if key != "name" or table is not tables[0]:
                assert own.get("description") or "$ref" in own or key == "name", key
    (names, others) = schema["$defs"]["EditorEntry"]["anyOf"][0]["anyOf"]
    assert {"memit", "npo"} <= set(names["enum"])
    assert others == {"type": "string"}
    assert schema["$defs"]["RecipeEntry"]["anyOf"][0] == {"enum": list(file.RECIPES)}


def test_pydantic_is_imported_when_a_study_is_read():
    script = (
        "import sys, unlearn_eval, unlearn_eval.cli.app, unlearn_eval.cli.study; assert 'pydantic' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
