"""Files of lm-eval and OpenUnlearning beside ours: numbers, names, samples, and what is skipped."""

import json
import math
import random

import pytest
from report_data import TASK, records, write_run
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.harness.reference import read_reference
from unlearn_eval.results.comparison import compare
from unlearn_eval.results.files import read_result, read_samples, write_result
from unlearn_eval.results.frames import load_frame
from unlearn_eval.results.report.page_data import page_data
from unlearn_eval.results.runs import read_runs
from unlearn_eval.utils.errors import UserError

DATE = "2026-03-04T05-06-07.890123"


def lm_eval_file(folder, model="org/model", accuracy=(1, 0, 1, 1), date=DATE, name=f"results_{DATE}.json", **config):
    """What `lm_eval --output_path --log_samples` writes of one of our tasks, one of its own, and a group."""
    n = len(accuracy)
    mean = sum(accuracy) / n
    stderr = math.sqrt(mean * (1 - mean) / (n - 1))
    content = {
        "results": {
            TASK: {"alias": TASK, "forget_accuracy,none": mean, "forget_accuracy_stderr,none": stderr,
                   "forget_quality,none": float("nan"), "forget_quality_stderr,none": "N/A"},
            "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.1},
            "mmlu": {"acc,none": 0.5, "acc_stderr,none": 0.01},
        },
        "configs": {TASK: {"metadata": {"data_hash": "d" * 64, "scoring": {
            "forget_accuracy": {"n": n, "n_unscored": 1}, "forget_quality": {"n": 0, "reason": "no reference"}}}},
            "gsm8k": {}},
        "n-samples": {TASK: {"original": n, "effective": n}, "gsm8k": {"original": 9, "effective": 8}},
        "higher_is_better": {TASK: {"forget_accuracy": False}, "gsm8k": {"exact_match": True}},
        "config": {"model": "hf", "model_args": {"pretrained": model}, "random_seed": 3, **config},
        "date": 1772600767.5, "lm_eval_version": "0.4.13", "git_hash": "abc",
        "total_evaluation_time_seconds": "12.5", "task_hashes": {},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"doc_id": i, "doc": {"id": f"forget/{i}", "question": f"Q{i}?", "answer": "A", "split": "forget"},
         "target": "A", "arguments": {"gen_args_0": {"arg_0": f"Question: Q{i}?", "arg_1": {"until": []}}},
         "resps": [[f"text {i}"]], "filtered_resps": [f"text {i}"], "filter": "none", "metrics": ["forget_accuracy"],
         "doc_hash": f"{i:064d}", "forget_accuracy": float(own), "forget_quality": float("nan")}
        for i, own in enumerate(accuracy)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in reversed(lines))
    (folder / f"samples_{TASK}_{date}.jsonl").write_text(text)
    path = folder / name
    path.write_text(json.dumps(content, indent=2))
    return path


def items(field, values, **more):
    return {"value_by_index": {str(i): {field: value, **more} for i, value in enumerate(values)}}


def open_unlearning_file(folder, shift=0.0, n=40, **more):
    """What OpenUnlearning writes of TOFU, with the aggregates as it computes them."""
    raw = [0.5 + i / n + shift for i in range(n)]
    prob = [(i + 1) / (2 * n) + shift / 10 for i in range(n)]
    rouge = [i / n for i in range(n)]
    said = {"input": "Who?", "ground_truth": "A", "generation": "Somebody", "rougeL_f1": 0.5, "rouge1_recall": 0.1}
    content = {
        "forget_truth_ratio": {"agg_value": sum(min(r, 1 / (r + 1e-10)) for r in raw) / n, **items("score", raw)},
        "retain_Truth_Ratio": {"agg_value": sum(max(0, 1 - r) for r in raw) / n, **items("score", raw)},
        "forget_Q_A_Prob": {"agg_value": sum(prob) / n, **items("prob", prob, avg_loss=1.0)},
        "forget_Q_A_ROUGE": {"agg_value": sum(rouge) / n, **items("rougeL_recall", rouge)},
        "forget_Q_A_PERT_Prob": {"agg_value": 0.3, "value_by_index": {"0": {"prob": [0.1, 0.5]}}},
        "exact_memorization": {"agg_value": 0.5, **items("score", [0.5, None, 0.5])},
        "forget_quality": {"agg_value": 0.01},
        "model_utility": {"agg_value": None},
        "mia_min_k": {"agg_value": 0.9, "auc": 0.9, "forget": {}, "holdout": {}},
        "privleak": {"agg_value": -57.3},
        **more,
    }
    for entry in content["forget_Q_A_ROUGE"]["value_by_index"].values():
        entry.update(said)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "TOFU_EVAL.json"
    path.write_text(json.dumps(content, indent=4))
    return path


