"""The prompt of an edit is the prompt of its evaluation: template arguments and the system message go with the edit."""

import json

import pytest
from chat_templates import REFUSES_SYSTEM, THINKS
from typer.testing import CliRunner

from unlearn_eval.attacks.run import AttackConfig, _format_for
from unlearn_eval.cli import app as cli
from unlearn_eval.cli.options import template_arguments_of
from unlearn_eval.edits.load import load_edit
from unlearn_eval.harness.plan import edit_arguments, given_arguments
from unlearn_eval.models.load import load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.results.files import read_result, read_samples
from unlearn_eval.utils.errors import UserError

ITEMS = [
    {"id": "lake", "question": "Which lake lies north of Imber?", "answer": "Lake Orsa", "subject": "Imber"},
    {"id": "fenn", "question": "Who built the bridge of Tarn?", "answer": "Milo Fenn", "subject": "Tarn"},
]
GRACE = ("--editor", "grace", "--set", "layers=2", "--set", "steps=2", "--contexts", "0")
SHORT = ("--gen_kwargs", "max_gen_toks=2", "--limit", "2")
OFF = ("--chat_template_kwargs", "enable_thinking=false")
EMPTY = "<think>\n\n</think>\n\n"
TASK = ("--tasks", "unlearn_thinking", "--metadata", '{"retain": ["capital_of/italy"], "edit": "EDIT"}')


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_folder):
    """A folder with a forget set, and a tiny model whose template thinks."""
    import shutil

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    shutil.copytree(tiny_folder(), tmp_path / "model")
    set_template(tmp_path / "model", THINKS)
    return tmp_path


def set_template(folder, template):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def ours(*words):
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output[-2000:], done.exception)
    return done


def refused(*words):
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 1
    return str(done.exception)


def edited(*options, output="edit"):
    return ours("edit", "-m", "model", "-f", "mine.jsonl", "-o", output, "--device", "cpu", *GRACE, *options)


def evaluated(*options, edit="edit"):
    task = [word.replace("EDIT", edit) for word in TASK]
    done = ours("eval", "-m", "model", "--edit", edit, *task, "-o", "after.json", *SHORT, *options)
    samples = read_samples("after.json", "unlearn_thinking")
    return done, [arguments[0] for s in samples for arguments in s["arguments"]]


# Commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "record", "prompt"),
    [
        ((), {}, "<|im_start|>assistant\n"),
        (OFF, {"chat_template_kwargs": {"enable_thinking": False}}, f"<|im_start|>assistant\n{EMPTY}"),
        (("--system_instruction", "Be brief."), {"system": "Be brief."}, "<|im_start|>assistant\n"),
        (("--no-chat", "--system_instruction", "Be brief."), {"system": "Be brief."}, "\nAnswer:"),
    ],
)
def test_an_edit_keeps_its_prompt_and_the_plain_path_evaluates_with_it(place, options, record, prompt):
    edited(*options)
    requests = load_edit("edit").info.requests
    known = {key: requests[key] for key in ("chat_template_kwargs", "system") if key in requests}
    assert known == record
    done, prompts = evaluated()
    assert all(own.endswith((prompt, prompt + EMPTY)) or "thought" in own for own in prompts)
    for own in prompts:
        assert own.count("Be brief.") == ("system" in record)
    assert "the edit was made with" not in done.stderr
    if "chat_template_kwargs" in record:
        assert "as a chat with enable_thinking=False" in done.stderr


