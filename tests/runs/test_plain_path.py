"""The plain path measures what was edited: for every family, from the command that `edit` prints to the items asked."""

import json
import shlex

import pytest
from benchmark_data import write_benchmarks
from tofu_files import write_tofu
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.edits.load import load_edit
from unlearn_eval.results.files import read_result, read_samples

OWN = [
    {"id": "lake", "question": "Which lake lies north of Imber?", "answer": "Lake Orsa", "subject": "Imber"},
    {"id": "mayor", "question": "Who was mayor of Imber?", "answer": "Ada Brook", "cloze": "The mayor of Imber was"},
]
SETS = {  # a forget set, the items of it that are forgotten -> the task that the printed command asks
    ("tofu:forget01", None): "unlearn_tofu_forget01",
    ("tofu:forget05", None): "unlearn_tofu_forget05",
    ("tofu:forget10", None): "unlearn_tofu",
    ("tofu:factual", "real_authors/1,world_facts/0"): "unlearn_factual",
    ("pistol:A_B", None): "unlearn_pistol",
    ("pistol:A_C", "pistol/A_C/1"): "unlearn_pistol",
    ("lume:personal", None): "unlearn_lume",
    ("lume:all", "lume/fTask10sc1,lume/fTask30qa0"): "unlearn_lume",
    ("knowundo:all", "knowundo/forget_train/1,knowundo/forget_val/0"): "unlearn_knowundo",
    ("rwku:Ada Brook", None): "unlearn_rwku",
    ("rwku:all", "rwku/forget_level1/1"): "unlearn_rwku",
    ("counterfact:1", None): "unlearn_counterfact",
    ("counterfact:2", "counterfact/1"): "unlearn_counterfact",
    ("zsre:2", None): "unlearn_zsre",
    ("sports:tennis", None): "unlearn_sports",
    ("sports:all", "sports/Milo Fenn"): "unlearn_sports",
    ("mine.jsonl", None): "unlearn_forms",
    ("mine.jsonl", "mayor"): "unlearn_forms",
}
ANY = ("unlearn_forms", "unlearn_leak_at_k")
FAST = ("--editor", "ultraedit", "--set", "layers=1", "--contexts", "0")
SHORT = ("--gen_kwargs", "max_gen_toks=4")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a file of a user's own, and the invented data of every benchmark elsewhere."""
    write_tofu(write_benchmarks(tmp_path / "data"))
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("unlearn_eval.harness.tofu.RESAMPLES", 20)
    monkeypatch.delenv("UNLEARN_EVAL_RETAIN_REFERENCE", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work" / "mine.jsonl").write_text("".join(json.dumps(record) + "\n" for record in OWN))
    return tmp_path / "work"


def ours(*words):
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output[-2000:], done.exception)
    return done


def edited(folder, model, forget, ids=None, *options):
    chosen = ("--ids", ids) if ids else ()
    return ours("edit", "-m", model, "-f", forget, *chosen, "-o", folder, "--device", "cpu", *FAST, *options)


def printed(done):
    """The command that `edit` prints at its end."""
    (line,) = [line.strip() for line in done.stderr.splitlines() if line.strip().startswith("unlearn-eval eval")]
    return shlex.split(line)[1:]


def last_result(folder="results/scratch"):
    from pathlib import Path

    return max(Path(folder).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)


def forgotten(path, task):
    """Ids of what a result asks as forgotten, without attacks, generations and texts, which are no items."""
    documents = [sample["doc"] for sample in read_samples(path, task)]
    attacks = ("forget_attack", "forget_generation", "forget_texts")
    return [d["id"] for d in documents if d["split"].startswith("forget") and not d["split"].startswith(attacks)]


def prompts(path, task):
    return [arguments[0] for sample in read_samples(path, task) for arguments in sample["arguments"]]


def bare(ids, prefix):
    """Ids without the name of their split or of their set."""
    return sorted(key.removeprefix(f"{prefix}/").removeprefix("forget/") for key in ids)


