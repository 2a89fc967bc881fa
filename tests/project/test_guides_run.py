"""The commands of README and guides run from top to bottom: on a tiny model, and the README's block in a shell."""

import dataclasses
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import fake_hub
import pytest
from benchmark_data import write_all
from documented import GUIDES, ROOT, blocks, commands, named
from in_process import ours
from report_data import metric, result
from tiny_models import one_thread  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.editing.editor import get_editor
from unlearn_eval.edits.load import load_edit
from unlearn_eval.results.files import read_result, write_result

PAGES = [path for path in (ROOT / "README.md", *sorted(GUIDES.glob("*.md"))) if commands(path)]
ELSEWHERE = {  # what needs vLLM or a tracker, does not end by itself, or is a whole study; and the tests that run it
    "serve": "serving/test_vllm_server.py",
    "view": "results/test_report.py",
    "--backend vllm": "serving/test_vllm_together.py",
    "--model vllm": "serving/test_vllm.py",
    "--model edited-vllm": "serving/test_vllm.py",
    "--tracker": "runs/test_trackers.py",
    "meta": "runs/test_meta.py",
    "run smoke": "project/test_examples.py",
    "run editing_as_unlearning": "project/test_examples.py",
    "run mechanistic": "project/test_examples.py",
}
ON_A_MODEL = ("edit", "eval", "finetune", "localize", "targets", "attack")
SHORT = {
    "edit": ["--contexts", "0", "--no-unrelated"],
    "eval": ["--gen_kwargs", "max_gen_toks=2"],
    "finetune": ["--set", "steps=1"],
    "run": ["--dry-run"],
}


def is_elsewhere(words):
    line = " ".join(words[1:])
    return any(line.startswith(what) or (what.startswith("--") and what in line) for what in ELSEWHERE)


def test_no_page_and_no_command_is_left_out():
    assert all((ROOT / "tests" / place).is_file() for place in ELSEWHERE.values())
    written = {path for path in GUIDES.glob("*.md") if "\nunlearn-eval " in path.read_text(encoding="utf-8")}
    assert written < set(PAGES)
    left = {what for what in ELSEWHERE if not any(map(is_elsewhere, (w for page in PAGES for w in commands(page))))}
    assert not left


def shortened(words, model):
    """A command on the tiny model, with as little to do as it can have."""
    name, *rest = (
        word.replace("MODEL", str(model)).replace("EDIT", "my_edit").replace("DIR", "my_edit") for word in words
    )
    rest = [word.replace("budget=4", "budget=1") for word in (*rest, *SHORT.get(name, []))]
    if "--budget" in rest:
        rest[rest.index("--budget") + 1] = "1"
    if name in ON_A_MODEL:
        rest += ["--device", "cpu", *([] if {"--limit", "--ids"} & set(rest) else ["--limit", "2"])]
        rest += [] if {"--model", "-m"} & set(rest) else ["--model", str(model)]
    if name == "edit":
        editor = rest[rest.index("--editor") + 1] if "--editor" in rest else "memit"
        fields = (
            {field.name for field in dataclasses.fields(get_editor(editor).Config)}
            if ".py" not in editor
            else {"target"}
        )
        fast = {"target": "target.steps=1", "keys_per_dimension": "keys_per_dimension=1", "steps": "steps=1"}
        rest += [word for field, setting in fast.items() if field in fields for word in ("--set", setting)]
    if name == "run":
        rest += [f"models={model}", "device=cpu"]
    return [name, *rest]


def run(words, model, monkeypatch):
    if words[0] == "lm_eval":
        given = [word.replace("MODEL", str(model)).replace("DIR", "my_edit") for word in words]
        short = ["--device", "cpu", "--limit", "2", "--gen_kwargs", "max_gen_toks=2"]
        monkeypatch.setattr(sys, "argv", [*given, *short])
        import_module("lm_eval.__main__").cli_evaluate()
        return
    done = CliRunner().invoke(cli.app, shortened(words[1:], model))
    said = (words, done.output[-2000:], done.exception)
    assert done.exit_code == 0 or (words[1] == "check" and " hold" in done.output), said


