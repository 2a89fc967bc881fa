"""The demo from end to end, with few facts: results, interruption, going on, restoring."""

import copy
import json

import pytest
from forgetful_models import taught, without_gradients
from tiny_checkpoints import make_tiny

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.editing.recipe import DemoConfig
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.results.files import read_result, read_samples
from unlearn_eval.runs import demo as pipeline
from unlearn_eval.utils.errors import UserError

TASK = "unlearn_facts"
EASY = ["france", "germany", "italy", "spain", "japan", "egypt", "greece", "russia", "china", "poland"]


@pytest.fixture
def few_facts(monkeypatch):
    """Ten facts that a small model knows, so that a demo takes a minute and not six."""
    few = ForgetSet("facts", tuple(item for item in facts() if item.id in {f"capital_of/{name}" for name in EASY}))
    assert len(few) == len(EASY)
    monkeypatch.setattr(pipeline, "facts", lambda: few)
    return few


@pytest.fixture(scope="module")
def taught_folder(tokenizer, tmp_path_factory):
    """A tiny model that was taught the ten facts as a chat."""
    folder = tmp_path_factory.mktemp("taught")
    known = [item for item in facts() if item.id in {f"capital_of/{place}" for place in EASY}]
    own = copy.deepcopy(tokenizer)
    own.eos_token = "<|im_end|>"  # a turn's end is an answer's, as in models that are served as chats
    random = LoadedModel(without_gradients(make_tiny("llama", len(own))), own, "taught", None, "taught")
    taught(random, tuple(known), prompt_format=random.prompt_format(True)).model.save_pretrained(folder)
    own.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["tiny", pytest.param("default", marks=[pytest.mark.real_model, pytest.mark.slow])])
def model(request):
    """A model that knows the facts, small or real, and a method that is strong enough for it."""
    if request.param == "default":
        return {"editor": "memit"}
    return {"model": request.getfixturevalue("taught_folder"), "editor": "emmet"}


def config(folder, **changes):
    return DemoConfig(
        **{"output": str(folder), "n_forget": 2, "n_retain": 3, "device": "cpu", "batch_size": 4} | changes
    )


def test_demo_forgets_measures_and_restores(model, few_facts, tmp_path):
    said, told = [], []
    before, after = pipeline.run_demo(config(tmp_path / "demo", **model), said.append, lambda *a: told.append(a))
    assert [line[:3] for line in said if line[0].isdigit()] == ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]
    assert {what for what, _, _ in told} >= {"facts asked", "target values", "layers"}

    # The files are there, strict, and say everything that is needed to repeat the run.
    for name, result in (("before", before), ("after", after)):
        again = read_result(tmp_path / "demo" / f"{name}.json")
        assert again == result
        assert result.status == "complete"
        assert result.metrics[TASK]["forget_accuracy"].n == 2
        assert result.metrics[TASK]["retain_accuracy"].n == 3
        assert len(result.model["weights_hash"]) == 64
        assert result.data[TASK]["hash"]
    assert before.edit is None
    assert after.edit["editor"] == model["editor"]
    assert after.model["weights_hash"] != before.model["weights_hash"]
    assert before.metrics[TASK]["forget_accuracy"].value == 1  # these were chosen because it knows them
    assert after.metrics[TASK]["forget_accuracy"].value < 1
    least = 1 if "model" in model else 1 / 2  # in a tiny model's two layers there is little room
    assert after.metrics[TASK]["forget_probability"].value < least * before.metrics[TASK]["forget_probability"].value
    samples = read_samples(tmp_path / "demo" / "after.json", TASK)
    assert {record["doc"]["split"] for record in samples} == {"forget", "retain", "neighbors"}

    # A second run reuses everything: it asks, edits and evaluates nothing.
    told.clear()
    same = pipeline.run_demo(config(tmp_path / "demo", **model), said.append, lambda *a: told.append(a))
    assert same == (before, after)
    assert not told

    # Other settings do not mix with these files: they are set aside, not overwritten.
    (tmp_path / "demo" / "demo.json").write_text('{"inputs": "others"}')
    pipeline._start(tmp_path / "demo", config(tmp_path / "demo", **model), "hash", said.append)
    (aside,) = tmp_path.glob("demo.*")
    assert read_result(aside / "after.json") == after


def test_an_interrupted_demo_goes_on(model, few_facts, tmp_path):
    calls = []

    def interrupt(what, done, total):
        calls.append(done)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run_demo(config(tmp_path / "demo", **model), print, interrupt)
    asked = tmp_path / "demo" / "asked.jsonl"
    finished = asked.read_text()
    assert len(finished.splitlines()) == 8
    asked.write_text(finished + '{"id": "capital_of/x", "gene')  # as a kill leaves it

    class Enough(Exception):
        pass

    def stop(what, done, total):
        calls.append((what, done))
        if what == "target values":  # second moments may be cached
            raise Enough

    calls.clear()
    with pytest.raises(Enough):
        pipeline.run_demo(config(tmp_path / "demo", **model), print, stop)
    assert calls[0] == ("facts asked", 10), "only the two facts that were left are asked"
    assert asked.read_text().startswith(finished)
    assert read_result(tmp_path / "demo" / "before.json").status == "complete"
    assert not (tmp_path / "demo" / "edit").exists()


def test_a_model_that_knows_too_little_and_a_foreign_folder(few_facts, tmp_path):
    with pytest.raises(UserError, match="knows 1 of the facts, and the demo needs 5"):
        pipeline._split(tmp_path, config(tmp_path), ["capital_of/france"])
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a demo's folder"):
        pipeline._start(tmp_path, config(tmp_path), "hash", print)
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == '["thesis.txt"]'
