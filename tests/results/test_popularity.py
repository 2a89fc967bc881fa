"""Popularity beside leaks: whose certainty it is, what counts as a leak, and what the page is given."""

import json

import pytest
from browsing import open_page
from report_data import metric, result, write_run

from unlearn_eval.metrics.correlation import rank_correlation
from unlearn_eval.results.files import read_result, samples_of, write_result
from unlearn_eval.results.popularity import certainties, leak_of, popularity
from unlearn_eval.results.report.page import write_page
from unlearn_eval.results.report.page_data import page_data
from unlearn_eval.results.runs import read_runs

CERTAIN = [0.9, 0.7, 0.5, 0.3, 0.2, 0.1]
LEAKS = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]


def record(i, **scores):
    doc = {"question": f"What is number {i}?", "answer": f"answer {i}", "split": "forget"}
    common = {
        "id": f"forget/{i}",
        "doc_id": i,
        "doc": doc,
        "target": f"answer {i}",
        "resps": [["x"]],
        "doc_hash": f"{i:064d}",
    }
    return {**common, **scores}


@pytest.fixture
def runs(tmp_path):
    """An unedited run and an edit of it: what was certain leaks."""
    before = [record(i, forget_cloze_probability=p, forget_accuracy=1.0) for i, p in enumerate(CERTAIN)]
    write_run(tmp_path, "base", before)
    after = [record(i, forget_accuracy=leak, forget_cloze_probability=0.1) for i, leak in enumerate(LEAKS)]
    write_run(tmp_path, "edited", after, "memit")
    return tmp_path


def test_certainty_is_the_unedited_model_s_and_the_leak_the_edited_one_s(runs):
    base, edited = (read_result(runs / f"{name}.json") for name in ("base", "edited"))
    assert list(certainties(base).values()) == CERTAIN
    found = popularity(edited, "unlearn_facts", certainties(base))
    assert (found.source, list(found.points.values())) == ("certainty", list(zip(CERTAIN, LEAKS, strict=True)))
    assert found.correlation == rank_correlation(CERTAIN, LEAKS)
    assert found.correlation.value > 0.5
    assert popularity(edited, "unlearn_facts", {}) is None


def test_a_number_of_the_set_comes_first(runs):
    after = [record(i, forget_leak_mean=leak) for i, leak in enumerate(LEAKS)]
    for i, own in enumerate(after):
        own["doc"] |= {"popularity": 100 - i}
    made = result("own", {"forget_leak_mean": metric(LEAKS, False)}, "memit")
    path = write_result(made, runs / "own.json", {"unlearn_facts": after})
    base = read_result(runs / "base.json")
    found = popularity(read_result(path), "unlearn_facts", certainties(base))
    assert (found.source, found.points["forget/0"]) == ("popularity", (100, 1.0))


@pytest.mark.parametrize(
    ("scores", "leak"),
    [
        ({"forget_accuracy": 1.0, "forget_paraphrase_accuracy": 0.0}, 0.5),
        ({"forget_accuracy": 1.0, "forget_leak_mean": 0.0}, 1.0),
        ({"forget_leak_mean": 0.25}, 0.25),
        ({"metrics": {"forget_leak_at_1": 0.5}}, 0.5),
        ({"retain_accuracy": 1.0, "forget_accuracy": None}, None),
    ],
)
def test_what_leaks_of_an_item(scores, leak):
    assert leak_of(scores) == leak


def test_the_page_is_given_points_and_correlation(runs):
    summary, _ = page_data(read_runs(runs))
    (own,) = summary["popularity"]
    assert summary["runs"][own["run"]]["method"] == "memit"
    assert [point[1:] for point in own["points"]] == [list(pair) for pair in zip(CERTAIN, LEAKS, strict=True)]
    assert own["value"] == pytest.approx(rank_correlation(CERTAIN, LEAKS).value)
    assert (own["n"], own["source"]) == (6, "certainty")
    json.dumps(summary, allow_nan=False)


@pytest.mark.browser
def test_the_page_draws_it(runs, tmp_path, chromium):
    page = open_page(chromium, write_page(read_runs(runs), tmp_path / "page.html"))
    assert page.locator("#popularity .point").count() == 6
    assert "ρ 0." in page.inner_text("#popularity .legend")
    page.locator("#popularity .point").first.focus()
    assert "certainty of the unedited model: 0.900" in page.inner_text("#help")
    assert page.locator("nav a[href='#popularity']").is_visible()
    assert page.mistakes == []
    (runs / "base.json").unlink()
    alone = open_page(chromium, write_page(read_runs(runs), tmp_path / "alone.html"))
    assert alone.locator("#popularity").is_hidden(), "without a certainty there is nothing to show"
    assert samples_of(read_result(runs / "edited.json"), "unlearn_facts")
