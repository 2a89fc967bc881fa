"""What the command line shows: tables that fit, JSON, lists, levels, and mistakes found before torch is imported."""

import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from in_process import typed
from report_data import TASK, metric, records, result, write_run
from rich.table import Table

from unlearn_eval import __version__
from unlearn_eval.cli import ls
from unlearn_eval.cli.groups import GROUPS
from unlearn_eval.harness.patching import bars_as_lines
from unlearn_eval.harness.task_index import task_names
from unlearn_eval.results.comparison import compare
from unlearn_eval.results.files import read_result, write_result
from unlearn_eval.results.report.table import comparison_tables, evaluation_tables
from unlearn_eval.runs.study import show
from unlearn_eval.utils import terminal
from unlearn_eval.utils.fitted_tables import FittedTable
from unlearn_eval.utils.terminal import new_console, say


@pytest.fixture
def two(tmp_path):
    import random

    write_run(tmp_path, "before", records(12, random.Random(0), leak=1.0))
    write_run(tmp_path, "after", records(12, random.Random(0), leak=0.0), "memit")
    return tmp_path / "before.json", tmp_path / "after.json"


def printed(table, width):
    stream = io.StringIO()
    new_console(stream, width).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("width", [140, 80, 60, 40])
def test_no_number_is_cut_and_no_column_vanishes(two, width):
    before, after = map(read_result, two)
    rows = compare(before, after)
    for table in [*comparison_tables(rows, tests=True), *evaluation_tables(after)]:
        text = printed(table, width)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        for column in table.columns:
            for cell in list(column.cells)[:3] if column is not table.columns[0] else ():
                for part in str(cell).split():
                    assert part in text, (width, part)
            assert all(word in text for word in str(column.header).split())
    names = "".join(re.findall(r"[\w↑↓]+", printed(comparison_tables(rows)[0], 140)))
    assert all(row.metric.replace("_", "_") in names for row in rows)


def test_many_columns_are_shown_in_parts_with_the_names_in_front():
    table = FittedTable(title="t")
    for i in range(9):
        table.add_column("name" if i == 0 else f"metric{i}", no_wrap=True, justify="right" if i else "left")
    for name in ("memit", "rome"):
        table.add_row(name, *(f"0.{i}23 ±0.001" for i in range(1, 9)))
    text = printed(table, 40)
    assert [text.count(word) > 1 for word in ("memit", "rome", "name")] == [True] * 3
    for i in range(1, 9):
        assert (text.count(f"metric{i}"), text.count(f"0.{i}23")) == (1, 2)
    assert isinstance(table, Table)


def test_compare_says_what_the_two_are(two):
    lines = typed("compare", *two).out.splitlines()
    assert lines[:2] == [f"before: unedited ({two[0]})", f"after: memit ({two[1]})"]
    assert typed("compare", two[1], two[1]).out.splitlines()[1] == f"after: memit ({two[1]})"


def test_results_as_json(two, tmp_path):
    rows = json.loads(typed("compare", *two, "--json").out)
    (row,) = [own for own in rows if own["metric"] == "forget_accuracy"]
    assert (row["before"], row["after"], row["change"], row["n"]) == (1.0, 0.0, -1.0, 6)
    assert row["change_low"] < row["change_high"]
    done = typed("check", two[1], "--require", "forget_accuracy<0.5", "--require", "retain_accuracy>2", "--json")
    verdicts = json.loads(done.out)
    assert (done.code, verdicts["holds"]) == (1, False)
    assert [own["holds"] for own in verdicts["requirements"]] == [True, False]
    for what in ls.KINDS:
        found = json.loads(typed("ls", what, "--json").out)
        assert all(own["does"] and set(own) == {"name", "does", "start"} for own in found), what
        assert sum(own["start"] for own in found) == 1, what


@pytest.mark.slow  # planning imports lm-eval and reads its tasks
def test_a_plan_as_json(tmp_path):
    planned = json.loads(typed("run", "smoke", "--dry-run", "--json", "--output", tmp_path / "s").out)
    assert {own["state"] for own in planned["cells"]} == {"to do"}
    assert {own["method"] for own in planned["cells"]} >= {"unedited"}


def test_the_cells_of_a_study_as_json(two):
    named = SimpleNamespace(name="tiny")
    cells = [
        SimpleNamespace(
            key=key,
            name=key,
            model=named,
            editor=editor,
            recipe=None,
            forget="facts",
            size=2,
            seed=0,
            then=None,
            stage=None,
        )
        for key, editor in (("a", None), ("b", SimpleNamespace(name="memit")))
    ]
    states, cost = {"a": "done", "b": "to do"}, SimpleNamespace(seconds=3.0, memory_bytes=5)
    found = show.study_summary(cells, states, {"a": read_result(two[0])})["cells"]
    assert [own["method"] for own in found] == ["unedited", "memit"]
    assert found[0]["result"]["metrics"][TASK]["forget_accuracy"]["value"] == 1.0
    assert found[1]["result"] is None
    planned = show.plan_summary(cells, states, {"a": None, "b": cost})["cells"]
    assert [own["cost"] for own in planned] == [None, {"seconds": 3.0, "bytes": 5}]
    assert [own["state"] for own in planned] == ["done", "to do"]


