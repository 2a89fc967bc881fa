"""The scripts in examples/ and the studies in studies/, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_data import write_all
from study_files import memit, write_model

from unlearn_eval.localization.base import localizer_names
from unlearn_eval.results.files import read_result, read_samples
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study, study_file
from unlearn_eval.runs.study.spec import study_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("examples") / "model")


@pytest.fixture(scope="module")
def script(model):
    """`script(NAME, folder, *arguments, **variables)`: its output."""

    def run(name, folder, *arguments, **variables):
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        own = {"PATH": path, "MODEL": str(model), "OUT": str(folder), "OMP_NUM_THREADS": "1"} | variables
        done = subprocess.run(
            ["bash", str(ROOT / "examples" / name), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | own,
            cwd=folder,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def edited(script, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edited")
    sets = [f"--set={key}={value}" for key, value in memit(model)["settings"].items()]
    return folder, script("edit_then_evaluate.sh", folder, *sets, "--device", "cpu")


@pytest.mark.slow
def test_edit_then_evaluate(edited):
    folder, said = edited
    before, after = (read_result(folder / f"{name}.json") for name in ("after.baseline", "after"))
    assert after.edit["requests"]["ids"] == ["capital_of/france", "capital_of/italy"]
    assert before.model["weights_hash"] != after.model["weights_hash"]
    assert "forget_accuracy" in said


@pytest.mark.slow  # two processes more; tests/harness runs the same command of lm-eval's
@pytest.mark.slow
def test_lm_eval_evaluates_an_edit(edited, script, model):
    folder, _ = edited
    ask = '{"forget": ["capital_of/france"], "retain": ["capital_of/japan"], "encoder": "off"}'
    arguments = ("--tasks", "unlearn_facts", "--metadata", ask, "--gen_kwargs", "max_gen_toks=4", "--device", "cpu")
    assert "forget_accuracy" in script("lm_eval_edited.sh", folder, *arguments)
    (path,) = folder.rglob("results_*.json")
    assert json.loads(path.read_text())["results"]["unlearn_facts"]
    result = read_result(path)
    assert (result.kind, result.edit["editor"], result.model["id"]) == ("lm-eval", "memit", str(model))
    assert result.metrics["unlearn_facts"]["forget_accuracy"].n == 1
    assert {record["id"] for record in read_samples(path, "unlearn_facts")} > {"forget/capital_of/france"}


@pytest.mark.slow
def test_a_sweep_can_be_planned(script, tmp_path, model):
    said = script("sweep.sh", tmp_path, "--dry-run", f"models={model}")
    assert "14 cells: 0 done, 14 to do" in said


SHIPPED = ["smoke", "demo", "four_editors", "editing_as_unlearning", "mechanistic_unlearning", "mechanistic_facts"]
# tofu_llama_3_2_1b and unlearners_tofu have tests of their own, in tests/runs/


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_studies_can_be_planned(name, model, tmp_path, monkeypatch):
    write_all(tmp_path)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path))
    (tmp_path / "here" / name).mkdir(parents=True)  # as `unlearn-eval demo` leaves one
    monkeypatch.chdir(tmp_path / "here")
    path = study_file(name)
    small = {
        "editing_as_unlearning": ["factual.sizes=[2]"],
        "mechanistic_unlearning": ["sizes=[1]", "kept=1"],
        "mechanistic_facts": [
            f"{part}.{own}" for part in ("athletes", "athletes_editing") for own in ("sizes=[2]", "kept=4")
        ],
    }
    changes = [f"models={model}", "device=cpu", *small.get(name, [])]
    if name == "mechanistic_facts":
        changes += [f"{part}.models={model}" for part in ("athletes", "athletes_editing")]
    cells = plan(study_of(read_study(path, changes), path), {}).cells
    if name == "editing_as_unlearning":
        methods = {(cell.part, cell.editor.editor, cell.recipe.name) for cell in cells if cell.editor}
        assert {("factual", "alphaedit", "self+merge"), ("tofu", "npo", "plain"), ("pistol", "wise", "self")} <= methods
        assert ("tofu", "npo", "merge") not in methods
        assert len({cell.model_key for cell in cells}) == 3, "the model as it is, and taught TOFU and PISTOL"

    if name == "mechanistic_unlearning":
        where = {(cell.part, cell.editor.name) for cell in cells if cell.editor}
        assert {
            (part, f"unlikelihood-{own}") for part in ("athletes", "counterfact") for own in localizer_names()
        } == where
        assert len({cell.edit_key for cell in cells if cell.editor}) == 2 * 3 * len(localizer_names())

    if name == "mechanistic_facts":
        edited = [cell for cell in cells if cell.editor]
        where = {part: {cell.editor.name for cell in edited if cell.part == part} for part in ("unlearning", "editing")}
        assert where["unlearning"] == {f"unlikelihood-{own}" for own in localizer_names()}
        assert "idk-random_mlps" in where["editing"], "the control"
        assert {cell.recipe.recipe.target for cell in edited if cell.part == "editing"} == {"wrong"}
        assert len({cell.edit_key for cell in edited}) == len(edited) == 3 * (len(localizer_names()) + 5 + 5 + 3)
        assert {own.attack.name for cell in edited for own in cell.tries} == {"relearn", "probe", "logit_lens"}
        assert len({own.control_key for cell in edited for own in cell.tries}) == 3 * 3 * 2, "of facts, and of athletes"


def cells(name):
    content = json.loads((ROOT / "examples" / name).read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


NOTEBOOKS = ("first_edit", "compare_methods", "read_a_report")


def test_notebooks_are_committed_without_outputs():
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.ipynb")) == sorted(NOTEBOOKS)
    for name in NOTEBOOKS:
        first, *others = cells(f"{name}.ipynb")
        assert first["metadata"]["tags"] == ["parameters"]
        for cell in (first, *others):
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile("".join(cell["source"]), name, "exec")


@pytest.mark.slow  # three notebooks make five evaluations
def test_notebooks_run(model, tmp_path, monkeypatch):
    """Each with the values of its first cell changed, in the order in which they are to be read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    fast = memit(model)["settings"]
    short = {"gen_kwargs": {"max_gen_toks": 4}, "batch_size": 8}
    methods = {"memit": fast, "no_such_method": {}, "grace": {"layers": (1,), "steps": 2, "calibrate": False}}
    changes = {
        "first_edit": {"MODEL": str(model), "SETTINGS": fast},
        "compare_methods": {"MODEL": str(model), "METHODS": methods, "N": 2, "EVALUATION": short},
        "read_a_report": {},
    }
    found = {}
    for name in NOTEBOOKS:
        first, *others = ("".join(cell["source"]) for cell in cells(f"{name}.ipynb"))
        names = found[name] = {}
        exec(compile(first, f"{name}, parameters", "exec"), names)
        assert set(changes[name]) <= set(names)
        names.update(changes[name])
        for i, source in enumerate(others):
            exec(compile(source, f"{name}, cell {i + 1}", "exec"), names)
    assert found["first_edit"]["after"].edit["requests"]["n"] == 2
    assert set(found["compare_methods"]["frame"].method) == {"no edit", "memit", "grace"}
    assert (tmp_path / "compare_methods" / "report.html").is_file()
    assert found["read_a_report"]["rows"][0].before is not None
    assert found["read_a_report"]["axes"].get_title(loc="left") == "forget_accuracy ↓"
