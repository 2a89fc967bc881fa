"""An editor in a file of the user's own: found by its path, told apart by its content, refused with a reason."""

import json
import subprocess

import pytest
from study_files import FACTS, command, study_content, write_model, write_study
from tiny_models import one_thread, tiny_model  # noqa: F401

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.editing.editor import Editor, get_editor
from unlearn_eval.editing.from_file import editor_file, editor_label
from unlearn_eval.edits.load import load_edit
from unlearn_eval.runs.edit import make_edit
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study
from unlearn_eval.runs.study.spec import study_of
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import sha256_of_file

EDITOR = '''
"""nothing: an edit that changes nothing, or one weight."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from unlearn_eval.anatomy import anatomy
from unlearn_eval.edits import EditInfo, LowRankEdit


@dataclass(frozen=True)
class Config:
    """Settings."""

    layer: int = 1
    size: float = 0.0


def edit(model, tokenizer, requests, config, generator=None, state=None, progress=None):
    parts = anatomy(model)
    weight = parts.weight(model, config.layer)
    u = torch.full((weight.shape[0], 1), config.size)
    v = torch.full((1, weight.shape[1]), config.size)
    return LowRankEdit({parts.projection_name(config.layer): (u, v)}, EditInfo("other", asdict(config)))
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("own") / "model")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_editor.py"
    path.write_text(EDITOR)
    return path


def test_a_file_is_an_editor(file):
    assert isinstance(get_editor(str(file)), Editor)
    assert get_editor(str(file)) is get_editor(str(file)), "it is run once"
    assert editor_label(str(file)) == "my_editor"
    assert editor_label("memit") == "memit"
    assert editor_file("memit") is None


def test_a_changed_file_is_another_editor(file):
    before = get_editor(str(file)).Config()
    file.write_text(EDITOR.replace("layer: int = 1", "layer: int = 2"))
    assert (before.layer, get_editor(str(file)).Config().layer) == (1, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no editor file"),
        ("x = 1\n", "has no Config and no edit"),
        (EDITOR.replace("def edit", "def edits"), "has no edit"),
        (EDITOR.replace("@dataclass(frozen=True)", ""), "Config in .* is no dataclass"),
        (EDITOR.replace("layer: int = 1", "layer: int"), "no default for layer"),
        (EDITOR.replace(", state=None, progress=None", ""), "edit in .* does not fit: .*'state'"),
        ("import nothing_like_this\n", "line 1: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("a = 1\ndef broken(:\n", "line 2: SyntaxError"),
        ("a = 1\nb = 2\nc = a / 0\n", "line 3: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(file, text, says):
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        get_editor(str(file))
    assert caught.value.hint


def test_the_command_makes_an_edit_that_names_its_file(model, file, tmp_path):
    output = tmp_path / "edit"
    arguments = ("--model", model, "--limit", 2, "--device", "cpu", "--output", output)
    done = subprocess.run(
        command("edit", "--editor", file, "--set", "size=0.1", *arguments), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    info = load_edit(output).info
    assert info.editor == "my_editor", "whatever the file calls itself"
    assert info.config == {"layer": 1, "size": 0.1}
    assert info.notes["editor_file"] == {"name": "my_editor.py", "sha256": sha256_of_file(file)}
    more = command("edit", "--continue", output, "--model", model, "--output", tmp_path / "more")
    done = subprocess.run(more, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "give --editor FOLDER/my_editor.py" in done.stderr


def test_an_edit_of_another_method_is_not_gone_on_from(model, file):
    from unlearn_eval.models.load import load_model

    loaded = load_model(str(model), device="cpu")
    first = make_edit(loaded, facts().sample(1, seed=0), str(file))
    other = file.with_name("second_editor.py")
    other.write_text(EDITOR)
    with pytest.raises(UserError, match="was made by my_editor, not by second_editor"):
        make_edit(loaded, facts().sample(1, seed=1), str(other), state=first)


def test_a_study_runs_it_and_its_content_is_part_of_the_key(model, file, tmp_path):
    changes = {"editors": [str(file), {"name": "strong", "editor": str(file), "settings": {"size": 1}}], "retain": None}
    path = write_study(tmp_path / "study.yaml", model, **changes)

    def keys():
        return {cell.name.split("_facts")[0]: cell.key for cell in plan(study_of(read_study(path), path), {}).cells}

    before = keys()
    assert set(before) == {"model_base", "model_my_editor", "model_strong"}
    file.write_text(EDITOR + "\n# changed\n")
    after = keys()
    assert after["model_base"] == before["model_base"]
    assert after["model_my_editor"] != before["model_my_editor"]
    done = subprocess.run(
        command("run", path, "--output", tmp_path / "out"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    methods = {
        (json.loads(p.read_text())["edit"] or {}).get("editor") for p in (tmp_path / "out").glob("runs/*/result.json")
    }
    assert methods == {None, "my_editor"}


def test_a_study_asks_tasks_of_ones_own_folder(model, file, tmp_path):
    folder = tmp_path / "my_tasks"
    folder.mkdir()
    questions = folder / "questions.jsonl"
    questions.write_text('{"question": "Who wrote Hamlet?", "answer": "Shakespeare"}\n')
    (folder / "my_task.yaml").write_text(
        "task: my_task\ndataset_path: json\ndataset_kwargs: {data_files: {test: " + str(questions) + "}}\n"
        'test_split: test\noutput_type: generate_until\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        "generation_kwargs: {until: [], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n"
    )
    content = study_content(model, editors=[], retain=None, tasks=["my_task", FACTS], include_path=str(folder))

    def keys():
        return [ask.key for cell in plan(study_of(content, tmp_path / "s.yaml"), {}).cells for ask in cell.asks]

    before = keys()
    (folder / "my_task.yaml").write_text((folder / "my_task.yaml").read_text() + "num_fewshot: 0\n")
    assert keys()[0] != before[0], "what the folder holds is part of the key"
    path = write_study(tmp_path / "s.yaml", model, editors=[], retain=None, tasks=["my_task"], include_path=str(folder))
    done = subprocess.run(
        command("run", path, "--output", tmp_path / "out"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "out").glob("runs/*/result.json")
    assert json.loads(result.read_text())["metrics"]["my_task"]["exact_match"]["n"] == 1
    for wrong in ({"include_path": str(tmp_path / "nowhere")}, {"include_path": 3}):
        with pytest.raises(UserError, match="no folder|include_path is 3\nhint: give a text"):
            plan(study_of(content | wrong, tmp_path / "s.yaml"), {})
