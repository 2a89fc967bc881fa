"""`unlearn-eval check`: what a requirement may say, what holds, and the exit codes."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from report_data import TASK, result
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.results.files import read_result, write_result
from unlearn_eval.results.requirements import OPERATORS, check_result, parse_requirement
from unlearn_eval.results.schema import Metric
from unlearn_eval.utils.errors import UserError

METRICS = {
    "forget_rouge": Metric(0.1, 0.01, 10, higher_is_better=False),
    "model_utility": Metric(0.55, None, 10, higher_is_better=True),
    "forget_quality": Metric(None, reason="no retain reference"),
}


@pytest.fixture
def files(tmp_path):
    base = METRICS | {"model_utility": Metric(0.6), "forget_quality": Metric(0.5)}
    return (
        write_result(result("after", METRICS), tmp_path / "after.json"),
        write_result(result("base", base), tmp_path / "base.json"),
    )


def check(file, *requirements, base=None):
    options = [part for text in requirements for part in ("--require", text)]
    return CliRunner().invoke(cli.app, ["check", str(file), *options, *(["--base", str(base)] if base else [])])


@pytest.mark.parametrize(
    ("text", "metric", "operator", "factor", "shift"),
    [
        ("forget_rouge<0.2", "forget_rouge", "<", None, 0.2),
        (" forget_rouge  <= -1e-3 ", "forget_rouge", "<=", None, -0.001),
        ("model_utility>0.9*base", "model_utility", ">", 0.9, 0.0),
        ("model_utility >= .9 * base", "model_utility", ">=", 0.9, 0.0),
        ("m<base+0.05", "m", "<", 1.0, 0.05),
        ("m>base - 1", "m", ">", 1.0, -1.0),
        ("m>=base", "m", ">=", 1.0, 0.0),
        ("tofu:exact match (strict)>.5", "tofu:exact match (strict)", ">", None, 0.5),
    ],
)
def test_what_a_requirement_says(text, metric, operator, factor, shift):
    made = parse_requirement(text)
    assert (made.metric, made.operator, made.factor, made.shift) == (metric, operator, factor, shift)


@pytest.mark.parametrize(
    "text",
    ["", "forget_rouge", "m=0.2", "m==0.2", "m!=1", "<0.2", "m<", "m<x", "m<base*base", "m<0.9*bases", "m<nan", "m<inf"]
    + ["0.1<m<0.2", "m<1;import os", "m<__import__('os')", "m<base+", "m<1 2", "m=>1", "m<base*0.9"],
)
def test_what_is_no_requirement_is_refused(text):
    with pytest.raises(UserError, match="requirement") as error:
        parse_requirement(text)
    assert "NUMBER*base" in error.value.hint


@given(st.text())
def test_any_text_is_a_requirement_or_a_users_mistake(text):
    try:
        made = parse_requirement(text)
    except UserError:
        return
    assert made.operator in OPERATORS


finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(finite, finite, finite, st.sampled_from(list(OPERATORS)), st.sampled_from("nfs"))
def test_a_requirement_holds_as_arithmetic_does(value, number, base, operator, kind):
    text = {"n": f"{number!r}", "f": f"{number!r}*base", "s": f"base{number:+.17g}"}[kind]
    bound = {"n": number, "f": number * base, "s": base + number}[kind]
    after, before = (result("x", {"m": Metric(v)}) for v in (value, base))
    (verdict,) = check_result(after, [parse_requirement(f"m{operator}{text}")], before)
    assert verdict.bound == bound
    assert (
        verdict.holds == {"<": value < bound, "<=": value <= bound, ">": value > bound, ">=": value >= bound}[operator]
    )


def test_exit_codes(files):
    after, base = files
    done = check(after, "forget_rouge<0.2", "model_utility>0.9*base", base=base)
    assert done.exit_code == 0
    assert done.stdout.count("holds") == 2
    assert "2 of 2 hold" in done.stdout
    done = check(after, "forget_rouge<0.05", "model_utility>base-0.1", base=base)
    assert done.exit_code == 1
    assert "1 of 2 hold, 1 failed" in done.stdout


def test_a_metric_without_a_value_fails_with_the_reason(files):
    after, base = files
    done = check(after, "forget_quality>0.05")
    assert done.exit_code == 1
    assert "no retain reference" in done.stdout
    done = check(base, "forget_quality>base", base=after)
    assert done.exit_code == 1
    assert "the base has no value: no retain reference" in done.stdout


@pytest.mark.parametrize(
    ("requirement", "says"),
    [
        ("forget_roug<0.2", "did you mean forget_rouge"),
        (f"{TASK}:forget_roug<0.2", f"did you mean {TASK}:forget_rouge"),
        ("model_utility>0.9*base", "--base"),
        ("model_utility=1", "is no requirement"),
    ],
)
def test_wrong_input_is_two_lines_and_exit_code_2(files, requirement, says):
    done = check(files[0], requirement)
    assert done.exit_code == 2
    assert says in done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


def test_missing_and_broken_files_are_exit_code_2(files, tmp_path):
    assert check(tmp_path / "none.json", "m<1").exit_code == 2
    assert check(files[0]).exit_code == 2
    files[0].write_text(files[0].read_text()[:100])
    done = check(files[0], "m<1")
    assert done.exit_code == 2
    assert "not JSON" in done.stderr


def test_a_name_in_two_tasks_has_to_be_told_apart(tmp_path):
    made = replace(result("x", {}), metrics={"a": {"m": Metric(0.1)}, "b": {"m": Metric(0.9)}})
    both = write_result(made, tmp_path / "x.json")
    done = check(both, "m<0.5")
    assert done.exit_code == 2
    assert "is in 2 tasks: a, b" in done.stderr
    assert check(both, "a:m<0.5", "b:m>0.5").exit_code == 0


def test_the_example_for_ci_asks_for_facts_and_metrics_that_there_are(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    job = yaml.safe_load((root / "examples" / "github-actions.yml").read_text())["jobs"]["check"]
    ids = {json.loads(line)["id"] for line in (root / "tasks" / "facts" / "facts.jsonl").read_text().splitlines()}
    assert job["env"]["FORGET"].split(",") == json.loads(job["env"]["METADATA"])["forget"]
    assert set(job["env"]["FORGET"].split(",")) <= ids
    (command,) = [step["run"] for step in job["steps"] if step.get("name") == "Check"]
    arguments = shlex.split(command)
    assert arguments[:2] == ["unlearn-eval", "check"]
    monkeypatch.chdir(tmp_path)
    for name in ("before", "after"):
        metrics = read_result(root / "results" / "demo" / f"{name}.json").metrics[TASK]
        write_result(result(name, metrics), Path("results") / f"{name}.json")
    done = CliRunner().invoke(cli.app, arguments[1:])
    assert done.exit_code == 0, done.output
