"""Names mean the same in every folder: whatever lies there under a study's, a set's or a model's name."""

from pathlib import Path

import pytest
from study_files import FACTS, NPO, memit, write_model, write_study
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.editing.editor import get_editor
from unlearn_eval.harness.run import names_of
from unlearn_eval.models import load
from unlearn_eval.runs.finetune import preset_of
from unlearn_eval.runs.meta.expand import study_in
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import STUDIES_FOLDER, read_study, study_file
from unlearn_eval.runs.study.spec import study_of
from unlearn_eval.utils.errors import UserError

SHIPPED = sorted(path.stem for path in STUDIES_FOLDER.glob("*.yaml"))
NAMES = [*SHIPPED, "facts", "default", "memit", "npo", "unlearn_facts", "plain", "idk", "tofu", "none", "random"]


@pytest.fixture(params=["folder", "file"])
def crowded(request, tmp_path, monkeypatch):
    """A current folder in which a folder, or a file, has each of the names."""
    here = tmp_path / "here"
    here.mkdir()
    for name in NAMES:
        if request.param == "folder":
            (here / name).mkdir()
            (here / name / "config.json").write_text("{}")
        else:
            (here / name).write_text("something else\n")
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_study_is_meant_by_its_name(crowded, name):
    assert study_file(name) == STUDIES_FOLDER / f"{name}.yaml"
    assert study_in(study_file(name))[0].parts


def test_run_takes_the_shipped_study(crowded, tmp_path):
    model = write_model(tmp_path / "model")
    done = CliRunner().invoke(cli.app, ["run", "demo", f"models={model}", "device=cpu", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "2 cells: 0 done, 2 to do" in done.stdout


def test_other_names_mean_what_they_mean_elsewhere(crowded, monkeypatch):
    monkeypatch.setattr("unlearn_eval.models.places.fetch_default_model", lambda: Path("/fetched"))
    assert load.resolve_model("default") == "/fetched"
    assert load_forget_set("facts").name == "facts"
    assert len(load_forget_set("facts")) == 704
    assert get_editor("memit").name == "memit"
    assert names_of("unlearn_facts") == ["unlearn_facts"]
    assert preset_of(load_forget_set("facts"), "none") is None


def test_a_studys_keys_are_those_of_another_folder(crowded, tmp_path, monkeypatch):
    model = write_model(tmp_path / "model")
    study = write_study(tmp_path / "study.yaml", model, editors=[memit(model), NPO], tasks=[FACTS])

    def keys():
        return [cell.key for cell in plan(study_of(read_study(study), study), {}).cells]

    here = keys()
    monkeypatch.chdir(tmp_path)
    assert keys() == here


# Files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine", "./mine", "mine.yaml", "./demo", "mine.yml", "demo/mine"])
def test_a_file_is_meant_by_its_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("forget: facts\ntasks: unlearn_facts\n")
    assert study_file(name).resolve() == place
    assert study_in(study_file(name))[0].parts
    assert study_file(str(place)) == place


@pytest.mark.parametrize("name", ["own", "./demo", "demo/", "own.yaml"])
def test_a_folder_is_refused_in_two_lines(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="is a folder, and not a study file") as caught:
        study_file(name)
    assert name in caught.value.message
    assert "the name of a shipped study: deducible, demo, " in caught.value.hint


@pytest.mark.parametrize(("name", "says"), [("smok", "did you mean smoke"), ("./smoke", "no study file at smoke")])
def test_what_is_not_there_is_named(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        read_study(study_file(name))
