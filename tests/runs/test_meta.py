"""`unlearn-eval meta`: pools, unlearned models and controls as one study, and what it says of the metrics."""

import json

import pytest
import yaml
from study_files import write_model
from tiny_models import LAYERS, one_thread  # noqa: F401
from tofu_files import tofu_data, write_tofu
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.results.report.meta import meta_markdown, meta_page
from unlearn_eval.runs.meta import summary
from unlearn_eval.runs.meta.expand import Place, study_in
from unlearn_eval.runs.meta.summary import own_metrics
from unlearn_eval.runs.study.cells.worker import Worker
from unlearn_eval.runs.study.file import MetaEntry
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import study_file
from unlearn_eval.runs.study.store import Store
from unlearn_eval.utils.errors import UserError

FIRST = {"forget": 2, "retain": 0, "real_authors": 0, "world_facts": 0}
TASK = {
    "task": "unlearn_tofu_forget01",
    "gen_kwargs": {"max_gen_toks": 2},
    "metadata": {"encoder": "off", "retain_reference": "model:taught", "first": FIRST},
}
TRAINING = {"batch_size": 4, "lora_rank": 4, "warmup_epochs": 0, "weight_decay": 0}
META = {
    "forget": "tofu:forget01",
    "retain": "tofu:retain99[:2]",
    "others": "tofu:retain99[2:4]",
    "placebo": "wrong(tofu:factual[:1])",
    "rates": [1e-2],
    "epochs": [40, 60],
    "anchor": {"epochs": 50},
    "training": TRAINING,
    "tasks": [TASK],
    "utility_tasks": [{**TASK, "metadata": {**TASK["metadata"], "first": 2}}],
    "methods": [
        {"editor": "gradient_difference", "settings": {**TRAINING, "epochs": 2, "learning_rate": 1e-2}},
        {"editor": "npo", "settings": {**TRAINING, "epochs": 2, "learning_rate": 1e-2}},
    ],
    "depth": ["logit_lens"],
    "relearning": {"epochs": 2},
    "filter": {"editor": "grace", "settings": {"layers": [LAYERS - 1], "steps": 20}},
}
OWN = """
def longest(samples):
    return float(max(len(own["doc"]["answer"]) for own in samples["unlearn_tofu_forget01"]))

METRICS = {"longest_answer": (longest, True)}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meta")
    data = tofu_data()
    rest = [{"question": f"Who is author {i}?", "answer": f"Author {i} is called Ada {i}."} for i in range(60)]
    write_tofu(folder / "data")
    plain = [{key: own[key] for key in ("question", "answer")} for own in data["forget01_perturbed"]]
    (folder / "data" / "tofu" / "full.json").write_text("".join(json.dumps(own) + "\n" for own in [*rest, *plain]))
    write_model(folder / "model")
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(place / "data"))
    monkeypatch.chdir(place)
    return place


def write(place, **changes):
    path = place / "meta.yaml"
    content = {
        "models": str(place / "model"),
        "device": "cpu",
        "chat": False,
        "recipes": {"name": "bare", "preset": False},
        "meta": META | changes,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_pools_methods_and_controls_become_parts(there):
    path = write(there)
    cells = plan(study_in(path, ["meta.rates=[1e-3,1e-2]"])[0], {}).cells
    roles = [Place.of(cell.part).role for cell in cells]
    assert roles.count("knows") == roles.count("never") == 3 * 2 * 2
    assert [cell.then.name for cell in cells if cell.part == "controls"] == [
        "noop", "refuse_all", "placebo", "wrong_answers", "noise",
    ]  # fmt: skip
    after = [(cell.editor.name, cell.then.name) for cell in cells if cell.part == "after"]
    assert after == [(m, t) for m in ("gradient_difference", "npo") for t in ("relearned", "quantized")]
    assert len({cell.key for cell in cells}) == len(cells)
    assert len({cell.reference_key for cell in cells}) == len({cell.before_key for cell in cells}) == 1
    pooled = {cell.model_key for cell in cells if cell.part.startswith(("knows", "never"))}
    assert len(pooled) == 24
    assert not pooled & {cells[0].reference_key, cells[0].before_key}, "the two that are compared with are in no pool"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knows": ["a"]}, "one of the pools is missing"),
        ({"utility": "model_utility"}, "names no metric of a task"),
        ({"rate": 1}, "unknown key 'rate'"),
        ({"rates": [0]}, "rates"),
        ({"methods": []}, "has no methods"),
    ],
)
def test_a_mistake_is_named(there, changes, message):
    path = write(there, **changes)
    with pytest.raises(UserError, match=message):
        study_in(path)


def test_the_shipped_study_can_be_planned(there):
    path = study_file("meta")
    small = [
        f"models={there / 'model'}",
        "device=cpu",
        "meta.retain=tofu:retain99[:2]",
        "meta.others=tofu:retain99[2:4]",
    ]
    cells = plan(study_in(path, [*small, "meta.placebo=wrong(tofu:factual[:2])"])[0], {}).cells
    assert sum(cell.part.startswith("knows") for cell in cells) == 12
    assert len({cell.editor.name for cell in cells if cell.part == "unlearned" and cell.editor}) == 8
    own = [cell for cell in cells if cell.editor and cell.editor.name == "npo"]
    assert len(own) == 3, "unlearned, relearned, quantized"
    for keeps, n_edits in ((True, 1), (False, 3)):
        worker = Worker(Store(there / "out"), 1, None, keep_edits=keeps)
        assert len({worker._edit_folder(cell) for cell in own}) == n_edits, "one edit for all, if it stays"


def test_a_file_without_metrics_is_refused(there):
    (there / "none.py").write_text("METRICS = {'a': 1}\n")
    with pytest.raises(UserError, match="has no METRICS"):
        own_metrics(str(there / "none.py"))


@pytest.mark.parametrize(("utility", "judged"), [(0.9, False), (0.1, None)])
def test_a_placebo_that_harms_is_no_control(utility, judged, monkeypatch):
    def model(role, value, recipe="", change="", of=1.0):
        return summary.Measured(role, recipe, role, change, of, {"t/forget_rouge": value})

    models = [model(role, value, "own") for role, value in (("knows", 0.9), ("never", 0.1)) for _ in range(2)]
    models += [model("unlearned", 0.9), model("retained", 0.1), model("controls", 0.2, change="placebo", of=utility)]
    monkeypatch.setattr(summary, "measured", lambda *given: models)
    content = summary.summary([], len(models), MetaEntry(), [])
    (rule,) = (own for own in content["metrics"][0]["orders"] if "another fact" in own["rule"])
    assert rule["holds"] is judged
    assert content["harmed_controls"] == ([] if judged is False else ["placebo"])
    assert ("Not judged" in meta_markdown(content)) == ("Not judged" in meta_page(content)) == (judged is None)


@pytest.mark.slow  # teaches fifteen tiny models and asks thirty: the whole, once
def test_the_whole_says_what_each_metric_is_worth_and_goes_on(there):
    path, output = write(there, metric=str(there / "own.py")), there / "output"
    done = CliRunner().invoke(cli.app, ["meta", str(path), "--output", str(output)])
    assert done.exit_code == 0, done.output
    content = json.loads((output / "meta.json").read_text())
    assert content["n"]["knows"] == content["n"]["never"] == 6
    assert content["n"]["complete"] == content["n"]["cells"]
    found = {own["metric"]: own for own in content["metrics"]}
    assert found["forget_probability"]["faithfulness"]["value"] > 0.7
    assert found["forget_logit_lens_depth"]["faithfulness"]["value"] > 0.7
    assert found["longest_answer"]["faithfulness"]["value"] == 0.5, "a metric that sees no model knows nothing"
    controls = {name: own["attack_logit_lens/forget_logit_lens_depth"] for name, own in content["controls"].items()}
    assert set(controls) == {
        "noop", "refuse_all", "placebo", "wrong_answers", "noise", "filter", "oracle",
    }  # fmt: skip
    assert (controls["noop"], controls["oracle"]) == pytest.approx((0, 1))
    assert controls["filter"] < 0.5, "a filter in front of an unchanged model does not pass as forgotten by depth"
    said = {name: own["unlearn_tofu_forget01/forget_exact_memorization"] for name, own in content["controls"].items()}
    assert (said["noop"], said["oracle"]) == pytest.approx((0, 1))
    page = (output / "meta.html").read_text()
    assert "forget_logit_lens_depth" in page
    assert "<script" not in page
    assert not list((output / "shared" / "edits").glob("*relearned*"))
    again = output / "again"
    done = CliRunner().invoke(cli.app, ["meta", str(path), "--from", str(output), "--output", str(again)])
    assert done.exit_code == 0, done.output
    without = {"created", "command", "provenance"}
    assert {k: v for k, v in json.loads((again / "meta.json").read_text()).items() if k not in without} == {
        k: v for k, v in content.items() if k not in without
    }
    models = {own.name: own.stat().st_mtime_ns for own in (output / "shared" / "models").iterdir()}
    assert CliRunner().invoke(cli.app, ["meta", str(path), "--output", str(output)]).exit_code == 0
    assert {own.name: own.stat().st_mtime_ns for own in (output / "shared" / "models").iterdir()} == models


@pytest.mark.parametrize(("arguments", "says"), [
    (["smoke"], "smoke.yaml has no meta:"),
    (["smoke", "--from", "."], "smoke.yaml has no meta:"),
    (["meta", "--from", "nowhere"], "nowhere is no study's folder"),
    (["meta.noise=0.5", "--from", "nowhere"], "nowhere is no study's folder"),
])  # fmt: skip
def test_what_is_no_meta_evaluation_is_not_run_as_one(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["meta", *arguments])
    assert done.exit_code != 0
    assert says in str(done.exception)
    assert not list(tmp_path.iterdir())
