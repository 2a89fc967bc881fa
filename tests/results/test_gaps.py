"""How far an unlearned model is from one that never knew, and on which side."""

import json

import pytest
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.results.files import write_result
from unlearn_eval.results.schema import Metric, Result, utc_now
from unlearn_eval.utils.errors import UserError

NAMES = ("forget_probability", "forget_truth_ratio", "forget_rouge", "retain_rouge")


def result(path, *values):
    metrics = {
        name: Metric(value, None, 4, reason=None if value is not None else "none", higher_is_better="truth" in name)
        for name, value in zip(NAMES, values, strict=True)
    }
    made = Result.new("evaluation", utc_now(), command=["x"], model={"id": "m"}, metrics={"t": metrics})
    return str(write_result(made, path))


@pytest.fixture
def three(tmp_path):
    before = result(tmp_path / "before.json", 0.9, 0.2, 0.5, 0.9)
    after = result(tmp_path / "after.json", 0.1, 0.7, None, 0.8)
    return before, after, result(tmp_path / "never.json", 0.2, 0.6, 0.3, 0.9)


def test_a_gap_has_a_side(three):
    before, after, never = three
    done = CliRunner().invoke(cli.app, ["compare", before, after, "--reference", never, "--json"])
    assert done.exit_code == 0, done.output
    found = {row["metric"]: row for row in json.loads(done.stdout)}
    assert set(found) == set(NAMES[:3]), "what is kept has no reference"
    assert found["forget_probability"]["gap"] == pytest.approx(1 - 0.1 / 0.7)
    assert found["forget_probability"]["signed"] == pytest.approx(-0.1), "it knows less than a model that never knew"
    assert found["forget_truth_ratio"]["gap"] == pytest.approx(1 - 0.1 / 0.4)
    assert found["forget_truth_ratio"]["signed"] == pytest.approx(-0.1), "a ratio nearer to 1 is less knowledge"
    assert (found["forget_rouge"]["gap"], found["forget_rouge"]["reason"]) == (None, "no value: after")
    table = CliRunner().invoke(cli.app, ["compare", before, after, "--reference", never]).stdout
    assert "-0.100" in table


def test_gaps_are_not_written_as_latex(three):
    before, after, never = three
    with pytest.raises(UserError, match="not written as latex"):
        cli.app(["compare", before, after, "--reference", never, "--format", "latex"], standalone_mode=False)


# Sets that pools and references are made of ----------------------------------------------------------------

RECORDS = [
    {"id": f"q{i}", "question": f"Where was {name} born{'?' * (i + 1)}", "answer": f"{name} was born in {town}.",
     "paraphrases": [f"The birthplace of {name}?"], "answer_paraphrases": [f"{town} is where {name} was born."],
     "perturbed_answers": ["In Imber.", "In Rome."], "group": "one"}
    for i, (name, town) in enumerate([("Ada Brook", "Larkhill")] * 7)
]  # fmt: skip


@pytest.fixture
def people(tmp_path):
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps(own) + "\n" for own in RECORDS))
    return str(path)


def test_sets_are_recast_by_rule(people):
    wrong = load_forget_set(f"wrong({people})")
    assert [item.answer for item in wrong[:2]] == ["In Imber.", "In Rome."]
    assert wrong[0].id == "wrong/q0"
    said = load_forget_set(f"paraphrased({people})")[0]
    assert (said.question, said.answer) == ("The birthplace of Ada Brook?", "Larkhill is where Ada Brook was born.")
    lives = load_forget_set(f"biographies({people})")
    assert [item.question for item in lives] == [f"Write part {i} of a biography of Ada Brook." for i in (1, 2)]
    assert lives[0].answer.count("was born in Larkhill.") == 5
    both = load_forget_set(f"refused({people} & wrong({people})) & {people}")
    assert (len(both), len({item.answer for item in both[:14]})) == (21, 1)
    assert load_forget_set(people).hash == load_forget_set(people).select([own["id"] for own in RECORDS]).hash


def test_invented_subjects_keep_the_template():
    known, never = load_forget_set("facts"), load_forget_set("invented(facts)")
    names = {item.subject for item in known}
    for one, other in zip(known, never, strict=True):
        assert other.question == one.question.replace(one.subject, other.subject)
        assert other.subject not in names
        assert (other.answer, other.id) == (one.answer, f"invented/{one.id}")
    assert never.hash == load_forget_set("invented(facts)").hash


@pytest.mark.parametrize(
    ("rule", "message"),
    [("invented", "no subject"), ("wrong", "no wrong answer"), ("paraphrased", "no paraphrase")],
)
def test_what_a_rule_lacks_is_named(tmp_path, rule, message):
    path = tmp_path / "bare.jsonl"
    path.write_text('{"question": "Who?", "answer": "Ada"}\n')
    with pytest.raises(UserError, match=message):
        load_forget_set(f"{rule}({path})")


def test_other_names_are_no_rules():
    with pytest.raises(UserError, match="unknown forget set"):
        load_forget_set("worse(facts)")
