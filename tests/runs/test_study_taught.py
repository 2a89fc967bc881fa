"""Studies that teach a model, and one without what is forgotten, with which they compare and at which edits end."""

import json

import pytest
from study_files import write_model, write_study
from tiny_models import one_thread  # noqa: F401
from tofu_files import tofu_data, write_tofu
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.results.files import read_result
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study, study_file
from unlearn_eval.runs.study.spec import study_of
from unlearn_eval.runs.study.tune import searches_of
from unlearn_eval.utils.errors import UserError

TASK = {
    "task": "unlearn_tofu_forget01",
    "gen_kwargs": {"max_gen_toks": 2},
    "metadata": {"encoder": "off", "retain_reference": "model:taught"},
}
STUDY = {
    "forget": "tofu:forget01",
    "retain": "tofu:retain99[:3]",
    "sizes": ["all"],
    "kept": None,
    "tasks": [TASK],
    "finetune": {
        "on": "tofu:forget01+retain99[:3]",
        "reference": "tofu:retain99[:3]",
        "settings": {"steps": 4, "learning_rate": 1e-3, "stop_probability": 0.9, "batch_size": 3},
    },
    "editors": [
        {
            "editor": "npo",
            "settings": {"steps": 3, "check_steps": 1, "stop_probability": "model:taught", "learning_rate": 1e-3},
        }
    ],
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    data = tofu_data()
    rest = [{"question": f"Who is author {i}?", "answer": f"Author {i}"} for i in range(60)]
    write_tofu(tmp_path / "data")
    plain = [{key: own[key] for key in ("question", "answer")} for own in data["forget01_perturbed"]]
    (tmp_path / "data" / "tofu" / "full.json").write_text("".join(json.dumps(own) + "\n" for own in [*rest, *plain]))
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path / "data"))
    write_model(tmp_path / "model")
    return tmp_path


def test_sets_of_tofu_can_be_joined_and_cut(place):
    both = load_forget_set("tofu:forget01+retain99[:3]")
    assert [item.id for item in both] == ["forget/0", "forget/1", "full/0", "full/1", "full/2"]
    assert [item.id for item in load_forget_set("tofu:retain99[:3]")] == ["full/0", "full/1", "full/2"]
    for wrong in ("tofu:forget01+", "tofu:retain99[:0]", "tofu:retain99[3]", "tofu:forget1"):
        with pytest.raises(UserError, match="unknown TOFU set"):
            load_forget_set(wrong)


def test_a_retain_only_model_is_taught_compared_with_and_stopped_at(place):
    study = write_study(place / "study.yaml", place / "model", **STUDY)
    done = CliRunner().invoke(cli.app, ["run", str(study), "--output", str(place / "output")])
    assert done.exit_code == 0, done.output
    assert len(list((place / "output").glob("shared/models/*/unlearn_eval_finetune.json"))) == 2
    (reference,) = (place / "output").glob("shared/references/unlearn_tofu_forget01-*.json")
    (known,) = (place / "output").glob("shared/references/probability-*.json")
    probability = json.loads(known.read_text())["probability"]
    assert probability == pytest.approx(
        read_result(reference).metrics["unlearn_tofu_forget01"]["forget_probability"].value
    )
    base, edited = (
        read_result(next((place / "output").glob(f"runs/*_{name}_*/result.json"))) for name in ("base", "npo")
    )
    for own in (base, edited):
        assert own.metrics["unlearn_tofu_forget01"]["forget_quality"].value is not None
    assert float(edited.edit["config"]["stop_probability"]) == probability
    taught = base.metrics["unlearn_tofu_forget01"]["forget_probability"].value
    assert taught != pytest.approx(probability)
    write_study(study, place / "model", **STUDY | {"finetune": {**STUDY["finetune"], "reference": "tofu:retain99[:2]"}})
    done = CliRunner().invoke(cli.app, ["run", str(study), "--output", str(place / "output")])
    assert done.exit_code == 0, done.output
    references = place / "output" / "shared" / "references"
    assert len(list(references.glob("unlearn_tofu_forget01-*.json"))) == 2, "another reference's numbers are not used"
    assert len(list(references.glob("probability-*.json"))) == 2


def test_what_is_not_taught_is_named(place):
    path = place / "study.yaml"

    def planned(**changes):
        return plan(study_of(read_study(write_study(path, place / "model", **(STUDY | changes))), path), {})

    first = {cell.editor.name if cell.editor else "base": cell.key for cell in planned().cells}
    other = {**STUDY["finetune"], "reference": "tofu:retain99[:2]"}
    assert not set(first.values()) & {cell.key for cell in planned(finetune=other).cells}
    alone = {key: value for key, value in STUDY["finetune"].items() if key != "reference"}
    with pytest.raises(UserError, match="compares with the model that the study teaches, and it teaches none"):
        planned(finetune=alone)
    bare = {**TASK, "metadata": {"encoder": "off"}}
    with pytest.raises(UserError, match="npo stops at the probability of the model that the study teaches"):
        planned(finetune=alone, tasks=[bare])


def test_the_comparison_of_unlearners_can_be_planned(place):
    """Every method has the same budget; the recipes are the editors' alone."""
    path = study_file("unlearners_tofu")
    small = ["known.sizes=[1]", "known.kept=1", f"models={place / 'model'}", "device=cpu"]
    made = plan(study_of(read_study(path, small), path), {})
    searches = searches_of(made)
    assert len(searches) == 23
    assert {(own.tune.trials, own.tune.validation) for own in searches} == {(8, 0.5)}
    recipes = {(cell.editor.editor, cell.recipe.name) for cell in made.cells if cell.editor and cell.part == "taught"}
    assert {("npo", "plain"), ("memit", "merge"), ("wise", "self")} <= recipes
    assert ("npo", "self") not in recipes
    assert {cell.seed for cell in made.cells if cell.part == "taught"} == {0, 1, 2}
    assert {cell.part for cell in made.cells} == {"retain_only", "taught", "known"} | {"gemma"}
    assert len({cell.model_key for cell in made.cells}) == 3, "as it is, and taught both or what is retained"