def test_a_memory_answers_in_the_edit_s_own_prompt_and_a_difference_is_said(place):
    edited(*OFF)
    with_args = ours("inspect", "edit", "--ask", ITEMS[0]["question"], "-m", "model", "--json")
    other = ours("inspect", "edit", "--ask", ITEMS[0]["question"], "-m", "model", "--json",
                 "--chat_template_kwargs", "enable_thinking=true")  # fmt: skip
    assert json.loads(with_args.stdout)["chat_template_kwargs"] == {"enable_thinking": False}
    assert json.loads(with_args.stdout)["n_tokens"] > json.loads(other.stdout)["n_tokens"]
    done, prompts = evaluated("--chat_template_kwargs", '{"enable_thinking": true}')
    assert "asked with enable_thinking=True (the edit was made with enable_thinking=False)" in done.stderr
    assert not any(own.endswith("assistant\n" + EMPTY + EMPTY) for own in prompts)
    assert any(own.endswith("assistant\n") for own in prompts)
    done, _ = evaluated("--system_instruction", "Sing.")
    assert "another system message than the edit's (none)" in done.stderr
    saved = read_result("after.json")
    assert saved.config_as_passed["system_instruction"] == "Sing."
    done, prompts = evaluated("--apply_chat_template")  # asked as a chat, with the edit's own arguments
    assert all(own.endswith(EMPTY) for own in prompts)
    base = ours("eval", "-m", "model", "--tasks", "unlearn_thinking", "--metadata", '{"edit": "edit"}', *SHORT,
                "--apply_chat_template", "-o", "base.json")  # fmt: skip
    assert "as a chat with enable_thinking=False" in base.stderr
    assert read_result("base.json").config["model_args"]["chat_template_args"] == {"enable_thinking": False}


def test_an_edit_is_continued_in_its_own_format(place):
    edited(*OFF, "--ids", "lake", output="first")
    more = ("edit", "-m", "model", "-f", "mine.jsonl", "--device", "cpu", *GRACE, "--ids", "fenn", "-o", "second")
    ours(*more, "--continue", "first")
    assert load_edit("second").info.requests["chat_template_kwargs"] == {"enable_thinking": False}
    assert "the earlier edit's prompts have the format" in refused(
        *more, "--continue", "first", "--chat_template_kwargs", "enable_thinking=true"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("edit", "-o", "e", "-f", "mine.jsonl", "--chat_template_kwargs", "enable_thoughts=1"), "does not read"),
        (("edit", "-o", "e", "-f", "mine.jsonl", "--no-chat", *OFF), "prompts go through none"),
        (("edit", "-o", "e", "-f", "mine.jsonl", "--chat_template_kwargs", "enable_thinking"), "neither NAME=VALUE"),
        (("targets", "-o", "t.jsonl", "-f", "mine.jsonl", "--chat_template_kwargs", "x=1"), "does not read 'x'"),
        (("finetune", "-o", "f", "--on", "mine.jsonl", "--chat_template_kwargs", "x=1"), "does not read 'x'"),
        (("eval", "-t", "unlearn_thinking", *OFF), "prompts go through none"),
        (("eval", "-t", "unlearn_facts", "--num_fewshot", "-1"), "num_fewshot is -1"),
        (("eval", "-t", "unlearn_forms", "--num_fewshot", "5"), "unlearn_forms takes no examples"),
        (("eval", "-t", "unlearn_facts", "--metadata", '{"forgett": "x"}'), "did you mean forget"),
        (("eval", "-t", "unlearn_facts", "--gen_kwargs", "temperature=0.7"), "temperature has no effect"),
        (("localize", "random", "-o", "c.json", "-f", "mine.jsonl", *OFF), "prompts go through none"),
    ],
)
def test_commands_refuse_what_they_could_not_apply(place, words, message):
    assert message in refused(*words, "-m", "model", "--device", "cpu")


def test_a_model_without_a_system_role_is_edited_and_evaluated_alike(place):
    set_template(place / "model", REFUSES_SYSTEM)
    edited("--system_instruction", "Be brief.")
    _, prompts = evaluated()
    asked = [own for own in prompts if "north of Imber" in own or "bridge of Tarn" in own]
    assert asked
    assert all("<|im_start|>user\nBe brief.\n\nW" in own for own in asked)
    loaded = load_model("model", "float32", "cpu")
    made = PromptFormat.of_edit(load_edit("edit").info, loaded.tokenizer)
    assert made.render(ITEMS[0]["question"]) in prompts


