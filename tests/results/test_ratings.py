"""Ratings by people: what they are shown, what is stored, how far they agree, and what is calibrated from it."""

import csv
import importlib.util
import io
import json
import re
import threading
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.metrics.agreement import cohen_kappa
from unlearn_eval.results import ratings
from unlearn_eval.results.report.page import csp_source
from unlearn_eval.results.report.rate import rating_page, rating_server
from unlearn_eval.utils.errors import UserError

ROOT = Path(__file__).parents[2]
ODD = {"id": "a'b", "question": "<b>?", "accepted": [], "text": "</script><script>x</script>", "label": "gibberish"}


@pytest.fixture(scope="module")
def answers():
    return ratings.read_answers(None)


@contextmanager
def serving(answers, folder, rater="me"):
    made = rating_server(answers, folder, rater, 0)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield made, f"http://127.0.0.1:{made.server_port}/"
    finally:
        made.shutdown()
        made.server_close()


def post(address, content, token="", host=None):
    request = urllib.request.Request(f"{address}rating", json.dumps(content).encode(), {"X-Rating": token})
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def rate_all(folder, rater, marks):
    for key, mark in marks.items():
        ratings.add_rating(folder, rater, {"id": key, "rating": mark, "class": "", "comment": ""})


def test_a_rater_does_not_see_what_the_author_thought(answers):
    chosen = ratings.draw(answers, 60, 0)
    assert chosen == ratings.draw(answers, 60, 0)
    assert chosen != ratings.draw(answers, 60, 1)
    assert set(Counter(a["label"] for a in chosen).values()) == {5}
    assert [set(ratings.row(a)) for a in chosen] == [{"id", "question", "true_answer", "answer"}] * 60
    page = rating_page(chosen, "me", {}, "token")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert [own["id"] for own in data["answers"]] == [a["id"] for a in chosen]
    assert data["rated"] == {}
    assert "base_nll" not in page
    assert '"label"' not in page
    assert '"method"' not in page


def test_the_page_shows_texts_as_they_are():
    page = rating_page([ODD], "me", {}, "token")
    assert "<script>x" not in page
    assert "\\u003cscript\\u003ex" in page


def test_the_page_lets_its_own_style_and_script_in(answers):
    page = rating_page(answers, "me", {}, "token")
    for kind in ("style", "script"):
        (content,) = re.findall(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert csp_source(content) in page.partition("<title>")[0]


def test_all_answers_can_be_rated(answers):
    assert len(ratings.draw(answers, 10**6, 0)) == len(answers)


def test_a_spreadsheet_computes_nothing(tmp_path):
    ratings.add_rating(tmp_path, "me", {"id": "=1", "rating": 5, "class": "", "comment": "@x"})
    (row,) = csv.DictReader(io.StringIO(ratings.as_csv(ratings.read_ratings(tmp_path))))
    assert tuple(row) == ratings.COLUMNS
    assert (row["id"], row["comment"], row["rating"]) == ("'=1", "'@x", "5")


def test_what_is_rated_is_on_disk_and_shown_again(tmp_path):
    with serving([ODD], tmp_path) as (server, address):
        assert post(address, {"id": "a'b", "rating": 2}, server.token)[0] == 200
        assert post(address, {"id": "a'b", "rating": 4, "class": "echo", "comment": "c"}, server.token)[0] == 200
        page = urllib.request.urlopen(address).read().decode()
    stored = ratings.read_ratings(tmp_path)["me"]["a'b"]
    assert (stored["rating"], stored["class"], stored["comment"], stored["rater"]) == (4, "echo", "c", "me")
    assert len((tmp_path / "me.jsonl").read_text().splitlines()) == 2, "nothing is overwritten"
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["rated"]["a'b"]["rating"] == 4


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        ({"id": "other", "rating": 2}, 400, "no answer 'other'"),
        ({"id": "a'b", "rating": 6}, 400, "the rating is 6"),
        ({"id": "a'b", "rating": True}, 400, "the rating is True"),
        ({"id": "a'b", "rating": 1, "class": "x"}, 400, "no class 'x'"),
        ([], 400, "no answer None"),
    ],
)
def test_other_ratings_are_refused(tmp_path, content, status, message):
    with serving([ODD], tmp_path) as (server, address):
        found = post(address, content, server.token)
    assert found[0] == status
    assert message in found[1]
    assert not ratings.read_ratings(tmp_path)