def test_evaluations_as_json(two, monkeypatch):
    from unlearn_eval.runs import evaluate

    before, after = map(read_result, two)
    monkeypatch.setattr(evaluate, "run_evaluation", lambda config, say: after)
    monkeypatch.setattr(evaluate, "run_before_and_after", lambda config, say: (before, after))
    found = json.loads(typed("eval", "--tasks", TASK, "--json").out)
    assert found["results"][0]["path"] == str(two[1])
    assert found["results"][0]["metrics"][TASK]["forget_accuracy"]["value"] == 0.0
    both = json.loads(typed("eval", "--tasks", TASK, "--baseline", "--json").out)
    assert len(both["results"]) == 2
    assert {row["metric"] for row in both["comparison"]} >= {"forget_accuracy"}


def test_lists_say_what_each_is():
    lines = typed("ls", "editors").out.splitlines()
    assert sum(ls.START in line for line in lines) == 1
    assert all(len(line.split()) > 2 for line in lines)
    assert [line.split()[0] for line in typed("ls").out.splitlines()] == task_names()


def test_version_and_groups_of_commands(capsys):
    assert typed("--version").out == f"unlearn-eval {__version__}\n"
    out = typed("--help").out
    places = [out.index(f"\n {title}\n") for title in GROUPS]
    assert places == sorted(places)
    assert all(out.count(f"\n   {name} ") == 1 for names in GROUPS.values() for name in names)


def test_quiet_leaves_errors_and_loud_shows_libraries(tmp_path, two):
    two[0].with_name("broken.json").write_text("{")
    said = typed("report", tmp_path, "-o", tmp_path / "r.html").err
    assert "broken.json" in said
    for words in (["-q", "report", tmp_path], ["report", tmp_path, "--quiet"]):
        done = typed(*words, "-o", tmp_path / "r.html")
        assert (done.code, done.err) == (0, "")
    failed = typed("report", tmp_path / "none", "-q", "-o", tmp_path / "r.html")
    assert failed.err.startswith("error: ")
    assert "hint: " in failed.err
    assert terminal.LEVEL.get() == terminal.USUAL


def test_a_shell_can_complete():
    environment = {"_UNLEARN_EVAL_COMPLETE": "complete_bash", "COMP_WORDS": "unlearn-eval in", "COMP_CWORD": "1"}
    script = (
        "import sys; sys.argv = ['unlearn-eval']; from unlearn_eval.cli.app import app; app(prog_name='unlearn-eval')"
    )
    import os

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | environment)
    assert "inspect" in done.stdout


def test_bars_of_libraries_are_lines_in_a_log(capsys):
    from tqdm import tqdm

    with bars_as_lines():
        for _ in tqdm(range(3), desc="Running requests"):
            pass
        for _ in tqdm(range(3)):  # without a name it says nothing
            pass
    err = capsys.readouterr().err
    assert "\r" not in err
    assert "█" not in err
    assert err.splitlines()[0].startswith("     Running requests: 0 of 3")
    say("after")
    with tqdm(total=1, file=io.StringIO()) as bar:
        assert "mininterval" not in vars(bar) or bar.mininterval != 10


MISSING = {
    "edit": ["edit", "--output", "out", "--model", "/no/such"],
    "edit a set": ["edit", "--output", "out", "--forget", "/no/such.jsonl"],
    "continue": ["edit", "--output", "out", "--continue", "/no/such"],
    "finetune": ["finetune", "--output", "out", "--on", "/no/such.csv"],
    "eval": ["eval", "--tasks", "unlearn_facts", "--model", "/no/such.gguf"],
    "eval an edit": ["eval", "--tasks", "unlearn_facts", "--edit", "/no/such"],
    "eval tasks": ["eval", "--tasks", "x", "--include_path", "/no/such"],
    "inspect": ["inspect", "/no/such"],
    "export": ["export", "/no/such", "--merged", "out"],
    "attack": ["attack", "relearn", "--edit", "/no/such"],
    "localize": ["localize", "random_mlps", "--model", "/no/such", "--output", "out.json"],
    "serve": ["serve", "/no/such"],
    "targets": ["targets", "--output", "out.jsonl", "--model", "/no/such"],
    "compare": ["compare", "/no/such.json", "/no/such.json"],
    "report": ["report", "/no/such"],
    "run": ["run", "/no/such.yaml"],
}


def test_missing_paths_are_found_before_torch_is_imported(tmp_path):
    """All in one process: whatever imports torch first is named."""
    script = (
        "import json, sys\n"
        "from unlearn_eval.cli import app\n"
        "for name, words in json.loads(sys.stdin.read()).items():\n"
        "    sys.argv = ['unlearn-eval', *words]\n"
        "    try: app.main()\n"
        "    except SystemExit as end: print(name, end.code, 'torch' in sys.modules, 'lm_eval' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(MISSING),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{name} 1 False False" for name in MISSING]
    assert done.stderr.count("error: ") == done.stderr.count("hint: ") == len(MISSING)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_edit_is_marked_in_json(tmp_path):
    made = result("x", {"forget_accuracy": metric([0.0, 1.0], False)}, "memit")
    made.edit["notes"] = {"self_check": {"n": 4, "n_took": 0}}
    path = write_result(made, tmp_path / "x.json")
    found = json.loads(typed("check", path, "--require", "forget_accuracy<2", "--json").out)
    assert not found["holds"]
    assert "did not take" in found["requirements"][-1]["reason"]