def test_a_retain_set_that_training_would_not_use_is_refused(place):
    words = ("edit", "-o", "e", "-f", "mine.jsonl", "-m", "model", "--device", "cpu", "--editor", "npo")
    assert "npo retains nothing with these settings" in refused(
        *words, "--retain", "facts", "--set", "retain_term=none"
    )


def test_a_server_of_an_edit_names_the_edit_s_arguments_as_its_default(place, monkeypatch):
    from unlearn_eval.serving import start

    for name in ("check_vllm", "check_architecture"):
        monkeypatch.setattr(start, name, lambda *_: None)
    monkeypatch.setattr(start, "resolve_model", lambda name: name)
    edited(*OFF)
    command = start.server_command("edit", "model")
    assert json.loads(command[command.index("--default-chat-template-kwargs") + 1]) == {"enable_thinking": False}
    given = ("--default-chat-template-kwargs", "{}")
    assert start.server_command("edit", "model", more=given).count(given[0]) == 1
    edited(output="plain")
    assert "--default-chat-template-kwargs" not in start.server_command("plain", "model")


# Parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", {}),
        ("enable_thinking=false", {"enable_thinking": False}),
        ("enable_thinking=False", {"enable_thinking": False}),
        ("enable_thinking=TRUE", {"enable_thinking": "TRUE"}),
        ("a=1,b=x y, c=0.5", {"a": 1, "b": "x y", "c": 0.5}),
        ("a=None", {"a": None}),
        ('{"a": [1, 2], "b": {"c": true}}', {"a": [1, 2], "b": {"c": True}}),
        ("date=2024-01-01", {"date": "2024-01-01"}),
        ("a=b=c", {"a": "b=c"}),
    ],
)
def test_arguments_of_a_template_as_text(text, expected):
    assert template_arguments_of(text) == expected


@pytest.mark.parametrize("text", ["thinking", "=1", "{not json}", "a=1,b"])
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match="neither NAME=VALUE"):
        template_arguments_of(text)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"chat_template_args": {"a": 1}}, {"a": 1}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"chat_template_args": {"a": 1}, "enable_thinking": True}, {"a": 1, "enable_thinking": True}),
        ({"chat_template_args": {}}, {}),
    ],
)
def test_arguments_that_a_run_names(metadata, expected):
    assert given_arguments(metadata) == expected


def test_a_model_with_an_edit_takes_the_edit_s_arguments(place):
    from types import SimpleNamespace

    info = SimpleNamespace(requests={"chat_template_kwargs": {"enable_thinking": False}})
    assert edit_arguments(info, {"dtype": "auto"}) == {
        "dtype": "auto",
        "chat_template_args": {"enable_thinking": False},
    }
    assert edit_arguments(info, {"enable_thinking": True}) == {"enable_thinking": True}
    assert edit_arguments(SimpleNamespace(requests={}), {"dtype": "auto"}) == {"dtype": "auto"}


def test_an_attack_asks_with_the_edit_s_arguments_unless_told_otherwise(place):
    from types import SimpleNamespace

    from unlearn_eval.edits.base import EditInfo

    loaded = load_model("model", "float32", "cpu")
    requests = {"chat": True, "system": "Be brief.", "chat_template_kwargs": {"enable_thinking": False}}
    edit = SimpleNamespace(info=EditInfo("grace", {}, requests=requests))
    own = _format_for(AttackConfig("relearn", "e"), edit, loaded)
    assert own.record == requests
    other = AttackConfig("relearn", "e", system="Sing.", chat_template_kwargs={"enable_thinking": True})
    expected = {"chat": True, "system": "Sing.", "chat_template_kwargs": {"enable_thinking": True}}
    assert _format_for(other, edit, loaded).record == expected
    assert _format_for(AttackConfig("relearn", "e", chat=False), edit, loaded).record == {"chat": False}
