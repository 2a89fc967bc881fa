"""A destroyed model has no forget quality: it is null with the reason, in the metric, the tasks and the tables.

With `compat=openunlearning` it is what that evaluator gives: its floor of 1e-10 tells such a model apart.
"""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval_runs import evaluate, hf, report, values
from scipy.stats import ks_2samp

from unlearn_eval import metrics as m
from unlearn_eval.harness.answers import contrast_scores
from unlearn_eval.results.files import write_result
from unlearn_eval.results.frames import load_frame
from unlearn_eval.results.report.table import reasons
from unlearn_eval.results.schema import Metric, Result, utc_now

UNIFORM = math.log(50_000)
COMPAT = "openunlearning"
SHORT = {"gen_kwargs": {"max_gen_toks": 1}}


@pytest.mark.parametrize(
    ("nlls", "uniform", "reference", "retained", "says"),
    [
        (
            [40.0] * 400,
            UNIFORM,
            [],
            [],
            "forget lose 40.0 nats per token or more, a uniform choice among all tokens 10.8",
        ),
        ([40.0] * 400, UNIFORM, [2.0] * 400, [1.0] * 9, "to forget lose 40.0 nats"),
        ([UNIFORM] * 9, UNIFORM, [2.0], [], "lose 10.8 nats"),  # every token is as likely as any other
        ([UNIFORM - 1e-5], UNIFORM, [], [], "lose 10.8 nats"),  # the same, rounded
        ([math.inf] * 3, UNIFORM, [2.0], [2.0], "collapsed"),
        ([1.0, 40.0, 40.0], UNIFORM, [], [], "lose 40.0 nats"),  # half of them and more
        ([1.0, 1.0, 40.0], UNIFORM, [], [], None),  # less than half: a model may forget some answers thoroughly
        ([2.5] * 400, UNIFORM, [2.4], [1.0], None),
        ([9.0] * 400, UNIFORM, [2.0], [1.0], None),  # it has forgotten, and still writes its language
        ([2.5] * 400, UNIFORM, [2.4], [15.0] * 400, "to retain lose 15.0 nats"),  # its utility is gone
        ([2.5] * 400, UNIFORM, [], [0.1, 15.0, 15.0], "to retain lose 15.0 nats"),
        ([40.0] * 9, None, [], [40.0], None),  # a model that does not say how many tokens it has
        ([40.0] * 9, UNIFORM, [40.0] * 9, [40.0], None),  # the texts are as strange to the retain-only model
        ([None, None], UNIFORM, [2.0], [], None),
        ([None, math.nan, 40.0], UNIFORM, [None, 2.0], [None], "lose 40.0 nats"),
        ([], UNIFORM, [], [], None),
    ],
)
def test_what_is_collapsed(nlls, uniform, reference, retained, says):
    found = m.collapsed(nlls, uniform, reference, retained)
    assert (found is None) == (says is None)
    if says is not None:
        assert found.startswith("collapsed: half of the right answers to ")
        assert says in found


@settings(max_examples=50)
@given(st.lists(st.floats(0, 60), min_size=1, max_size=30), st.floats(1, 15), st.floats(0, 30))
def test_a_model_that_loses_more_is_collapsed_too(nlls, uniform, more):
    """And none that loses less than a uniform choice on every answer is."""
    if m.collapsed(nlls, uniform):
        assert m.collapsed([nll + more for nll in nlls], uniform)
    assert m.collapsed([min(nll, uniform - 0.01) for nll in nlls], uniform) is None


# OpenUnlearning's floor ------------------------------------------------------------------------------------


def theirs(correct, wrong):
    """That evaluator's truth ratios, written out: mean losses -> wrong / (correct + 1e-10)."""
    return np.exp(-np.mean(wrong, axis=1)) / (np.exp(-np.asarray(correct)) + 1e-10)


def ours(correct, wrong, compat):
    rows = [
        contrast_scores({"mean_nll": own}, [{"mean_nll": one} for one in others], compat)
        for own, others in zip(correct, wrong, strict=True)
    ]
    return {key: [row[key] for row in rows] for key in rows[0]}


