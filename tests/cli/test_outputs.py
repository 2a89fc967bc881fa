"""Nothing is lost: places are looked at before anything is computed; what cannot be written is saved elsewhere."""

import errno
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from in_process import run_here
from report_data import records, write_run

from unlearn_eval.cli import app as cli
from unlearn_eval.models import load as models
from unlearn_eval.results.report.page import write_page
from unlearn_eval.results.runs import read_runs
from unlearn_eval.runs import evaluate
from unlearn_eval.utils import folders, json_files
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import held, write_all

COMMANDS = {
    "edit": ["edit", "--set", "target.steps=1"],
    "finetune": ["finetune", "--on", "facts"],
    "finetune as edit": ["finetune", "--on", "facts", "--as", "edit"],
    "localize": ["localize", "random_mlps"],
    "targets": ["targets"],
}


@pytest.fixture
def no_model(monkeypatch):
    """Whatever loads a model has gone too far."""

    def load(*arguments, **options):
        raise AssertionError("a model is loaded before the output is looked at")

    monkeypatch.setattr(models, "or_user_error", load)  # not load_model, which modules keep that are imported now


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("wrong", ["long name", "below a file", "not writable", "full"])
def test_an_output_is_looked_at_before_a_model_is_loaded(command, wrong, no_model, tmp_path, monkeypatch):
    output = tmp_path / "new" / "out.json"
    if wrong == "long name":
        output = tmp_path / ("x" * 300)
    elif wrong == "below a file":
        (tmp_path / "new").write_text("")
    elif wrong == "not writable":
        refuse = OSError(errno.EROFS, os.strerror(errno.EROFS))
        monkeypatch.setattr(folders.tempfile, "TemporaryFile", lambda **options: (_ for _ in ()).throw(refuse))
    else:
        monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: _Usage())
    done = run_here([*COMMANDS[command], "--output", str(output)])
    assert (done.code, done.traceback) == (1, "")
    assert "--output" in done.err.rpartition("hint: ")[2]


class _Usage:
    free = 0


@pytest.mark.parametrize("command", ["edit", "finetune", "finetune as edit"])
def test_a_folder_of_something_else_is_refused_before_a_model_is_loaded(command, no_model, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    done = run_here([*COMMANDS[command], "--output", str(tmp_path)])
    assert done.code == 1
    assert "exists and is not an" in done.err


@pytest.mark.parametrize("settings", [["--set", "target.steps=0"], ["--set", "layers=x"], ["--set", "seed=2.9"]])
def test_settings_are_looked_at_before_a_model_is_loaded(settings, no_model, tmp_path):
    done = run_here(["edit", "--output", str(tmp_path / "e"), *settings])
    assert done.code == 1
    assert "cannot be" in done.err
    done = run_here(["finetune", "--on", "facts", "--output", str(tmp_path / "e"), "--set", "epochs=0"])
    assert "epochs cannot be '0'" in done.err


def test_what_cannot_be_written_at_the_end_is_saved_elsewhere(tmp_path, monkeypatch):
    def fill(folder):
        (folder / "edit.json").write_text("hours of work")

    monkeypatch.setenv("TMPDIR", str(tmp_path / "rescue"))
    (tmp_path / "rescue").mkdir()
    monkeypatch.setattr(folders.tempfile, "tempdir", None)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(folders, "_put_in_place", lambda new, folder: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match="nothing is lost: it is in ") as error:
        folders.write_whole(tmp_path / "edit", "edit", "edit.json", fill)
    (saved,) = (tmp_path / "rescue").glob("unlearn-eval-*/edit/edit.json")
    assert saved.read_text() == "hours of work"
    assert str(saved.parent) in error.value.message
    assert not (tmp_path / "edit").exists()


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_run(tmp_path / "results", "base", records(4, random.Random(0)))
    page = tmp_path / "report.html"
    page.write_text("the old page")
    runs = read_runs(tmp_path / "results")
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        patch.setattr(json_files.os, "fsync", lambda descriptor: (_ for _ in ()).throw(full))
        with pytest.raises(UserError, match="cannot write"):
            write_page(runs, page)
    assert page.read_text() == "the old page"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results"]


def test_results_of_one_second_have_different_names():
    config = evaluate.EvalConfig(tasks=("unlearn_facts",))
    names = {evaluate._file_name(config, "hf", {"pretrained": "m"}) for _ in range(20)}
    assert len(names) == 20


def test_a_folder_s_files_are_those_of_one_run(tmp_path):
    """Two runs with one output: the second moves its files when the first has moved all of its."""
    began, done = threading.Event(), []

    def second():
        began.set()
        write_all({"a": "2", "b": "2"}, tmp_path)
        done.append(True)

    with held(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        began.wait()
        thread.join(0.2)
        assert not done
    thread.join()
    assert [(tmp_path / name).read_text() for name in "ab"] == ["2", "2"]


# Streams, machine ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_two_lines():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "unlearn_eval.cli", "ls", "studies"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write")
    assert len(done.stderr.splitlines()) == 2


def test_a_closed_standard_output_is_no_traceback():
    command = f"{sys.executable} -m unlearn_eval.cli ls studies >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "the memory is too small"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), "the memory is too small"),
        (RuntimeError("can't start new thread"), "the memory is too small"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "the memory is too small"),
        (OSError("Cannot allocate memory (os error 12)"), "the memory is too small"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "the memory is too small"),
        (RuntimeError("Could not determine home directory."), "there is no home folder"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "cannot write x"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "cannot write x"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "x: File name too long"),
        (OSError(errno.EMFILE, "Too many open files", "x"), "x: Too many open files"),
        (UserError("wrong", "mend it"), "wrong"),
    ],
)
def test_the_machine_s_limits_are_two_lines(error, message, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    done = run_here([])
    assert (done.code, done.traceback) == (1, "")
    assert done.err.startswith(f"error: {message}")
    assert done.err.splitlines()[1].startswith("hint: ")


def test_a_mistake_of_ours_is_a_traceback(monkeypatch):
    def fail():
        raise RuntimeError("something else")

    monkeypatch.setattr(cli, "app", fail)
    assert "something else" in run_here([]).traceback


@pytest.mark.parametrize("argument", ["missing.json", "."])
def test_check_ends_with_2_where_it_cannot_check(argument, tmp_path):
    assert run_here(["check", argument, "--require", "x<1"]).code == 2


@pytest.mark.parametrize("question", ["x" * 10_000_000, "What\0is it?", "half \\ud800 of a pair"])
def test_questions_that_no_model_can_read_are_refused_quickly(question, no_model, tmp_path):
    path = tmp_path / "set.jsonl"
    escaped = question.replace("\0", "\\u0000")
    path.write_text(f'{{"question": "{escaped}", "answer": "a"}}\n')
    done = run_here(["edit", "--forget", str(path), "--output", str(tmp_path / "e")])
    assert (done.code, done.traceback) == (1, "")
    assert "set.jsonl, line 1" in done.err
    assert done.cpu_seconds < 5
