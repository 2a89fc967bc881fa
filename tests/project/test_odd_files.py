"""Odd files by every command that reads them: never a traceback, never a hang, never an escape sequence.

`make test-faults` asks all of them; the default suite a part.
"""

import random
from pathlib import Path

import pytest
from in_process import run_here
from odd_files import (
    EDITS,
    odd_edits,
    odd_localizations,
    odd_questions,
    odd_results,
    odd_studies,
    sound_edit,
)
from study_files import write_model
from tiny_models import one_thread  # noqa: F401

LIMIT = 10  # seconds of a command
CODES = {"report": (0,), "check": (0, 1, 2)}  # what a command may end with; of the others 0 and 1
N = {"edits": 150, "results": 150, "localizations": 60, "studies": 60, "questions": 60}
PART = {"edits": 10, "results": 12, "localizations": 6, "studies": 6, "questions": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sound(model, tmp_path_factory):
    from unlearn_eval.models.load import load_model

    loaded = load_model(str(model), dtype="float32", device="cpu")
    folder = tmp_path_factory.mktemp("sound")
    return {kind: sound_edit(kind, loaded, folder / kind) for kind in EDITS}


def faults(odd, folder: Path, n_commands: int | None):
    """What is wrong with how the (first) commands take an odd file, as texts."""
    folder.mkdir()
    commands = odd.write(folder)[:n_commands]
    what = (folder / "what").read_text()
    found = []
    for command in commands:
        done = run_here(command, LIMIT)
        if done.traceback:
            found.append(done.traceback)
        elif done.code not in CODES.get(command[0], (0, 1)):
            found.append(f"exit code {done.code}")
        elif done.code and not (command[0] == "check" and done.code == 1) and "error: " not in done.err:
            found.append("no line that begins with error:")
        if any(ord(c) < 32 and c not in "\n\t\r" for c in done.out + done.err.rpartition("\r")[2]):
            found.append("a control character reaches the terminal")
        if found:
            return [f"{odd.kind}, {what}: {' '.join(command[:2])}: {found[-1]}"]
    return []


def all_of(kind, n, sound, model, seed=0):
    generator = random.Random(f"{seed} {kind}")
    return {
        "edits": lambda: odd_edits(sound, model, n, generator),
        "results": lambda: odd_results(n, generator),
        "localizations": lambda: odd_localizations(model, n, generator),
        "studies": lambda: odd_studies(model, n, generator),
        "questions": lambda: odd_questions(model, n, generator),
    }[kind]()


def check(kind, n, sound, model, tmp_path, seed=0, n_commands=None):
    odd = enumerate(all_of(kind, n, sound, model, seed))
    found = [fault for i, one in odd for fault in faults(one, tmp_path / str(i), n_commands)]
    assert not found, f"{len(found)} of {n}:\n" + "\n\n".join(found[:5])


@pytest.mark.parametrize("kind", sorted(PART))
def test_some_odd_files(kind, sound, model, tmp_path):
    check(kind, PART[kind], sound, model, tmp_path, n_commands=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(N))
def test_odd_files(kind, sound, model, tmp_path):
    """480 files; minutes on two cores."""
    from unlearn_eval.harness.task_index import task_names

    task_names()  # lm-eval reads its thousands of YAML files once in a process, which is not the odd file's
    check(kind, N[kind], sound, model, tmp_path, seed=1)
