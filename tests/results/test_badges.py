"""What a metric is worth stands beside its name, and only where it was measured."""

import json

import pytest
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.results import badges
from unlearn_eval.results.files import write_result
from unlearn_eval.results.frames import load_frame
from unlearn_eval.results.report.meta import meta_markdown, meta_page
from unlearn_eval.results.report.page_data import page_data
from unlearn_eval.results.report.table import evaluation_tables
from unlearn_eval.results.runs import read_runs
from unlearn_eval.results.schema import Metric, Result, utc_now
from unlearn_eval.utils.errors import UserError


def estimate(value, low=None, high=None, reason=None):
    return {"value": value, "low": low, "high": high, "n": 12, "reason": reason}


def entry(metric, trust, supports, broken=()):
    keys = (
        "faithfulness",
        "relearning",
        "quantization",
        "robustness",
        "published_relearning",
        "published_quantization",
    )
    own = {key: estimate(0.9, 0.8, 1.0) for key in keys}
    reason = "nothing is undefined" if trust is None else None
    order = {"rule": "refusing everything does not win", "holds": not broken, "values": {"refuse_all": 1, "oracle": 1}}
    return {
        **{"task": "t", "metric": metric, **own, "trust": estimate(trust, reason=reason), "supports": list(supports)},
        **{"broken": list(broken), "orders": [order], "published": None, "by_recipe": {}, "n_left_out": 0},
    }


CONTENT = {
    "kind": "meta_evaluation",
    "created": "2026-11-30T00:00:00+00:00",
    "command": ["unlearn-eval", "meta", "<b>"],
    "n": {"knows": 12, "never": 12, "unlearned": 6, "left_out": ["rmu"], "cells": 50, "complete": 49},
    "metrics": [
        entry("forget_rouge", 0.4, ["hidden"], ["refusing everything does not win"]),
        entry("forget_probability", 0.85, ["forgotten"]),
        entry("forget_truth_ratio", None, []),
    ],
    "models": [
        {"role": role, "values": {"t/forget_probability": value, "t/forget_rouge": None}}
        for role, value in (("knows", 0.9), ("knows", 0.8), ("never", 0.2))
    ],
    "controls": {"refuse_all": {"t/forget_rouge": 1.0, "t/forget_probability": 0.5}, "oracle": {"t/forget_rouge": 1.0}},
    "control_utility": {"refuse_all": 0.1, "oracle": 0.6},
    "gaps": {"npo (unlearned)": {"t/forget_probability": {"gap": 0.9, "signed": -0.06}}},
    "combined": {"weights": None, "worth": None, "held_out": {"reason": "in no part are two metrics trusted"}},
    "directions": [
        {"statement": "ROUGE fails", "verdict": "confirmed", "ours": estimate(0.2, 0.1, 0.3), "published": 0.203}
    ],
    "published_source": "UDS",
}  # fmt: skip


@pytest.fixture
def meta(tmp_path, monkeypatch):
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(CONTENT))
    monkeypatch.setenv(badges.VARIABLE, str(path))
    return path


@pytest.fixture
def result(tmp_path):
    names = ("forget_rouge", "forget_probability", "forget_truth_ratio", "retain_rouge")
    metrics = {"t": {name: Metric(0.25, 0.01, 10, higher_is_better=name == "retain_rouge") for name in names}}
    made = Result.new("evaluation", utc_now(), command=["x"], model={"id": "m"}, metrics=metrics)
    return write_result(made, tmp_path / "results" / "run.json")


def test_tables_frames_and_the_page_have_them(meta, result):
    from unlearn_eval.results.files import read_result

    (table,) = evaluation_tables(read_result(result))
    assert list(table.columns[-1].cells) == ["F .90 R .90 !", "F .90 R .90", "F .90 R .90", ""]
    frame = load_frame(result).set_index("metric")
    assert frame.loc["forget_rouge", "supports"] == "hidden"
    assert frame.loc["forget_probability", "robustness"] == 0.9
    assert frame["supports"].isna()["retain_rouge"]
    summary, _ = page_data(read_runs([result]))
    column = next(own for own in summary["columns"] if own["name"] == "forget_rouge")
    assert column["badge"] == "F .90 R .90 !"
    assert "A low value supports: hidden." in column["meaning"]
    (task,) = summary["tasks"]
    assert task["forget_columns"][:2] == ["forget_probability", "forget_rouge"], "the most trusted comes first"


def test_without_a_measurement_nothing_is_shown(result, monkeypatch, tmp_path):
    from unlearn_eval.results.files import read_result

    monkeypatch.delenv(badges.VARIABLE, raising=False)
    monkeypatch.setattr(badges, "SHIPPED", tmp_path / "none.json")
    (table,) = evaluation_tables(read_result(result))
    assert [column.header for column in table.columns] == ["metric", "value", "n"]
    assert load_frame(result)["faithfulness"].isna().all()


@pytest.mark.parametrize(
    ("require", "least", "code"),
    [
        ("forget_probability<0.5", 0.8, 0),
        ("forget_probability<0.5", 0.9, 1),
        ("forget_rouge<0.5", 0.8, 1),
        ("forget_truth_ratio<0.5", 0.1, 1),
        ("retain_rouge>0.2", 0.8, 0),  # of what is kept nothing was measured, and nothing is required
    ],
)
def test_check_refuses_metrics_that_are_not_trusted(meta, result, require, least, code):
    done = CliRunner().invoke(cli.app, ["check", str(result), "--require", require, "--trust", str(least)])
    assert done.exit_code == code, done.output
    assert ("trust" in done.output) == bool(code)
    done = CliRunner().invoke(cli.app, ["check", str(result), "--require", require])
    assert done.exit_code == 0, done.output


def test_another_file_is_refused(result, tmp_path):
    with pytest.raises(UserError, match="is no meta-evaluation"):
        badges.badges(result)
    with pytest.raises(UserError):
        badges.badges(tmp_path / "nowhere.json")


def test_what_is_shipped_is_the_same(meta):
    known = badges.badges(meta)
    short = meta.parent / "trust.json"
    short.write_text(json.dumps(badges.compact(CONTENT)))
    assert badges.badges(short) == known
    assert badges.by_trust(["x", "forget_rouge", "forget_probability"], known) == [
        "forget_probability",
        "forget_rouge",
        "x",
    ]


def test_page_and_markdown_say_what_is_wrong_in_red_and_escape():
    page, text = meta_page(CONTENT), meta_markdown(CONTENT)
    assert "class='words bad'>refusing everything does not win" in page
    assert "<td class='bad'>1.00</td>" in page
    assert "<b>" not in page
    assert "Not finished: 49 of 50" in page
    assert "It cannot be done: in no part are two metrics trusted." in text
    assert text.index("forget\\_probability") < text.index("forget\\_rouge"), "the most trusted comes first"
    assert "| ROUGE fails | 0.20 [0.10, 0.30] | 0.203 | confirmed |" in text
