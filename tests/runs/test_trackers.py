"""Results as runs of W&B, MLflow and Trackio: fakes of their modules record the calls that we make."""

import json
import sqlite3
import sys
from contextlib import closing, contextmanager
from types import ModuleType

import pytest
from report_data import metric, result
from study_files import FACTS, memit, write_model, write_study
from tiny_models import one_thread  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.results.files import read_result, write_result
from unlearn_eval.results.schema import Metric
from unlearn_eval.runs.trackers import metrics_of, settings_of, tracker
from unlearn_eval.utils.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model")


def like_wandb(name, calls):
    """`wandb.init`, `log`, `finish`; Trackio has the same, and prints to standard output."""
    module = ModuleType(name)

    def init(*, project, name, config):
        print("* a dashboard")
        calls.append(("init", project, name, config))

    module.init = init
    module.log = lambda metrics: calls.append(("log", metrics))
    module.finish = lambda: calls.append(("finish",))
    return module


def like_mlflow(name, calls):
    """The fluent calls, with the server's limit of what one request may hold and the names that it refuses."""
    module = ModuleType(name)

    @contextmanager
    def start_run(*, run_name):
        calls.append(("init", calls.pop()[1], run_name, {}))
        yield
        calls.append(("finish",))

    def log_params(params):
        assert len(params) <= 100
        assert all(isinstance(value, str) and len(value) <= 500 for value in params.values())
        calls[0][3].update(params)

    def log_metrics(metrics):
        assert len(metrics) <= 1000
        assert all(character.isalnum() or character in "_-./ :" for name in metrics for character in name)
        calls.append(("log", metrics))

    module.set_experiment = lambda name: calls.append(("experiment", name))
    module.start_run, module.log_params, module.log_metrics = start_run, log_params, log_metrics
    module.set_tag = lambda key, value: calls[0][3].update({f"tag {key}": value})
    return module


FAKES = {"wandb": like_wandb, "trackio": like_wandb, "mlflow": like_mlflow}


def put(name, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, name, FAKES[name](name, calls))
    return calls


def a_result(tmp_path, **changes):
    values = {
        "forget_accuracy": metric([0.0, 0.0, 0.0, 1.0], False),
        "leak@8": metric([0.5, 1.0], False),
        "forget_quality": Metric(None, None, 0, 0, "no reference"),
    }
    return read_result(write_result(result("after", values, "memit", **changes), tmp_path / "after.json"))


@pytest.mark.parametrize("name", FAKES)
def test_a_run_has_metrics_settings_and_the_file(name, tmp_path, monkeypatch, capsys):
    calls = put(name, monkeypatch)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    made = a_result(tmp_path)
    tracker(name, print)(made, "after")
    (_, project, run, config), *logged, last = calls
    assert (project, run, last) == ("unlearn-eval", "after", ("finish",))
    found = {key: value for _, part in logged for key, value in part.items()}
    assert found == metrics_of(made)
    assert found["unlearn_facts/forget_accuracy"] == 0.25
    assert found["unlearn_facts/forget_accuracy/stderr"] == 0.25
    assert found["unlearn_facts/forget_accuracy/n"] == 4
    assert found["unlearn_facts/leak_8"] == 0.75
    assert not [key for key in found if "quality" in key], "what is undefined is not logged as a number"
    assert config["result_file"].endswith("after.json")
    assert config["editor"] == "memit"
    assert str(config["requests.n"]) == "12"
    assert str(config["edit.layers"]) == "[1]"
    assert capsys.readouterr().out == ""


def test_an_mlflow_server_is_given_what_it_takes_in_one_request(tmp_path, monkeypatch):
    calls = put("mlflow", monkeypatch)
    made = a_result(tmp_path, config_as_passed={f"option {i}": "x" * 9000 for i in range(250)})
    tracker("mlflow", print)(made, "after")
    assert len([key for key in calls[0][3] if key.startswith("eval.option")]) == 250


def test_a_project_of_the_environment_is_kept(tmp_path, monkeypatch):
    calls = put("wandb", monkeypatch)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    tracker("wandb", print)(a_result(tmp_path), "after")
    assert calls[0][1] == "mine"


