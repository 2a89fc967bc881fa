"""FUSED (`overwrite`): which layers are critical, that only these get an adapter, and what it is trained on."""

import dataclasses

import pytest
import torch
from tiny_models import (
    assert_untouched,
    one_thread,  # noqa: F401
    tiny_model,
    tiny_tokenizer,
    weights_of,
)
from training_requests import FORGET, KEPT, tensors_of

from unlearn_eval.editing.training.weights import linear_maps
from unlearn_eval.editors.gradient import overwrite
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import configure

FAST = {"steps": 4, "batch_size": 7, "micro_batch_size": 4, "learning_rate": 1e-2, "warmup_epochs": 0.0}
PLANTED = ("model.layers.1.mlp.down_proj", "model.layers.2.self_attn.v_proj")


def edit_of(model, requests=FORGET, retain=KEPT, **options):
    config = overwrite.Config(**{**FAST, **options})
    return overwrite.EDITOR.edit(model, tiny_tokenizer(), requests, config, retain=retain)


def log_prob(model, requests):
    scores = score_answers(model, [Query(r.prompt_ids, r.answer_ids) for r in requests])
    return -sum(sum(score.token_nll) / len(score.token_nll) for score in scores) / len(scores)


def planted(tmp_path, by=0.05):
    """A model that differs from the tiny one in two layers, in one twice as much."""
    other = tiny_model("llama")
    with torch.no_grad():
        for i, name in enumerate(PLANTED):
            other.get_submodule(name).weight += by * (i + 1)
    other.save_pretrained(tmp_path / "retain_only")
    tiny_tokenizer().save_pretrained(tmp_path / "retain_only")
    return str(tmp_path / "retain_only")


def test_one_step_of_descent_moves_each_layer_by_its_mean_gradient():
    """Written out: the mean over items of the mean ln p of their tokens, and its gradient."""
    model = tiny_model("llama")
    before = weights_of(model)
    config = overwrite.Config(ascent_steps=1, ascent_rate=0.5, max_grad_norm=0.0, batch_size=len(FORGET))
    found = overwrite.layer_differences(model, FORGET, config)
    assert_untouched(model, before)
    weights = [model.get_submodule(name).weight for name in linear_maps(model)]
    for weight in weights:
        weight.requires_grad_(True)
    loss = 0.0
    for request in FORGET:
        logits = model(input_ids=torch.tensor([[*request.prompt_ids, *request.answer_ids]])).logits[0].log_softmax(-1)
        start = len(request.prompt_ids) - 1
        own = [logits[start + t, token] for t, token in enumerate(request.answer_ids)]
        loss = loss + sum(own) / len(own) / len(FORGET)
    gradients = torch.autograd.grad(loss, weights)
    assert list(found) == linear_maps(model)
    for name, gradient in zip(found, gradients, strict=True):
        assert found[name] == pytest.approx(0.5 * float(gradient.abs().mean()), rel=1e-3), name


def test_the_differences_to_a_retain_only_model(tmp_path):
    model = tiny_model("llama")
    config = overwrite.Config(retain_only=planted(tmp_path))
    found = overwrite.layer_differences(model, FORGET, config)
    assert found.keys() == set(linear_maps(model))
    assert [name for name, difference in found.items() if difference > 0] == list(PLANTED)
    assert found[PLANTED[0]] == pytest.approx(0.05, rel=1e-5)
    assert overwrite.critical_layers(found, 2 / len(found)) == [PLANTED[1], PLANTED[0]]


def test_only_critical_layers_get_an_adapter_and_it_comes_off(tmp_path):
    model = tiny_model("llama")
    before = weights_of(model)
    n = len(linear_maps(model))
    edit = edit_of(model, retain_only=planted(tmp_path), critical_fraction=2 / n)
    assert set(edit.factors) == set(PLANTED)
    assert all(u.shape[1] == 16 for u, _ in edit.factors.values())
    assert list(edit.info.notes["critical"]) == [PLANTED[1], PLANTED[0]]
    loaded = load_edit(edit.save(tmp_path / "edit", tiny_tokenizer(), model.config))
    handle = loaded.apply(model)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"{name}.weight" for name in PLANTED}
    handle.restore()
    assert_untouched(model, before)


def test_the_largest_are_critical_and_there_is_always_one():
    differences = {"a": 0.1, "b": 0.4, "c": 0.4, "d": 0.2}
    assert overwrite.critical_layers(differences, 0.5) == ["b", "c"]
    assert overwrite.critical_layers(differences, 1.0) == ["b", "c", "d", "a"]
    assert overwrite.critical_layers(differences, 0.01) == ["b"]


def test_it_is_trained_on_what_is_retained_alone():
    """With the layers named, other answers to forget make the same adapter; what is retained becomes likelier."""
    model = tiny_model("llama")
    options = {"components": "layers.1.mlp", "lora_dropout": 0.0}
    edit = edit_of(model, **options)
    swapped = [dataclasses.replace(request, answer_ids=request.answer_ids[::-1]) for request in FORGET]
    other = edit_of(model, swapped, **options)
    own, theirs = tensors_of(edit), tensors_of(other)
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    before = log_prob(model, KEPT)
    with applied(edit, model):
        assert log_prob(model, KEPT) > before
    assert "critical" not in edit.info.notes


def test_with_a_forget_weight_the_answers_are_pushed_down_too():
    model = tiny_model("llama")
    with applied(edit_of(model), model):
        overwritten = log_prob(model, FORGET)
    with applied(edit_of(model, forget_weight=1.0), model):
        assert log_prob(model, FORGET) < overwritten


def test_it_continues_an_edit(tmp_path):
    model = tiny_model("llama")
    before = weights_of(model)
    config = overwrite.Config(**FAST)
    first = overwrite.EDITOR.edit(model, None, FORGET[:3], config, retain=KEPT)
    first = load_edit(first.save(tmp_path / "first"))
    both = overwrite.EDITOR.edit(model, None, FORGET[3:], config, retain=KEPT, state=first)
    assert_untouched(model, before)
    assert set(both.factors) >= set(first.factors)
    for name, (u, v) in first.factors.items():
        assert torch.equal(both.factors[name][0][:, : u.shape[1]], u)
        assert torch.equal(both.factors[name][1][: v.shape[0]], v)


def test_what_is_refused(tmp_path):
    model = tiny_model("llama")
    bare = [dataclasses.replace(FORGET[0], answer_ids=())]
    with pytest.raises(UserError, match="overwrite needs the answers, and request r0 has none"):
        edit_of(model, bare)
    with pytest.raises(UserError, match="overwrite needs items to retain"):
        edit_of(model, retain=())
    tiny_model("gpt2").save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="has no layer model.layers.0"):
        edit_of(model, retain_only=str(tmp_path / "other"))
    with pytest.raises(UserError, match="critical_fraction"):
        configure(overwrite.Config, {"critical_fraction": "0"})


def test_bfloat16_differences_are_not_rounded_away():
    model = tiny_model("llama").to(torch.bfloat16)
    found = overwrite.layer_differences(model, FORGET, overwrite.Config(ascent_rate=1e-6, ascent_steps=1))
    assert all(difference > 0 for difference in found.values())
