"""Retain references of every kind of file, and what a model compared with itself and with another must give."""

import json
import math

import pytest
from lm_eval_runs import evaluate, hf, report, values
from scipy.stats import ks_2samp

from unlearn_eval.harness.reference import read_reference
from unlearn_eval.results.files import write_result
from unlearn_eval.results.schema import Metric, Result, utc_now
from unlearn_eval.utils.errors import UserError

SHORT = {"gen_kwargs": {"max_gen_toks": 2}}
TASKS = {"unlearn_tofu": SHORT, "unlearn_tofu_privacy": {}}


@pytest.fixture(scope="module")
def runs(tiny, tokenizer, tofu_root):
    """Both tasks on two models: seed -> task -> lm-eval's result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_EVAL_DATA", str(tofu_root))
        patch.delenv("UNLEARN_EVAL_RETAIN_REFERENCE", raising=False)
        patch.setattr("unlearn_eval.harness.tofu.RESAMPLES", 20)
        return {
            seed: {task: evaluate(hf(tiny("llama", seed), tokenizer), task, **own) for task, own in TASKS.items()}
            for seed in (0, 1)
        }


def raw_ratios(run):
    samples = run["unlearn_tofu"]["samples"]["unlearn_tofu"]
    found = [sample["forget_quality"] for sample in samples if sample["doc"]["split"] == "forget"]
    return {item["id"]: math.exp(item["log_truth_ratio"]) for item in found}


def our_result(run, folder):
    """A result file of ours with its samples beside it."""
    metrics = {
        task: {
            name: Metric(value) if value is not None else Metric(None, reason="undefined")
            for name, value in values(result, task).items()
        }
        for task, result in run.items()
    }
    samples = {task: result["samples"][task] for task, result in run.items()}
    result = Result("evaluation", "complete", utc_now(), metrics=metrics)
    return write_result(result, folder / "retain.json", json.loads(json.dumps(samples)))


def lm_eval_samples(run, folder):
    """What `lm_eval --log_samples` writes."""
    path = folder / "samples_unlearn_tofu_2026.jsonl"
    lines = (json.dumps(sample) + "\n" for sample in run["unlearn_tofu"]["samples"]["unlearn_tofu"])
    path.write_text("".join(lines))
    return path


def open_unlearning(run, folder):
    """The layout of OpenUnlearning's TOFU_EVAL.json."""
    by_index = {key.removeprefix("forget/"): {"score": ratio} for key, ratio in raw_ratios(run).items()}
    samples = run["unlearn_tofu"]["samples"]["unlearn_tofu"]
    losses = {
        sample["doc"]["id"].removeprefix("forget/"): {"prob": 0.1, "avg_loss": sample["forget_quality"]["correct_nll"]}
        for sample in samples
        if sample["doc"]["split"] == "forget"
    }
    content = {
        "forget_truth_ratio": {"agg_value": 0.6, "value_by_index": by_index},
        "forget_Q_A_PARA_Prob": {"agg_value": 0.1, "value_by_index": losses},
    }
    for name, value in values(run["unlearn_tofu_privacy"], "unlearn_tofu_privacy").items():
        if name.endswith("_auc"):
            content[name.removesuffix("_auc")] = {"auc": value, "agg_value": value, "forget": {}}
    path = folder / "TOFU_EVAL.json"
    path.write_text(json.dumps(content))
    return path


KINDS = (our_result, lm_eval_samples, open_unlearning)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_holds_the_same(runs, tmp_path, kind):
    reference = read_reference(kind(runs[0], tmp_path))
    assert {key: math.exp(value) for key, value in reference.log_truth_ratios.items()} == pytest.approx(
        raw_ratios(runs[0]), rel=1e-9
    )
    if kind is not lm_eval_samples:
        expected = values(runs[0]["unlearn_tofu_privacy"], "unlearn_tofu_privacy")
        assert reference.aucs["mia_min_k_auc"] == pytest.approx(expected["mia_min_k_auc"])
        assert len(reference.aucs) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_forget_quality_against_itself_and_another(runs, tiny, tokenizer, tofu, tmp_path, monkeypatch, kind):
    named = {"retain_reference": str(kind(runs[0], tmp_path))}
    itself = values(evaluate(hf(tiny("llama"), tokenizer), metadata=named, **SHORT))
    assert itself["forget_quality"] == 1
    # A ratio and its logarithm differ by rounding, which breaks the tie of an item with itself.
    assert itself["forget_quality_ks"] <= (1 / 4 if kind is open_unlearning else 0)
    monkeypatch.setenv("UNLEARN_EVAL_RETAIN_REFERENCE", named["retain_reference"])
    other = evaluate(hf(tiny("llama", 1), tokenizer), **SHORT)
    test = ks_2samp(list(raw_ratios(runs[1]).values()), list(raw_ratios(runs[0]).values()))
    assert values(other)["forget_quality"] == pytest.approx(test.pvalue)
    assert values(other)["forget_quality_ks"] == pytest.approx(test.statistic)
    assert test.pvalue < 1
    assert report(other)["forget_quality"] == {"n": 4, "n_unscored": 0}


