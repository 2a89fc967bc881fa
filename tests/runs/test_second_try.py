"""A cell that runs out of memory is edited once more with less, says so, and fails only if that does not help."""

import json

import pytest
from study_files import write_model, write_study
from tiny_models import one_thread  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.runs import edit as editing
from unlearn_eval.runs.study.cells.second_try import at_most_twice, less_memory, ran_out
from unlearn_eval.utils.errors import UserError


@pytest.mark.parametrize(
    ("editor", "settings", "less"),
    [
        ("npo", {}, {"gradient_checkpointing": "true"}),
        ("npo", {"gradient_checkpointing": "true"}, {}),
        ("memit", {"target.steps": "2"}, {"target.tokens_per_batch": "256"}),
        ("memit", {"target.tokens_per_batch": "32"}, {}),
        ("grace", {}, {"tokens_per_batch": "128"}),
        ("notes", {}, {}),
    ],
)
def test_what_takes_less(editor, settings, less):
    assert less_memory(editor, settings) == less


def test_other_errors_are_raised_at_once():
    tried = []

    def make(settings):
        tried.append(settings)
        raise UserError("the subject is not in the question", "give one")

    with pytest.raises(UserError, match="the subject"):
        at_most_twice(make, "npo", {}, print)
    assert tried == [{}]


def test_memory_that_ran_out_below_an_error_of_ours():
    error = UserError("memory does not suffice for 1 rows", "give less")
    error.__cause__ = RuntimeError("CUDA out of memory")
    assert ran_out(error)
    assert not ran_out(UserError("memory does not suffice for 1 rows", "give less"))


@pytest.mark.parametrize("helps", [True, False])
def test_a_cell_is_tried_twice(helps, tmp_path, monkeypatch):
    model = write_model(tmp_path / "model")
    study = write_study(tmp_path / "study.yaml", model)
    real, asked = editing.make_edit, []

    def make_edit(loaded, forget, editor, options, **more):
        if editor == "npo":
            asked.append(options.get("gradient_checkpointing"))
            if not (helps and options.get("gradient_checkpointing") == "true"):
                raise MemoryError("cannot allocate memory")
        return real(loaded, forget, editor, options, **more)

    monkeypatch.setattr(editing, "make_edit", make_edit)
    done = CliRunner().invoke(cli.app, ["run", str(study), "--output", str(tmp_path / "out")])
    assert asked == [None, "true"]
    assert "out of memory: once more with gradient_checkpointing=true" in done.stderr
    found = {}
    for path in (tmp_path / "out" / "runs").glob("*/result.json"):
        content = json.loads(path.read_text())
        found[content["config"]["cell"]["editor"]] = content
    assert {name: content["status"] for name, content in found.items()} == {
        None: "complete",
        "memit": "complete",
        "npo": "complete" if helps else "failed",
    }
    if helps:
        assert found["npo"]["edit"]["notes"]["out_of_memory_before"] == "gradient_checkpointing=true"
        assert found["npo"]["edit"]["config"]["gradient_checkpointing"] is True
    assert "out_of_memory_before" not in found["memit"]["edit"]["notes"]