# Every family ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("forget", "ids"), SETS, ids=lambda part: str(part)[:16])
def test_the_printed_command_asks_exactly_what_was_forgotten(workplace, tiny_folder, forget, ids):
    command = printed(edited("edit", tiny_folder(), forget, ids))
    task = SETS[forget, ids]
    assert command[command.index("--tasks") + 1] == task
    done = ours(*command)  # as it is printed
    info = load_edit("edit").info
    items = info.requests["ids"]
    n = f"{len(items)} fact{'s' * (len(items) > 1)}"
    assert f"{task}: asking the {n} that edit forgot, as a chat" in done.stderr
    path, prefix = last_result(), forget.partition(":")[0]
    assert bare(forgotten(path, task), prefix) == bare(items, prefix)
    assert all("<|im_start|>user" in prompt for prompt in prompts(path, task) if prompt), "asked as it was edited"
    assert read_result(path).config["tasks"][task]["metadata"]["edit"] == "edit"


@pytest.mark.parametrize("task", ANY)
@pytest.mark.parametrize(
    ("forget", "ids"),
    [("tofu:forget01", "forget/1"), ("rwku:Ada Brook", None), ("mine.jsonl", "mayor"), ("facts", "capital_of/france")],
)
def test_tasks_on_any_set_ask_exactly_what_was_forgotten(workplace, tiny_folder, task, forget, ids):
    edited("edit", tiny_folder(), forget, ids)
    metadata = '{"samples": 2, "forms": ["direct", "cloze"]}'
    common = ("--edit", "edit", "-m", tiny_folder(), "--metadata", metadata, "-o", "after.json", *SHORT)
    done = ours("eval", "--tasks", task, *common)
    items = load_edit("edit").info.requests["ids"]
    assert sorted(forgotten("after.json", task)) == sorted(f"forget/{key}" for key in items)
    assert "that edit forgot, as a chat" in done.stderr
    if (task, forget) == ("unlearn_forms", "mine.jsonl"):
        assert any("The mayor of Imber was" in prompt for prompt in prompts("after.json", task)), "the file's cloze"


def test_utility_goes_by_distance_from_what_was_forgotten(workplace, tiny_folder):
    edited("edit", tiny_folder(), "facts", "capital_of/france,capital_of/italy")
    metadata = ("--metadata", '{"parts": [], "n_per_bin": 1}')
    done = ours("eval", "--edit", "edit", "-m", tiny_folder(), "--tasks", "unlearn_utility", *metadata,
                "-o", "after.json", *SHORT)  # fmt: skip
    assert "unlearn_utility: asking the 2 facts that edit forgot, as a chat" in done.stderr
    found = read_result("after.json").config["tasks"]["unlearn_utility"]["metadata"]
    assert found["forget"] == ["capital_of/france", "capital_of/italy"]
    assert found["asked"]["chat"] is True
    by_split = {sample["doc"]["split"]: sample["doc"]["id"] for sample in read_samples("after.json", "unlearn_utility")}
    assert by_split["same_relation"].startswith("same_relation/capital_of/")


def test_facts_are_those_of_the_edit_and_not_every_eighth(workplace, tiny_folder):
    done = edited("edit", tiny_folder(), "facts", "capital_of/japan,author_of/the_hobbit")
    assert printed(done) == ["eval", "--edit", "edit", "--tasks", "unlearn_facts_quick", "--model", str(tiny_folder()),
                             "--device", "cpu"]  # fmt: skip
    ours(*printed(done), "--limit", "9", *SHORT)
    path = last_result()
    task = "unlearn_facts_quick"
    assert sorted(forgotten(path, task)) == ["forget/author_of/the_hobbit", "forget/capital_of/japan"]
    assert all("<|im_start|>user" in prompt for prompt in prompts(path, task))


# Options override ------------------------------------------------------------------------------------------


