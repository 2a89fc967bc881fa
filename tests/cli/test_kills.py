"""Commands that are killed leave nothing half written; run again they end as if nothing had been."""

import json
import signal
import subprocess
import time

import pytest
from odd_files import sound_edit
from study_files import command, memit, write_model

from unlearn_eval.edits.load import load_edit
from unlearn_eval.models.load import load_model
from unlearn_eval.results.files import read_result

pytestmark = pytest.mark.slow  # each starts five interpreters with torch
SETTINGS = ["--set", "layers=1", "--set", "target.steps=30", "--set", "keys_per_dimension=1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def edit(model, tmp_path_factory):
    loaded = load_model(str(model), dtype="float32", device="cpu")
    return sound_edit("low_rank", loaded, tmp_path_factory.mktemp("made") / "edit")


def words(name, model, edit, folder):
    text = memit(model)["settings"]["text"]
    return {
        "attack": [
            *("attack", "quantize", "--edit", edit, "--model", model, "--forget", "facts", "--limit", "3"),
            *("--output", folder / "out.json", "--device", "cpu"),
        ],
        "localize": [
            *("localize", "causal_tracing", "--model", model, "--limit", "4", "--output", folder / "out.json"),
            *("--set", "samples=1", "--device", "cpu"),
        ],
        "edit": [
            *("edit", "--model", model, "--limit", "3", "--output", folder / "out", "--device", "cpu"),
            *(*SETTINGS, "--set", f"text={text}"),
        ],
    }[name]


def numbers(name, folder):
    """What a command has computed, without times and places."""
    if name == "edit":
        return {key: [t.tolist() for t in pair] for key, pair in load_edit(folder / "out").factors.items()}
    if name == "attack":
        return json.loads(json.dumps(read_result(folder / "out.json").metrics, default=vars))
    content = json.loads((folder / "out.json").read_text())
    return {key: content[key] for key in ("ranking", "modules", "tables")}


@pytest.mark.parametrize("name", ["attack", "localize", "edit"])
def test_a_killed_command_leaves_nothing_and_can_be_run_again(name, model, edit, tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache whole"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    subprocess.run(command(*words(name, model, edit, whole)), check=True, capture_output=True)
    took = time.monotonic() - began
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache killed"))
    for share in (0.5, 0.7, 0.9):
        process = subprocess.Popen(
            command(*words(name, model, edit, killed)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(share * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if killed.exists() and (left := [path for path in killed.iterdir() if not path.name.startswith(".")]):
            assert numbers(name, killed) == numbers(name, whole), left  # it was ready before the signal came
    subprocess.run(command(*words(name, model, edit, killed)), check=True, capture_output=True)
    assert numbers(name, killed) == numbers(name, whole)
