"""`evaluate`, `attack`, `localize` and `make_edit` on a model, an edit and questions in memory, and what they leave."""

from pathlib import Path

import pytest
from tiny_models import (
    assert_untouched,
    one_thread,  # noqa: F401
    weights_of,
)

import unlearn_eval as ue
from unlearn_eval.results.files import read_samples
from unlearn_eval.utils.errors import UserError

RECORDS = [
    {"id": "lake", "question": "Which lake lies north of Imber?", "answer": "Lake Orsa", "subject": "Imber"},
    {"id": "fenn", "question": "Who built the bridge of Tarn?", "answer": "Milo Fenn", "subject": "Tarn"},
]
SHORT = {"gen_kwargs": {"max_gen_toks": 2}, "limit": 2}


@pytest.fixture(scope="module")
def base(tiny_folder):
    return ue.load_model(str(tiny_folder()), dtype="float32")


@pytest.fixture(scope="module")
def edit(base):
    options = {"layers": (1,), "steps": 2, "learning_rate": 0.5, "calibrate": False}
    return ue.make_edit(base, ue.load_forget_set(RECORDS), "grace", options, ue.Recipe(n_contexts=0), unrelated=False)


@pytest.fixture(scope="module")
def evaluated(base, edit, tmp_path_factory):
    """The results without and with the edit; the model is as it was after each."""
    place, weights = tmp_path_factory.mktemp("results"), weights_of(base.model)
    metadata = {"forget": ["capital_of/france"], "retain": ["capital_of/italy"], "encoder": "off"}
    found = []
    for name, own in (("before", None), ("after", edit)):
        output = str(place / f"{name}.json")
        found.append(ue.evaluate(base, own, "unlearn_facts", output=output, **SHORT, metadata=metadata))
        assert_untouched(base.model, weights)
    return found


def test_settings_are_values(edit):
    assert edit.info.config["layers"] == [1]
    assert (edit.info.config["learning_rate"], edit.info.config["calibrate"]) == (0.5, False)


def test_results_are_written_and_compared(base, evaluated):
    before, after = evaluated
    assert before.edit is None
    assert (after.edit["editor"], after.edit["folder"]) == ("grace", None), "the folder of the run is gone"
    assert before.model["id"] == after.model["id"] == base.name
    assert "edit" not in after.config_as_passed
    assert Path(before.path).is_file()
    assert len(read_samples(before.path, "unlearn_facts")) == before.data["unlearn_facts"]["n_documents"]
    (row,) = (row for row in ue.compare(before, after) if row.metric == "forget_cloze_probability")
    assert row.paired is not None


def test_an_edit_is_asked_what_it_forgot(base, edit, tmp_path, capsys):
    result = ue.evaluate(
        base.model, edit, ["unlearn_thinking"], tokenizer=base.tokenizer, output=str(tmp_path / "a.json"), **SHORT,
        metadata={"retain": ["capital_of/italy"], "encoder": "off"},
    )  # fmt: skip
    asked = {record["doc"]["question"] for record in read_samples(result.path, "unlearn_thinking")}
    assert asked & {record["question"] for record in RECORDS}
    assert "asking the 2 facts that the edit forgot" in capsys.readouterr().err
    assert result.model["id"] == base.model.name_or_path


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"tokenizer": None}, "cannot be evaluated without its tokenizer", "tokenizer=..."),
        ({"model": 3}, "a int cannot be evaluated", "LoadedModel"),
        ({"tasks": []}, "no tasks", "unlearn_facts"),
        ({"limt": 3}, "unknown setting 'limt'", "limit"),
        ({"backend": "vllm"}, "is not run by vllm", "backend"),
    ],
)
def test_mistakes_are_named(base, changes, message, hint):
    given = {"model": base.model, "tokenizer": base.tokenizer, "tasks": ["unlearn_facts"]} | changes
    with pytest.raises(UserError, match=message) as error:
        ue.evaluate(**given)
    assert hint in error.value.hint


def test_a_model_that_is_trained_goes_on_being_trained(base, tmp_path):
    base.model.train()
    try:
        metadata = {"forget": ["capital_of/france"], "retain": ["capital_of/italy"], "encoder": "off"}
        ue.evaluate(base, None, "unlearn_facts", metadata=metadata, output=str(tmp_path / "b.json"), **SHORT)
        assert base.model.training
    finally:
        base.model.eval()


def test_an_attack_in_memory(base, tmp_path):
    options = {"layers": (1,), "target.steps": 1, "keys_per_dimension": 0.2, "text": str(Path(__file__))}
    edit = ue.make_edit(base, ue.load_forget_set(RECORDS), "memit", options, ue.Recipe(n_contexts=0), unrelated=False)
    weights = weights_of(base.model)
    result = ue.attack(
        edit, "quantize", base, settings={"bits": (8,)}, output=str(tmp_path / "a.json"), max_new_tokens=2
    )
    assert_untouched(base.model, weights)
    assert result.config["settings"]["bits"] == [8]
    assert result.data["in memory"]["ids"] == ["lake", "fenn"]
    assert result.edit["folder"] is None
    with pytest.raises(UserError, match="unknown option 'ouput'"):
        ue.attack(edit, "quantize", base, ouput="a.json")


def test_components_by_name(base):
    found = ue.localize(base, ue.load_forget_set(RECORDS), "random_mlps(budget=1)", cache=False)
    assert (found.method, found.budget["given"]) == ("random_mlps", "1")
    with pytest.raises(UserError, match="unknown localization"):
        ue.localize(base, ue.load_forget_set(RECORDS), "random_mlp")
