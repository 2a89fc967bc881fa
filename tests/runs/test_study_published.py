"""The study of published checkpoints, on tiny models under their hub names: keys, reference, numbers beside ours."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import transformers.utils.hub
from study_files import write_model
from tiny_models import one_thread  # noqa: F401
from tofu_files import write_tofu
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.results.files import read_result
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study, study_file
from unlearn_eval.runs.study.spec import study_of

STUDY = study_file("tofu_llama_3_2_1b")
REFERENCE = "open-unlearning/tofu_Llama-3.2-1B-Instruct_retain90"
METHODS = {"altpo", "npo", "simnpo", "idk_dpo", "grad_diff", "rmu_layer5", "undial_b10", "idk_nll"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache in which every checkpoint of the study is a tiny model, and TOFU's files."""
    write_tofu(tmp_path / "data")
    tiny = write_model(tmp_path / "tiny")
    for spec in _study().parts[0].models:
        place = tmp_path / "hub" / f"models--{spec.model.replace('/', '--')}"
        (place / "snapshots").mkdir(parents=True)
        (place / "snapshots" / "0abc").symlink_to(tiny)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("0abc")
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transformers.utils.hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def _study(*overrides):
    return study_of(read_study(STUDY, overrides), STUDY)


def test_every_checkpoint_has_its_published_numbers():
    (part,) = _study().parts
    assert {spec.name for spec in part.models} == METHODS | {"full", "retain90"}
    assert len({spec.model for spec in part.models}) == 10
    assert all(spec.model.startswith("open-unlearning/") for spec in part.models)
    for spec in part.models:
        assert spec.published.task == "unlearn_tofu"
        assert len(spec.published.values) == 13
        assert all(0 <= value <= 1 for value in spec.published.values.values())
    full = next(spec for spec in part.models if spec.name == "full").published
    assert full.values["model_utility"] == 0.601
    assert part.tasks[0].metadata["compat"] == "openunlearning"


def test_the_study_is_planned_by_hub_names(hub):
    cells = plan(_study(), {}).cells
    assert len(cells) == 10
    assert {cell.commit for cell in cells} == {"0abc"}
    assert len({cell.key for cell in cells}) == 10
    own = {cell.model.name: cell.key for cell in cells}
    place = hub / "hub" / f"models--{REFERENCE.replace('/', '--')}"
    (place / "refs" / "main").write_text("0def")
    (place / "snapshots" / "0def").symlink_to(hub / "tiny")
    other = {cell.model.name: cell.key for cell in plan(_study(), {}).cells}
    assert not set(own.values()) & set(other.values()), "all are compared with the reference"


@pytest.mark.slow  # three models are asked all of a task
def test_published_numbers_stand_beside_ours(hub):
    words = ["run", "tofu_llama_3_2_1b", "models=[retain90,full,npo]", "device=cpu", "chat_template_kwargs={}"]
    done = CliRunner().invoke(cli.app, [*words, "--output", str(hub / "output")])
    assert done.exit_code == 0, done.output
    results = [read_result(path) for path in (hub / "output").glob("runs/*/result.json")]
    assert len(results) == 3
    (reference,) = (hub / "output").glob("shared/references/*.json")
    assert json.loads(reference.read_text())["metrics"]["unlearn_tofu"]["forget_quality"]["value"] is None
    for result in results:
        metrics = result.metrics["unlearn_tofu"]
        assert metrics["forget_quality"].value == pytest.approx(1.0), "all are the reference itself"
        assert set(result.config["cell"]["published"]["values"]) <= set(metrics)
    assert "beside what is published: gnueaj/unlearning-depth-score@fc316398" in done.stdout
    ours = f"{results[0].metrics['unlearn_tofu']['model_utility'].value:.3f}"
    assert any(line.split()[1:] and ours in line and "0.572" in line for line in done.stdout.splitlines())
    assert Path(STUDY).is_file()
