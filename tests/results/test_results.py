import dataclasses
import errno
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from unlearn_eval import metrics
from unlearn_eval.results import schema as results
from unlearn_eval.results.comparison import compare
from unlearn_eval.results.files import read_result, read_samples, write_result
from unlearn_eval.results.schema import Metric, Result, utc_now
from unlearn_eval.utils import json_files
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import read_jsonl
from unlearn_eval.utils.provenance import provenance

NOW = utc_now()
SAMPLES = {"tofu": [{"id": f"forget/{i}", "rouge": i / 4, "text": "a\u2028b"} for i in range(4)]}


def example(**changes):
    values = {
        "kind": "evaluation",
        "status": "complete",
        "created": utc_now(),
        "command": ["unlearn-eval", "eval"],
        "config": {"limit": 4},
        "metrics": {
            "tofu": {
                "rouge": Metric(0.375, 0.1, 4, higher_is_better=False),
                "forget_quality": Metric(None, n_unscored=4, reason="no reference"),
            }
        },
        "timing": {"evaluate_seconds": 1.5},
        "seed": 0,
    }
    return Result(**(values | changes))


def message(error) -> str:
    return str(error.value)


# Schema ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"value": None},
        {"value": None, "reason": ""},
        {"value": 0.5, "reason": "why"},
        {"value": None, "reason": "why", "stderr": 0.1},
        {"value": math.nan},
        {"value": 0.5, "stderr": math.inf},
        {"value": 0.5, "stderr": -0.1},
        {"value": 0.5, "n": -1},
        {"value": 0.5, "n_unscored": -1},
    ],
)
def test_a_metric_has_a_sound_value_or_a_reason(arguments):
    with pytest.raises(ValueError, match="metric|negative"):
        Metric(**arguments)


def test_zero_is_a_value():
    assert Metric(0.0, 0.0).value == 0.0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"status": "done"}, "status"),
        ({"created": "2025-01-01T00:00:00"}, "UTC"),
        ({"created": "2025-01-01T00:00:00+02:00"}, "UTC"),
        ({"timing": {"evaluate": 1.0}}, "_seconds"),
    ],
)
def test_a_result_is_checked_when_made(changes, match):
    with pytest.raises(ValueError, match=match):
        example(**changes)


# Writing and reading ---------------------------------------------------------------------------------------


def test_a_written_result_reads_back(tmp_path):
    result = example()
    path = write_result(result, tmp_path / "new" / "run.json", SAMPLES)
    back = read_result(path)
    assert dataclasses.replace(back, samples={}) == result
    assert back.path == path
    assert read_samples(path, "tofu") == SAMPLES["tofu"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["run.json", "run.tofu.samples.jsonl"]


def test_the_file_is_in_schema_order_and_ends_in_a_newline(tmp_path):
    text = write_result(example(), tmp_path / "run.json").read_text()
    keys = [field.name for field in dataclasses.fields(Result) if field.name != "path"]
    assert list(json.loads(text)) == ["schema_version", *(key for key in keys if key != "robustness")]
    level = {"model": "unlearned", "condition": "attack", "at": None, "n": 4, "values": {"accuracy": 0.5}}
    part = {"attack_relearn": {"levels": [level]}}
    attacked = write_result(dataclasses.replace(example(), robustness=part), tmp_path / "attack.json")
    assert list(json.loads(attacked.read_text())) == ["schema_version", *keys]
    assert read_result(attacked).robustness == part
    assert read_result(tmp_path / "run.json").robustness == {}
    assert text.startswith('{\n  "schema_version": 1,')
    assert text.endswith("}\n")


def test_numpy_numbers_are_written_as_json_numbers(tmp_path):
    config = {"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": np.arange(2), "e": Path("x")}
    metrics_ = {"t": {"m": Metric(np.float64(0.25), n=np.int64(2), higher_is_better=np.bool_(True))}}
    back = read_result(write_result(example(config=config, metrics=metrics_), tmp_path / "run.json"))
    assert back.config == {"a": 0.5, "b": 3, "c": True, "d": [0, 1], "e": "x"}
    assert back.metrics["t"]["m"] == Metric(0.25, n=2, higher_is_better=True)
    assert back.config["c"] is True


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.float32("nan"), object(), {1: "a"}])
def test_what_is_not_json_is_our_error_names_the_key_and_loses_nothing(tmp_path, monkeypatch, bad):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    with pytest.raises(ValueError, match=r"internal error: config\.scores\[1\]") as error:
        write_result(example(config={"scores": [1, bad]}), tmp_path / "run.json", SAMPLES)
    assert not isinstance(error.value, UserError)
    assert not (tmp_path / "run.json").exists()
    (copy,) = (tmp_path / "temp").rglob("rescue-run.json")
    assert json.loads(copy.read_text())["samples"] == SAMPLES


