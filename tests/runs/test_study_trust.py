"""Studies are programs: what they execute is listed, and a stranger's is executed only when the user says so."""

import pytest
from in_process import run_here
from study_files import study_content, write_model

from unlearn_eval.runs.meta.expand import study_in
from unlearn_eval.runs.study import trust
from unlearn_eval.runs.study.read import STUDIES_FOLDER, read_study
from unlearn_eval.runs.study.spec import study_of
from unlearn_eval.utils.errors import UserError

EDITOR = """
from pathlib import Path

Path(__file__).with_name("executed").touch()
raise SystemExit("executed")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def stranger(model, tmp_path):
    """A study with an editor of its own, in a folder that is not below the current one."""
    import yaml

    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "x.py").write_text(EDITOR)
    content = study_content(model, editors=[str(folder / "x.py")])
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_stranger_s_code_is_named_and_not_run(stranger, more):
    done = run_here(["run", str(stranger / "study.yaml"), *more], 30)
    assert (done.code, done.traceback) == (1, "")
    assert f"runs code: {stranger / 'x.py'}" in done.err
    assert "--trust" in done.err.splitlines()[-1]
    assert not (stranger / "executed").exists()


def test_it_is_run_if_the_user_trusts_it(stranger):
    run_here(["run", str(stranger / "study.yaml"), "--dry-run", "--trust"], 30)
    assert (stranger / "executed").exists()


def test_what_is_below_the_current_folder_and_the_user_s_own_is_run_and_named(stranger, monkeypatch):
    monkeypatch.chdir(stranger)
    done = run_here(["run", "study.yaml", "--dry-run"], 30)
    assert "runs code: " in done.err
    assert (stranger / "executed").exists()


@pytest.mark.parametrize("foreign", ["another's", "writable by all", "linked"])
def test_what_others_may_write_is_not_the_user_s_own(foreign, stranger, monkeypatch, tmp_path):
    monkeypatch.chdir(stranger)
    path = stranger / "x.py"
    if foreign == "another's":
        monkeypatch.setattr(trust.os, "getuid", lambda: 12345)
    elif foreign == "writable by all":
        path.chmod(0o666)
    else:
        (tmp_path / "elsewhere.py").write_text(EDITOR)
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere.py")
    assert trust.strangers([path]) == [path]


def test_a_user_on_a_terminal_is_asked(stranger):
    study = study_of(read_study(stranger / "study.yaml"), stranger / "study.yaml")
    asked = []
    assert trust.check_trust(study, stranger / "study.yaml", False, lambda text: not asked.append(text))
    assert "runs code" in asked[0]
    with pytest.raises(UserError, match="runs code"):
        trust.check_trust(study, stranger / "study.yaml", False, lambda text: False)


def test_folders_of_tasks_are_code_too(model, tmp_path):
    (tmp_path / "tasks").mkdir()
    content = study_content(model, include_path=str(tmp_path / "tasks"))
    study = study_of(content, tmp_path / "study.yaml")
    assert trust.programs(study) == [tmp_path / "tasks"]
    with pytest.raises(UserError, match="--trust"):
        trust.check_trust(study, tmp_path / "study.yaml", False, None)


@pytest.mark.parametrize("path", sorted(STUDIES_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_run_no_code_of_others(path):
    assert trust.check_trust(study_in(path)[0], path, False, None) is None