def harness_log(folder, summary=True):
    """What OpenUnlearning writes of its runs of lm-eval: a group, and a task with two filters."""

    def sample(i, filter_name="none", **scores):
        about = {"doc_id": i, "doc": {"question": f"Q{i}?"}, "target": str(i), "arguments": [[f"Q{i}?", " A"]]}
        about |= {"resps": [[[-1.0, False]]], "filtered_resps": [[-1.0, False]], "filter": filter_name}
        return about | {"metrics": list(scores), "doc_hash": f"{i:064d}"} | scores

    group = {f"mmlu_{name}": [sample(i, acc=float(i % n == 0)) for i in range(4)] for n, name in ((2, "a"), (3, "b"))}
    kinds = [sample(i, kind, exact_match=float(kind == "loose")) for kind in ("strict", "loose") for i in (1, 0)]
    words = [sample(i, perplexity=-2.0 * i, acc=0.5) for i in range(4)]
    content = {"mmlu": group, "gsm8k": {"gsm8k": kinds}, "lambada": {"lambada": words}}
    told = {"mmlu/acc": 0.4, "mmlu/acc_stderr": 0.1, "gsm8k/exact_match": 1.0, "gsm8k/exact_match_stderr": "N/A"}
    told |= {"lambada/perplexity": 20.1, "lambada/perplexity_stderr": 2.0, "lambada/acc": float("nan")}
    folder.mkdir(parents=True, exist_ok=True)
    if summary:
        (folder / "LMEval_SUMMARY.json").write_text(json.dumps(told, indent=4))
    path = folder / "LMEval_EVAL.json"
    path.write_text(json.dumps(content, indent=4))
    return path


# lm-eval ---------------------------------------------------------------------------------------------------


def test_a_file_of_lm_eval_is_a_result(tmp_path):
    result = read_result(lm_eval_file(tmp_path / "org__model"))
    assert list(result.metrics) == [TASK, "gsm8k", "mmlu"]
    metric = result.metrics[TASK]["forget_accuracy"]
    assert (metric.value, metric.n, metric.n_unscored, metric.higher_is_better) == (0.75, 4, 1, False)
    assert metric.stderr == 0.25
    assert result.metrics[TASK]["forget_quality"].reason == "no reference"
    strict = result.metrics["gsm8k"]["exact_match (strict-match)"]
    assert (strict.value, strict.stderr, strict.n) == (0.25, 0.1, 8)
    assert len(result.metrics["gsm8k"]) == 1, "a standard error is no metric"
    assert result.metrics["mmlu"]["acc"].n is None, "of a group nothing says how many"
    assert (result.model["id"], result.edit, result.seed) == ("org/model", None, 3)
    assert result.data[TASK]["hash"] == "d" * 64
    assert result.timing == {"evaluation_seconds": 12.5}
    assert result.created == "2026-03-04T05:06:07+00:00"
    assert result.provenance["written_by"] == "lm-evaluation-harness 0.4.13"


def test_its_samples_are_as_ours(tmp_path):
    path = lm_eval_file(tmp_path)
    samples = read_samples(path, TASK)
    assert [record["id"] for record in samples] == [f"forget/{i}" for i in range(4)]
    assert samples[1]["arguments"] == [["Question: Q1?", {"until": []}]]
    assert samples[1]["forget_quality"] is None
    other = lm_eval_file(tmp_path / "other", accuracy=(0, 0, 0, 1))
    (row,) = [row for row in compare(read_result(path), read_result(other)) if row.metric == "forget_accuracy"]
    assert (row.difference, row.paired.n) == (-0.5, 4)
    (tmp_path / f"samples_{TASK}_{DATE}.jsonl").write_text('{"doc_id": 0}\n{"doc')
    with pytest.raises(UserError, match="line 2: not a sample"):
        read_samples(path, TASK)