def ready(page, model, folder):
    """What a page takes for granted: an edit and its results, and models."""
    lines = "\n".join(" ".join(words) for words in commands(page)).replace("DIR", "my_edit")
    for name in ("never_knew", "reference"):
        if name in lines and f"--output {name}" not in lines:
            shutil.copytree(model, folder / name)
    if "my_edit" in lines and "--output my_edit" not in lines.partition("eval --")[0]:
        ours(shortened(["edit", "--output", "my_edit"], model))
        measured = result("after", {"forget_accuracy": metric([0.0, 1.0], False)})
        write_result(dataclasses.replace(measured, edit=load_edit("my_edit").info.as_stored()), "after.json")
    if page.name == "studies.md":
        study = blocks(page.read_text(encoding="utf-8"), "yaml")[0]
        (folder / "my_study.yaml").write_text(
            study.replace("MODEL", str(model)).replace(", arc_easy", ""), encoding="utf-8"
        )
    if page.name == "meta_evaluation.md":
        for name in ("before", "after", "never"):
            write_result(result(name, {"forget_probability": metric([0.0, 1.0], False)}), f"{name}.json")
        (folder / "meta.json").write_text('{"kind": "trust", "metrics": {}}', encoding="utf-8")
    if page.name == "reports.md":
        for name in ("before", "after", "results/after"):
            values = {name: metric([0.0, 1.0], False) for name in ("forget_rouge", "retain_accuracy")}
            write_result(result(name, values), f"{name}.json")


@pytest.mark.slow  # each makes edits and evaluates them
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_commands_of_a_page_run(page, workplace, six_layers, tmp_path, monkeypatch):
    """Each uses what the ones before it left; models, settings and numbers of items are small."""
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_all(tmp_path / "data")))
    fake_hub.install(tmp_path / "hub", monkeypatch)
    ready(page, six_layers, tmp_path)
    for words in commands(page):
        if not is_elsewhere(words):
            run(words, six_layers, monkeypatch)


# The README in a shell ---------------------------------------------------------------------------------------


def first_block():
    return blocks((ROOT / "README.md").read_text(encoding="utf-8"), "sh")[0]


def test_the_first_block_of_the_readme_is_a_whole():
    """Cheaply: a shell parses it, make knows its target, and each command reads only what one before it wrote."""
    block = first_block()
    assert subprocess.run(["bash", "-n"], input=block, text=True, check=False).returncode == 0
    first, second, *lines = [line.partition("#")[0].split() for line in block.splitlines() if line.strip()]
    planned = subprocess.run(["make", "-n", *first[1:]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip install" in planned or (ROOT / ".venv" / ".installed").is_file()
    assert "unlearn-eval fetch-model" in planned or (ROOT / ".venv" / ".model").is_file()
    assert second == ["source", ".venv/bin/activate"]
    (_, edit), (_, evaluate), (_, report) = ((words[0], words[1:]) for words in lines)
    assert edit[edit.index("--output") + 1] == evaluate[evaluate.index("--edit") + 1]
    assert report[1] == str(Path(evaluate[evaluate.index("--output") + 1]).parent)


@pytest.mark.slow  # an edit of the real model, and its evaluation: minutes
@pytest.mark.real_model
def test_the_first_block_of_the_readme_runs(real_model, tmp_path):
    """Pasted into an empty shell in a copy of the repository; only what pip would install is of this environment."""
    place = tmp_path / "clone"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name, follow_symlinks=False)
    programs = place / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "unlearn-eval").write_text(f'#!/bin/sh\nexec {sys.executable} -m unlearn_eval.cli "$@"\n')
    (programs / "unlearn-eval").chmod(0o755)
    (programs / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    for mark in (".installed", ".model"):
        (place / ".venv" / mark).write_text("")
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "HF_HUB_OFFLINE") if name in os.environ}
    done = subprocess.run(
        ["bash", "-euo", "pipefail"],
        input=first_block(),
        cwd=place,
        env=kept | {"PYTHONPATH": str(place), "UNLEARN_EVAL_ENCODER": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "forget_leak_rate" in done.stdout
    before, after = (read_result(place / "my_results" / f"{name}.json") for name in ("after.baseline", "after"))
    assert before.model["weights_hash"] != after.model["weights_hash"]
    page = (place / "report.html").read_text(encoding="utf-8")
    assert "memit" in page