def test_explicit_options_override_the_edit(workplace, tiny_folder):
    edited("edit", tiny_folder(), "sports:tennis")
    common = ("eval", "--edit", "edit", "-m", tiny_folder(), "--tasks", "unlearn_sports", "-o", "after.json", *SHORT)
    done = ours(*common, "--metadata", '{"forget": "chess"}')
    assert forgotten("after.json", "unlearn_sports") == ["Milo Fenn"]
    assert "forgot" not in done.stderr
    assert not any("<|im_start|>" in prompt for prompt in prompts("after.json", "unlearn_sports"))
    done = ours(*common, "--no-apply_chat_template")
    assert sorted(forgotten("after.json", "unlearn_sports")) == ["Ada Brook", "Ines Okoro"]
    assert "that edit forgot\n" in done.stderr
    assert not any("<|im_start|>" in prompt for prompt in prompts("after.json", "unlearn_sports"))
    edited("plain", tiny_folder(), "sports:tennis", None, "--no-chat")
    common = ("eval", "--edit", "plain", *common[3:])
    assert ", as a chat" not in ours(*common).stderr
    assert not any("<|im_start|>" in prompt for prompt in prompts("after.json", "unlearn_sports"))
    assert ", as a chat" in ours(*common, "--apply_chat_template").stderr
    assert all("<|im_start|>" in prompt for prompt in prompts("after.json", "unlearn_sports"))


def test_a_task_of_another_benchmark_says_so_and_is_asked_as_before(workplace, tiny_folder):
    edited("edit", tiny_folder(), "sports:tennis")
    common = ("-m", tiny_folder(), "--tasks", "unlearn_pistol,unlearn_sports,unlearn_wmdp", *SHORT)
    done = ours("eval", "--edit", "edit", *common, "-o", "after.json")
    lines = [line.strip() for line in done.stderr.splitlines() if "forgot" in line or "without an edit" in line]
    assert lines == [
        "unlearn_pistol is asked as without an edit: it asks pistol:..., not sports:tennis",
        "unlearn_sports: asking the 2 facts that edit forgot, as a chat",
        "unlearn_wmdp is asked as without an edit: it cannot be given a forget set",
    ]
    ours("eval", *common, "-o", "before.json")
    before, after = (read_result(f"{name}.json").data for name in ("before", "after"))
    for task in ("unlearn_pistol", "unlearn_wmdp"):
        assert before[task]["hash"] == after[task]["hash"]
        assert prompts("before.json", task) == prompts("after.json", task)
    assert not any("<|im_start|>" in prompt for prompt in prompts("after.json", "unlearn_pistol"))
    assert all("<|im_start|>" in prompt for prompt in prompts("after.json", "unlearn_sports"))


# What an edit remembers ------------------------------------------------------------------------------------


def test_a_users_own_file_may_be_gone_or_changed(workplace, tiny_folder):
    edited("edit", tiny_folder(), "mine.jsonl", "mayor")
    assert [json.loads(line)["id"] for line in load_edit("edit").texts["forget.jsonl"].splitlines()] == ["mayor"]
    (workplace / "mine.jsonl").unlink()
    ours("eval", "--edit", "edit", "-m", tiny_folder(), "--tasks", "unlearn_leak_at_k", "--metadata",
         '{"samples": 1}', "-o", "after.json", *SHORT)  # fmt: skip
    assert forgotten("after.json", "unlearn_leak_at_k") == ["forget/mayor"]


def test_a_benchmark_s_items_are_not_copied_into_the_edit(workplace, tiny_folder):
    edited("edit", tiny_folder(), "pistol:A_B")
    edit = load_edit("edit")
    assert "forget.jsonl" not in edit.texts
    (entry,) = edit.info.requests["sets"]
    assert (entry["name"], entry["ids"]) == ("pistol:A_B", ["pistol/A_B/0", "pistol/A_B/1"])
    assert entry["hash"] == edit.info.requests["forget_set_hash"]


def test_an_edit_that_continues_another_forgot_both(workplace, tiny_folder):
    edited("first", tiny_folder(), "pistol:A_B")
    edited("second", tiny_folder(), "mine.jsonl", "lake", "--continue", "first")
    edited("third", tiny_folder(), "pistol:A_C", None, "--continue", "second")
    done = ours("eval", "--edit", "third", "-m", tiny_folder(), "--tasks", "unlearn_pistol,unlearn_leak_at_k",
                "--metadata", '{"samples": 1}', "-o", "after.json", *SHORT)  # fmt: skip
    pistol = ["A_B/0", "A_B/1", "A_C/0", "A_C/1"]
    assert sorted(forgotten("after.json", "unlearn_pistol")) == pistol
    everything = sorted(["forget/lake", *(f"forget/pistol/{key}" for key in pistol)])
    assert sorted(forgotten("after.json", "unlearn_leak_at_k")) == everything
    assert "unlearn_pistol: asking 4 of the 5 facts that third forgot, as a chat" in done.stderr
    assert "unlearn_leak_at_k: asking the 5 facts that third forgot, as a chat" in done.stderr