def test_no_other_page_can_rate(tmp_path):
    right = {"id": "a'b", "rating": 2}
    with serving([ODD], tmp_path) as (server, address):
        assert post(address, right)[0] == 403
        assert post(address, right, "guess")[0] == 403
        assert post(address, right, server.token, host="evil.example")[0] == 403
        assert post(f"{address}x/", right, server.token)[0] == 404
    assert not ratings.read_ratings(tmp_path)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(ratings.SCALE), st.sampled_from(ratings.SCALE)), min_size=3, max_size=20))
def test_kappa_is_scikit_learns(pairs):
    one, other = zip(*pairs, strict=True)
    if len({*one, *other}) == 1:
        assert cohen_kappa(one, other, ratings.SCALE) is None
        return
    plain = cohen_kappa_score(one, other)
    weighted = cohen_kappa_score(one, other, labels=ratings.SCALE, weights="quadratic")
    assert cohen_kappa(one, other) == pytest.approx(plain)
    assert cohen_kappa(one, other, ratings.SCALE) == pytest.approx(weighted)


def test_kappa_without_ratings_and_with_wrong_ones():
    assert cohen_kappa([], []) is None
    with pytest.raises(UserError, match="2 ratings by one and 1"):
        cohen_kappa([1, 2], [1])
    with pytest.raises(UserError, match="is not on the scale"):
        cohen_kappa([1], [9], ratings.SCALE)


def test_two_raters_agree_and_are_exported(tmp_path):
    rate_all(tmp_path, "ana", {"a": 5, "b": 1, "c": 4, "d": 2, "only": 1})
    rate_all(tmp_path, "ben", {"a": 4, "b": 2, "c": 4, "d": 4})
    done = CliRunner().invoke(cli.app, ["rate", "--output", str(tmp_path), "--json"])
    found = json.loads(done.stdout)
    assert (found["raters"], found["n"], found["n_class"], found["kappa_class"]) == (["ana", "ben"], 4, 0, None)
    assert found["kappa_accepted"] == pytest.approx(0.5)
    assert "ana and ben, 4 answers" in CliRunner().invoke(cli.app, ["rate", "--output", str(tmp_path)]).stdout
    assert ratings.accepted_by_people(ratings.read_ratings(tmp_path)) == {"a": True, "b": False, "c": True, "d": False}
    done = CliRunner().invoke(cli.app, ["rate", "-o", str(tmp_path), "--export", str(tmp_path / "all.csv")])
    assert done.exit_code == 0, done.output
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there are no ratings"),
        (["--rater", "a/b"], "cannot be a rater's name"),
        (["nowhere.jsonl", "--rater", "a"], "nowhere.jsonl"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        cli.app(["rate", *arguments, "--output", str(tmp_path)], standalone_mode=False)


def test_one_rater_alone_agrees_with_nobody(tmp_path):
    rate_all(tmp_path, "ana", {"a": 5})
    with pytest.raises(UserError, match="no two people"):
        ratings.agreement(ratings.read_ratings(tmp_path))


def test_the_calibration_is_told_what_people_accept(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("refusal_alignment", ROOT / "benchmarks" / "refusal_alignment.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "refusal_alignment", module)
    spec.loader.exec_module(module)
    assert module.people(None)[0] == {}
    assert "author-labelled" in module.people(None)[1]["what"]
    rate_all(tmp_path, "ana", {"written/001": 1})
    rate_all(tmp_path, "ben", {"written/001": 2})
    found, told = module.people(str(tmp_path))
    assert found == {"written/001": {"accepted_by_people": False}}
    assert told["raters"]["n"] == 1
    record = {"text": "I don't know.", "label": "generic_refusal"}
    answer = module.Answer(record | found["written/001"], None, None, None, {}, None, None)
    assert not answer.good
    assert module.Answer(record, None, None, None, {}, None, None).good
