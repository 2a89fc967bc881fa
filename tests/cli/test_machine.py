"""Real processes on machines that lack something: two lines, the right cure, exit code 1."""

import os
import subprocess
import sys

import pytest
from odd_files import sound_edit
from study_files import memit, write_model

from unlearn_eval.models.load import load_model

resource = pytest.importorskip("resource")
START = "from unlearn_eval.cli.app import main; main()"
NO_HOME = "import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody\n" + START
PLACES = ("HOME", "XDG_CACHE_HOME", "UNLEARN_EVAL_CACHE", "HF_HOME")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def run(words, script=START, limit=None, **environment):
    """The command in a process of its own, without the variables that name places, and with a limit (what, bytes)."""
    kept = {name: own for name, own in os.environ.items() if name not in PLACES}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=kept | {"OMP_NUM_THREADS": "1"} | environment,
        preexec_fn=None if limit is None else lambda: resource.setrlimit(limit[0], (limit[1], limit[1])),
        timeout=300,
    )


def edit_words(model, output):
    settings = {"layers": 1, "target.steps": 1, "keys_per_dimension": 1, "text": memit(model)["settings"]["text"]}
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["edit", "--model", model, "--limit", 2, "--device", "cpu", *given, "--no-unrelated", "--output", output]


def two_lines(done, error, hint):
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-2:]
    assert last[0].startswith("error: ")
    assert error in last[0], last
    assert last[1].startswith("hint: ")
    assert hint in last[1], last


def test_libraries_that_the_memory_cannot_hold(model, tmp_path):
    edit = sound_edit("low_rank", load_model(str(model), dtype="float32", device="cpu"), tmp_path / "edit")
    done = run(["inspect", edit], limit=(resource.RLIMIT_AS, 300 * 2**20), HOME=str(tmp_path))
    two_lines(done, "the memory is too small", "smaller")


def test_a_reader_that_has_gone_ends_a_command_quietly():
    """As `| head -1` does: what was computed is saved, and nobody is left to read a message."""
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, "-c", START, "ls", "studies"], stdout=writes, stderr=subprocess.PIPE, check=False
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.slow  # an interpreter with torch
def test_no_home_folder(model, tmp_path):
    done = run(edit_words(model, tmp_path / "edit"), script=NO_HOME)
    two_lines(done, "there is no home folder", "UNLEARN_EVAL_CACHE")


@pytest.mark.slow  # an interpreter with torch
@pytest.mark.parametrize("name", ["edit", "localize", "demo"])
def test_a_home_that_cannot_be_written(name, model, tmp_path):
    (tmp_path / "file").write_text("")
    words = {
        "edit": edit_words(model, tmp_path / "edit"),
        "localize": [
            *("localize", "causal_tracing", "--model", model, "--limit", 2, "--device", "cpu", "--set", "samples=1"),
            *("--output", tmp_path / "out.json"),
        ],
        "demo": ["demo", "--output", tmp_path / "demo"],
    }[name]
    done = run(words, HOME=str(tmp_path / "file"), HF_HUB_OFFLINE="1")
    two_lines(done, ".cache/unlearn-eval", "UNLEARN_EVAL_CACHE")
    assert "traced" not in done.stderr, "before the work"


@pytest.mark.slow  # an interpreter with torch each
def test_a_disk_that_fills_while_a_model_is_trained(model, tmp_path):
    """Files of more than a size cannot be written; with room again the same command goes on."""
    words = ["finetune", "--on", "facts", "--model", model, "--limit", 2, "--device", "cpu", "--set", "steps=2"]
    words += ["--set", "checkpoint_steps=1", "--output", tmp_path / "out"]
    weights = (model / "model.safetensors").stat().st_size
    for most in (1000, int(1.3 * weights)):  # the first copy of the weights; the optimizer's state
        done = run(words, limit=(resource.RLIMIT_FSIZE, most), HOME=str(tmp_path))
        two_lines(done, "cannot write", "free some space")
        assert not (tmp_path / "out").exists()
    assert run(words, HOME=str(tmp_path)).returncode == 0


@pytest.mark.slow  # an interpreter with torch
def test_a_disk_that_is_full_of_second_moments(model, tmp_path):
    done = run(edit_words(model, tmp_path / "edit"), limit=(resource.RLIMIT_FSIZE, 1000), HOME=str(tmp_path))
    two_lines(done, "cannot write", "free some space")
    assert run(edit_words(model, tmp_path / "edit"), HOME=str(tmp_path)).returncode == 0


@pytest.mark.slow  # an interpreter with torch
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a read-only file system")
def test_a_read_only_output(model, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], capture_output=True, check=False
    ).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        done = run(edit_words(model, place / "edit"), HOME=str(tmp_path))
    finally:
        subprocess.run(["umount", place], check=True)
    two_lines(done, f"cannot write the edit to {place}/edit: Read-only file system", "--output")
