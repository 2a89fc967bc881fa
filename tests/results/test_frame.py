"""Results as a DataFrame, and comparisons as Markdown, LaTeX and CSV."""

import csv
import io
import random
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_data import TASK, records, write_run
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.results.comparison import Comparison, compare
from unlearn_eval.results.files import read_result
from unlearn_eval.results.frames import load_frame
from unlearn_eval.results.report.figures import plot_bars, plot_frontier
from unlearn_eval.results.report.formats import COLUMNS, comparison_csv, comparison_latex, escape_latex, escape_markdown
from unlearn_eval.results.runs import read_runs
from unlearn_eval.results.schema import Metric
from unlearn_eval.utils.errors import UserError

DEMO = Path(__file__).parents[2] / "results" / "demo"


def compared(*options):
    return CliRunner().invoke(cli.app, ["compare", str(DEMO / "before.json"), str(DEMO / "after.json"), *options])


# load_frame ------------------------------------------------------------------------------------------------


def test_a_frame_holds_the_numbers_of_the_files():
    frame = load_frame(DEMO)
    results = {name: read_result(DEMO / f"{name}.json") for name in ("before", "after")}
    assert len(frame) == sum(len(result.metrics[TASK]) for result in results.values())
    for row in frame.itertuples():
        metric = results[row.run].metrics[TASK][row.metric]
        assert (row.value, row.n) == (metric.value, metric.n)
        assert row.low <= row.value <= row.high
        assert row.direction == {True: "higher", False: "lower"}[metric.higher_is_better]
    edited = frame[frame.run == "after"].iloc[0]
    assert (edited.model, edited.method, edited.forget_set, edited.base) == (
        "SmolLM2-135M-Instruct",
        "memit",
        "facts (12)",
        "before",
    )
    assert edited.edit_seconds == results["after"].edit["seconds"]


def test_a_frame_names_what_was_skipped(tmp_path):
    write_run(tmp_path, "run", records(4, random.Random(0)))
    (tmp_path / "broken.json").write_text('{"schema_ver')
    frame = load_frame([tmp_path])
    assert set(frame.run) == {"run"}
    assert "broken.json" in frame.attrs["notes"][0]


def test_of_a_study_only_its_runs_are_read_unless_a_part_is_named(tmp_path):
    for place in ("study/runs", "study/shared/attacks", "other/shared"):
        write_run(tmp_path / place, place.replace("/", "-"), records(4, random.Random(0)))
    (tmp_path / "study" / "study.json").write_text("{}")
    assert set(load_frame([tmp_path]).run) == {"study/runs/study-runs", "other/shared/other-shared"}
    (run,) = set(load_frame([tmp_path / "study"]).run)
    assert run.endswith("study-runs")
    assert len(set(load_frame([tmp_path / "study" / "shared"]).run)) == 1


def test_without_pandas_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="needs pandas"):
        load_frame(DEMO)


# compare --format ------------------------------------------------------------------------------------------