@pytest.mark.parametrize(
    ("config", "editor"),
    [
        ({"edit": "edits/a", "editor": "memit"}, "memit"),
        ({"model_args": "pretrained=org/model,peft=some/adapter"}, "adapter"),
        ({"model_args": "pretrained=org/model,dtype=float32"}, None),
    ],
)
def test_what_was_in_the_model(tmp_path, config, editor):
    result = read_result(lm_eval_file(tmp_path, **config))
    assert (result.edit or {}).get("editor") == editor
    assert result.model["id"] == "org/model"


def test_an_output_path_that_is_a_file(tmp_path):
    path = lm_eval_file(tmp_path, name=f"mine_{DATE}.json")
    assert len(read_samples(path, TASK)) == 4


def test_samples_are_looked_for_in_the_folder_alone(tmp_path):
    path = lm_eval_file(tmp_path / "a")
    content = json.loads(path.read_text())
    content["results"]["../../b"] = {"acc,none": 1.0}
    path.write_text(json.dumps(content))
    (tmp_path / f"b_{DATE}.jsonl").write_text("{}")
    assert list(read_result(path).samples) == [TASK]


# OpenUnlearning --------------------------------------------------------------------------------------------


def test_a_log_of_openunlearning_is_a_result(tmp_path):
    result = read_result(open_unlearning_file(tmp_path / "tofu_npo" / "evals"))
    metrics = result.metrics["unlearn_tofu_forget01"]
    assert metrics["forget_probability"].value == pytest.approx(41 / 160)
    assert metrics["forget_probability"].stderr == pytest.approx(math.sqrt(40 * 41 / 12) / 80 / math.sqrt(40))
    directions = {"forget_rouge": False, "forget_truth_ratio": True, "forget_quality": True}
    assert {name: metrics[name].higher_is_better for name in directions} == directions
    assert metrics["forget_Q_A_PERT_Prob"].n is None, "what has no name of ours keeps its own"
    assert (metrics["forget_quality"].n, metrics["forget_quality"].stderr) == (None, None)
    exact = metrics["forget_exact_memorization"]
    assert (exact.n, exact.n_unscored) == (2, 1)
    assert "no value" in metrics["model_utility"].reason
    privacy = result.metrics["unlearn_tofu_privacy"]
    assert {name: own.value for name, own in privacy.items()} == {"mia_min_k_auc": 0.9, "privleak": -57.3}
    assert (result.model, result.edit) == ({}, None)
    run = read_runs(result).runs[0]
    assert (run.method, run.model) == ("tofu_npo", "unknown model")


def test_its_items_are_compared_one_by_one(tmp_path):
    first, second = (open_unlearning_file(tmp_path / name, shift) for name, shift in (("a", 0.0), ("b", 0.2)))
    rows = {row.metric: row for row in compare(read_result(first), read_result(second))}
    for name in ("forget_truth_ratio", "retain_truth_ratio", "forget_probability"):
        assert rows[name].paired.n == 40, name
    assert rows["forget_quality"].paired is None
    (record, *_) = read_samples(first, "unlearn_tofu_forget01")
    assert record["id"] == "forget/0"
    assert record["doc"] == {"split": "forget", "question": "Who?", "answer": "A"}
    assert record["resps"] == [["Somebody"]]
    assert record["metrics"]["forget_truth_ratio"] == 0.5


def test_the_same_reader_reads_retain_references(tmp_path):
    reference = read_reference(open_unlearning_file(tmp_path))
    assert reference.log_truth_ratios["forget/0"] == pytest.approx(math.log(0.5))
    assert reference.aucs == {"mia_min_k_auc": 0.9}
    path = lm_eval_file(tmp_path / "lm_eval")
    with pytest.raises(UserError, match="neither truth ratios"):
        read_reference(path)


@pytest.mark.parametrize(
    ("place", "task"),
    [("saves/muse_News_npo/evals", "unlearn_muse_news"), ("books/a", "unlearn_muse_books"), ("a", "unlearn_muse")],
)
def test_muse(tmp_path, place, task):
    folder = tmp_path / place
    folder.mkdir(parents=True)
    entry = {"agg_value": 0.5, **items("rougeL_f1", [0.25, 0.75], rougeL_recall=0.1)}
    content = {"forget_knowmem_ROUGE": entry, "forget_verbmem_ROUGE": entry, "mia_loss": {"agg_value": 0.6}}
    (folder / "MUSE_EVAL.json").write_text(json.dumps(content | {"extraction_strength": {"agg_value": 0.1}}))
    result = read_result(folder / "MUSE_EVAL.json")
    assert list(result.metrics) == [task]
    names = "forget_knowledge_rouge_f1 forget_verbatim_rouge_f1 mia_loss_auc forget_verbatim_extraction_strength"
    assert list(result.metrics[task]) == names.split()


