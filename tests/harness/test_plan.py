"""What a plain `lm_eval --model edited` asks: what the edit forgot, unless the run says what is forgotten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_data import write_benchmarks
from lm_eval_runs import TASKS, evaluate, hf
from tofu_files import write_tofu

from unlearn_eval.data.forget_sets import load_forget_set, parts_of
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.harness.models import EditedLM
from unlearn_eval.harness.plan import EvalPlan, is_given, plan_metadata
from unlearn_eval.models.load import load_model
from unlearn_eval.runs.edit import make_edit
from unlearn_eval.utils.errors import UserError

SHORT = {"gen_kwargs": {"max_gen_toks": 4}}


@pytest.fixture
def data(tmp_path, monkeypatch):
    write_tofu(write_benchmarks(tmp_path / "data"))
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("unlearn_eval.harness.tofu.RESAMPLES", 20)
    return tmp_path / "data"


def save_edit(base, folder, name, chat=True, ids=None):
    loaded = load_model(str(base), "float32", "cpu")
    items = load_forget_set(name)
    items = items if ids is None else items.select(ids)
    made = make_edit(loaded, items, "ultraedit", {"layers": "1"}, Recipe(chat=chat, n_contexts=0))
    return made.save(folder, loaded.tokenizer, loaded.model.config)


@pytest.fixture
def edit(tiny_folder, data, tmp_path):
    return save_edit(tiny_folder(), tmp_path / "edit", "tofu:forget05")


# The command -----------------------------------------------------------------------------------------------


@pytest.mark.slow  # its name is looked for among all of lm-eval's tasks
def test_the_plain_lm_eval_command_asks_what_the_edit_forgot(tiny_folder, edit, data, tmp_path):
    arguments = f"pretrained={tiny_folder()},edit={edit},dtype=float32"
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "edited",
        "--model_args",
        arguments,
        "--device",
        "cpu",
    ]
    command += ["--tasks", "unlearn_tofu,unlearn_leak_at_k", "--metadata", '{"samples": 1}', "--log_samples"]
    command += ["--gen_kwargs", "max_gen_toks=4", "--output_path", "out", "--batch_size", "8"]
    here = os.environ | {"UNLEARN_EVAL_DATA": str(data), "UNLEARN_EVAL_ENCODER": "off", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for task in ("unlearn_tofu", "unlearn_leak_at_k"):
        assert f"{task}: asking the 3 facts that {edit} forgot, as a chat" in done.stderr
        (path,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        asked = [sample for sample in samples if sample["doc"]["split"] == "forget"]
        assert {s["doc"]["id"].removeprefix("forget/forget/") for s in asked} in (
            {"0", "1", "2"},
            {f"forget/{i}" for i in range(3)},
        )
        for sample in samples:
            assert "<|im_start|>user" in json.dumps(sample["arguments"])


# In Python -------------------------------------------------------------------------------------------------


def asked(lm, task, edit, **metadata):
    """The result of a task as lm-eval's own command runs it: the model's arguments are among the metadata."""
    result = evaluate(lm, task, {"edit": str(edit), **metadata}, **SHORT)
    samples = result["samples"][task]
    forgotten = [s["doc"]["id"] for s in samples if s["doc"]["split"] == "forget"]
    return sorted(forgotten), [arguments[0] for s in samples for arguments in s["arguments"]]


@pytest.fixture
def lm(tiny_folder, edit):
    return EditedLM(str(tiny_folder()), str(edit), device="cpu", batch_size=8, dtype="float32")


def test_a_run_that_says_what_is_forgotten_is_left_as_it_is(lm, edit, capsys):
    forgotten, prompts = asked(lm, "unlearn_tofu", edit)
    assert forgotten == ["forget/0", "forget/1", "forget/2"]
    assert all("<|im_start|>user" in prompt for prompt in prompts)
    assert "asking the 3 facts" in capsys.readouterr().err
    forgotten, prompts = asked(lm, "unlearn_tofu", edit, forget_split="forget01")
    assert forgotten == ["forget/0", "forget/1"]
    assert not any("<|im_start|>" in prompt for prompt in prompts)
    assert capsys.readouterr().err.count("forgot,") == 0
    _, prompts = asked(lm, "unlearn_tofu", edit, chat=False)
    assert not any("<|im_start|>" in prompt for prompt in prompts)
    forgotten, _ = asked(lm, "unlearn_leak_at_k", edit, samples=1, forget=["capital_of/france"])
    assert forgotten == ["forget/capital_of/france"]


def test_the_unedited_model_can_be_asked_the_same(tiny, tokenizer, lm, edit):
    same = [asked(one, "unlearn_leak_at_k", edit, samples=1) for one in (lm, hf(tiny("llama"), tokenizer))]
    assert same[0] == same[1]
    assert same[0][0] == [f"forget/forget/{i}" for i in range(3)]


def test_an_edit_made_without_a_template_is_asked_without(tiny_folder, data, tmp_path, lm):
    plain = save_edit(tiny_folder(), tmp_path / "plain", "tofu:forget05", chat=False)
    forgotten, prompts = asked(lm, "unlearn_tofu", plain)
    assert forgotten == ["forget/0", "forget/1", "forget/2"]
    assert all(prompt.endswith("\nAnswer:") for prompt in prompts)


def test_as_made_is_as_with_lm_eval_s_own_template(lm, edit):
    """The template of the edit's folder and that of the model give the same prompts and the same numbers."""
    as_made = evaluate(lm, "unlearn_leak_at_k", {"edit": str(edit), "samples": 1, "seed": 3}, **SHORT)
    told = {"forget": "tofu:forget05", "samples": 1, "seed": 3}
    by_option = evaluate(lm, "unlearn_leak_at_k", told, apply_chat_template=True, **SHORT)
    one, other = (
        [(s["doc"], [arguments[0] for arguments in s["arguments"]]) for s in result["samples"]["unlearn_leak_at_k"]]
        for result in (as_made, by_option)
    )
    assert one == other