@pytest.mark.parametrize("kind", [our_result, open_unlearning])
def test_privleak(runs, tiny, tokenizer, tofu, tmp_path, kind):
    named = {"retain_reference": str(kind(runs[0], tmp_path))}
    privacy = "unlearn_tofu_privacy"
    before, after = (values(runs[seed][privacy], privacy)["mia_min_k_auc"] for seed in (0, 1))
    found = values(evaluate(hf(tiny("llama", 1), tokenizer), privacy, named), privacy)
    assert found["privleak"] == pytest.approx(((1 - after) - (1 - before)) / (1 - before) * 100)
    itself = values(evaluate(hf(tiny("llama"), tokenizer), privacy, named), privacy)
    assert itself["privleak"] == pytest.approx(0, abs=1e-9)


def test_a_reference_of_the_other_task_is_null_with_a_reason(runs, tiny, tokenizer, tofu, tmp_path):
    """It is found out after the model has run, so it must not throw the run away."""
    named = {"retain_reference": str(lm_eval_samples(runs[0], tmp_path))}
    privacy = evaluate(hf(tiny("llama"), tokenizer), "unlearn_tofu_privacy", named)
    assert values(privacy, "unlearn_tofu_privacy")["privleak"] is None
    assert "no mia_min_k_auc" in report(privacy, "unlearn_tofu_privacy")["privleak"]["reason"]
    only_aucs = tmp_path / "aucs.json"
    only_aucs.write_text(json.dumps({"mia_min_k": {"agg_value": 0.4}}))
    tofu_run = evaluate(hf(tiny("llama"), tokenizer), metadata={"retain_reference": str(only_aucs)}, **SHORT)
    for name in ("forget_quality", "forget_quality_ks"):
        assert values(tofu_run)[name] is None
        assert "no truth ratio of any of these" in report(tofu_run)[name]["reason"]


def test_without_a_reference_it_is_null_with_a_reason(runs):
    found = runs[0]["unlearn_tofu"]
    assert values(found)["forget_quality"] is None
    assert report(found)["forget_quality"]["reason"].startswith("no retain reference (give --metadata")
    assert report(found)["forget_quality"]["n"] == 4


def test_a_partial_reference_is_compared_on_the_items_of_both(runs, tiny, tokenizer, tofu, tmp_path):
    ratios = raw_ratios(runs[0])
    content = {key.removeprefix("forget/"): {"score": value} for key, value in list(ratios.items())[:2]}
    content["2"] = {"score": None}
    path = tmp_path / "TOFU_EVAL.json"
    losses = {index: {"avg_loss": 9.0} for index in content}  # random models both: the texts are strange to either
    held = {"forget_truth_ratio": {"value_by_index": content}, "forget_Q_A_PARA_Prob": {"value_by_index": losses}}
    path.write_text(json.dumps(held))
    found = values(evaluate(hf(tiny("llama"), tokenizer), metadata={"retain_reference": str(path)}, **SHORT))
    assert found["forget_quality"] == 1


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("r.json", None, "does not exist"),
        ("r.json", "{", "is not JSON"),
        ("r.json", "5", "is not a result file"),
        ("r.json", "[]", "is not a result file"),
        ("r.json", "{}", "is not a result file"),
        ("r.json", '{"forget_truth_ratio": {"value_by_index": {}}}', "holds neither truth ratios"),
        ("r.json", '{"forget_truth_ratio": {"value_by_index": {"0": {"prob": 1}}}}', "is not as OpenUnlearning writes"),
        ("r.json", '{"forget_truth_ratio": 0.4}', "is not as OpenUnlearning writes"),
        ("r.jsonl", '{"id": 1}\n', "holds no truth ratios of forget items"),
        ("r.jsonl", "{\n", "line 1, column 2: not JSON"),
        ("r.jsonl", "", "is empty"),
    ],
)
def test_bad_references(tmp_path, tofu, name, text, match):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=match):
        read_reference(path)


def test_a_bad_reference_is_found_before_the_model_runs(tiny, tokenizer, tofu, tmp_path):
    lm = hf(tiny("llama"), tokenizer)
    lm._model = None
    with pytest.raises(UserError, match="does not exist"):
        evaluate(lm, metadata={"retain_reference": str(tmp_path / "nowhere.json")})