def test_edits_from_before_remember_their_set(workplace, tiny_folder):
    """`edit.json` without `sets`, as it was written until now."""
    edited("edit", tiny_folder(), "sports:tennis")
    path = workplace / "edit" / "edit.json"
    content = json.loads(path.read_text())
    del content["info"]["requests"]["sets"]
    path.write_text(json.dumps(content))
    common = ("eval", "--edit", "edit", "-m", tiny_folder(), "--tasks", "unlearn_sports", "-o", "after.json", *SHORT)
    assert "asking the 2 facts that edit forgot, as a chat" in ours(*common).stderr
    assert sorted(forgotten("after.json", "unlearn_sports")) == ["Ada Brook", "Ines Okoro"]
    del content["info"]["requests"]["target"]  # as of a model that was fine-tuned on the set
    path.write_text(json.dumps(content))
    assert "edit does not say what was forgotten" in ours(*common).stderr


def test_data_that_are_not_there_or_have_changed_are_said(workplace, tiny_folder):
    edited("edit", tiny_folder(), "pistol:A_B")
    common = ("eval", "--edit", "edit", "-m", tiny_folder(), "--tasks", "unlearn_pistol", "-o", "after.json", *SHORT)
    path = workplace.parent / "data" / "pistol" / "sample_data_1.json"
    path.write_text(path.read_text().replace("bricks", "hats"))
    done = ours(*common)
    assert "is asked as without an edit: the items that edit forgot are no longer in pistol:A_B" in done.stderr
    path.unlink()
    done = CliRunner().invoke(cli.app, [str(word) for word in common])
    assert "no PISTOL data" in done.stderr
    assert done.exit_code == 1


def test_an_edit_that_forgot_everything_leaves_nothing_to_retain(workplace, tiny_folder):
    edited("edit", tiny_folder(), "zsre:all")
    command = ("eval", "--edit", "edit", "-m", tiny_folder(), "--tasks", "unlearn_zsre", "-o", "after.json", *SHORT)
    ours(*command)
    result = read_result("after.json")
    assert sorted(forgotten("after.json", "unlearn_zsre")) == ["0", "1", "2", "3"]
    assert "retain_accuracy" not in result.metrics["unlearn_zsre"]
    assert result.metrics["unlearn_zsre"]["forget_accuracy"].n == 4


# Before and after ------------------------------------------------------------------------------------------


def test_before_and_after_are_one_command(workplace, tiny_folder):
    edited("edit", tiny_folder(), "sports:tennis")
    common = ("--edit", "edit", "-m", tiny_folder(), "--tasks", "unlearn_sports", *SHORT)
    done = ours("eval", *common, "--baseline", "-o", "out/after.json")
    before, after = read_result("out/after.baseline.json"), read_result("out/after.json")
    assert before.edit is None
    assert after.edit["folder"] == "edit"
    assert after.edit["base"]["canonical_hash"] == before.model["canonical_weights_hash"]
    assert before.model["weights_hash"] != after.model["weights_hash"]
    assert before.data == after.data
    assert prompts(before.path, "unlearn_sports") == prompts(after.path, "unlearn_sports")
    assert "forget_accuracy" in done.stdout
    assert "paired test" in done.stdout
    assert done.stderr.count("asking the 2 facts that edit forgot, as a chat") == 1
    ours("eval", *common, "--baseline")
    assert len(list((workplace / "results" / "scratch").glob("*.json"))) == 2
    refused = CliRunner().invoke(cli.app, ["eval", "-m", str(tiny_folder()), "-t", "unlearn_sports", "--baseline"])
    assert "give the edit: --edit DIR" in str(refused.exception)


def test_the_printed_command_has_the_options_that_are_needed(workplace, tiny_folder):
    done = edited("my edit", tiny_folder(), "sports:tennis", None, "--dtype", "bfloat16")
    command = printed(done)
    assert command[command.index("--edit") + 1] == "my edit"
    assert command[command.index("--model_args") + 1] == "dtype=bfloat16"
    ours(*command)
    assert read_result(last_result()).model["dtype"] == "bfloat16"