def test_secrets_do_not_leave_the_machine():
    made = result("after", {}, config_as_passed={"hf_token": "hf_" + "a" * 30})
    assert "hf_aaa" not in json.dumps(settings_of(made))


def test_a_tracker_that_fails_is_a_warning_and_the_run_is_ended(tmp_path, monkeypatch):
    calls, said = put("wandb", monkeypatch), []
    sys.modules["wandb"].log = lambda metrics: 1 / 0
    tracker("wandb", said.append)(a_result(tmp_path), "after")
    (line,) = said
    assert "wandb did not log after (ZeroDivisionError" in line
    assert "after.json" in line
    assert calls[-1] == ("finish",)


@pytest.mark.parametrize(
    ("name", "says"),
    [("wandb", "--tracker wandb needs a package that is not installed"), ("wandbb", "unknown tracker 'wandbb'")],
)
def test_what_is_missing_is_said_before_anything_is_computed(name, says, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["eval", "--tasks", "unlearn_facts", "--model", str(model), "--tracker", name, "--output", "x.json"]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, words)
    assert isinstance(done.exception, UserError)
    assert says in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_eval_logs_its_result_and_prints_json_alone(model, tmp_path, monkeypatch):
    calls = put("trackio", monkeypatch)
    monkeypatch.chdir(tmp_path)
    metadata = json.dumps({"encoder": "off", "ids": "capital_of/france"})
    words = ["eval", "--tasks", "unlearn_facts", "--model", str(model), "--device", "cpu", "--metadata", metadata]
    words += [
        "--gen_kwargs",
        "max_gen_toks=2",
        "--limit",
        "2",
        "--output",
        "one.json",
        "--tracker",
        "trackio",
        "--json",
    ]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout)["results"]
    assert [call[0] for call in calls] == ["init", "log", "finish"]
    assert calls[0][2] == "one"
    assert calls[1][1] == metrics_of(read_result("one.json"))


def test_a_study_logs_each_cell(model, tmp_path, monkeypatch):
    calls = put("wandb", monkeypatch)
    study = write_study(tmp_path / "study.yaml", model, editors=[memit(model)], tasks=[FACTS])
    words = ["run", str(study), "--output", str(tmp_path / "out"), "--tracker", "wandb"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    runs = [call for call in calls if call[0] == "init"]
    assert len(runs) == 2
    assert {run[3]["cell.editor"] if "cell.editor" in run[3] else None for run in runs} == {None, "memit"}
    files = {run[3]["result_file"] for run in runs}
    assert files == {str(path.resolve()) for path in (tmp_path / "out").glob("runs/*/result.json")}


# The libraries themselves, where they are installed -----------------------------------------------------------


def in_wandb(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")

    def read():
        (path,) = folder.glob("wandb/offline-run-*/*.wandb")
        return path.read_bytes().decode("latin-1")

    return read


def in_mlflow(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")

    def read():
        import mlflow

        (run,) = mlflow.search_runs(experiment_names=["unlearn-eval"], output_format="list")
        return json.dumps([run.info.run_name, run.info.status, run.data.metrics, run.data.params])

    return read


def in_trackio(folder, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))

    def read():
        with closing(sqlite3.connect(folder / "trackio" / "unlearn-eval.db")) as store:
            return str([store.execute(f"SELECT * FROM {name}").fetchall() for name in ("metrics", "configs")])

    return read


REAL = {"wandb": in_wandb, "mlflow": in_mlflow, "trackio": in_trackio}


@pytest.mark.slow  # MLflow makes the tables of a database
@pytest.mark.parametrize("name", REAL)
def test_the_library_itself_keeps_a_run(name, tmp_path, monkeypatch, capsys):
    """Locally and without network; what it kept is read back from its own files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    read, said = REAL[name](tmp_path, monkeypatch), []
    pytest.importorskip(name, reason=f"{name} is not installed")
    made = a_result(tmp_path)
    tracker(name, said.append)(made, "the run")
    assert said == []
    assert capsys.readouterr().out == ""
    kept = read()
    for words in (
        "the run",
        "unlearn_facts/forget_accuracy",
        "unlearn_facts/leak_8/stderr",
        "0.25",
        "memit",
        "after.json",
    ):
        assert words in kept
    assert "forget_quality" not in kept
