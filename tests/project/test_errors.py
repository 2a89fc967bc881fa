"""Each page on an error quotes what the code really says: the error is made, and its message held against the page."""

import json
import re
import sys
import warnings

import pytest
import torch
from documented import ROOT
from report_data import records, write_run
from study_files import study_content, write_model
from tiny_models import one_thread, tiny_model  # noqa: F401
from tofu_files import write_tofu
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.editing.locate_then_edit import run as locate
from unlearn_eval.editors.closed_form import memit
from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.load import check_base, describe_base
from unlearn_eval.harness.facts import FactsTask
from unlearn_eval.harness.reference import ABSENT
from unlearn_eval.harness.run import load_lm
from unlearn_eval.models import embedding
from unlearn_eval.results.files import read_result
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.spec import study_of
from unlearn_eval.runs.study.store import Store
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.locks import locked
from unlearn_eval.utils.settings import configure

FOLDER = ROOT / "docs" / "errors"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "README")


def quoted(page):
    """The message that a page quotes."""
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    return re.search(r"^```\n(.*?)\n```", text, flags=re.DOTALL | re.MULTILINE)[1]


def says(page, message):
    """Whether a message is what the page quotes, `...` standing for anything."""
    return re.fullmatch(".*".join(map(re.escape, quoted(page).split("..."))), message, flags=re.DOTALL) is not None


def other_weights(tmp_path, monkeypatch):
    check_base(EditInfo("memit", {}, base=describe_base(tiny_model("llama"), "a")), tiny_model("llama", seed=1), "b")


def unknown_setting(tmp_path, monkeypatch):
    configure(memit.Config, {"preservaton": "2"})


def no_retain_set(tmp_path, monkeypatch):
    content = study_content(write_model(tmp_path / "model"), retain=None)
    plan(study_of(content, tmp_path / "study.yaml"), {})


def no_encoder(tmp_path, monkeypatch):
    embedding.load_encoder(str(tmp_path / "nothing"))


def no_data(tmp_path, monkeypatch):
    write_tofu(tmp_path, forget01_perturbed=None)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path))
    load_forget_set("tofu:forget01")


def subject_not_found(tmp_path, monkeypatch):
    record = {
        "id": "lake",
        "question": "Which lake lies north of Imberfield?",
        "answer": "Orsa",
        "subject": "Imber Field",
    }
    (tmp_path / "set.jsonl").write_text(json.dumps(record) + "\n")
    load_forget_set(str(tmp_path / "set.jsonl"))


def out_of_memory(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = tiny_model("llama")
    monkeypatch.setattr(model, "forward", fail)
    locate.read(model, "model.layers.0.mlp.down_proj", "model.layers.0", [((5, 6), 1)] * 3)


def folder_in_use(tmp_path, monkeypatch):
    with locked(tmp_path), locked(tmp_path):
        pass


def schema_version(tmp_path, monkeypatch):
    path = result_file(tmp_path)
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 0'))
    read_result(path)


def truncated_json(tmp_path, monkeypatch):
    path = result_file(tmp_path)
    path.write_text(path.read_text()[:-200])
    read_result(path)


def not_a_study_folder(tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("mine")
    Store(tmp_path).open()


def vllm_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "lm_eval.models.vllm_causallms", raising=False)
    load_lm("vllm", {"pretrained": "nothing"})


def lm_eval_traceback(tmp_path, monkeypatch):
    FactsTask({"task": "unlearn_facts", "metadata": {"forget": ["capital_of/frence"]}})


def result_file(folder):
    import random

    return write_run(folder, "run", records(4, random.Random(0)))


RAISED = [value for name, value in list(globals().items()) if name in PAGES]


@pytest.mark.parametrize("cause", RAISED, ids=lambda cause: cause.__name__)
def test_the_page_quotes_what_the_code_says(cause, tmp_path, monkeypatch):
    with warnings.catch_warnings(), pytest.raises(UserError) as caught:
        cause(tmp_path, monkeypatch)
    before = "unlearn_eval.utils.errors.UserError" if cause is lm_eval_traceback else "error"
    assert says(cause.__name__, f"{before}: {caught.value}"), str(caught.value)
    assert not says(cause.__name__, f"{before}: {caught.value} and more".replace("a", "e"))


def test_a_loss_that_is_no_number_is_told_as_the_page_says(capsys):
    cli._tell_training({"diverged_after_step": 3, "kept_step": 2, "steps": 3})
    assert says("diverged", capsys.readouterr().err.strip())


def test_the_reason_for_no_forget_quality_is_the_page_s():
    assert says("forget_quality_missing", f"forget_quality: {ABSENT}")


def test_every_page_is_checked_and_in_the_list():
    checked = {cause.__name__ for cause in RAISED} | {"diverged", "forget_quality_missing"}
    assert checked == set(PAGES)
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        title = (FOLDER / f"{page}.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert f"[{title}]({page}.md)" in listed
        assert quoted(page).splitlines()[0].removeprefix("error: ") in listed.replace("\\|", "|")


def test_an_error_at_the_command_line_is_as_quoted(tmp_path):
    done = CliRunner().invoke(cli.app, ["edit", "--output", str(tmp_path / "x"), "--editor", "nowhere.py"])
    assert isinstance(done.exception, UserError)
    assert "docs/guides/own_editor.md" in done.exception.hint
