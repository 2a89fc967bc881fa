"""What a cell's key depends on: files of a copy of the package are changed, and the study is planned again."""

import ast
import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from study_files import NPO, memit, write_model, write_study

from unlearn_eval.results.files import read_result
from unlearn_eval.runs.study import identity
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study
from unlearn_eval.runs.study.spec import study_of

ROOT = Path(__file__).parents[2]

# Plans studies in a copy of the package after each change of a file there; the files are hashed, not imported again.
SCRIPT = """
import importlib.metadata, json, sys
from pathlib import Path
import unlearn_eval
from unlearn_eval.runs.study import identity
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study
from unlearn_eval.runs.study.spec import study_of

path, changed = Path(sys.argv[1]), json.loads(sys.argv[2])
package = Path(unlearn_eval.__file__).parent
assert package.parent == path.parent, package

def keys():
    identity.code_hash.cache_clear()
    return {
        f"{cell.part}/{cell.name}": {
            "key": cell.key, "edit": cell.edit_key, "code": cell.code,
            "controls": [own.control_key for own in cell.tries],
        }
        for cell in plan(study_of(read_study(path), path), {}).cells
    }

found = {"": keys()}
for name in changed:
    if name.endswith("METADATA"):
        file = path.parent / name
        before, after = file.read_text(), file.read_text().replace("0.32.0", "0.32.1")
    else:
        file = package / name
        before, after = file.read_text(), file.read_text() + "\\n# another word\\n"
    file.write_text(after)
    found[name] = keys()
    file.write_text(before)
print(json.dumps(found))
"""