# Plans -----------------------------------------------------------------------------------------------------


def test_plans_say_what_a_task_asks(edit, data):
    plan = EvalPlan.from_edit(edit, "unlearn_tofu")
    assert (plan.metadata, plan.n, plan.chat, plan.reason) == ({"forget_split": "forget05"}, 3, True, None)
    assert EvalPlan.from_edit(edit, "unlearn_tofu_forget05").metadata == {}
    other = EvalPlan.from_edit(str(edit), "unlearn_tofu_forget01")
    assert other.reason == "it asks tofu:forget01, not tofu:forget05"
    assert other.line.startswith("unlearn_tofu_forget01 is asked as without an edit: ")
    assert EvalPlan.from_edit(edit, "unlearn_forms").metadata == {"forget": "tofu:forget05"}
    assert EvalPlan.from_edit(edit, "arc_easy").reason == "it cannot be given a forget set"
    with pytest.raises(UserError, match="is not an edit"):
        EvalPlan.from_edit(data, "unlearn_tofu")


def test_a_split_of_which_only_a_part_was_forgotten_is_asked_whole_and_says_so(tiny_folder, data, tmp_path):
    some = save_edit(tiny_folder(), tmp_path / "some", "tofu:forget05", ids=["forget/1"])
    plan = EvalPlan.from_edit(some, "unlearn_tofu_forget05")
    assert plan.line == (
        f"unlearn_tofu_forget05: asking the 1 fact that {some} forgot and all others of tofu:forget05, as a chat"
    )
    assert EvalPlan.from_edit(some, "unlearn_forms").metadata == {
        "forget": {"set": "tofu:forget05", "ids": ["forget/1"]}
    }


def test_metadata_are_those_of_the_plan_under_those_of_the_run(edit, capsys):
    assert plan_metadata("unlearn_tofu", {}) == {}
    assert plan_metadata("arc_easy", {"edit": str(edit)}) == {"edit": str(edit)}
    told = plan_metadata("unlearn_tofu", {"edit": str(edit), "compat": "openunlearning"})
    assert told == {"chat": True, "edit": str(edit), "compat": "openunlearning", "forget_split": "forget05"}
    assert capsys.readouterr().err.count("\n") == 1
    for key in ("forget", "split", "task", "ids", "forget_split"):
        assert is_given({key: "x"})
    assert not is_given({"retain": ["x"], "edit": "x", "forget": None})


def test_the_yaml_of_every_task_leaves_the_plan_its_place():
    """A key in a YAML that says what is forgotten would always win over an edit's, so only fixed splits have one."""
    import yaml

    for path in Path(TASKS).glob("*/unlearn_*.yaml"):
        content = yaml.load(path.read_text().replace("!function ", ""), Loader=yaml.SafeLoader)
        fixed = "_forget0" in path.stem
        assert is_given(content.get("metadata") or {}) is fixed, path.stem


def test_parts_of_sets(data):
    first, second = parts_of([{"set": "tofu:forget05", "ids": ["forget/2", "forget/0"]}, {"set": "pistol:A_B"}])
    assert [item.id for item in first] == ["forget/2", "forget/0"]
    assert [item.id for item in second] == ["pistol/A_B/0", "pistol/A_B/1"]
    assert [parts_of(wanted) for wanted in (None, "facts", ["capital_of/france"], [], 3)] == [None] * 5
    with pytest.raises(UserError, match="names no forget set"):
        parts_of({"ids": ["x"]})
    with pytest.raises(UserError, match="unknown id in the set 'tofu:forget05'"):
        parts_of({"set": "tofu:forget05", "ids": ["x"]})


def test_where_nothing_is_kept_there_is_no_headline():
    from unlearn_eval.harness.answers import alignment_metrics
    from unlearn_eval.harness.task import Absent

    table = alignment_metrics("forget", [])
    assert table["refusal_headline"] == Absent("nothing is asked that is to be kept", True)
    assert table.keys() < alignment_metrics("forget", ["retain"]).keys()
