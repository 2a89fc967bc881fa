"""Many runs of four hundred questions, attacked: how large their page is, and how soon it opens."""

import random
import time

import pytest
from attack_data import PROBE, RELEARN, placed, probing, relearning, write_attacked
from browsing import open_page
from report_data import METHODS, TASK, records, write_run
from report_pages import parts

from unlearn_eval.results.report.page import write_page
from unlearn_eval.results.runs import read_runs
from unlearn_eval.utils import json_files


def write_many(folder, n_runs, n_questions):
    """An unedited run and many edited ones with answers of their own, each attacked in two ways."""
    generator = random.Random(0)
    write_run(folder, "base", records(n_questions, generator, leak=0.95))
    n = n_questions // 2
    for i in range(1, n_runs):
        method, leak = METHODS[i % len(METHODS)], i / n_runs
        parts = {RELEARN: relearning(n, generator, leak), PROBE: probing(n, generator, leak)}
        where, answers = placed("fact_lookup", [i % 12]), records(n_questions, generator, leak)
        write_attacked(folder / method, f"run-{i:03d}", parts, method, i, where, answers)


@pytest.fixture(scope="module", params=[25, pytest.param(200, marks=pytest.mark.slow)])
def n_runs(request):
    """How many runs there are: as many as are made in a second or two, and as many as a large study has."""
    return request.param


@pytest.fixture(scope="module")
def page_file(n_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files.os, "fsync", lambda descriptor: None)
        write_many(folder, n_runs, 400)
    return write_page(read_runs(folder), folder / "report.html")


def test_it_stays_small(n_runs, page_file):
    assert page_file.stat().st_size < (1 + 0.145 * n_runs) * 2**20  # 30 MiB for 200 runs
    summary, answers = parts(page_file.read_text(encoding="utf-8"))
    assert len(summary["runs"]) == n_runs
    assert len(answers["questions"][TASK]) == 400
    assert len(answers["strings"]) > 800 * n_runs
    assert len(summary["attacks"]) == 2 * (n_runs - 1)


@pytest.mark.browser
def test_it_opens_in_three_seconds(chromium, n_runs, page_file):
    times = []
    for _ in range(3):
        started = time.monotonic()
        page = open_page(chromium, page_file)
        times.append(time.monotonic() - started)
        assert page.mistakes == []
        assert page.locator("#leaderboard tbody tr").count() == 1 + len(METHODS), "seeds are averaged"
        assert page.locator("#questions > li").count() == 20
        assert page.locator("#comebacks tbody").count() == 1
        assert page.locator("#places .place").count() == 12
        page.close()
    assert min(times) < 3  # the least of three: other processes may be busy