CHANGED = [
    "cli/app.py",
    "cli/study.py",
    "results/report/table.py",
    "runs/study/show.py",
    "runs/study/plan.py",
    "studies/smoke.yaml",
    "tasks/facts/README.md",
    "serving/worker.py",
    "vllm-0.32.0.dist-info/METADATA",
    "attacks/methods/quantize.py",
    "attacks/run.py",
    "localization/methods/random.py",
    "results/schema.py",
    "results/comparison.py",
    "runs/study/cells/told.py",
    "runs/edit.py",
    "utils/errors.py",
    "editors/closed_form/memit.py",
    "tasks/facts/unlearn_facts.yaml",
    "autoload.py",
]


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A folder with the package as a wheel installs it, beside it what looks like vLLM."""
    folder = tmp_path_factory.mktemp("copied")
    shutil.copytree(ROOT / "unlearn_eval", folder / "unlearn_eval")  # with its bytecode, which holds for the copies
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text("")
    (folder / "vllm-0.32.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n"
    (folder / "vllm-0.32.0.dist-info" / "METADATA").write_text(metadata)
    return folder


def test_a_key_does_not_depend_on_the_cells_that_are_planned_with_it(tmp_path):
    model = write_model(tmp_path / "model")

    def planned(**changes):
        path = write_study(tmp_path / "study.yaml", model, editors=[memit(model)], **changes)
        cells = plan(study_of(read_study(path), path), {}).cells
        return {(cell.name, cell.kept, len(cell.asks[0].task.metadata)): cell.key for cell in cells}

    alone = planned(seeds=[1])
    more = planned(seeds=[0, 1])
    assert alone.items() <= more.items()
    assert alone.items() <= planned(seeds=[1, 0]).items()
    few = {
        "task": "unlearn_facts",
        "gen_kwargs": {"max_gen_toks": 4},
        "metadata": {"encoder": "off", "fluency_model": "off"},
    }
    parts = {"a": {"kept": 3, "seeds": [1]}, "b": {"tasks": [few], "seeds": [1]}, "c": {"seeds": [1]}}
    assert alone.items() <= planned(parts=parts).items()


@pytest.fixture(scope="module")
def keys(copied):
    """Changed file (empty: none) -> cell -> its keys."""
    model = write_model(copied / "model")
    parts = {
        "plain": {"editors": [memit(model), NPO]},  # NPO's components are patterns of modules
        "attacked": {"editors": [memit(model)], "attacks": ["quantize"], "seeds": [1]},
        "located": {"editors": [{**NPO, "settings": {"steps": 2}, "components": "random(budget=1)"}], "seeds": [2]},
        "served": {"editors": [memit(model)], "backends": ["hf", "vllm"], "seeds": [3]},
    }
    study = write_study(copied / "study.yaml", model, editors=None, parts=parts)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(study), json.dumps(CHANGED)],
        capture_output=True,
        text=True,
        check=False,
        cwd=copied,
        env=os.environ | {"PYTHONPATH": str(copied)},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def new(keys, name, of="key"):
    """The cells that a change of a file makes new."""
    return {cell for cell, own in keys[name].items() if own[of] != keys[""][cell][of]}


@pytest.mark.parametrize("name", CHANGED[:7])
def test_a_changed_text_makes_no_cell_new(keys, name):
    assert keys[name] == keys[""]


@pytest.mark.parametrize("name", CHANGED[7:9])
def test_a_change_of_serving_or_of_vllm_makes_cells_with_that_back_end_new_and_no_others(keys, name):
    served = {cell for cell in keys[""] if cell.endswith("_vllm")}
    assert len(served) == 2
    assert new(keys, name) == new(keys, name, "code") == served
    assert not new(keys, name, "edit"), "what is served is the same edit"


@pytest.mark.parametrize("name", CHANGED[9:11])
def test_a_change_of_attacks_makes_attacked_cells_new_and_no_others(keys, name):
    attacked = {cell for cell, own in keys[""].items() if own["controls"]}
    assert len(attacked) == 1
    assert new(keys, name) == new(keys, name, "code") == new(keys, name, "controls") == attacked
    assert not new(keys, name, "edit")


def test_a_change_of_localization_makes_located_edits_new_and_no_others(keys):
    located = {cell for cell in keys[""] if "npo-random" in cell}  # and not where patterns of modules say it
    assert len(located) == 1
    changed = "localization/methods/random.py"
    assert new(keys, changed) == new(keys, changed, "code") == new(keys, changed, "edit") == located


@pytest.mark.parametrize("name", CHANGED[12:])
def test_a_change_of_any_other_room_makes_every_cell_new(keys, name):
    assert new(keys, name) == new(keys, name, "code") == set(keys[""])


def test_the_copy_has_the_keys_of_the_checkout(keys, copied):
    """Links and the files that they stand for are the same code."""
    path = copied / "study.yaml"
    cells = plan(study_of(read_study(path, ["parts=[plain,attacked,located]"]), path), {}).cells
    assert cells
    for cell in cells:
        own = keys[""][f"{cell.part}/{cell.name}"]
        assert (own["code"], own["edit"], own["key"]) == (cell.code, cell.edit_key, cell.key)


# The declaration -------------------------------------------------------------------------------------------


def test_every_folder_that_is_named_is_there():
    for name in (*identity.WITHOUT_NUMBERS, *identity.WITH_NUMBERS, *identity.OF_SOME_CELLS):
        assert (identity.PACKAGE / name).is_dir(), name
        assert name == "studies" or list((identity.PACKAGE / name).glob("*.py")), name


def test_every_file_of_code_is_in_one_hash_or_makes_no_numbers():
    rooms = {}
    for folder, _, files in os.walk(identity.PACKAGE, followlinks=True):
        for name in files:
            path = (Path(folder) / name).relative_to(identity.PACKAGE).as_posix()
            if name.endswith((".py", ".yaml")) and "studies" not in path:
                rooms.setdefault(identity.room_of(path), set()).add(path.partition("/")[0])
    assert rooms[None] == {"cli", "results", "runs"}
    assert {room: found for room, found in rooms.items() if room} == {own: {own} for own in identity.OF_SOME_CELLS}
    assert {"editors", "tasks", "runs", "harness", "metrics", "models", "results"} <= rooms[""]


def test_what_makes_numbers_takes_only_data_from_what_does_not():
    """Else a change there would change results behind the key's back."""
    folder, found = identity.PACKAGE / "runs" / "study" / "cells", []
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("unlearn_eval."):
                file = str(node.module).removeprefix("unlearn_eval.").replace(".", "/") + ".py"
                if identity.room_of(file) is None and file != "runs/study/store.py":  # places of files
                    module = importlib.import_module(str(node.module))
                    found += [(path.name, getattr(module, own.name)) for own in node.names]
    assert {own.__name__ for _, own in found} >= {"Cell", "Ask", "Try"}
    for name, own in found:
        assert dataclasses.is_dataclass(own), (name, own)


def test_results_are_read_whatever_code_their_keys_name():
    paths = sorted(ROOT.glob("results/*/runs/*/result.json"))
    assert paths
    codes = {read_result(path).config["cell"]["code"] for path in paths}
    assert identity.code_hash() not in codes