def test_nan_in_a_sample_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"sample 2 of t\.x is nan"):
        write_result(example(), tmp_path / "run.json", {"t": [{"x": 1.0}, {"x": math.nan}]})


def test_home_and_tokens_are_not_written(tmp_path):
    home = os.path.expanduser("~")
    result = example(command=["x", "--api-key", "abc", f"{home}/models"], config={"HF_TOKEN": "abc"})
    back = read_result(write_result(result, tmp_path / "run.json"))
    assert back.command == ["x", "--api-key", "[redacted]", "~/models"]
    assert back.config == {"HF_TOKEN": "[redacted]"}


def test_task_names_become_distinct_safe_file_names(tmp_path):
    samples = {"a/b": [{"id": 1}], "a b": [{"id": 2}], "x" * 300: [{"id": 3}]}
    path = write_result(example(), tmp_path / "run.json", samples)
    assert len(list(tmp_path.glob("*.jsonl"))) == 3
    assert [read_samples(path, task) for task in samples] == list(samples.values())


def test_a_task_without_samples_and_one_with_none(tmp_path):
    path = write_result(example(), tmp_path / "run.json", {"empty": []})
    assert read_samples(path, "empty") == []
    with pytest.raises(UserError, match="unknown task with samples 'other'"):
        read_samples(path, "other")


def test_a_result_goes_into_a_json_file(tmp_path):
    with pytest.raises(UserError, match=r"\.json file"):
        write_result(example(), tmp_path)


# Failing to save -------------------------------------------------------------------------------------------


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def fail_in(folder, real, where=0):
    """Raises ENOSPC for calls that touch `folder`, and lets the others through."""

    def call(*arguments, **options):
        if Path(arguments[where]).parent == folder:
            full_disk()
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("stage", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_a_whole_copy(tmp_path, monkeypatch, stage):
    folder, temp = tmp_path / "results", tmp_path / "temp"
    temp.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temp))
    path = write_result(example(seed=1), folder / "run.json")
    old = path.read_bytes()
    if stage == "open":
        monkeypatch.setattr(json_files, "open", fail_in(folder, open), raising=False)
    elif stage == "replace":
        monkeypatch.setattr(os, "replace", fail_in(folder, os.replace))
    else:
        calls, real = [], os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: real(fd) if calls else (calls.append(fd), full_disk()))
    with pytest.raises(UserError, match="No space left on device; nothing is lost") as error:
        write_result(example(seed=2), path, SAMPLES)
    assert path.read_bytes() == old
    assert [p.name for p in folder.iterdir()] == ["run.json"], "temporary files are removed"
    (copy,) = temp.rglob("run.json")
    assert str(copy.parent) in message(error)
    assert read_result(copy).seed == 2
    assert read_samples(copy, "tofu") == SAMPLES["tofu"]


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="nothing is lost"):
        write_result(example(), tmp_path / "file" / "run.json")


