"""What the documents tell people to do can be done: commands parse, Python runs, links lead somewhere."""

import dataclasses
import shutil
from pathlib import Path

import fake_hub
import pytest
import typer
from documented import GUIDES, PAGES, ROOT, SCRIPTS, blocks, commands, links, named, paths
from in_process import ours
from report_data import metric, result
from tiny_models import one_thread  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.editing.editor import editor_names
from unlearn_eval.edits.load import load_edit
from unlearn_eval.harness.run import names_of
from unlearn_eval.results.files import write_result
from unlearn_eval.runs.study.read import read_study, study_file
from unlearn_eval.runs.study.spec import study_of

OWN_TASKS = {"my_task"}
DOCUMENTS = [path for path in (*PAGES, *SCRIPTS) if commands(path)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_command_line_is_one(path):
    for words in commands(path):
        if words[0] == "unlearn-eval":
            check_ours(words[1:])
        else:
            check_lm_eval(words[1:])


def check_ours(words):
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):  # of a group, too
        assert words[0] in command.commands, words
        command, name, words = command.commands[words[0]], words[0], words[1:]
    try:
        context = command.make_context(name, list(words))
    except Exception as error:  # typer brings a click of its own
        pytest.fail(f"{' '.join(words)}: {error}")
    given = context.params
    if given.get("editor") and not given["editor"].endswith(".py"):
        assert given["editor"] in editor_names(), words
    for task in (given.get("tasks") or "").split(","):
        assert task in OWN_TASKS or not task or names_of(task), words
    if name == "run":
        assert all("=" in setting for setting in given["settings"] or ()), words
        if not given["study"].endswith(".yaml"):
            path = study_file(given["study"])
            study_of(read_study(path, given["settings"] or ()), path)
    if name == "ls":
        assert CliRunner().invoke(cli.app, [name, *words]).exit_code == 0, words


def check_lm_eval(words):
    from lm_eval._cli.harness import HarnessCLI

    try:
        given = HarnessCLI()._parser.parse_args(["run", *words])
    except SystemExit:
        pytest.fail(f"lm_eval {' '.join(words)}")
    tasks = given.tasks if isinstance(given.tasks, list) else (given.tasks or "").split(",")
    for task in tasks:
        assert task in OWN_TASKS or not task or names_of(task), words


def test_a_wrong_command_line_is_found():
    for words in (
        ["edit", "--outptu", "x"],
        ["edt"],
        ["edit", "--output", "x", "--editor", "memti"],
        ["run", "smoke", "x"],
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check_ours(words)
    with pytest.raises(Exception, match="did you mean unlearn_facts"):
        check_ours(["eval", "--tasks", "unlearn_fact"])


@pytest.mark.parametrize("path", [path for path in PAGES if links(path)], ids=named)
def test_every_link_leads_somewhere(path):
    for target in links(path):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", [path for path in PAGES if paths(path)], ids=named)
def test_every_file_named_is_there(path):
    for target in paths(path):
        assert (ROOT / target).exists(), target


def test_the_guide_s_editor_is_used_as_it_says(workplace):
    page = GUIDES / "own_editor.md"
    edit, *_ = commands(page)
    ours(edit[1:])
    info = load_edit("my_edit").info
    assert info.editor == "ridge"
    assert info.config["target"]["steps"] == 15
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        exec(compile(code, str(page), "exec"), {"__name__": "guide"})  # the first one is the editor itself


def test_the_guide_s_forget_set_is_forgotten_and_measured(workplace, six_layers):
    assert [item.subject for item in load_forget_set("my_facts.jsonl")][2] == "the bridge of Kestrel Bay"
    fast = ["--editor", "ridge.py", "--set", "target.steps=2", "--contexts", "0"]
    edit, targets, edit_2, evaluate, *_ = commands(GUIDES / "own_forget_set.md")
    ours([*edit[1:], *fast])
    ours(targets[1:])
    ours([*edit_2[1:], *fast])
    assert "my_edit_2" in edit_2
    ours([*evaluate[1:], "--model", str(six_layers), "--device", "cpu"])
    from unlearn_eval import read_result

    assert read_result("after.json").metrics["unlearn_forms"]["forget_leak_direct"].n == 3


def test_the_guide_s_task_is_asked(workplace, six_layers):
    evaluate, *_ = commands(GUIDES / "own_task.md")
    ours([*evaluate[1:], "--model", str(six_layers), "--device", "cpu", "--metadata", '{"encoder": "off"}'])
    from unlearn_eval import read_result

    assert read_result("mine.json").metrics["my_task"]["exact_match"].n == 2


def test_python_in_the_guide_to_reports_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    (tmp_path / "results").symlink_to(ROOT / "results")
    page = GUIDES / "reports.md"
    (code,) = blocks(page.read_text(encoding="utf-8"), "python")
    names = {}
    exec(compile(code, str(page), "exec"), names)
    assert len(names["frame"])
    assert len(names["changes"])
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("study", ["my_study.yaml", "ridge_study.yaml"])
def test_the_guides_studies_can_be_planned(workplace, six_layers, study):
    said = ours(["run", study, "--dry-run", f"models={six_layers}", "device=cpu"]).output
    assert "cells" in said


@pytest.mark.parametrize("path", [GUIDES / "serving.md", ROOT / "README.md"], ids=named)
def test_python_in_documents_runs(workplace, path):
    ours(["edit", "--editor", "ridge.py", "--limit", "1", "--set", "target.steps=1", "--output", "my_edit"])
    code = "\n".join(blocks(path.read_text(encoding="utf-8"), "python"))
    assert code
    if path.name == "README.md":
        shutil.rmtree("my_edit")
    exec(compile(code, str(path), "exec"), {"__name__": "document"})
    assert Path("my_edit/edit.json").is_file()


def test_an_edit_is_shared_as_the_guide_says(workplace, tmp_path, monkeypatch):
    hub = fake_hub.install(tmp_path / "hub", monkeypatch)
    ours(["edit", "--editor", "ridge.py", "--limit", "1", "--set", "target.steps=1", "--output", "my_edit"])
    measured = result("after", {"forget_accuracy": metric([0.0, 1.0], False)})
    measured = dataclasses.replace(measured, edit=load_edit("my_edit").info.as_stored())
    for name in ("after.json", "results/after.json"):
        write_result(measured, name)
    page = GUIDES / "sharing.md"
    pushed, redacted = (words for words in commands(page) if words[1] == "push")
    ours(pushed[1:])
    assert b"`forget_accuracy` | 0.5" in hub.files("ORG/NAME")["README.md"]
    code = "\n".join(blocks(page.read_text(encoding="utf-8"), "python"))
    exec(compile(code, str(page), "exec"), {"__name__": "document"})
    ours(redacted[1:])
    (inspect,) = (words for words in commands(page) if words[1] == "inspect")
    assert "ridge" in ours(inspect[1:]).output
    models = {("model", "ORG/NAME"), ("model", "ORG/NAME-redacted")}
    assert set(hub.repositories) == models | {("dataset", "ORG/NAME-results")}