@pytest.mark.parametrize("size", [0.5, 3.0, 15.0, 22.0, 23.0, 25.0, 40.0, 300.0, 800.0, 2000.0])
def test_compat_is_their_formula_at_every_size_of_loss(size):
    """1e-10 is e^-23: below that loss it cannot be seen, above it is all that is left."""
    generator = np.random.default_rng(int(size))
    correct, wrong = size * generator.uniform(0.8, 1.2, 30), size * generator.uniform(0.8, 1.2, (30, 5))
    ratios = theirs(correct, wrong)
    found = ours(correct, wrong.tolist(), COMPAT)
    assert np.exp(found["log_truth_ratio"]) == pytest.approx(ratios, rel=1e-9, abs=1e-300)
    assert found["truth_ratio_forget"] == pytest.approx(np.minimum(ratios, 1 / (ratios + 1e-10)), rel=1e-9)
    assert found["truth_ratio"] == pytest.approx(np.maximum(0, 1 - ratios), rel=1e-9)
    shares = np.exp(-correct) / (np.exp(-correct) + np.exp(-wrong).sum(1) + 1e-10)
    assert found["normalised"] == pytest.approx(shares, rel=1e-9, abs=1e-300)
    if size < 4:
        plain = ours(correct, wrong.tolist(), None)
        assert plain["log_truth_ratio"] == pytest.approx(found["log_truth_ratio"], abs=1e-6)


def test_a_destroyed_model_of_400_items():
    """Noise at 40 nats looks like a model that never knew; the floor tells the two apart, and so does the reason."""
    generator = np.random.default_rng(3)
    reference = generator.normal(0.1, 0.35, 400)
    correct, wrong = 40 + generator.normal(0, 0.25, 400), 40 + generator.normal(-0.1, 0.5, (400, 5))
    plain = m.forget_quality(ours(correct, wrong.tolist(), None)["log_truth_ratio"], reference)
    floored = m.forget_quality(ours(correct, wrong.tolist(), COMPAT)["log_truth_ratio"], reference)
    assert plain.p_value > 0.01, "as good as a model that never knew"
    assert floored.p_value == pytest.approx(ks_2samp(theirs(correct, wrong), np.exp(reference)).pvalue, rel=1e-6)
    assert floored.p_value == pytest.approx(2 / math.comb(800, 400), rel=1e-6)
    assert 1e-240 < floored.p_value < 1e-238
    assert m.collapsed(correct, UNIFORM)


# The task and what shows it --------------------------------------------------------------------------------


@pytest.fixture
def sound(tiny, tokenizer, tofu, tmp_path):
    """A reference whose losses are those of a model that knows the language."""
    samples = evaluate(hf(tiny("llama", 1), tokenizer), **SHORT)["samples"]["unlearn_tofu"]
    own = [sample["forget_quality"] for sample in samples if sample["doc"]["split"] == "forget"]
    path = tmp_path / "reference.json"
    ratios = {item["id"]: item["log_truth_ratio"] for item in own}
    path.write_text(json.dumps({"log_truth_ratios": ratios, "correct_nlls": dict.fromkeys(ratios, 2.0)}))
    return {"retain_reference": str(path)}, ratios


def test_the_task_says_why_there_is_no_forget_quality(tiny, tokenizer, sound, tmp_path):
    """A random model is a destroyed one: it loses more than a uniform choice among its 700 tokens."""
    named, ratios = sound
    found = evaluate(hf(tiny("llama"), tokenizer), metadata=named, **SHORT)
    losses = [
        sample["forget_quality"]["right_nll"]
        for sample in found["samples"]["unlearn_tofu"]
        if sample["doc"]["split"] == "forget"
    ]
    assert np.median(losses) > math.log(len(tokenizer))
    metrics = {}
    for name in ("forget_quality", "forget_quality_ks"):
        assert values(found)[name] is None
        told = report(found)[name]
        assert told["reason"].startswith("collapsed: half of the right answers to forget lose")
        assert (told["n"], told["n_unscored"]) == (4, 0)
        metrics[name] = Metric(None, reason=told["reason"])
    assert values(found)["forget_truth_ratio"] is not None, "what the model does is still reported"
    result = Result("evaluation", "complete", utc_now(), metrics={"unlearn_tofu": metrics})
    path = write_result(result, tmp_path / "result.json", {})
    assert any("forget_quality" in line and "collapsed" in line for line in reasons([result]))
    table = load_frame(path)
    assert all("collapsed" in reason for reason in table["reason"])

    compat = evaluate(hf(tiny("llama"), tokenizer), metadata={**named, "compat": COMPAT}, **SHORT)
    scores = {
        sample["doc"]["id"]: sample["forget_quality"]["log_truth_ratio"]
        for sample in compat["samples"]["unlearn_tofu"]
        if sample["doc"]["split"] == "forget"
    }
    expected = ks_2samp(list(scores.values()), list(ratios.values()))
    assert values(compat)["forget_quality"] == pytest.approx(expected.pvalue)
