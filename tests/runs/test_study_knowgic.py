"""The study that sets ours beside KnowGIC's published figures, on a tiny stand-in for GPT-2 XL."""

import pytest
from benchmark_data import write_benchmarks
from study_files import write_model
from tiny_models import one_thread  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.results.files import read_result
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study, study_file
from unlearn_eval.runs.study.spec import study_of

STUDY = study_file("knowgic_gpt2_xl")
FIGURES = {"alphaedit": (0.736, 0.903), "memit": (0.727, 0.880), "rome": (0.279, 0.752)}
METRICS = ("forget_chain_recovery", "neighbors_preservation")


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(tmp_path / "data")))
    return write_model(tmp_path / "tiny")


def study(*overrides):
    return study_of(read_study(STUDY, overrides), STUDY)


def test_each_editor_has_its_published_figures():
    (part,) = study().parts
    assert [spec.model for spec in part.models] == ["openai-community/gpt2-xl"]
    for spec in part.editors:
        assert spec.published.task == "unlearn_knowgic"
        assert tuple(spec.published.values[name] for name in METRICS) == FIGURES[spec.name]


def test_it_is_planned_on_a_stand_in(model):
    cells = plan(study(f"models={model}"), {}).cells
    assert [cell.editor and cell.editor.name for cell in cells] == [None, *FIGURES]
    assert [cell.published and cell.published.source for cell in cells] == [None, *["manitbaser/KnowGIC"] * 3]
    assert all(cell.asks[0].n_documents == 8 for cell in cells)
    other = plan(study(f"models={model}", "editors=[memit]"), {}).cells
    assert other[-1].key in {cell.key for cell in cells}, "no result depends on published numbers"


def test_published_figures_of_an_editor_stand_beside_ours(model, tmp_path):
    content = f"""
models: {model}
device: cpu
chat: false
forget: knowgic:all
recipes: {{name: new, target: wrong}}
tasks: [{{task: unlearn_knowgic, gen_kwargs: {{max_gen_toks: 2}}, metadata: {{p: probability}}}}]
editors:
  editor: memit
  settings: {{layers: [1], target.steps: 2, keys_per_dimension: 1, text: {model}/text.txt}}
  published: {{task: unlearn_knowgic, source: somebody, values: {{neighbors_preservation: 0.5}}}}
"""
    path = tmp_path / "own.yaml"
    path.write_text(content)
    done = CliRunner().invoke(cli.app, ["run", str(path), "--output", str(tmp_path / "output")])
    assert done.exit_code == 0, done.output
    results = [read_result(own) for own in (tmp_path / "output").glob("runs/*/result.json")]
    (edited,) = [own for own in results if own.edit]
    metrics = edited.metrics["unlearn_knowgic"]
    assert metrics["neighbors_preservation"].value is not None
    assert metrics["forget_chains_known_before"].value == 4
    assert edited.config["cell"]["published"]["source"] == "somebody"
    assert "beside what is published: somebody" in done.stdout
    ours = f"{metrics['neighbors_preservation'].value:.3f}"
    assert any("memit" in line and ours in line and "0.500" in line for line in done.stdout.splitlines())
    (base,) = [own for own in results if not own.edit]
    assert "published" not in base.config["cell"]
