"""The hook that an interpreter of this environment starts with: when it acts, and that looking does not use it up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unlearn_eval import autoload

ROOT = Path(__file__).parents[2]
RECORD = """
import importlib, importlib.machinery, importlib.util, sys
import unlearn_eval.autoload as autoload

name, seen = sys.argv[1], []
def note(when):
    return lambda m: seen.append((when, m.__name__, hasattr(m, "VALUE"))) if m.__name__ == name else None  # not parents
autoload.BEFORE = dict.fromkeys(autoload.BEFORE, note("before"))
autoload.AFTER = dict.fromkeys(autoload.AFTER, note("after"))
expected = [("before", name, False)] * (name in autoload.BEFORE) + [("after", name, True)] * (name in autoload.AFTER)
for _ in range(2):
    assert importlib.util.find_spec(name).name == name
assert seen == [], seen
module = importlib.import_module(name)
assert seen == expected, seen
assert type(module.__loader__) is type(module.__spec__.loader) is importlib.machinery.SourceFileLoader
importlib.util.find_spec(name)
importlib.import_module(name)
assert seen == expected, seen
importlib.reload(module)
again = [(when, name, True) for when, _, _ in expected]
assert seen == [*expected, *again], seen
"""
REAL = """
import importlib, importlib.util, sys
for _ in range(2):
    assert importlib.util.find_spec("lm_eval.models")
    assert importlib.util.find_spec("lm_eval.tasks._index")
import lm_eval.models
from lm_eval.api.registry import model_registry
assert {"edited", "edited-vllm", "hf"} <= set(model_registry.keys())
import lm_eval.tasks._index as index
importlib.reload(index)
assert index.TaskIndex.build.__wrapped__
files = index.TaskIndex._iter_yaml_files  # of lm-eval's thousands one folder, or it parses for seconds
index.TaskIndex._iter_yaml_files = staticmethod(lambda root: [p for p in files(root) if {"arc", "facts"} & {*p.parts}])
assert {"arc_easy", "unlearn_facts"} <= set(lm_eval.tasks.TaskManager().all_tasks)
"""


def python(code, *arguments, path=()):
    own = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]), "UNLEARN_EVAL_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=own, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", sorted(autoload.WATCHED))
def test_looking_for_a_module_does_not_use_the_hook_up(tmp_path, name):
    for watched in autoload.WATCHED:
        folder = tmp_path
        *parents, last = watched.split(".")
        for parent in parents:
            folder = folder / parent
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        plain = folder / f"{last}.py"
        if watched == "lm_eval.models":
            plain = folder / last / "__init__.py"
            plain.parent.mkdir(exist_ok=True)
        plain.write_text("VALUE = 3\n")
    found = python(RECORD, name, path=[tmp_path])
    assert found.returncode == 0, found.stderr


def test_lm_eval_knows_us_after_it_was_looked_for():
    found = python(REAL)
    assert found.returncode == 0, found.stderr


def test_a_misfit_is_said_in_one_line(tmp_path):
    for name in ("lm_eval", "lm_eval/tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "lm_eval/tasks/_index.py").write_text("class TaskIndex:\n    def build(self, folders): ...\n")
    found = python("import lm_eval.tasks._index", path=[tmp_path])
    assert found.returncode == 0, found.stderr
    (line,) = found.stderr.splitlines()
    assert "'task-index'" in line
    assert "takes (self, folders); expected (paths)" in line


def test_nothing_is_imported_at_the_start():
    found = python("import sys; print(sorted(n for n in sys.modules if n.startswith('unlearn_eval')))")
    assert found.stdout.strip() == str(["unlearn_eval", "unlearn_eval.autoload", "unlearn_eval.utils", *_LIGHT])


_LIGHT = ["unlearn_eval.utils.lazy", "unlearn_eval.utils.moved"]
