"""The ten unrelated questions: what is asked, what an edit did to the answers, and where it is said."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from tiny_models import (
    assert_untouched,
    one_thread,  # noqa: F401
    tiny_model,
    tiny_tokenizer,
    weights_of,
)
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.editing.editor import get_editor
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.runs.edit import make_edit
from unlearn_eval.runs.unrelated import MAX_NEW_TOKENS, QUESTIONS, ask_unrelated

FORGET = ForgetSet("one", (ForgetItem("a", "What is the capital of France?", "Paris", subject="France"),))
GRACE = {"layers": "2", "steps": "2"}


@pytest.fixture
def loaded():
    return LoadedModel(tiny_model("llama"), tiny_tokenizer(), "tiny", None, "test")


def noise(model, size):
    """An edit that adds noise to one projection."""
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.1.mlp.down_proj"
    d_out, d_in = model.get_submodule(name).weight.shape
    u, v = (size * torch.randn(shape, generator=generator) for shape in ((d_out, 4), (4, d_in)))
    return LowRankEdit({name: (u, v)}, EditInfo("noise", {}))


def test_the_questions_are_ten_that_no_shipped_fact_is():
    assert len(QUESTIONS) == len({question for question, _ in QUESTIONS}) == 10
    assert all(accepted for _, accepted in QUESTIONS)
    known = {text for item in facts() for text in (item.question, *item.paraphrases)}
    assert not known & {question for question, _ in QUESTIONS}


def test_an_edit_that_changes_nothing_changes_no_answer(loaded):
    before = weights_of(loaded.model)
    found = ask_unrelated(loaded, loaded.prompt_format(False), noise(loaded.model, 0.0))
    assert (found.n, found.changed, found.worse) == (10, 0, 0)
    assert_untouched(loaded.model, before)


def test_noise_changes_answers(loaded):
    found = ask_unrelated(loaded, loaded.prompt_format(None), noise(loaded.model, 1.0))
    assert found.changed >= 5


def test_the_model_as_it_is_is_asked_once_and_again_after_a_change(loaded, monkeypatch):
    from unlearn_eval.runs import unrelated

    asked, write = [], unrelated.written
    monkeypatch.setattr(unrelated, "written", lambda *given: asked.append(1) or write(*given))
    prompt_format = loaded.prompt_format(False)
    first = ask_unrelated(loaded, prompt_format, noise(loaded.model, 1.0))
    assert ask_unrelated(loaded, prompt_format, noise(loaded.model, 1.0)) == first
    assert len(asked) == 3, "before once, after twice"
    ask_unrelated(loaded, loaded.prompt_format(True), noise(loaded.model, 1.0))
    assert len(asked) == 5, "another format is another prompt"
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(2)
    ask_unrelated(loaded, prompt_format, noise(loaded.model, 1.0))
    assert len(asked) == 7, "and so are other weights"


def test_what_is_to_be_forgotten_is_not_asked(loaded):
    prompt_format = loaded.prompt_format(False)
    questions = [question for question, _ in QUESTIONS]
    assert ask_unrelated(loaded, prompt_format, noise(loaded.model, 0.0), questions[:3]).n == 7
    assert ask_unrelated(loaded, prompt_format, noise(loaded.model, 0.0), questions) is None


def test_a_refusal_of_everything_is_found(loaded, monkeypatch):
    """The answers of the model are replaced: the counts are of those, before and after."""
    from unlearn_eval.runs import unrelated

    answers = iter([["It is 5."] + ["Blue."] * 9, ["I don't have any information about that."] * 10])
    monkeypatch.setattr(unrelated, "_answers", lambda *given: next(answers))
    found = ask_unrelated(loaded, loaded.prompt_format(False), noise(loaded.model, 0.0))
    assert (found.refused_before, found.refused, found.right_before, found.right, found.worse) == (0, 10, 2, 0, 10)


def test_it_is_kept_in_the_edit_and_can_be_left_out(loaded, tmp_path):
    edit = make_edit(loaded, FORGET, "grace", GRACE, Recipe(n_contexts=0))
    unrelated = edit.info.self_check.unrelated
    assert unrelated["n"] == 10
    assert unrelated["changed"] == 0  # a codebook with a radius of 1 answers its own prompt alone
    again = load_edit(edit.save(tmp_path / "edit"))
    assert again.info.self_check.unrelated == unrelated
    assert (
        json.loads((tmp_path / "edit" / "edit.json").read_text())["info"]["notes"]["self_check"]["unrelated"]
        == unrelated
    )
    without = make_edit(loaded, FORGET, "grace", GRACE, Recipe(n_contexts=0), unrelated=False)
    assert "unrelated" not in without.info.notes["self_check"]
    assert without.info.self_check.n == edit.info.self_check.n == 1


def test_answers_are_short(loaded, monkeypatch):
    lengths = []
    generate = loaded.model.generate
    monkeypatch.setattr(loaded.model, "generate", lambda **given: lengths.append(given) or generate(**given))
    ask_unrelated(loaded, loaded.prompt_format(None), noise(loaded.model, 0.0))
    assert [given["max_new_tokens"] for given in lengths] == [MAX_NEW_TOKENS] * 2
    assert [len(given["input_ids"]) for given in lengths] == [10, 10]  # one batch each


DAMAGED = {"n": 10, "refused_before": 0, "refused": 9, "repeats_before": 0, "repeats": 1, "right_before": 7, "right": 0}
DAMAGED |= {"changed": 10, "worse": 10}


HINTS = [
    ("memit", ["layers=...", "target.steps=...", "preservation=..."], []),
    ("notes", ["calibrate=true", "note=...", "gate=..."], ["layers", "steps", "preset"]),
    ("grace", ["layers=...", "--set steps=...", "calibrate=true"], ["target.steps", "preservation"]),
]


@pytest.mark.parametrize(("editor", "said", "silent"), HINTS)
def test_a_hint_names_settings_that_the_editor_has(editor, said, silent, loaded, capsys):
    notes = {"self_check": {"n": 8, "n_took": 0, "target_probability_before": 0.1, "target_probability_after": 0.1}}
    config = asdict(get_editor(editor).Config())
    edit = noise(loaded.model, 0.0)
    cli._tell(replace(edit, info=replace(edit.info, notes=notes | {"preset": None}, config=config)))
    hint = capsys.readouterr().err.split("hint: ")[1]
    assert all(text in hint for text in said)
    assert not any(text in hint for text in silent)


@pytest.mark.parametrize(
    ("editor", "retain", "hinted"), [("memit", None, True), ("memit", "facts", False), ("grace", None, False)]
)
def test_a_harmful_edit_of_second_moments_is_told_to_retain(editor, retain, hinted, loaded, capsys):
    notes = {"self_check": {"n": 8, "n_took": 8, "target_probability_before": 0.1, "target_probability_after": 0.9}}
    notes["self_check"]["unrelated"] = DAMAGED
    edit = noise(loaded.model, 0.0)
    info = replace(edit.info, notes=notes | {"preset": None}, config=asdict(get_editor(editor).Config()))
    cli._tell(replace(edit, info=replace(info, requests=replace(info.requests, retain_set=retain))))
    assert ("--retain facts" in capsys.readouterr().err) == hinted


@pytest.mark.parametrize(
    ("check", "said", "silent"),
    [
        (
            {"n_took": 8, "unrelated": DAMAGED},
            ["8 of 8", "9 refused (0 before)", "warning: the edit did harm"],
            "hint:",
        ),
        ({"n_took": 0}, ["0 of 8", "warning: the edit did not take: 0 of 8", "hint:"], "unrelated questions"),
        ({"n_took": 8}, ["8 of 8"], "warning"),
    ],
)
def test_what_edit_and_inspect_say(check, said, silent, loaded, tmp_path, capsys):
    probabilities = {"target_probability_before": 0.1, "target_probability_after": 0.9}
    notes = {"self_check": {"n": 8, **probabilities, **check}, "preset": None}
    edit = noise(loaded.model, 0.0)
    edit = replace(edit, info=replace(edit.info, notes=notes))
    cli._tell(edit)
    told = capsys.readouterr().err
    assert all(text in told for text in said)
    assert silent not in told
    shown = " ".join(CliRunner().invoke(cli.app, ["inspect", str(edit.save(tmp_path / "e"))]).output.split())
    assert all(text.removeprefix("warning: ") in shown for text in said if text != "hint:")
