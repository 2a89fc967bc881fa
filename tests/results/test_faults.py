"""An edit that did not take, or did harm, is marked wherever its numbers stand."""

import random
from pathlib import Path

import pytest
from report_data import TASK, metric, records, result, write_run
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.metrics.edit_checks import Unrelated
from unlearn_eval.results.files import read_result, write_result
from unlearn_eval.results.frames import load_frame
from unlearn_eval.results.report.page import build_page
from unlearn_eval.results.report.page_data import page_data
from unlearn_eval.results.requirements import check_result, parse_requirement
from unlearn_eval.results.runs import read_runs

ROOT = Path(__file__).parents[2]
FAILED = {"self_check": {"n": 20, "n_took": 0}}
HARMFUL = {"self_check": {"n": 8, "n_took": 8, "unrelated": Unrelated(10, 0, 9, 0, 0, 8, 0, 10, 9).record}}
SOUND = {"self_check": {"n": 8, "n_took": 8, "unrelated": Unrelated(10, 0, 0, 0, 0, 8, 8, 0, 0).record}}
NO_CHECK = {"training": {}}
CASES = [
    (FAILED, False, ["the edit did not take: 0 of 20"]),
    (HARMFUL, True, ["the edit did harm: 9 of 10"]),
    (SOUND, True, []),
    (NO_CHECK, None, []),
    ({}, None, []),
]


def written(folder, notes, name="after"):
    """A run of an edit with these notes; the edit of report_data has none of its own."""
    made = result(name, {"forget_rouge": metric([0.1, 0.2], False)}, "memit")
    made.edit["notes"] = notes
    return write_result(made, folder / f"{name}.json")


def run(*words):
    return CliRunner().invoke(cli.app, list(map(str, words)))


@pytest.mark.parametrize(("notes", "took", "faults"), CASES)
def test_frame_and_page_have_it(notes, took, faults, tmp_path):
    frame = load_frame(written(tmp_path, notes))
    row = frame.iloc[0]
    assert (None if row.took is None else bool(row.took)) is took
    assert bool(row.faults) is bool(faults)
    assert all(fault in row.faults for fault in faults)
    runs = read_runs([tmp_path])
    (entry,) = page_data(runs)[0]["runs"]
    assert [fault in own for fault, own in zip(faults, entry["faults"], strict=True)] == [True] * len(faults)
    assert ("warning" in dict(entry["provenance"])) is bool(faults)
    assert build_page(runs)


@pytest.mark.parametrize(("notes", "took", "faults"), CASES)
def test_check_fails_whatever_the_metrics_are(notes, took, faults, tmp_path):
    file = written(tmp_path, notes)
    verdicts = check_result(read_result(file), [parse_requirement("forget_rouge<0.5")])
    assert [verdict.holds for verdict in verdicts] == [True] + [False] * len(faults)
    done = run("check", file, "--require", "forget_rouge<0.5")
    assert done.exit_code == (1 if faults else 0)
    text = " ".join(done.output.split())
    assert all(fault in text for fault in faults)


@pytest.mark.parametrize(("notes", "took", "faults"), CASES)
def test_tables_of_a_terminal_warn(notes, took, faults, tmp_path, capsys):
    from unlearn_eval.results.report.table import show_result

    show_result(read_result(written(tmp_path, notes)))
    shown = " ".join(capsys.readouterr().out.split())
    assert ("warning:" in shown) is bool(faults)
    assert all(fault in shown for fault in faults)
    compared = run("compare", written(tmp_path, SOUND, "before"), written(tmp_path, notes))
    assert ("warning:" in compared.output) is bool(faults)


def test_the_best_number_of_a_page_is_no_failed_edit_s(tmp_path):
    script = (ROOT / "unlearn_eval" / "results" / "report" / "page.js").read_text(encoding="utf-8")
    assert script.count("!row.faults.length") == 1  # of what is shown as best
    assert script.count("!p.row.faults.length") == 1  # and of the line


def test_runs_without_an_edit_have_no_faults(tmp_path):
    write_run(tmp_path, "base", records(4, random.Random(0)))
    (one,) = read_runs([tmp_path]).runs
    assert one.faults == ()
    assert load_frame(tmp_path).took.isna().all()
    assert TASK in one.result.metrics