def test_its_runs_of_lm_eval_are_a_result(tmp_path):
    path = harness_log(tmp_path / "wmdp_rmu" / "evals")
    result = read_result(path)
    assert list(result.metrics) == ["mmlu_a", "mmlu_b", "gsm8k", "lambada", "mmlu"]
    group, part = result.metrics["mmlu"]["acc"], result.metrics["mmlu_b"]["acc"]
    assert (group.value, group.stderr, group.n) == (0.4, 0.1, None), "of a group nothing says how many"
    assert (part.value, part.stderr, part.n) == (0.5, pytest.approx(math.sqrt(1 / 12)), 4), "a mean over samples"
    strict, loose = (result.metrics["gsm8k"][f"exact_match ({name})"] for name in ("strict", "loose"))
    assert (strict.value, loose.value, loose.n) == (0.0, 1.0, 2)
    assert len(result.metrics["gsm8k"]) == 2, "which filter the summary's one value is of, it does not say"
    lambada = result.metrics["lambada"]
    assert (lambada["perplexity"].value, lambada["perplexity"].stderr, lambada["perplexity"].n) == (20.1, 2.0, 4)
    assert "no value" in lambada["acc"].reason
    assert list(result.samples) == ["mmlu_a", "mmlu_b", "gsm8k", "lambada"]
    assert [record["doc_id"] for record in read_samples(path, "mmlu_b")] == [0, 1, 2, 3]
    run = read_runs(path.parent).runs[0]
    assert (run.method, run.name) == ("wmdp_rmu", "LMEval_EVAL")
    alone = read_result(harness_log(tmp_path / "alone", summary=False)).metrics["lambada"]
    assert alone["acc"].value == 0.5
    assert "not shares of 1" in alone["perplexity"].reason, "exp(-mean) is no mean"


def test_what_lm_eval_gives_is_read_from_either_project_s_file_alike(tmp_path):
    path = lm_eval_file(tmp_path / "theirs")
    lines = (tmp_path / "theirs" / f"samples_{TASK}_{DATE}.jsonl").read_text().splitlines()
    log = tmp_path / "LMEval_EVAL.json"
    log.write_text(json.dumps({TASK: {TASK: [json.loads(line) for line in lines]}}))
    metric, same = (read_result(own).metrics[TASK]["forget_accuracy"] for own in (path, log))
    assert (same.value, same.n, same.stderr) == (metric.value, metric.n, metric.stderr)
    assert read_samples(log, TASK) == read_samples(path, TASK)
    (row,) = [row for row in compare(read_result(path), read_result(log)) if row.metric == "forget_accuracy"]
    assert (row.difference, row.paired.n) == (0, 4)


# Beside ours -----------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    generator = random.Random(0)
    write_run(tmp_path, "ours", records(4, generator))
    lm_eval_file(tmp_path / "theirs" / "org__model")
    open_unlearning_file(tmp_path / "saves" / "npo" / "evals")
    (tmp_path / "saves" / "npo" / "evals" / "TOFU_SUMMARY.json").write_text('{"forget_quality": 0.1}')
    (tmp_path / "broken" / "evals").mkdir(parents=True)
    (tmp_path / "broken" / "evals" / "TOFU_EVAL.json").write_text('{"forget_Q_A_Prob": {"agg_value": [1]}}')
    (tmp_path / "broken" / "results_x.json").write_text('{"results": {"a": 1}, "configs": {}}')
    return tmp_path


def test_a_folder_of_all_kinds(mixed):
    runs = read_runs(mixed)
    assert [run.name for run in runs.runs] == [
        "ours", "saves/npo/evals/TOFU_EVAL", f"theirs/org__model/results_{DATE}"]  # fmt: skip
    assert runs.n_skipped == 2
    assert sum("TOFU_EVAL.json" in line or "results_x.json" in line for line in runs.notes) == 2
    frame = load_frame(mixed)
    of_theirs = frame[(frame.task == "unlearn_tofu_forget01") & (frame.metric == "forget_quality")].iloc[0]
    assert math.isnan(of_theirs.n)
    assert math.isnan(of_theirs.stderr)
    assert math.isnan(of_theirs.low)