def test_nowhere_to_save_prints_the_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(json_files, "open", full_disk, raising=False)
    with pytest.raises(UserError, match=r"standard error \(1 files of samples are lost\)"):
        write_result(example(seed=7), tmp_path / "run.json", SAMPLES)
    assert json.loads(capsys.readouterr().err)["seed"] == 7
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_result(example(), tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_does_no_harm(tmp_path):
    (tmp_path / ".run.json.0123abcd.tmp").write_text('{"schema_ver')
    path = write_result(example(seed=3), tmp_path / "run.json", SAMPLES)
    assert read_result(path).seed == 3


# Reading what is wrong -------------------------------------------------------------------------------------


def rewritten(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_a_missing_file_names_its_neighbours(tmp_path):
    write_result(example(), tmp_path / "other.json")
    with pytest.raises(UserError, match=r"no result file at [\s\S]*other\.json"):
        read_result(tmp_path / "run.json")


def test_a_half_written_file_says_where(tmp_path):
    path = write_result(example(), tmp_path / "run.json")
    whole = path.read_bytes()
    for end in (30, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"line \d+, column \d+, byte \d+: not JSON"):
            read_result(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"empty \(0 bytes\)"):
        read_result(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 7\)"):
        read_result(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(schema_version=2), "schema version 2; this unlearn-eval reads 1"),
        (lambda c: c.pop("schema_version"), "no schema_version"),
        (lambda c: c.pop("seed"), "lacks the field seed"),
        (lambda c: c.update(extra=1), "unknown field extra"),
        (lambda c: c["metrics"]["tofu"]["rouge"].pop("n"), "metrics.tofu.rouge lacks the field n"),
        (lambda c: c["metrics"]["tofu"]["rouge"].update(value=None), "value or a reason"),
        (lambda c: c["metrics"]["tofu"]["rouge"].update(value="high"), "not a sound result"),
        (lambda c: c.update(metrics=[1]), "not a sound result"),
        (lambda c: c.update(status="done"), "status"),
        (lambda c: c.update(seed=math.nan), "NaN is not JSON"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, change, match):
    path = rewritten(write_result(example(), tmp_path / "run.json"), change)
    with pytest.raises(UserError, match=match):
        read_result(path)


def test_samples_that_are_gone_or_changed_are_noticed(tmp_path):
    path = write_result(example(), tmp_path / "run.json", SAMPLES)
    samples = tmp_path / "run.tofu.samples.jsonl"
    samples.write_text(samples.read_text().replace("0.25", "0.26"))
    with pytest.raises(UserError, match="has changed since run.json"):
        read_result(path)
    samples.unlink()
    with pytest.raises(UserError, match="lacks its samples"):
        read_result(path)
    assert read_result(path, check_samples=False).kind == "evaluation"


# JSON lines ------------------------------------------------------------------------------------------------


def jsonl(tmp_path, text):
    path = tmp_path / "items.jsonl"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}\n\n  \n{"a": 2}\n',
        '{"a": 1}\r\n{"a": 2}',
        '\n [{"a": 1},\n{"a": 2}]',
        '\ufeff{"a": 1}\n{"a": 2}',
    ],
)
def test_jsonl_and_one_array_read_the_same(tmp_path, text):
    assert read_jsonl(jsonl(tmp_path, text), ["a"]) == [{"a": 1}, {"a": 2}]


def test_line_separators_inside_a_text_split_nothing(tmp_path):
    assert read_jsonl(jsonl(tmp_path, '{"a": "x\u2028y\x85z"}')) == [{"a": "x\u2028y\x85z"}]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"a": 1}\n\n{"a": \n', r"items\.jsonl, line 3, column 7: not JSON"),
        ('{"a": 1}\n{"a": NaN}\n', r"line 2: not JSON \(NaN"),
        ('{"a": 1}\n[1]\n', "line 2 is a list, not an object"),
        ('{"a": 1}\n{"b": 1}\n', r"line 2 lacks the field 'a'\nhint: its fields: b"),
        ('[{"a": 1}, 3]', "record 2 is a int"),
        ('[{"a": 1},\n 3', r"line 2, column 3, byte 13: not JSON"),
        ("[]", "no records"),
        ("", "empty"),
        (" \n \n", "empty"),
    ],
)
def test_jsonl_mistakes_are_placed(tmp_path, text, match):
    with pytest.raises(UserError, match=match):
        read_jsonl(jsonl(tmp_path, text), required_fields=["a"])


def test_a_missing_jsonl(tmp_path):
    with pytest.raises(UserError, match="no file at"):
        read_jsonl(tmp_path / "none.jsonl")


# Comparing -------------------------------------------------------------------------------------------------


def saved(tmp_path, name, scores, samples=True, **changes):
    value = sum(scores) / len(scores)
    entries = {"tofu": {"rouge": Metric(value, n=len(scores), higher_is_better=False)}}
    records = [{"doc_id": i, "rouge": score} for i, score in enumerate(scores)]
    result = example(metrics=entries, **changes)
    return read_result(write_result(result, tmp_path / name, {"tofu": records} if samples else {}))


