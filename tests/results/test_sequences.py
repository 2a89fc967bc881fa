"""Requests one after another as the page has them: which runs belong together, in which order, and what each cost."""

import json
import random

import pytest
from browsing import open_page
from report_data import records, write_run

from unlearn_eval.results.report.page import write_page
from unlearn_eval.results.report.page_data import page_data
from unlearn_eval.results.runs import read_runs
from unlearn_eval.results.sequences import sequences


def write_mark(folder, generator, mark, order="", seed=0, learned=False, before=0):
    step = "-".join(part for part in (order, f"after-{mark}", "learned" if learned else "") if part)
    cell = {"editor": "memit", "forget": "facts", "seed": seed, "mark": mark, "order": order, "step": step}
    config = {"cell": cell, "n_edited": mark - before or 1, "edit_bytes": 2**20 * mark}
    timing = {"editing_seconds": 3.0 * (mark - before or 1), "evaluation_seconds": 1.0}
    own = records(12, generator, leak=0.2)
    write_run(folder, f"{step}-{seed}", own, "memit", seed=seed, config=config, timing=timing)


@pytest.fixture
def folder(tmp_path):
    generator = random.Random(0)
    write_run(tmp_path, "base", records(12, generator, leak=0.9))
    write_run(tmp_path, "alone", records(12, generator), "rome")
    for mark, before in ((100, 10), (10, 0), (1000, 100)):
        write_mark(tmp_path, generator, mark, before=before)
    write_mark(tmp_path, generator, 10, seed=1)
    write_mark(tmp_path, generator, 4, "forget_first")
    write_mark(tmp_path, generator, 4, "forget_first", learned=True, before=4)
    return tmp_path


def test_runs_of_one_sequence_stand_together_by_mark(folder):
    found = {
        (own[0].run.result.seed, own[0].run.result.config["cell"]["order"]): own
        for own in sequences(read_runs(folder).runs)
    }
    assert set(found) == {(0, ""), (1, ""), (0, "forget_first")}
    first = found[0, ""]
    assert [own.mark for own in first] == [10, 100, 1000]
    assert [own.seconds for own in first] == [3.0] * 3
    assert [own.edit_bytes for own in first] == [2**20 * n for n in (10, 100, 1000)]
    assert first[0].peak_bytes == 2 * 10**9
    assert sorted(own.learned for own in found[0, "forget_first"]) == [False, True]


def test_marks_are_no_seeds_of_each_other(folder):
    summary, _ = page_data(read_runs(folder))
    assert all(len(own["runs"]) <= 2 for own in summary["groups"])
    (own,) = [own for own in summary["sequences"] if len(own["runs"]) == 3]
    assert own["marks"] == [10, 100, 1000]
    assert own["name"] == "memit, seed 0"
    assert summary["runs"][own["base"]]["method"] == "no edit"
    assert len({summary["runs"][run]["label"] for run in own["runs"]}) == 3
    json.dumps(summary, allow_nan=False)


@pytest.mark.browser
def test_the_page_draws_it(folder, tmp_path, chromium):
    page = open_page(chromium, write_page(read_runs(folder), tmp_path / "page.html"))
    charts = page.locator("#sequence .chart:visible")
    assert charts.count() == 4
    assert charts.nth(0).locator(".point").count() == 3 + 1 + 2 + 3, "each begins at the unedited model"
    charts.nth(0).locator(".point").first.focus()
    assert "unedited" in page.inner_text("#help")
    assert page.locator("nav a[href='#sequence']").is_visible()
    assert page.mistakes == []
    for path in folder.glob("*after*"):
        path.unlink()
    page = open_page(chromium, write_page(read_runs(folder), tmp_path / "alone.html"))
    assert page.locator("#sequence").is_hidden()