def test_csv_holds_every_number_in_full():
    done = compared("--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(rows[0]) == COLUMNS
    expected = compare(read_result(DEMO / "before.json"), read_result(DEMO / "after.json"))
    assert len(rows) == len(expected)
    for row, comparison in zip(rows, expected, strict=True):
        assert row["metric"] == comparison.metric
        assert float(row["after"]) == comparison.after.value
        assert float(row["change"]) == comparison.difference
        assert float(row["p_value"]) == comparison.paired.p_value
        assert row["direction"] == {"↑": "higher", "↓": "lower"}[comparison.direction]


def test_markdown_is_a_table_of_one_width():
    lines = [line for line in compared("--format", "markdown").stdout.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert widths == {7}
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert (
        r"| forget\_accuracy ↓ | 1.000 ±0.000 | 0.000 ±0.000 | −1.000 ±0.000 | 5e\-04 | 12 |".replace(r"\-", "-")
        in lines
    )


def test_latex_is_a_booktabs_table():
    text = compared("--format", "latex").stdout
    assert text.count(r"\begin{tabular}{lrrrrr}") == text.count(r"\end{tabular}") == 1
    assert r"forget\_accuracy $\downarrow$ & 1.000 $\pm$0.000 & 0.000 $\pm$0.000 & $-$1.000" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert all(line.endswith(r"\\") and len(re.findall(r"(?<!\\)&", line)) == 5 for line in body)


def test_an_unknown_format_names_the_known_ones():
    done = compared("--format", "markdwon")
    assert isinstance(done.exception, UserError)
    assert done.exception.hint == "did you mean markdown?"


def nasty(name):
    return [Comparison(name, name, Metric(0.5, 0.1, 3), None, "", None, None, f"{name}\nx")]


@pytest.mark.parametrize("name", ['a,"b"\nc', "a|b", r"\input{x}", "100 % $x^2$ ~ #1 & {y_1}", "=1+1", "a\r\nb"])
def test_names_of_any_kind_survive_csv_and_cannot_break_a_table(name):
    (row,) = csv.DictReader(io.StringIO(comparison_csv(nasty(name)), newline=""))
    assert row["metric"] == row["task"] == name
    assert row["reason"] == f"{name}\nx"
    assert comparison_latex(nasty(name)).count("\n") == 8


@given(st.text())
def test_latex_has_no_command_but_its_escapes(text):
    escaped = escape_latex(text)
    for known in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\textless{}", r"\textgreater{}"):
        escaped = escaped.replace(known, "")
    escaped = re.sub(r"\\textbar\{\}|\$-\$|\$\\pm\$|\$\\(up|down)arrow\$|\\[&%$#_{}]", "", escaped)
    assert not set(escaped) & set("\\&%$#_{}~^\n")


@given(st.text())
def test_markdown_escapes_can_be_undone_and_leave_one_line(text):
    escaped = escape_markdown(text)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[|<*_`\[]", escaped)
    assert re.sub(r"\\([\\`*_{}\[\]<>()#+!|~&$])", r"\1", escaped) == re.sub(r"\s+", " ", text)


# plots -----------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    for i, method in enumerate((None, "memit", "grace")):
        write_run(tmp_path, f"run{i}", records(12, random.Random(i), leak=1 - i / 3), method)
    yield tmp_path
    import matplotlib.pyplot

    matplotlib.pyplot.close("all")


def test_plots_are_axes(drawn):
    import matplotlib.pyplot

    axes = plot_frontier(drawn)
    assert axes.get_title() == TASK
    assert len(axes.get_legend().get_texts()) == 3
    _, (left, right) = matplotlib.pyplot.subplots(1, 2)
    results = [read_result(drawn / f"run{i}.json") for i in range(3)]
    assert plot_frontier(read_runs(results), ax=left) is left
    assert plot_bars(results, "retain_accuracy", ax=right) is right
    assert right.get_title(loc="left") == "retain_accuracy ↑"
    values = {run.result.metrics[TASK]["retain_accuracy"].value for run in read_runs(results).runs}
    assert {bar.get_width() for bar in right.patches} == values
    assert [label.get_text() for label in right.get_yticklabels()] == ["unedited", "memit", "grace"]


def test_what_cannot_be_drawn_is_named(drawn):
    with pytest.raises(UserError, match="unknown task"):
        plot_bars(drawn, task="unlearn_fact")
    with pytest.raises(UserError, match="unknown metric"):
        plot_bars(drawn, "retain_acuracy")
    write_run(drawn / "more", "other", records(4, random.Random(5)))
    text = (drawn / "more" / "other.json").read_text().replace(f'"{TASK}"', '"gsm8k"').replace("retain_", "kept_")
    (drawn / "more" / "other.json").write_text(text)
    with pytest.raises(UserError, match="several tasks: gsm8k, unlearn_facts"):
        plot_frontier(drawn)
    with pytest.raises(UserError, match="gsm8k has no metric of forgetting"):
        plot_frontier(drawn, "gsm8k")
