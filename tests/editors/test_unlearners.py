"""The gradient methods as editors: their contract, which way each step goes, what is kept, and settings."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    assert_untouched,
    one_thread,  # noqa: F401
    tiny_model,
    tiny_tokenizer,
    weights_of,
)
from training_requests import FAST, FORGET, KEPT, tensors_of

from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.editing.editor import Editor, editor_names, get_editor, trained_editor_names
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.training.gradient import GradientConfig
from unlearn_eval.editing.training.presets import unlearning_preset
from unlearn_eval.editors.gradient import altpo, ceu, ft_m, kl, npo, rmu
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.runs.edit import make_edit
from unlearn_eval.runs.finetune import FINETUNE
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import configure

TOKENIZER = tiny_tokenizer()
GRADIENT_METHODS = trained_editor_names()
RETAINING = [name for name in GRADIENT_METHODS if get_editor(name).Config().retain_term != "none"]


@pytest.fixture(scope="module")
def knowing():
    """A tiny model that knows both the answers to forget and those to keep."""
    from unlearn_eval.editing.training.gradient import train_edit

    model = tiny_model("llama")
    config = GradientConfig(steps=60, batch_size=12, learning_rate=1e-2, warmup_epochs=0, retain_term="none")
    train_edit(FINETUNE, model, None, [*FORGET, *KEPT], config).apply(model)
    assert log_prob(model, FORGET, "answer_ids") > -0.2
    return model


def log_prob(model, requests, what):
    """The mean ln p per token."""
    scores = score_answers(model, [Query(r.prompt_ids, getattr(r, what)) for r in requests])
    return -sum(sum(score.token_nll) / len(score.token_nll) for score in scores) / len(scores)


def run(name, model, retain=KEPT, **options):
    editor = get_editor(name)
    return editor.edit(model, TOKENIZER, FORGET, editor.Config(**{**FAST, **options}), retain=retain)


# The contract ----------------------------------------------------------------------------------------------


def test_they_are_all_there():
    assert set(GRADIENT_METHODS) <= set(editor_names())
    for name in GRADIENT_METHODS:
        assert isinstance(get_editor(name), Editor)
        text = (Path(__file__).parents[2] / "editors" / "gradient" / f"{name}.py").read_text()
        assert "L(θ" in text
        assert re.search(r"\d{4}\.\d{5}", text), "its paper"
        assert "iffers from" in text or "No known difference" in text


@pytest.mark.parametrize(
    ("name", "lora_rank"), [*((name, 0) for name in GRADIENT_METHODS), *((name, 2) for name in ("kl", "rmu", "altpo"))]
)
def test_contract(name, lora_rank, tmp_path):
    model = tiny_model("llama")
    before = weights_of(model)
    options = {"lora_rank": lora_rank, "steps": 2, "micro_batch_size": 4}
    edit = run(name, model, **options)
    assert_untouched(model, before)
    assert edit.info.editor == name
    again = run(name, model, **options)
    assert again.info == edit.info
    assert again.texts == edit.texts
    own, other = tensors_of(edit), tensors_of(again)
    assert all(torch.equal(own[key], other[key]) for key in own)
    assert any(tensor.any() for tensor in own.values())
    declared = {key if key.endswith(".weight") else f"{key}.weight" for key in own}
    handle = edit.apply(model)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed <= declared
    assert changed
    now = weights_of(model)
    handle.restore()
    with applied(load_edit(edit.save(tmp_path / "edit", TOKENIZER, model.config)), model):
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, now[key]), key
    assert_untouched(model, before)
    curve = [json.loads(line) for line in edit.texts["training.jsonl"].splitlines()]
    assert [entry["step"] for entry in curve] == list(range(1, edit.info.notes["training"]["steps"] + 1))
    assert edit.info.config["learning_rate"] == FAST["learning_rate"]
    assert "folder" not in edit.info.config


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"llama"}))
@pytest.mark.parametrize(("name", "options"), [("kl", {}), ("rmu", {}), ("npo", {"lora_rank": 2})])
def test_contract_on_other_architectures(name, options, architecture):
    model = tiny_model(architecture)
    before = weights_of(model)
    edit = run(name, model, steps=2, **options)
    assert_untouched(model, before)
    with applied(edit, model):
        assert any(not torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert_untouched(model, before)


def test_no_requests_change_nothing():
    model = tiny_model("llama")
    before = weights_of(model)
    for name in GRADIENT_METHODS:
        for rank in (0, 2):
            empty = get_editor(name).edit(model, None, [], get_editor(name).Config(lora_rank=rank))
            with applied(empty, model):
                assert_untouched(model, before)


def test_another_seed_is_another_edit():
    model = tiny_model("llama")
    one, other = (tensors_of(run("npo", model, seed=seed)) for seed in (0, 1))
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_going_on_from_an_edit(lora_rank):
    """What two edits leave is the first, trained further; neither touches the base."""
    model = tiny_model("llama")
    before = weights_of(model)
    config = npo.Config(**{**FAST, "lora_rank": lora_rank, "components": "mlp.down_proj"})
    first = npo.EDITOR.edit(model, None, FORGET[:3], config, retain=KEPT)
    both = npo.EDITOR.edit(model, None, FORGET[3:], config, retain=KEPT, state=first)
    assert_untouched(model, before)
    handle = first.apply(model)
    second = npo.EDITOR.edit(model, None, FORGET[3:], config, retain=KEPT)
    second.apply(model)
    expected = weights_of(model)
    handle.restore()
    with applied(both, model):
        for key, tensor in model.state_dict().items():
            if lora_rank:  # two products are added at once, or one after another
                torch.testing.assert_close(tensor, expected[key])
            else:
                assert torch.equal(tensor, expected[key])
    assert len(both.texts["training.jsonl"].splitlines()) == 2 * len(first.texts["training.jsonl"].splitlines())
    with pytest.raises(UserError, match="made by npo"):
        kl.EDITOR.edit(model, None, FORGET, kl.Config(**FAST), retain=KEPT, state=first)
    other = dataclasses.replace(config, lora_rank=0 if lora_rank else 2)
    with pytest.raises(UserError, match="set lora_rank alike"):
        npo.EDITOR.edit(model, None, FORGET, other, retain=KEPT, state=first)


# Which way it goes -----------------------------------------------------------------------------------------

STEP = {
    "steps": 1, "batch_size": len(FORGET), "micro_batch_size": 8, "schedule": "constant", "optimizer": "sgd",
    "max_grad_norm": 0.0, "learning_rate": 1e-3, "weight_decay": 0.0,
}  # fmt: skip
DOWN = sorted(set(GRADIENT_METHODS) - {"idk", "ft_m", "rmu", "pdu", "overwrite"})  # overwrite: nothing is pushed down
SMALL = {"pdu": 1e-6}  # its loss is hundreds of times as large


@pytest.mark.parametrize("name", DOWN)
def test_one_step_makes_the_answers_less_likely(name, knowing):
    alone = {"retain_term": "none"} if name in RETAINING else {}  # the retained answers share tokens with these
    edit = run(name, knowing, **STEP, **alone)
    before = log_prob(knowing, FORGET, "answer_ids")
    with applied(edit, knowing):
        assert log_prob(knowing, FORGET, "answer_ids") < before


@pytest.mark.parametrize("name", ["idk", "ft_m", "dpo"])
def test_one_step_makes_the_refusals_more_likely(name, knowing):
    edit = run(name, knowing, **STEP)
    before = log_prob(knowing, FORGET, "target_ids")
    with applied(edit, knowing):
        assert log_prob(knowing, FORGET, "target_ids") > before


@pytest.mark.parametrize("name", ["rmu", "pdu"])
def test_one_step_lowers_the_forget_loss(name, knowing):
    options = {**STEP, "steps": 2, "retain_term": "none", "learning_rate": SMALL.get(name, 1e-2)}
    curve = [json.loads(line) for line in run(name, knowing, **options).texts["training.jsonl"].splitlines()]
    assert curve[1]["forget_loss"] < curve[0]["forget_loss"]


def one_for_each_retain_term():
    """Methods that retain; those whose default term another one before has already are slow."""
    seen: set[str] = set()
    for name in sorted(set(RETAINING) - {"undial"}):
        term = get_editor(name).Config().retain_term
        yield pytest.param(name, marks=[pytest.mark.slow] if term in seen else [])
        seen.add(term)


@pytest.mark.parametrize("name", one_for_each_retain_term())
def test_the_retain_term_holds_the_rest(name, knowing):
    """After a few steps the answers to keep are likelier with it than without it."""
    options = {"steps": 12, "batch_size": 7, "learning_rate": 1e-3, "warmup_epochs": 0.0}
    found = {}
    for term in (get_editor(name).Config().retain_term, "none"):
        with applied(run(name, knowing, **{**options, "retain_term": term}), knowing):
            found[term] = log_prob(knowing, KEPT, "answer_ids")
    held, lost = found.values()
    assert held > lost


def test_undial_keeps_by_itself(knowing):
    """It retains nothing by default, and its target is near."""
    before = log_prob(knowing, KEPT, "answer_ids")
    assert get_editor("undial").Config().retain_weight == 0
    with applied(run("undial", knowing, steps=5, learning_rate=1e-4), knowing):
        assert log_prob(knowing, KEPT, "answer_ids") > before - 0.5


# What is missing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RETAINING)
def test_nothing_to_retain(name):
    if get_editor(name).Config().retain_weight == 0:
        run(name, tiny_model("llama"), retain=(), steps=1)
        return
    with pytest.raises(UserError, match=f"{name} needs items to retain.*\nhint: give --retain SET"):
        run(name, tiny_model("llama"), retain=())
    run(name, tiny_model("llama"), retain=(), retain_term="none", steps=1)


def test_requests_without_what_is_read():
    model = tiny_model("llama")
    bare = [dataclasses.replace(request, answer_ids=()) for request in FORGET]
    with pytest.raises(UserError, match="npo needs the answers, and request r0 has none"):
        npo.EDITOR.edit(model, None, bare, npo.Config(**FAST), retain=KEPT)
    ft_m.EDITOR.edit(model, None, bare, ft_m.Config(steps=1))  # reads refusals only
    with pytest.raises(UserError, match="questions and answers as text"):
        altpo.EDITOR.edit(
            model, TOKENIZER, [dataclasses.replace(r, question="") for r in FORGET], altpo.Config(), retain=KEPT
        )


# Methods of their own ----------------------------------------------------------------------------------------


def test_rmu_steers_the_layer_it_says_and_trains_below():
    model = tiny_model("llama")
    edit = run("rmu", model)
    assert edit.info.config["layer"] == 1  # 7/32 of 4
    assert set(edit.tensors) == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    with pytest.raises(UserError, match="do not fit a model of 4 layers"):
        run("rmu", model, layer=4)
    assert ft_m.prepare(ft_m.Config(), model).layer == 3  # 21/32 of 4, rounded
    assert (rmu.Config().adaptive, rmu.Config().steering) == (True, 5.0)
    fixed = run("rmu", model, adaptive=False, steering=5.0)
    assert any(not torch.equal(fixed.tensors[key], edit.tensors[key]) for key in edit.tensors)


def test_rmu_on_long_training_moves_hidden_states_to_the_direction(knowing):
    from unlearn_eval.editing.training import objectives
    from unlearn_eval.models.tracing import trace

    edit = run("rmu", knowing, steps=150, learning_rate=3e-2, retain_term="none", schedule="constant", layer=2)
    u = objectives.steering_direction(16, 0)

    def along(request):
        with trace(knowing, outputs=["model.layers.2"]) as seen, torch.no_grad():
            knowing(input_ids=torch.tensor([request.prompt_ids]))
        hidden = seen.outputs["model.layers.2"][0, -1]
        return float(hidden @ u / hidden.norm())

    before = sum(map(along, FORGET)) / len(FORGET)
    with applied(edit, knowing):
        after = sum(map(along, FORGET)) / len(FORGET)
    assert after > before + 0.2
    assert rmu.Config().retain_term == "representation"


def test_alternates():
    model = tiny_model("llama")
    config = altpo.Config(alternates=3, seed=1)
    plain = PromptFormat(TOKENIZER, chat=False)
    written = altpo.write_alternates(model, plain, FORGET[:3], config, lambda *_: None)
    again = altpo.write_alternates(
        model, plain, FORGET[:3], dataclasses.replace(config, generation_batch_size=2), lambda *_: None
    )
    assert [len(texts) <= 3 for texts in written] == [True] * 3
    assert again == written  # neither order nor batches matter
    other = altpo.write_alternates(model, plain, FORGET[:3], dataclasses.replace(config, seed=2), lambda *_: None)
    assert other != written
    edit = run("altpo", model)
    lines = [json.loads(line) for line in edit.texts["alternates.jsonl"].splitlines()]
    assert [line["id"] for line in lines] == [request.id for request in FORGET]
    n = sum(max(1, len(line["alternates"])) for line in lines)
    assert edit.info.notes["training"]["steps"] == -(-n * 2 // 4)  # two epochs over all alternates, 4 at a time


# From a forget set ------------------------------------------------------------------------------------------

ITEMS = (
    ForgetItem("a", "What is the capital of France?", "Paris", subject="France"),
    ForgetItem("b", "Who wrote Hamlet?", "Shakespeare"),
)
KEEP = (*ITEMS[:1], ForgetItem("c", "What is the capital of Japan?", "Tokyo"), ForgetItem("d", "Who asks?", "I"))


@pytest.fixture
def loaded():
    return LoadedModel(tiny_model("llama"), TOKENIZER, "tiny", None, "tiny")


def test_from_a_forget_set(loaded, tmp_path):
    before = weights_of(loaded.model)
    options = {"epochs": "2", "learning_rate": "1e-3"}
    forget, retain = ForgetSet("tofu:forget01", ITEMS), ForgetSet("mine", KEEP)
    edit = make_edit(loaded, forget, "npo", options, Recipe(), retain=retain)
    assert_untouched(loaded.model, before)
    notes = edit.info.notes
    assert notes["preset"]["name"] == "TOFU"
    assert "OpenUnlearning@d3d7cf9e" in notes["preset"]["source"]
    assert notes["training"]["n_retain"] == 2  # "a" is to be forgotten
    assert edit.info.requests["retain_set"] == "mine"
    assert edit.info.requests["contexts"] == []
    assert edit.info.config["epochs"] == 2.0
    assert edit.info.config["beta"] == 0.1
    check = notes["self_check"]
    assert check["answer_probability_before"] > 0
    again = load_edit(edit.save(tmp_path / "edit", loaded.tokenizer, loaded.model.config))
    assert again.texts == edit.texts
    assert set(again.texts) == {"targets.jsonl", "training.jsonl"}
    kept = {"folder": str(tmp_path / "run")}
    stepwise = make_edit(loaded, forget, "npo", options | kept, Recipe(per_step=1), retain=retain)
    assert (tmp_path / "run" / "1" / "run.json").is_file()
    assert stepwise.info.requests["n_merged"] == 2


def test_what_make_edit_refuses(loaded):
    forget = ForgetSet("mine", ITEMS)
    with pytest.raises(UserError, match="ultraedit takes no retain set"):
        make_edit(loaded, forget, "ultraedit", retain=ForgetSet("more", KEEP))
    with pytest.raises(UserError, match="rome retains nothing with these settings"):
        make_edit(loaded, forget, "rome", {"second_moments": "false"}, retain=ForgetSet("more", KEEP))
    with pytest.raises(UserError, match="everything in the retain set 'same' is to be forgotten"):
        make_edit(loaded, forget, "memit", retain=ForgetSet("same", ITEMS[:1]))
    with pytest.raises(UserError, match="everything in the retain set 'same' is to be forgotten"):
        make_edit(loaded, forget, "npo", retain=ForgetSet("same", ITEMS[:1]))
    with pytest.raises(UserError, match="nothing to merge"):
        make_edit(loaded, forget, "npo", recipe=Recipe(merge="key"), retain=ForgetSet("more", KEEP))
    with pytest.raises(UserError, match="give --retain SET"):
        make_edit(loaded, forget, "npo")


@pytest.mark.parametrize("name", GRADIENT_METHODS)
@pytest.mark.parametrize("benchmark", ["tofu:forget10", "pistol:A_B", "facts", "tofu:factual"])
def test_every_preset_sets_what_there_is(name, benchmark):
    preset = unlearning_preset(name, benchmark)
    assert preset.source
    config = configure(get_editor(name).Config, preset.settings)
    assert isinstance(config, GradientConfig)
    assert unlearning_preset(name, "my_facts.jsonl") is None or name in ("ft_m", "overwrite")


def test_narrow_models_learn_faster():
    """A rate for a narrower model than any that settings were published for, and for no other."""
    model = tiny_model("llama")
    for width, factor in ((2048, 1.0), (4096, 1.0), (1024, 2.0), (512, 4.0), (16, 4.0)):
        model.config.hidden_size = width
        own, published = (unlearning_preset("npo", "tofu:forget10", given) for given in (model, None))
        assert float(own.settings["learning_rate"]) == factor * float(published.settings["learning_rate"])
        assert (own == published) == (factor == 1.0)
    pistol = unlearning_preset("npo", "pistol:A_B", model)
    assert pistol == unlearning_preset("npo", "pistol:A_B")
    assert unlearning_preset("unlikelihood", "facts", model) == unlearning_preset("unlikelihood", "facts")


def test_presets_of_single_splits_and_variants():
    assert unlearning_preset("simnpo", "tofu:forget05").settings["beta"] == "2.5"
    assert unlearning_preset("simnpo", "tofu:forget10").settings["beta"] == "4.5"
    assert unlearning_preset("rmu", "tofu:forget10").settings["variant"] == "openunlearning"
    kept = ceu.Config(variant="retain")
    assert (ceu.Config().retains, kept.retains, kept.retain_term) == (False, True, "likelihood")
    assert not dataclasses.replace(kept, retain_weight=0.0).retains
    with pytest.raises(UserError, match="unknown variant of CE-U"):
        ceu.Config(variant="retian")


def test_the_retain_only_models_probability_ends_a_run(loaded, tmp_path):
    (tmp_path / "retain_reference.json").write_text(json.dumps({"log_truth_ratios": {"forget/0": -1.5}}))
    options = {"epochs": "2", "stop_probability": str(tmp_path)}
    forget, retain = ForgetSet("tofu:forget01", ITEMS), ForgetSet("mine", KEEP)
    with pytest.raises(UserError, match="does not say how probable the forget answers are"):
        make_edit(loaded, forget, "npo", options, Recipe(), retain=retain)
    stored = {"log_truth_ratios": {"forget/0": -1.5}, "probability": 0.75}
    (tmp_path / "retain_reference.json").write_text(json.dumps(stored))
    made = make_edit(loaded, forget, "npo", options, Recipe(), retain=retain)
    assert made.info.config["stop_probability"] == "0.75"
    assert made.info.notes["training"]["stopped"]["limit"] == 0.75  # the tiny model knew less from the start
    with pytest.raises(UserError, match="does not exist"):
        make_edit(loaded, forget, "npo", {"stop_probability": "nowhere"}, Recipe(), retain=retain)


def test_closed_form_methods_have_no_such_preset():
    assert unlearning_preset("memit", "tofu:forget10") is None
