"""An editor in a file of the user's own: found by its path, told apart by its content, refused with a reason."""

import json
import sys
from dataclasses import replace

import pytest
from in_process import typed
from study_files import FACTS, study_content, write_model, write_study
from tiny_models import one_thread, tiny_model  # noqa: F401

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.editing.editor import EditJob, Editor, get_editor
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


DECLARED = EDITOR.replace(
    "def edit(model, tokenizer, requests, config, generator=None, state=None, progress=None):\n",
    "from unlearn_eval.editing.editor import MOMENTS, Editor\n\n\n"
    "def run(job):\n    model, config = job.model, job.config\n",
).replace('EditInfo("other"', "EditInfo(EDITOR.name") + (
    '\n\nEDITOR = Editor("other", Config, run, makes=LowRankEdit.kind, uses={MOMENTS}, one_layer=True)\n'
)


def test_a_file_may_declare_its_editor(file, model):
    from unlearn_eval.models.load import load_model

    file.write_text(DECLARED)
    editor = get_editor(str(file))
    assert isinstance(editor, Editor)
    assert (editor.name, editor.file) == ("my_editor", {"name": "my_editor.py", "sha256": sha256_of_file(file)})
    assert (editor.kind(editor.Config()), editor.uses, editor.one_layer) == ("low_rank", {"moments"}, True)
    edit = make_edit(load_model(str(model), device="cpu"), facts().sample(1, seed=0), str(file), {"size": "0.5"})
    assert edit.info.editor == "my_editor"
    assert edit.info.notes["editor_file"] == editor.file
    for wrong, says in (
        (DECLARED + "\nEDITOR = run\n", "EDITOR in .* is a function, not an Editor"),
        (DECLARED.replace("@dataclass(frozen=True)", ""), "Config in .* is no dataclass"),
        (DECLARED.replace("uses={MOMENTS}", 'uses={"moment"}'), "uses .'moment'."),
    ):
        file.write_text(wrong)
        with pytest.raises(UserError, match=says):
            get_editor(str(file))


def test_parameters_of_a_function_say_what_it_uses(file):
    def uses(more, returns=""):
        file.write_text(EDITOR.replace("progress=None):", f"progress=None{more}){returns}:"))
        return get_editor(str(file))

    plain = uses("")
    assert (plain.uses, plain.trained, plain.kind(plain.Config())) == (frozenset(), False, None)
    trained = uses(", retain=(), moments=None", " -> LowRankEdit")
    assert trained.uses == {"retain", "moments"}
    assert trained.trained
    assert trained.kind(trained.Config()) == "low_rank"
    assert trained.needs_retain(trained.Config()) is None, "items to retain are used where there are some"
    assert plain.needs_retain(plain.Config()) is False
    assert uses("", " -> NoSuchEdit").kind(plain.Config()) is None


@pytest.mark.parametrize("given", [True, False])
def test_a_function_is_given_what_its_parameters_name(file, given):
    """And only that: a parameter that is not filled keeps its own default."""
    more = ", retain=7, others=7, moments=7" if given else ""
    text = EDITOR.replace("progress=None):\n", f"progress=None{more}):\n    seen.append(dict(locals()))\n")
    file.write_text(text.replace("@dataclass", "seen = []\n\n\n@dataclass", 1))
    editor = get_editor(str(file))
    job = EditJob(
        tiny_model("llama"), "tokenizer", ["request"], editor.Config(), "generator", retain=[1], others=[(2,)]
    )
    editor.run(job)
    editor.run(replace(job, previous="earlier", moments="moments"))
    first, second = vars(sys.modules[editor.Config.__module__])["seen"]
    assert (first["tokenizer"], first["requests"], first["generator"]) == ("tokenizer", ["request"], "generator")
    assert (first["state"], second["state"]) == (None, "earlier")
    if given:
        assert (first["retain"], first["others"], first["moments"]) == ([1], [(2,)], 7)
        assert second["moments"] == "moments"


def test_a_loss_of_ones_own_is_an_editor(file):
    """Written as before, with `edit = editor(...)`."""
    file.write_text(
        "from dataclasses import dataclass\n\n"
        "from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, GradientConfig, Method, editor\n\n\n"
        "@dataclass(frozen=True)\nclass Config(GradientConfig):\n    power: float = 2.0\n\n\n"
        "def loss(said, config):\n    return config.power * said[ANSWER].log_probs.sum(-1)\n\n\n"
        'edit = editor(Method("mine", loss, {ANSWER: LOGITS}))\n'
    )
    editor = get_editor(str(file))
    assert (editor.name, editor.Config().power, editor.trained) == ("my_editor", 2.0, True)
    assert editor.kind(editor.Config(lora_rank=2)) == "low_rank"


def test_what_is_no_edit_is_refused(file, model):
    from unlearn_eval.models.load import load_model

    file.write_text(EDITOR.replace("    return LowRankEdit", "    nothing = LowRankEdit"))
    with pytest.raises(UserError, match="my_editor returned a NoneType, not an edit"):
        make_edit(load_model(str(model), device="cpu"), facts().sample(1, seed=0), str(file))


def test_the_command_makes_an_edit_that_names_its_file(model, file, tmp_path):
    output = tmp_path / "edit"
    arguments = ("--model", model, "--limit", 2, "--device", "cpu", "--output", output)
    done = typed("edit", "--editor", file, "--set", "size=0.1", *arguments)
    assert done.code == 0, done.err
    info = load_edit(output).info
    assert info.editor == "my_editor", "whatever the file calls itself"
    assert info.config == {"layer": 1, "size": 0.1}
    assert info.notes["editor_file"] == {"name": "my_editor.py", "sha256": sha256_of_file(file)}
    done = typed("edit", "--continue", output, "--model", model, "--output", tmp_path / "more")
    assert done.code == 1
    assert "give --editor FOLDER/my_editor.py" in done.err


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
    done = typed("run", path, "--trust", "--output", tmp_path / "out")
    assert done.code == 0, done.err
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
    done = typed("run", path, "--trust", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    (result,) = (tmp_path / "out").glob("runs/*/result.json")
    assert json.loads(result.read_text())["metrics"]["my_task"]["exact_match"]["n"] == 1
    for wrong in ({"include_path": str(tmp_path / "nowhere")}, {"include_path": 3}):
        with pytest.raises(UserError, match="no folder|include_path is 3\nhint: give a text"):
            plan(study_of(content | wrong, tmp_path / "s.yaml"), {})