def test_two_results_are_compared_in_pairs(tmp_path):
    before = saved(tmp_path, "before.json", [0.5, 0.75, 1.0, 0.25])
    after = saved(tmp_path, "after.json", [0.25, 0.5, 0.5, 0.25])
    (row,) = compare(before, after)
    assert (row.task, row.metric, row.direction, row.difference) == ("tofu", "rouge", "↓", -0.25)
    assert row.paired.n == 4
    assert row.paired.difference == pytest.approx(-0.25)
    assert row.reason is None


def test_pairs_are_made_by_id_and_not_by_order(tmp_path, monkeypatch):
    seen = []

    def spy(before, after, seed=0):
        seen.append((before, after))
        return SimpleNamespace(difference=-0.25)

    monkeypatch.setattr(metrics, "paired_comparison", spy)
    before = saved(tmp_path, "before.json", [0.5, 1.0])
    after = write_result(
        example(metrics={"tofu": {"rouge": Metric(0.5)}}),
        tmp_path / "after.json",
        {"tofu": [{"doc_id": 1, "rouge": 0.75}, {"doc_id": 0, "rouge": 0.25}]},
    )
    compare(before, read_result(after))
    assert seen == [([0.5, 1.0], [0.25, 0.75])]


def test_no_pairs_without_samples_or_for_what_is_no_mean(tmp_path):
    before = saved(tmp_path, "before.json", [0.5, 1.0])
    (row,) = compare(before, saved(tmp_path, "bare.json", [0.5, 0.5], samples=False))
    assert (row.difference, row.paired) == (-0.25, None)
    assert row.reason == "the second result has no samples of this task"
    other = dataclasses.replace(before, metrics={"tofu": {"rouge": Metric(0.9), "new": Metric(None, reason="r")}})
    rows = {row.metric: row for row in compare(before, other)}
    assert "not the mean" in rows["rouge"].reason
    assert (rows["new"].before, rows["new"].difference) == (None, None)
    assert rows["new"].reason == "the first result lacks it"


def test_the_difference_of_an_undefined_metric_is_undefined(tmp_path):
    before = saved(tmp_path, "before.json", [0.5, 1.0])
    after = dataclasses.replace(before, metrics={"tofu": {"rouge": Metric(None, reason="no items")}})
    (row,) = compare(before, after)
    assert (row.difference, row.paired, row.reason) == (None, None, "second: no items")


def test_results_export_what_they_promise():
    assert all(hasattr(results, name) for name in results.__all__)


# Results of runs -------------------------------------------------------------------------------------------


def test_a_new_result_says_what_ran_where(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "peak_memory_bytes", lambda: 123)
    monkeypatch.setattr(sys, "argv", ["unlearn-eval", "demo", "--seed", "3"])
    made = Result.new("demo", NOW, device="cpu", peak="peak memory so far", notes=("one",), seed=3, model={"id": "a"})
    by_hand = Result(
        kind="demo",
        status="complete",
        created=NOW,
        command=["unlearn-eval", "demo", "--seed", "3"],
        model={"id": "a"},
        provenance=provenance("cpu"),
        seed=3,
        notes=["one", "peak memory so far 123 bytes"],
    )
    texts = [write_result(own, tmp_path / f"{i}.json").read_text() for i, own in enumerate((made, by_hand))]
    assert texts[0] == texts[1]
    failed = Result.new("evaluation", NOW, command=("run", "study"), status="failed", notes=["ValueError: x"])
    assert (failed.status, failed.command, failed.notes) == ("failed", ["run", "study"], ["ValueError: x"])
    assert failed.provenance["platform"] == provenance()["platform"]


def test_a_part_leaves_command_and_provenance_to_the_whole():
    part = Result.part("attack", NOW, timing={"evaluation_seconds": 1.0}, notes=("one",))
    assert part == Result("attack", "complete", NOW, timing={"evaluation_seconds": 1.0}, notes=["one"])
    assert (part.command, part.provenance) == ([], {})
    with pytest.raises(ValueError, match="_seconds"):
        Result.new("attack", NOW, timing={"minutes": 1.0})