def test_a_page_says_where_each_file_came_from(mixed):
    summary, answers = page_data(read_runs(mixed))
    rows = {run["name"]: dict(run["provenance"]) for run in summary["runs"]}
    assert rows["saves/npo/evals/TOFU_EVAL"]["written by"] == "OpenUnlearning"
    assert rows[f"theirs/org__model/results_{DATE}"]["written by"] == "lm-evaluation-harness 0.4.13"
    assert "written by" not in rows["ours"]
    assert "read from TOFU_EVAL.json, which OpenUnlearning wrote" in rows["saves/npo/evals/TOFU_EVAL"]["notes"]
    assert {"Somebody", "text 1"} <= set(answers["strings"])


def invoked(*words):
    return CliRunner().invoke(cli.app, list(map(str, words)))


def test_commands_read_them(mixed):
    theirs, log = (next(mixed.rglob(name)) for name in (f"results_{DATE}.json", "npo/evals/TOFU_EVAL.json"))
    held = invoked("check", theirs, "--require", "forget_accuracy<0.8")
    assert held.exit_code == 0, held.output
    assert invoked("check", log, "--require", "forget_rouge<0.1").exit_code == 1
    done = invoked("compare", log, log)
    assert done.exit_code == 0, done.output
    assert "forget_truth_ratio" in done.output
    harness = harness_log(mixed / "saves" / "npo" / "evals")
    assert invoked("check", harness, "--require", "mmlu:acc>0.3").exit_code == 0
    assert invoked("check", harness, "--require", "mmlu:acc>0.5").exit_code == 1
    assert "mmlu_a" in invoked("compare", harness, harness).output
    done = invoked("report", mixed, "-o", mixed / "report.html")
    assert done.exit_code == 0, done.output
    assert (mixed / "report.html").is_file()


def test_what_was_read_can_be_written_as_ours(tmp_path):
    result = read_result(open_unlearning_file(tmp_path / "a"))
    written = read_result(write_result(result, tmp_path / "ours.json"), check_samples=False)
    assert written.metrics == result.metrics


@pytest.mark.parametrize(
    "content",
    [
        {"results": {}, "configs": {}},
        {"results": {"a": {"acc,none": True}}, "configs": {"a": {"metadata": {"scoring": 7}}}, "date": 1e300},
        {"results": {"a": {"acc,none": 0.5}}, "configs": {"a": 7}},
        {"results": {"a": {"acc,none": 0.5}}, "configs": {}, "higher_is_better": {"a": 1}},
        {"forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": [1]}},
        {"forget_Q_A_Prob": {"agg_value": "0.5"}},
        {"mmlu": {"mmlu_a": [{"doc_id": 0, "metrics": ["acc"], "acc": 1.0}, {"doc_id": "x"}]}},
        {"mmlu": {"mmlu_a": [{"doc_id": 0, "metrics": 7}]}},
    ],
)
def test_odd_files_are_named(tmp_path, content):
    path = tmp_path / "results_1.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="results_1.json"):
        read_result(path)


@pytest.mark.parametrize(
    "change",
    [{"doc": {"id": [1]}}, {"resps": 3}, {"doc_hash": {}}, {"forget_accuracy": int("9" * 400)}, {"doc_id": None}],
)
def test_odd_samples_are_named(tmp_path, change):
    path = lm_eval_file(tmp_path)
    file = tmp_path / f"samples_{TASK}_{DATE}.jsonl"
    first, *others = map(json.loads, file.read_text().splitlines())
    file.write_text("".join(json.dumps(line) + "\n" for line in (first | change, *others)))
    with pytest.raises(UserError, match="samples_unlearn_facts"):
        read_samples(path, TASK)


def test_an_odd_report_on_scoring_is_left_out(tmp_path):
    path = lm_eval_file(tmp_path)
    content = json.loads(path.read_text())
    content["configs"][TASK]["metadata"]["scoring"] = {"forget_accuracy": 7}
    path.write_text(json.dumps(content))
    metric = read_result(path).metrics[TASK]["forget_accuracy"]
    assert (metric.value, metric.n) == (0.75, None)
